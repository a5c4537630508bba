"""Batches that are spread over the ranks of `torch.distributed`."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order, (B, ...) -> (ranks * B, ...); without ranks the rows themselves.

    Every rank brings as many rows. A row's gradient is the sum of what all ranks ask of it: with gradients averaged
    over the ranks, as DDP does, they are those of the joint batch.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
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
    if not (dist.is_available() and dist.is_initialized()):
        return range(count)
    return range(count * rank() // ranks(), count * (rank() + 1) // ranks())


def total(rows: Tensor) -> Tensor:
    """The sum over all ranks, without gradient: puts together what each has filled in of zeros."""
    if dist.is_available() and dist.is_initialized():
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
