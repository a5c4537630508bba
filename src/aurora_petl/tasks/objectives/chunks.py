"""Gradient caching (Gao et al., 2021, arXiv 2101.06983): contrast over batches whose graph does not fit into memory.

    chunks --> features of the whole batch --> loss        forward: of each chunk nothing but its features is kept
    chunks <-- gradient of the features <----- loss        backward: one chunk after the other, computed once more

A feature of a pair depends on that pair alone: the features of all chunks are those of the batch, and so are the loss
and its gradients, but for rounding. Each chunk is a unit of `torch.utils.checkpoint`, which computes it again when its
gradient has come, with the random state and the autocast of before. A step costs one more forward pass.

Use it where contrast wants more pairs than the memory holds; what is no contrast is a sum over pairs, for which
accumulating gradients does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def parts(count: int, size: int) -> Iterator[slice]:
    """Rows 0 to ``count``, ``size`` at a time; all of them for a size of 0."""
    for first in range(0, count, size or count or 1):
        yield slice(first, min(count, first + (size or count)))


def by_chunks(function: Callable[..., Any], size: int, *rows: Tensor) -> Any:
    """A named tuple of tensors (B, ...) or None, which ``function`` makes of ``rows``, made of ``size`` rows at a time.

    Args:
        function: of tensors (any, ...); a row of what it makes depends on that row alone.
        size: 0 makes all at once, with the graph as it is.
        rows: (B, ...) each.
    """
    if not 0 < size < len(rows[0]):
        return function(*rows)
    made = [once_more(function, *(row[part] for row in rows)) for part in parts(len(rows[0]), size)]
    return type(made[0])(*(None if same[0] is None else torch.cat(same) for same in zip(*made, strict=True)))


def once_more(function: Callable[..., Any], *inputs: Any) -> Any:
    """What ``function`` makes, whose graph is made when the backward pass needs it."""
    return checkpoint(function, *inputs, use_reentrant=False) if torch.is_grad_enabled() else function(*inputs)
