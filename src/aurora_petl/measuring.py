"""What a step of a training takes on this machine, by taking some: seconds, and memory at the peak."""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .devices import choose
from .examples import TrainingExamples
from .recipe import TrainSettings
from .tasks.base import Task

MOST_SECONDS = 8.0  # that a larger part of a batch may take
TIMES = 3  # that the largest part is measured
SMALLEST = 2  # pairs of the first part, which contrast needs


@dataclass(frozen=True)
class Measured:
    """Steps as they were taken.

    Args:
        pairs: of a batch that was measured, and ``whole`` what a batch of the run has; where they differ, the figures
            are scaled up.
        times: how many such batches were measured.
        seconds: of a step of the run, all its batches and the optimizer; the median of what was measured.
        reading: of these, the seconds for which the step waits for pictures.
        memory: bytes at the peak, on a GPU of its memory, else of this process; None if the system does not say.
    """

    pairs: int
    whole: int
    times: int
    seconds: float
    reading: float
    memory: int | None


def measure(task: Task, training: TrainingExamples, settings: TrainSettings, precision: str, workers: int) -> Measured:
    """Take steps of growing parts of a batch, up to the whole one or to what is quick enough. The task is to be thrown
    away.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        workers: processes that read pictures while the device computes.
    """
    weights = [weight for _, weight in task.trained()]
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    task.to(choose()).train()

    def take(size: int) -> _Part:
        return _step(task, training, size, precision, optimizer)

    take(SMALLEST)  # the first pass of a process makes its kernels
    grown = [take(SMALLEST)]
    while grown[-1].pairs < settings.batch_size and 4 * grown[-1].seconds < MOST_SECONDS:
        grown.append(take(min(4 * grown[-1].pairs, settings.batch_size)))
    last = grown[-1]
    taken = [last]
    while len(taken) < TIMES and (len(taken) + 1) * last.seconds < MOST_SECONDS:
        taken.append(take(last.pairs))
    share = settings.batch_size / last.pairs
    reading = share * statistics.median(part.reading for part in taken)
    computing = share * statistics.median(part.computing for part in taken)
    stepping = statistics.median(part.stepping for part in taken)
    if workers:  # which read the next batch meanwhile
        reading = max(0.0, reading / workers - computing)
    batches = settings.gradient_accumulation
    return Measured(
        last.pairs,
        settings.batch_size,
        len(taken),
        batches * (reading + computing) + stepping,
        batches * reading,
        _peak_of(settings.batch_size, grown),
    )


@dataclass(frozen=True)
class _Part:
    """A step of some pairs: seconds for reading them, for their gradients and for the optimizer, and the memory at the
    peak so far."""

    pairs: int
    reading: float
    computing: float
    stepping: float
    memory: int | None

    @property
    def seconds(self) -> float:
        return self.reading + self.computing + self.stepping


def _step(task: Task, training: TrainingExamples, size: int, precision: str, optimizer: torch.optim.Optimizer) -> _Part:
    device = choose()
    started = time.perf_counter()
    apart = max(1, len(training) // size)  # pairs of different pictures
    rows = [training[0, (apart * place) % len(training)] for place in range(size)]
    collated = task.collate(rows).items()
    read = time.perf_counter()
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in collated}
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device.type, kind, enabled=kind is not None):
        loss = task(**batch)["loss"]
    loss.backward()
    loss.item()  # waits for the device
    computed = time.perf_counter()
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    _wait(device)
    ended = time.perf_counter()
    return _Part(size, read - started, computed - read, ended - computed, peak_memory(device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _peak_of(whole: int, grown: list[_Part]) -> int | None:
    """The peak of a whole batch: that of the last part and, where it was not whole, as much more for every pair as the
    last two parts differ in."""
    last = grown[-1]
    if last.memory is None or whole == last.pairs:
        return last.memory
    before = grown[-2] if len(grown) > 1 else None
    if before is None or before.memory is None:
        return None
    return round(last.memory + (whole - last.pairs) * (last.memory - before.memory) / (last.pairs - before.pairs))


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak so far: of a GPU what PyTorch holds of it, else what the process held; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "linux":
        with suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes, on macOS
    return None


def reset_peak_memory() -> None:
    """Begin to measure `peak_memory` anew; where that cannot be, the peak is that of the process."""
    if choose().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
