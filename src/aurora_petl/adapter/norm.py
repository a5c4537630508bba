"""A layer norm whose output need not be kept for the backward pass.

    h ---- norm ---- x ---- linear ---- y         dU wants x;  the norm's own backward pass keeps h:  x = norm(h)

A linear layer that learns keeps its input x. If a frozen layer norm made x, one more pass of the norm over h, which
stays for the norm's sake, gives the same x to the bit: in BLIP's vision tower this spares a tenth of the frozen tower's
activations for about a thousandth of its time. `RecomputableLayerNorm` tells the layers behind it by a note on its
output that no operation carries over. A hook that returns another tensor, a cast or a copy loses the note and a change
in place invalidates it; the layer then keeps x. So it does under torch.compile, whose partitioner weighs the same
choice by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NormInputs(NamedTuple):
    """What a frozen layer norm makes its output from."""

    input: Tensor  # (..., width)
    weight: Tensor  # (width,)
    bias: Tensor | None
    eps: float

    def output(self) -> Tensor:
        """The output again, without gradient."""
        return F.layer_norm(self.input, self.weight.shape, self.weight, self.bias, self.eps)


class RecomputableLayerNorm(nn.LayerNorm):
    """An `nn.LayerNorm` whose output may be formed again in the backward pass: by each adapted layer that reads it, so
    it is for outputs that few layers read."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if (
            not torch.compiler.is_compiling()
            and output.requires_grad  # else nothing keeps the input
            and self.weight is not None
            and not self.weight.requires_grad
            and not (self.bias is not None and self.bias.requires_grad)
            and input.dtype == output.dtype == self.weight.dtype  # else autocast had a hand in it
        ):
            source = NormInputs(input.detach(), self.weight, self.bias, self.eps)
            output._norm_inputs = (source, output._version)  # type: ignore[attr-defined]
        return output


def norm_inputs(x: Tensor) -> NormInputs | None:
    """What `x` can be formed from again, if it is the untouched output of a frozen `RecomputableLayerNorm`."""
    if torch.compiler.is_compiling():
        return None
    source, version = getattr(x, "_norm_inputs", (None, None))
    return source if source is not None and x._version == version else None
