"""Layers that read the same x, computed together: for models whose code says so, as BLIP's attention does.

    x --[ W_q + E_q U^T ]--> q          one product forward, where three layers and x U would be four;
      --[ W_k + E_k U^T ]--> k          backward one for dx, for dE, for d(x U) and for dU
      --[ W_v + E_v U^T ]--> v
      --[      U^T      ]--> x U

This is in training. In evaluation each layer is computed by itself, as the pretrained model does it, and an adapter at
its start gives the same to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .factors import thin
from .frozen import Extension, FormedLinear, apply
from .layer import AuroraLinear, base_linear, formed_for, has_hooks, one_step, taken_as
from .norm import norm_inputs
from .units import CROSS, JOINT, merges
from .updates import Formed


def project(x: Tensor, *layers: nn.Module, chunks: int = 1) -> list[Tensor]:
    """What each layer makes of x, cut into so many parts of equal width.

    Args:
        x: (..., in_features)

    Returns:
        (..., out_features / chunks) for each part of each layer; they may be parts of one tensor.
    """
    unit = _unit(x, layers)
    trains = bool(unit) and (torch.is_grad_enabled() or unit[0].training)  # a momentum encoder wants no gradients
    if unit and (trains or merges(unit[0])):
        formed = formed_for(unit, _adapter(unit), x, JOINT)
        if formed is not None and trains:
            widths = [rows // chunks for rows in formed.rows for _ in range(chunks)]
            of_U, of_E = formed.tokens()
            return list(FormedLinear.apply(x, formed, norm_inputs(x), widths, of_U, *of_E))  # type: ignore
        if formed is not None:
            return [part for y in _apart(x, formed) for part in _cut(y, chunks)]
    return [part for layer in layers for part in _cut(layer(x), chunks)]


def _cut(y: Tensor, chunks: int) -> tuple[Tensor, ...]:
    return (y,) if chunks == 1 else y.chunk(chunks, -1)


def _apart(x: Tensor, formed: Formed) -> list[Tensor]:
    """Each layer's own product with its rows of the stack."""
    biases: Any = [None] * len(formed.rows) if formed.bias is None else formed.bias[: len(formed.E)].split(formed.rows)
    taken = x.to(formed.E.dtype)
    weights = formed.stack[: len(formed.E)].split(formed.rows)  # type: ignore[index]
    return [F.linear(taken, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


class Crossing(NamedTuple):
    """Frozen linear layers with their updates as one product with x and x U: y = z A^T + bias."""

    z: Tensor  # (..., in + R), x beside x U; with gradient
    A: Tensor  # (out, in + R), the weights of the layers, one upon the other, beside E
    of_E: list[Tensor]  # (any, R) each, which take the gradient of the rows of E
    bias: Tensor | None  # (out,)


def crossing(x: Tensor, *layers: nn.Module, first: bool) -> Crossing | None:
    """The parts of layers that read x, for code that computes them itself; None if more happens in them.

    Args:
        x: (..., in)
        first: form x beside x U, for all that read this very x after these: a note on it, which no operation carries
            over. A later call needs it. Gradient checkpointing repeats the first call as a first one.
    """
    unit = _unit(x, layers)
    if not unit or not torch.is_grad_enabled():
        return None
    adapter = _adapter(unit)
    U: Tensor = getattr(unit[0].aurora_factors[adapter], unit[0].slice_widths(adapter).U)
    stamp = (U, taken_as(x), U._version, x._version)
    if first:
        x._aurora_extended = (apply(Extension, x, U, taken_as(x)), stamp)  # type: ignore[attr-defined]
    z, noted = getattr(x, "_aurora_extended", (None, (None,)))
    if z is None or noted[0] is not U or noted[1:] != stamp[1:]:
        return None
    formed = formed_for(unit, adapter, x, CROSS)
    if formed is not None:
        bias = formed.bias
        A, of_E = formed.stack, formed.tokens()[1]
    else:
        linears, kind = [base_linear(layer) for layer in unit], taken_as(x)
        of_E = [thin(*layer.of_layer(adapter), False)[0] for layer in unit]
        A = torch.cat([torch.cat([linear.weight for linear in linears]).to(kind), torch.cat(of_E).detach().to(kind)], 1)
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat(
                [
                    linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
                    for linear in linears
                ]
            ).to(kind)
    return Crossing(z, A, of_E, bias)  # type: ignore[arg-type]


def _unit(x: Tensor, layers: tuple[nn.Module, ...]) -> tuple[AuroraLinear, ...]:
    """The layers, if they can be computed together: adapted in the same way by one and the same adapter, of the same
    widths and dtypes, and nothing else happens in them. Else none."""
    if torch.compiler.is_compiling() or _has_any_global_hook():
        return ()
    found: list[AuroraLinear] = []
    kinds = set()
    for layer in layers:
        if (
            not isinstance(layer, AuroraLinear)
            or not layer.formed_together
            or has_hooks(layer)
            or "forward" in vars(layer)
        ):
            return ()
        adapter = layer.only_adapter()
        if adapter is None or layer.is_split_by_columns(adapter) or not one_step(layer.base_layer, x):
            return ()
        found.append(layer)
        widths, kind = layer.slice_widths(adapter), base_linear(layer).weight.dtype
        kinds.add((adapter, id(layer.aurora_factors), widths, kind))
    return tuple(found) if len(kinds) == 1 else ()


def _adapter(layers: tuple[AuroraLinear, ...]) -> str:
    adapter = layers[0].only_adapter()
    assert adapter is not None
    return adapter
