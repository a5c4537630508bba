"""A bound on what threads decode at once: a picture of 100 megapixels takes 300 MB while it is decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PIXELS = 256 * 1024**2


class Budget:
    """An amount of which threads hold parts; who finds too little left waits."""

    def __init__(self, amount: int = PIXELS) -> None:
        self._amount, self._held = amount, 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, part: int) -> Iterator[None]:
        """Hold ``part`` for as long as the block runs; what is larger than all is held alone."""
        part = min(part, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._held + part <= self._amount)
            self._held += part
        try:
            yield
        finally:
            with self._changed:
                self._held -= part
                self._changed.notify_all()
