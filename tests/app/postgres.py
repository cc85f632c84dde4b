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
    if find_programs() is None:
        raise RuntimeError(f"PostgreSQL is not installed: apt-get install {PACKAGE}")
    # A socket's path may have 107 bytes: too few for pytest's directories.
    root = Path(tempfile.mkdtemp(prefix="pit-pg-"))
    try:
        if USER:
            os.chown(root, pwd.getpwnam(USER).pw_uid, -1)
        _run(
            root, "initdb", "--username", "pit", "--auth", "trust", "--encoding", "UTF8", "--locale", "C",
            "--no-sync",
        )  # fmt: skip
        url = f"postgresql://pit@/postgres?host={root}"
        start(url)
        try:
            yield url
        finally:
            stop(url)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def start(url: str, tiny: str | None = None) -> None:
    """Start the cluster of this URL, which `cluster` gave or which was stopped. `tiny`, a size: it alone
    finds a file system of that size in `tiny_folder(url)`; needs root."""
    root = _root(url)
    options = f"-c listen_addresses='' -c unix_socket_directories='{root}' -c fsync=off"
    command = ("pg_ctl", "start", "--wait", "--log", str(root / "log"), "--options", options)
    if tiny is None:
        _run(root, *command)
        return
    folder = tiny_folder(url)
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={tiny},mode=700,uid={pwd.getpwnam("nobody").pw_uid} tmpfs "{folder}"'
    become = ("setpriv", "--reuid=nobody", "--clear-groups")
    _run(root, *command, prefix=("unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *become))


def tiny_folder(url: str) -> Path:
    return _root(url) / "tiny"


def stop(url: str) -> None:
    """Stop it as a crash of its own would: what is in its memory alone is lost."""
    _run(_root(url), "pg_ctl", "stop", "--mode", "immediate")


# PostgreSQL refuses to run as root.
USER = "nobody" if os.geteuid() == 0 else None


def _root(url: str) -> Path:
    return Path(url.partition("?host=")[2])


def _run(root: Path, program: str, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
    """`prefix`: a command that becomes the user by itself."""
    programs = find_programs()
    assert programs is not None
    command = [*prefix, str(programs / program), *arguments, "--pgdata", str(root / "data")]
    user = None if prefix else USER
    subprocess.run(command, user=user, cwd=root, check=True, capture_output=True, timeout=60)
