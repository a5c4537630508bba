"""Folders that one process writes to at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import AuroraError

LOCK_SECONDS = 10.0  # loader workers of a run that was killed hold its lock for a few seconds longer


@contextmanager
def lock(folder: Path, what: str = "in use") -> Iterator[None]:
    """Hold ``folder`` against other processes that would write to it, as long as the block runs.

    The system lets go of the lock when its process ends, however it ends. The lock is the file ``.lock`` in the folder,
    which stays there and is never opened through a link.

    Raises:
        AuroraError: if another process holds it.
    """
    import filelock  # and asyncio, which only a lock needs

    held = filelock.FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        held.acquire()
    except filelock.Timeout as error:
        raise AuroraError(f"{folder} is {what} by another process; wait for it, or name another folder") from error
    try:
        yield
    finally:
        held.release()
