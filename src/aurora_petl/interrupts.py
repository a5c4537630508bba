"""Ctrl-C while the ``aurora`` command imports what it needs."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType


class at_once:
    """As long as the block runs, Ctrl-C ends the process with one line and status 130: its imports take seconds, and
    nothing is lost. Where Python's own handler is not set, as in a thread or a program that has another, nothing is
    changed."""

    def __enter__(self) -> None:
        self._own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._own:
            try:
                signal.signal(signal.SIGINT, _end)
            except ValueError:  # in a thread
                self._own = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._own:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"aurora: stopped\n")
    os._exit(128 + number)
