"""Work that is spread over the ranks of `torch.distributed`, which torchrun or accelerate starts."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import AuroraError, SharedError

PATIENCE = timedelta(hours=2)  # that a rank waits for the others, whose shares of evaluation may take longer


def start() -> None:
    """Join the other ranks, if a launcher started several and they have not met yet.

    Objects and flags travel by gloo, so that no rank waits for its GPU to tell the others something.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    atexit.register(_leave)


def _leave() -> None:
    """End the process group and its threads, while there is still an interpreter that they may need."""
    if dist.is_initialized():
        gc.collect()  # a wrapped model is in a cycle and holds the group: its threads would outlive the interpreter
        dist.destroy_process_group()


def joined() -> bool:
    """Whether there are several ranks and they have met."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def objects(value: Any) -> list[Any]:
    """Every rank's ``value``, in rank order."""
    if not joined():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The first rank's ``value``, on every rank."""
    if not joined():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def largest(*numbers: float) -> list[float]:
    """The largest over all ranks of each number; the numbers stay on the CPU."""
    if not joined():
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another rank is gone."""
    words = str(error)
    return ranks() > 1 and any(part in words for part in ("Connection closed", "gloo", "NCCL", "Connection reset"))


@contextmanager
def together() -> Iterator[None]:
    """An `AuroraError` that the block raises on any rank is raised on all of them when they have left it. The block
    itself must not wait for other ranks.

    Raises:
        SharedError: with the message of the first rank that failed, if there are several ranks.
    """
    error: AuroraError | None = None
    try:
        yield
    except AuroraError as raised:
        if not joined():
            raise
        error = raised
    messages = objects(None if error is None else str(error))
    if wrong := [message for message in messages if message is not None]:
        raise SharedError(wrong[0]) from error


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order, (B, ...) -> (ranks * B, ...); without ranks the rows themselves.

    Every rank brings as many rows. A row's gradient is the sum of what all ranks ask of it: with gradients averaged
    over the ranks, as DDP does, they are those of the joint batch.
    """
    if not joined():
        return rows
    return _Gather.apply(rows)  # type: ignore[no-any-return]


def rank() -> int:
    """This process's place among the ranks, 0 if it is alone. Before the ranks have met, what torchrun says of it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", 0))


def ranks() -> int:
    """How many ranks there are, 1 if there is one process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def own_share(count: int) -> range:
    """The rows of ``count`` that this rank works on, about as many for every rank."""
    if not joined():
        return range(count)
    return range(count * rank() // ranks(), count * (rank() + 1) // ranks())


def total(rows: Tensor) -> Tensor:
    """The sum over all ranks, without gradient: puts together what each has filled in of zeros."""
    if joined():
        dist.all_reduce(rows)
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
