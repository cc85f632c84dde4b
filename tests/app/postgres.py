"""A private PostgreSQL cluster for the session: Debian's package, a temporary directory, a Unix socket."""

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "postgresql"


def find_programs() -> Path | None:
    """The directory of initdb, postgres and pg_ctl: on the PATH, or where Debian puts it."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += [Path(place) for place in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    return next((p for p in places if (p / "initdb").exists() and (p / "postgres").exists()), None)


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of the database `postgres` of a fresh cluster. Raises `RuntimeError` with a reason to skip."""
    programs = find_programs()
    if programs is None:
        raise RuntimeError(f"PostgreSQL is not installed: apt-get install {PACKAGE}")
    # PostgreSQL refuses to run as root. A socket's path may have 107 bytes: too few for pytest's directories.
    user = "nobody" if os.geteuid() == 0 else None
    root = Path(tempfile.mkdtemp(prefix="pit-pg-"))
    try:
        if user:
            os.chown(root, pwd.getpwnam(user).pw_uid, -1)

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=root, check=True, capture_output=True, timeout=60)

        data = str(root / "data")
        run(
            str(programs / "initdb"), "--pgdata", data, "--username", "pit", "--auth", "trust",
            "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        options = f"-c listen_addresses='' -c unix_socket_directories='{root}' -c fsync=off"
        pg_ctl = str(programs / "pg_ctl")
        run(
            pg_ctl, "start", "--pgdata", data, "--wait", "--log", str(root / "log"), "--options", options,
        )  # fmt: skip
        try:
            yield f"postgresql://pit@/postgres?host={root}"
        finally:
            run(pg_ctl, "stop", "--pgdata", data, "--mode", "immediate")
    finally:
        shutil.rmtree(root, ignore_errors=True)
