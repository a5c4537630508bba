"""Layers whose updates are computed with in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .factors import Widths
from .stamp import Stamp, is_plain

LAYER = "layer"  # one layer, whose weight is used as it is
JOINT = "joint"  # layers that read the same x: their weights above U^T
CROSS = "cross"  # the same: their weights beside E


class Layer(Protocol):
    """What is read of a `layer.AuroraLinear`."""

    _modules: dict[str, Any]
    aurora_P: nn.ParameterDict
    formed_together: bool

    @property
    def aurora_factors(self) -> nn.ModuleDict: ...

    @property
    def frozen_weight(self) -> Tensor: ...

    def slice_widths(self, adapter: str) -> Widths: ...

    def is_split_by_columns(self, adapter: str) -> bool: ...


class Unit:
    """Layers that are computed in one step, and what was formed for them last. It keeps their parts, not the layers,
    which keep it.

    Args:
        layers: of one width and dtype, with slices by rows.
        dtype: of compute.
        form: LAYER, JOINT or CROSS.
    """

    def __init__(self, layers: Sequence[Layer], adapter: str, dtype: torch.dtype, form: str) -> None:
        self.adapter, self.form, self.dtype = adapter, form, dtype
        self.parts: list[dict[str, Any]] = [layer._modules for layer in layers]
        self.linears: list[nn.Linear] = [part["base_layer"] for part in self.parts]
        self.P: list[nn.ParameterDict] = [part["aurora_P"] for part in self.parts]
        self.merged = form == JOINT and merges(layers[0])
        self.group = adapter, dtype, layers[0].slice_widths(adapter)
        self.rows = [linear.out_features for linear in self.linears]
        self.size = sum(self.rows)
        self.bytes = 0 if form == LAYER else self.size * self.linears[0].in_features * dtype.itemsize
        self.formed: Any = None  # `updates.Formed`
        self.asked = 0  # number of the block that it was asked of last
        self.frozen: list[Stamp] = []
        self._device: torch.device | None = None
        self._bias: tuple[list[Stamp], Tensor | None] | None = None

    def is_of(self, layers: Sequence[Layer]) -> bool:
        """Whether it was made for these layers, and they still are what they were."""
        return self.is_whole() and all(part is layer._modules for part, layer in zip(self.parts, layers, strict=True))

    def is_whole(self) -> bool:
        """Whether the layers have their linear layers and adapter still."""
        return all(
            part["base_layer"] is linear and self.adapter in part["aurora_P"]._parameters
            for part, linear in zip(self.parts, self.linears, strict=True)
        )

    def device(self) -> torch.device | None:
        """Where W and b of every layer are, if they are tensors like any other; it renews their stamps, `frozen`."""
        names = ("weight", "bias")
        weights = [(own, name) for own in self.linears for name in names if own._parameters.get(name) is not None]
        if len(weights) != len(self.frozen) or not all(stamp.fits() for stamp in self.frozen):
            self.frozen = [Stamp(owner, name) for owner, name in weights]
            devices = {stamp.tensor.device for stamp in self.frozen}
            plain = len(devices) == 1 and all(is_plain(owner, name) for owner, name in weights)
            self._device = devices.pop() if plain else None
        return self._device

    def bias(self, R: int) -> Tensor | None:
        """The biases of the layers in the dtype of compute, with R zeros more for JOINT; formed once."""
        if self._bias is None or self._bias[0] is not self.frozen:
            self._bias = self.frozen, None
            if any(stamp.name == "bias" for stamp in self.frozen):
                biases = [
                    linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
                    for linear in self.linears
                ]
                biases += [biases[0].new_zeros(R)] if self.form == JOINT else []
                self._bias = self.frozen, (torch.cat(biases) if len(biases) > 1 else biases[0]).to(self.dtype)
        return self._bias[1]


def merges(layer: Layer) -> bool:
    """Whether an update can be added to the layer's weight without being rounded away: see `layer.py`."""
    weight: Tensor = layer._modules["base_layer"].weight
    return weight.dtype.itemsize >= 4
