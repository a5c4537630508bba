"""Ctrl-C and SIGTERM during a training: the step that runs is finished and saved before the process ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

AT_ONCE_SECONDS = 1.0  # a second signal after so long ends the process without waiting; torchrun sends two at once
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The process was asked to end.

    Args:
        signum: the signal.
        saved: the step that a resumed run goes on behind, if the training had begun.
    """

    def __init__(self, signum: int, saved: int | None = None) -> None:
        super().__init__()
        self.signum, self.saved = signum, saved


class Signals(AbstractContextManager["Signals"]):
    """Handlers of SIGINT and SIGTERM, as long as the block runs.

    While `waits` is set a signal is noted in `received`, for the training loop to look at between two steps. Otherwise,
    or at a second signal, `Stopped` is raised at once. Loader workers inherit the handlers: they leave Ctrl-C to the
    main process, since a terminal sends it to all processes, and end at SIGTERM.

    The launcher of several processes may be killed, which leaves the processes running: `received` is then SIGTERM.
    """

    def __init__(self) -> None:
        self.waits = False
        self._received: int | None = None
        self._time = 0.0
        self._process = os.getpid()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._before: dict[int, Any] = {}

    @property
    def received(self) -> int | None:
        """The signal that came, if one did."""
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            self._received = signal.SIGTERM
        return self._received

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers there only
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        now = time.monotonic()
        again = self._received is not None and now - self._time > AT_ONCE_SECONDS
        if not self.waits or again:
            raise Stopped(number)
        if self._received is None:
            self._received, self._time = number, now
