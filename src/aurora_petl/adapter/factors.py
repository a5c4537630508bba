"""The factors that all slices share.

A slice is one matrix of the frozen model: a linear layer, or one block of a fused one. Stack the updates of
all N slices into a tensor and approximate that by R components (CP decomposition):

         in                     R                       in
      +--------+             +-----+    R            +--------+
      |        |             |     |  \\            R |  U^T   |    U: one for each input width
  out |  dW_k  |   =     out |  V  |    M_k          +--------+    V: one for each output width
      |        |             |     |        \\                     M_k: R x R, the only part that knows
      +--------+             +-----+          R                         which slice this is

      core = "diagonal"    M_k = diag(lambda * P[k])               lambda: R     P: N x R
      core = "full"        M_k = sum_s C[:, :, s] P[k, s]          C: R x R x R  P: N x R

Layers may be put into groups, each with a U and a V of its own for each width; lambda (or C) is always one.

U, V and lambda (or C) live here, once, on the tuner model. A slice owns only its row P[k], and the row lives
in the layer that it belongs to: saved rows are then addressed by the layer's name rather than by a position
that depends on what else was targeted, an adapter with other targets has other rows, and peft's own loading,
deletion and switching work on them as they do on LoRA's matrices.

The update of a whole layer is a product of two thin factors, whatever the number of its slices:

      by rows        [ V M_1 ]             by columns        [ V M_1 U^T | V M_2 U^T ]
                     [ V M_2 ] U^T                           = V [ U M_1^T ]^T
                     [ V M_3 ]                                   [ U M_2^T ]

Size for BLIP-base (one width, 108 slices) at R = 64: 2 * 768 * 64 + 108 * 64 + 64 = 105,280 weights.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from .config import AuroraConfig


class Widths(NamedTuple):
    """Of a layer's slices, and which of the groups of layers that share factors it is in, 0 if in none."""

    inputs: int
    outputs: int
    group: int = 0

    @property
    def U(self) -> str:
        """The name of U for slices of these widths."""
        return f"U_{self.inputs}{self._suffix}"

    @property
    def V(self) -> str:
        """The name of V for slices of these widths."""
        return f"V_{self.outputs}{self._suffix}"

    @property
    def _suffix(self) -> str:
        return f"_{self.group}" if self.group else ""


class AuroraFactors(nn.Module):
    """U and V by width, and lambda or C, of one adapter.

    Args:
        config: gives r, core, scale, dropout (rank dropout, applied by `mode`) and init_weights.
        like: a base weight; gives the dtype of every weight of the adapter, and the device of lambda or C.
    """

    def __init__(self, config: AuroraConfig, like: torch.Tensor) -> None:
        super().__init__()
        self.r, self.core, self.init_weights = config.r, config.core, config.init_weights
        self.scale, self.dropout = config.scale, config.dropout
        self.dtype = like.dtype
        # lambda stays clear of 0, so that no component starts dead; C keeps the norm of U^T x for P ~ N(0, 1)
        if self.core == "diagonal":
            self.register_parameter(self.core_name, self._uniform((self.r,), 0.5, 1.5, like.device))
        else:
            self.register_parameter(self.core_name, self._normal((self.r,) * 3, 1 / self.r, like.device))

    def add(self, widths: Widths, slices: int, device: torch.device) -> nn.Parameter:
        """Make U and V for these widths where they are missing; return fresh rows of P, (slices, R)."""
        if widths.U not in self._parameters:
            bound = 1 / math.sqrt(widths.inputs)  # as LoRA draws A
            self.register_parameter(widths.U, self._uniform((widths.inputs, self.r), -bound, bound, device))
        if widths.V not in self._parameters:
            bound = 0.0 if self.init_weights else 1 / math.sqrt(self.r)
            self.register_parameter(widths.V, self._uniform((widths.outputs, self.r), -bound, bound, device))
        return self._normal((slices, self.r), 1.0, device)

    @property
    def core_name(self) -> str:
        """The name of lambda or C."""
        return "lambda_" if self.core == "diagonal" else "C"

    def of_layer(
        self, rows: torch.Tensor, widths: Widths, training: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What makes up a layer's update, on the device of its rows; `thin` turns it into E and D.

        Args:
            rows: P[k] of the layer's slices, (slices, R)

        Returns:
            U: (widths.inputs, R)
            V: (widths.outputs, R)
            mode: of `mode`, (slices, R) or (slices, R, R)
        """
        U, V = (at_hand(self, name).to(rows.device) for name in (widths.U, widths.V))
        with no_autocast(rows.device):
            return U, V, self.mode(rows, training)

    def mode(self, rows: torch.Tensor, training: bool = False) -> torch.Tensor:
        """scale * M_k of the slices whose rows P[k] are given.

        Args:
            rows: (slices, R)
            training: zero each component with chance `dropout`, and scale up the rest.

        Returns:
            "diagonal": the diagonals, (slices, R). "full": the matrices, (slices, R, R).
        """
        core = at_hand(self, self.core_name).to(rows.device)
        mode = core * rows if self.core == "diagonal" else torch.einsum("abs,ks->kab", core, rows)
        if training and self.dropout > 0:
            keep = torch.empty_like(rows).bernoulli_(1 - self.dropout) / (1 - self.dropout)
            mode = mode * (keep if self.core == "diagonal" else keep[:, None, :])
        return mode if self.scale == 1.0 else mode * self.scale

    def mode_backward(
        self, core: torch.Tensor, rows: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of lambda or C, and of the rows, from that of what `mode` returned without dropout."""
        gradient = gradient if self.scale == 1.0 else gradient * self.scale
        if self.core == "diagonal":
            return (gradient * rows).sum(0), gradient * core
        return torch.einsum("kab,ks->abs", gradient, rows), torch.einsum("abs,kab->ks", core, gradient)

    def _uniform(self, shape: tuple[int, ...], low: float, high: float, device: torch.device) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device=device, dtype=self.dtype).uniform_(low, high))

    def _normal(self, shape: tuple[int, ...], std: float, device: torch.device) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device=device, dtype=self.dtype).normal_(0.0, std))


def at_hand(owner: nn.Module, name: str) -> torch.Tensor:
    """The weight `name` of a module. accelerate brings weights that it has offloaded back when their module is called,
    and those of an adapter belong to modules that nobody calls: of these it is the copy that accelerate keeps."""
    weight: torch.Tensor = getattr(owner, name)
    if weight.device.type == "meta" and (hook := getattr(owner, "_hf_hook", None)) is not None:
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "weights_map", None) is not None:
                return one.weights_map[name].to(one.execution_device)  # type: ignore[no-any-return]
    return weight


def thin(U: torch.Tensor, V: torch.Tensor, mode: torch.Tensor, columns: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The thin factors of a layer's update: dW = E D^T.

    Args:
        U, V, mode: of `AuroraFactors.of_layer`.
        columns: whether the layer's slices lie side by side rather than stacked.

    Returns:
        E: (out_features, R)
        D: (in_features, R)
    """
    with no_autocast(mode.device):
        if columns:
            return V, expand(U, mode if mode.dim() == 2 else mode.mT)
        return expand(V, mode), U


def thin_backward(
    U: torch.Tensor,
    V: torch.Tensor,
    mode: torch.Tensor,
    columns: bool,
    dE: torch.Tensor | None,
    dD: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of U, V and mode from those of E and D, None where they come from a None."""
    if columns:
        dU, dmode = expand_backward(U, mode if mode.dim() == 2 else mode.mT, dD)
        return dU, dE, dmode if dmode is None or mode.dim() == 2 else dmode.mT
    dV, dmode = expand_backward(V, mode, dE)
    return dD, dV, dmode


def expand(factor: torch.Tensor, mode: torch.Tensor) -> torch.Tensor:
    """factor M_k of every slice, stacked by rows: (slices * width, R).

    Args:
        factor: (width, R)
        mode: (slices, R) diagonals or (slices, R, R)
    """
    # bmm and not @, which may order its sums by whether a gradient is wanted
    stacked = factor * mode[:, None] if mode.dim() == 2 else torch.bmm(factor.expand(len(mode), -1, -1), mode)
    return stacked.flatten(0, 1)


def expand_backward(
    factor: torch.Tensor, mode: torch.Tensor, gradient: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `factor` and `mode` from that of what `_expand` returned."""
    if gradient is None:
        return None, None
    blocks = gradient.view(len(mode), *factor.shape)
    if mode.dim() == 2:
        return (blocks * mode[:, None]).sum(0), (blocks * factor).sum(1)
    return (blocks @ mode.mT).sum(0), factor.mT @ blocks


def adapter_size(
    shapes: Iterable[tuple[int, int, int] | tuple[int, int, int, int]], r: int, core: str = "diagonal"
) -> int:
    """Number of weights of an adapter, before anything is built.

    Args:
        shapes: (in_features, out_features, slices by rows, slices by columns) of every targeted linear layer, the
            last 1 if left out. A fused layer of three 768 x 768 matrices is (768, 2304, 3).

    Example:
        >>> adapter_size([(768, 2304, 3)] * 12 + [(768, 768, 1)] * 72, r=64)  # BLIP-base, retrieval
        105280
    """
    inputs, outputs, slices = set(), set(), 0
    for in_features, out_features, rows, *rest in shapes:
        columns = rest[0] if rest else 1
        inputs.add(in_features // columns)
        outputs.add(out_features // rows)
        slices += rows * columns
    return r * (sum(inputs) + sum(outputs) + slices) + (r if core == "diagonal" else r**3)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off on `device`: small factors are combined in their own precision."""
    return contextlib.nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on `device`; None where it is off, or not to be had."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def is_bfloat16_on_cpu(x: torch.Tensor) -> bool:
    """Whether a tensor is bfloat16 on a CPU, where training goes round PyTorch's attention: its backward pass takes
    three to seven times as long there as in float32."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16
