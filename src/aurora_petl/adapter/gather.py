"""Where the gradients of updates that were formed together come together, for autograd one node.

    P --> M = diag(lambda * P) --> E = V M --> tokens --> every layer           forward: once for each set of weights
    dP, dlambda <-- dM <-- dE, dV <----------- dE, dU <-- every layer           backward: once, after all layers

A token is a tensor of the shape of E or U without memory. A layer takes it as an input and gives the gradient of E or
U back for it, and autograd itself knows when the last one has come in. The node saves nothing by autograd's means:
several backward passes may go through it, those of accumulated batches, say, and gradient checkpointing finds the same
tensors saved in a pass and in its repetition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .factors import AuroraFactors, expand_backward, no_autocast
from .frozen import first_order
from .stamp import Stamp


@dataclass
class Sources:
    """What the updates of some layers were formed of."""

    factors: AuroraFactors
    shared: list[Stamp]  # U, V, lambda or C
    P: Tensor  # (slices, R)
    mode: Tensor  # of `AuroraFactors.mode`
    rows: list[int]  # slices of each layer
    spent: bool = False  # a backward pass has been, after which weights change


Tokens = tuple[Tensor, ...]  # of E and of U by turns, for each layer


class Gather(torch.autograd.Function):
    """Tokens for every layer of `Sources`, in the dtype and on the device of `like`, (rows, R)."""

    @staticmethod
    def forward(ctx: Any, sources: Sources, like: Tensor, U: Tensor, V: Tensor, core: Tensor, *P: Tensor) -> Tokens:
        ctx.sources = sources
        ctx.set_materialize_grads(False)
        one, (width, R), height = like[:1, :1], U.shape, V.shape[0]
        of_E = [one.expand(rows * height, R) for rows in sources.rows]
        of_U = [one.expand(width, R) for _ in sources.rows]
        _, _, need_U, *need_E = ctx.needs_input_grad
        ctx.mark_non_differentiable(*(() if any(need_E) else of_E), *(() if need_U else of_U))
        return tuple(token for pair in zip(of_E, of_U, strict=True) for token in pair)

    @staticmethod
    @first_order
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        sources: Sources = ctx.sources
        sources.spent = True
        of_E, of_U = gradients[::2], [gradient for gradient in gradients[1::2] if gradient is not None]
        given = [place for place, gradient in enumerate(of_E) if gradient is not None]
        U, V, core = (stamp.data for stamp in sources.shared)
        if any(stamp.is_changed() for stamp in sources.shared):
            raise RuntimeError(
                "One of the variables needed for gradient computation has been modified by an inplace operation: "
                "shared factors of an Aurora adapter changed between a forward pass and its backward pass."
            )
        dU: Tensor | None = None
        dV: Tensor | None = None
        dcore: Tensor | None = None
        dP: list[Tensor | None] = [None] * len(of_E)
        with no_autocast(U.device):
            if of_U:
                dU = torch.stack(of_U).sum(0, dtype=U.dtype) if len(of_U) > 1 else of_U[0].to(U.dtype)
            if given:
                dE = _joined([gradient for gradient in of_E if gradient is not None])
                P, mode = sources.P, sources.mode
                if len(given) < len(of_E):
                    P, mode = (_rows_of(part.split(sources.rows), given) for part in (P, mode))
                dV, dmode = expand_backward(V, mode, dE.to(mode.dtype))
                assert dmode is not None
                dcore, dP_given = sources.factors.mode_backward(core, P, dmode)
                for place, part in zip(given, dP_given.split([sources.rows[place] for place in given]), strict=True):
                    dP[place] = part
        needs = ctx.needs_input_grad[3:]
        own = [gradient if need else None for gradient, need in zip((dV, dcore, *dP), needs, strict=True)]
        return None, None, dU, *own


def _rows_of(parts: Sequence[Tensor], places: list[int]) -> Tensor:
    return _joined([parts[place] for place in places])


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
