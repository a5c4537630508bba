"""The folder of a run: who may write into it, and that one process at a time does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from . import distributed
from .distributed import rank
from .errors import AuroraError
from .locks import lock


def claim(folder: Path, resume: bool) -> None:
    """Make sure that ``folder`` may take a run.

    Raises:
        AuroraError: if it holds one and ``resume`` is not asked for, or the other way round, or is a file.
    """
    if folder.is_file():
        raise AuroraError(f"{folder} is a file; name a folder with --out")
    begun = (folder / "recipe.yaml").is_file()
    if resume and not begun:
        raise AuroraError(f"{folder} holds no run to resume; leave out --resume to start one")
    if not resume and folder.exists() and (begun or any(path.name != ".lock" for path in folder.iterdir())):
        what = "a run" if begun else "files"
        raise AuroraError(f"{folder} already holds {what}; name another --out, or continue it with --resume")
    if resume and (folder / "metrics.json").is_file():
        raise AuroraError(f"{folder} holds a finished run; name another --out to train anew")


@contextmanager
def ours(folder: Path, resume: bool) -> Iterator[None]:
    """Claim and lock a run's folder for all ranks, by the first one's hand.

    Raises:
        AuroraError: see `claim`, or if another process trains into it.
    """
    with ExitStack() as stack:
        with distributed.together():
            if rank() == 0:
                claim(folder, resume)
                stack.callback(_remove_empty, [place for place in (folder, *folder.parents) if not place.exists()])
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(folder, "being trained"))
        yield


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, if nothing but a lock is in them: of a run that was refused."""
    with suppress(OSError):
        for folder in folders:
            if [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
            folder.rmdir()
