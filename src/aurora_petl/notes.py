"""Notes on what a command does, such as how it reads its data: lines to stderr, which ``--quiet`` leaves out. Warnings
and errors are not among them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import one_line

_quiet = False


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """Leave out the notes of this process within the block, if ``quiet``."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def note(line: str) -> None:
    """Print a line to stderr, if there is one and it is not hushed."""
    if not _quiet and sys.stderr is not None:
        print(one_line(f"aurora: {line}"), file=sys.stderr, flush=True)
