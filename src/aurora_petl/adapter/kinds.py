"""Adapted layers of other types than `nn.Linear`: each adds its update to what the frozen layer returns.

A convolution is a linear map of the patches that it sees: its weight, (out, in, height, width), is a matrix of out rows
and in * height * width columns, one slice of its own widths. `transformers.pytorch_utils.Conv1D` keeps the matrix of a
linear layer transposed. Quantised weights stay as they are until an update is merged into them: then they are
dequantised, added to and quantised again, which rounds.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils.integrations import dequantize_bnb_weight
from torch import Tensor, nn

from .layer import AuroraLinear, base_linear
from .shared import SharedFactors


class AuroraConv1D(AuroraLinear):
    """A frozen `transformers.pytorch_utils.Conv1D`, whose weight is (in_features, out_features)."""

    formed_together = False

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return base.weight.shape[0], base.weight.shape[1]

    def _delta(self, adapter: str, training: bool) -> Tensor:
        return super()._delta(adapter, training).t()


class AuroraConv(AuroraLinear):
    """A frozen `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` of one group."""

    formed_together = False

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        return base.weight[0].numel(), base.weight.shape[0]

    def _delta(self, adapter: str, training: bool) -> Tensor:
        return super()._delta(adapter, training).view(self.frozen_weight.shape)

    def _low_rank(self, x: Tensor, adapter: str) -> Tensor:
        """x: (..., in, *size) -> (..., out, *size of the output)"""
        E, D = self._thin(adapter, self.training)
        base: Any = base_linear(self)
        kernel = D.t().reshape(-1, *base.weight.shape[1:])
        h = base._conv_forward(x, kernel.to(x.dtype), None)  # as the layer pads, strides and dilates
        channels = 1 - base.weight.dim()
        return F.linear(h.movedim(channels, -1), E.to(h.dtype)).movedim(-1, channels)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False  # peft converts matrices alone


class AuroraQuantised(AuroraLinear):
    """A frozen linear layer whose weight is quantised. A subclass knows the library that quantised it.

    Args:
        base_layer: the layer, possibly wrapped by another peft layer.
        factors: the shared factors of the model by adapter name.
        quantise: gives what torchao quantised the weight with; None where that is not known. The others ignore it.
    """

    formed_together = False

    def __init__(self, base_layer: nn.Module, factors: SharedFactors, quantise: Any = None) -> None:
        super().__init__(base_layer, factors)
        self.quantise = quantise

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge as `AuroraLinear` does; the weight is quantised anew, which rounds the update.

        Raises:
            ValueError: as there, and if nobody knows how to quantise the weight again.
        """
        warnings.warn("Merging into quantised weights rounds the update, so outputs may change.", stacklevel=2)
        super().merge(safe_merge, adapter_names)

    @torch.no_grad()
    def _shifted_base_weight(self, adapter: str, sign: int) -> Tensor:
        weight, delta = self._dequantised(), self.get_delta_weight(adapter)
        return (weight.to(delta.dtype) + sign * delta.to(weight.device)).to(weight.dtype)

    def _dequantised(self) -> Tensor:
        raise NotImplementedError


class Aurora8bit(AuroraQuantised):
    """A `bitsandbytes.nn.Linear8bitLt`."""

    def _dequantised(self) -> Tensor:
        base: Any = base_linear(self)
        weight: Tensor = dequantize_bnb_weight(base.weight, state=base.state)
        return weight

    def _set_base_weight(self, weight: Tensor) -> None:
        import bitsandbytes

        base: Any = base_linear(self)
        old = base.weight
        new = bitsandbytes.nn.Int8Params(weight.to("cpu"), requires_grad=False, has_fp16_weights=old.has_fp16_weights)
        base.weight = new.to(old.device)
        base.state.reset_grads()


class Aurora4bit(AuroraQuantised):
    """A `bitsandbytes.nn.Linear4bit`."""

    def _dequantised(self) -> Tensor:
        base: Any = base_linear(self)
        if getattr(base.weight.quant_state, "packing_format_for_cpu", False):  # since inference on a CPU
            base.state_dict()  # bitsandbytes undoes that layout to save the weights
        weight: Tensor = dequantize_bnb_weight(base.weight)
        return weight

    def _set_base_weight(self, weight: Tensor) -> None:
        import bitsandbytes

        base: Any = base_linear(self)
        old = base.weight
        fields = {name: value for name, value in vars(old).items() if not name.startswith("_") and name != "data"}
        fields |= {"requires_grad": False, "bnb_quantized": False}
        base.weight = bitsandbytes.nn.Params4bit(weight.to("cpu"), **fields).to(old.device)


class AuroraTorchao(AuroraQuantised):
    """An `nn.Linear` whose weight torchao quantised."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        self._check_known()
        super().merge(safe_merge, adapter_names)

    def _check_known(self) -> None:
        if self.quantise is None:
            raise ValueError(
                "The adapter cannot be merged into weights of torchao, since the model does not say how they were "
                "quantised: please load it by transformers with `quantization_config=TorchAoConfig(...)`."
            )

    def _dequantised(self) -> Tensor:
        weight: Any = self.frozen_weight
        try:
            dequantised: Tensor = weight.dequantize()
        except NotImplementedError as error:
            raise NotImplementedError(
                f"The adapter cannot be merged into weights of type {type(weight).__name__}, which torchao cannot "
                "dequantise."
            ) from error
        return dequantised

    def _set_base_weight(self, weight: Tensor) -> None:
        from torchao import quantize_

        base: Any = base_linear(self)
        base.weight = nn.Parameter(weight, requires_grad=False)  # `data` of a quantised tensor cannot be replaced
        quantize_(base, self.quantise())
