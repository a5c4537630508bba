"""What the benchmarks of a training step measure."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights aside, each storage once."""
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time of one step: of the device on a GPU; else of this process's threads together, so that whatever else the
    machine does counts little."""
    if device.type != "cuda":
        start = time.process_time()
        step()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that tensors take during a step, weights included; known of a GPU alone."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
