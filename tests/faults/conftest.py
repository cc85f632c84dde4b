"""The databases of the other tests, and servers that start in a moment."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import database, postgres_cluster
from tests.faults.forked import USER_TOO, Nursery, nursery

__all__ = ["database", "postgres_cluster"]


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the servers of `forks`, and they alone, find a file system of 600 kB."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="session")
def the_nursery(disk: Path) -> Iterator[Nursery]:
    mount = f'mount -t tmpfs -o size=600k tmpfs "{disk}" && exec "$@"'
    inside = ("unshare", "--mount", *USER_TOO, "sh", "-c", mount, "sh")
    may = subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    with nursery(*inside if may else ()) as found:
        found.has_a_namespace = may
        yield found


@pytest.fixture
def forks(the_nursery: Nursery) -> Iterator[Nursery]:
    """Servers of one test."""
    yield the_nursery
    the_nursery.kill_all()
