"""What the benchmarks of speed and memory share."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def formed(model: nn.Module) -> list[Tensor]:
    """Copies of weights with their updates, and updates, which Aurora's layers keep for all passes."""
    updates: list[Any] = [module.updates for module in model.modules() if hasattr(module, "updates")]
    return [part for own in updates for part in own.tensors()]


def formed_bytes(model: nn.Module) -> int:
    """Bytes of what `formed` gives, each storage once."""
    storages = [part.untyped_storage() for part in formed(model)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def saved_bytes(output: Tensor, model: nn.Module) -> int:
    """Bytes that the forward pass of ``output`` keeps for the backward pass, weights and copies of them aside, each
    storage once.

    Read from the graph's nodes: hooks on saved tensors would change what Aurora's layers keep.
    """
    own = [*model.parameters(), *formed(model)]
    weights = {weight.untyped_storage().data_ptr() for weight in own}
    kept: dict[int, int] = {}
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        held = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        with suppress(RuntimeError):  # of a node that an earlier backward pass went through, and that keeps nothing
            held += getattr(node, "saved_tensors", ())
        for tensor in held:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
    return sum(kept.values())


def seconds(step: Callable[[], object], device: str) -> float:
    """Duration of a call, by events of the device where it has them."""
    if device.startswith("cuda"):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


class Peak:
    """Most memory in bytes that a block adds: of the device where it counts, else of the process, sampled."""

    def __init__(self, device: str) -> None:
        self.cuda, self.bytes = device.startswith("cuda"), 0

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            gc.collect()
            if sys.platform == "linux":
                ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide what is added
            self.start, self.stop = _resident(), threading.Event()
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.bytes = max(self.bytes, _resident() - self.start)

    def __exit__(self, *error: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.start
        else:
            self.stop.set()
            self.thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
