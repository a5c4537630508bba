"""The adapted linear layer.

     merged forward (default)                     low-rank forward (bf16 base, few tokens)

             x                                        x ------------.
             |                                        |             | D^T
      [ W + E D^T ]   one dense product             [ W ]         ( R )
             |                                        |             | E
             y                                        y <---- + ----'

E and D are the thin factors of the layer's update (`factors.py`); for slices by rows, D is U. For T tokens
through a d x d slice, forming E D^T costs d*d*R multiply-adds once, applying it costs 2*T*d*R: at T = 16 * 577
and d = 768, 24 times as much. Either way only x is kept for the backward pass, and not even that where x is a layer
norm's output: the norm keeps what x can be formed from again. The backward pass's extra work is thin (width R):
x D, dy E, and from them

    dD = x^T (dy E)        dE = dy^T (x D)  ->  dU, dV, dP, dlambda by products that no longer see the tokens

which for a fused qkv layer is 8 products of size T x d x R. The gradient of x is dy (W + E D^T).

Adding an update to bfloat16 weights would lose whatever is below half a unit in W's last place, so the merged
forward is for base weights of float32 and up; under autocast the sum is formed in float32 and then rounded.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .factors import AuroraFactors, no_autocast


class AuroraLayer(BaseTunerLayer):
    """Everything of this method that peft switches, merges and deletes by adapter name.

    `aurora_factors`, the tuner model's shared factors by adapter name, is a plain reference, not a submodule: the
    tuner model alone registers them, so they appear once in `parameters()` and in a state dict.
    """

    aurora_factors: nn.ModuleDict


class AuroraLinear(nn.Module, AuroraLayer):
    """A frozen `nn.Linear` plus the low-rank updates of its active adapters.

    y = (W + sum over active adapters of dW) x + b, with dW made of scale * V M_k U^T by slices.

    Args:
        base_layer: the linear layer, possibly wrapped by another peft layer.
        factors: the tuner model's shared factors by adapter name.
    """

    adapter_layer_names: tuple[str, ...] = ("aurora_P", "aurora_factors")
    other_param_names: tuple[str, ...] = ("aurora_split",)

    def __init__(self, base_layer: nn.Module, factors: nn.ModuleDict) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.aurora_P = nn.ParameterDict()  # adapter name -> (slices, R)
        self.aurora_split: dict[str, tuple[int, int]] = {}  # adapter name -> slices by rows and by columns
        object.__setattr__(self, "aurora_factors", factors)  # past nn.Module, which would register it
        self.merged_adapters = []
        linear = base_linear(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def add_adapter(self, name: str, split: tuple[int, int]) -> None:
        """Give the layer its rows of the adapter `name`, whose factors exist already."""
        self.aurora_split[name] = split
        self.aurora_P[name] = self._factors(name).add(
            *self._widths(name), math.prod(split), base_linear(self).weight.device
        )

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """dW of one adapter, without rank dropout: (out_features, in_features), in float32 or wider."""
        E, D = self._update(adapter, training=False)
        wide = torch.promote_types(E.dtype, torch.float32)
        with no_autocast(E.device):
            return E.to(wide) @ D.to(wide).t()

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)

        Args:
            adapter_names: the adapter of each item of the batch, "__base__" for none, in place of the active ones.

        Raises:
            ValueError: if `adapter_names` has another length than x, or adapters are merged.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        adapters = [name for name in self.active_adapters if name in self.aurora_P]
        if self.merged or not adapters:
            return self.base_layer(x, *args, **kwargs)
        if len(adapters) == 1 and not args and not kwargs and _is_frozen_linear(self.base_layer):
            linear = base_linear(self)
            weight, bias = linear.weight, linear.bias
            norm = _norm_behind(x)
            x, merge = _autocast(x), _merge_pays(x, weight)
            return _FrozenLinear.apply(  # type: ignore[return-value]
                x, weight, bias, *self._update(adapters[0]), merge, *norm
            )
        y = self.base_layer(x, *args, **kwargs)
        for adapter in adapters:
            y = y + self._low_rank(x, adapter).to(y.dtype)
        return y

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        if len(x) != len(adapter_names):
            raise ValueError(f"`adapter_names` has {len(adapter_names)} names for a batch of {len(x)} items")
        if self.merged:
            raise ValueError("Cannot use `adapter_names` with merged adapters, please call `unmerge_adapter` first")
        y = self.base_layer(x, *args, **kwargs)
        for adapter in sorted(set(adapter_names) & set(self.aurora_P)):
            items = torch.tensor([i for i, name in enumerate(adapter_names) if name == adapter], device=x.device)
            y = y.index_add(0, items, self._low_rank(x[items], adapter).to(y.dtype))
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the adapters (default: the active ones) to the base weight.

        Raises:
            ValueError: with `safe_merge`, if the sum is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.aurora_P:
                merged = self._shifted_base_weight(name, sign=1)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"NaNs detected in the merged weights: adapter {name} seems to be broken")
                self.set_base_weight(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract again what `merge` added (equal up to rounding)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self.set_base_weight(self._shifted_base_weight(self.merged_adapters.pop(), sign=-1))

    @torch.no_grad()
    def _shifted_base_weight(self, adapter: str, sign: int) -> torch.Tensor:
        weight, delta = self.get_base_weight(), self.get_delta_weight(adapter)
        return (weight.to(delta.dtype) + sign * delta.to(weight.device)).to(weight.dtype)

    def _factors(self, adapter: str) -> AuroraFactors:
        return self.aurora_factors[adapter]  # type: ignore[return-value]

    def _widths(self, adapter: str) -> tuple[int, int]:
        """Input and output width of the layer's slices."""
        rows, columns = self.aurora_split[adapter]
        return self.in_features // columns, self.out_features // rows

    def _update(self, adapter: str, training: bool | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """E (out_features, R) and D (in_features, R) of dW = E D^T, on the layer's own device."""
        training = self.training if training is None else training
        columns = self.aurora_split[adapter][1] > 1
        return self._factors(adapter).update(self.aurora_P[adapter], *self._widths(adapter), columns, training)

    def _low_rank(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        E, D = self._update(adapter)
        return F.linear(x @ D.to(x.dtype), E.to(x.dtype))

    def _get_available_adapters(self) -> set[str]:
        return set(self.aurora_P)  # the shared factors name the adapters of other layers too

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft's version casts to the base dtype too, which would round loaded float32 rows
        rows = self.aurora_P[adapter_name] if adapter_name in self.aurora_P else None
        if rows is not None and rows.device.type != "meta":
            rows.data = rows.data.to(device or base_linear(self).weight.device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True  # the update is additive

    def __repr__(self) -> str:
        return "aurora." + super().__repr__()


class _FrozenLinear(torch.autograd.Function):
    """y = x (W + E D^T)^T + b with W and b frozen. Of the size of x it keeps x alone, or nothing if ``norm`` tells how
    to form x again, see `_norm_behind`."""

    @staticmethod
    def forward(x, weight, bias, E, D, merge, *norm):  # type: ignore[override]
        with no_autocast(x.device):
            bias = None if bias is None else bias.to(x.dtype)
            if merge:
                return F.linear(x, _merged(weight, E, D).to(x.dtype), bias)
            return F.linear(x, weight.to(x.dtype), bias) + F.linear(x @ D.to(x.dtype), E.to(x.dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[override]
        x, weight, _, E, D, ctx.merge, *norm = inputs
        trains = any(ctx.needs_input_grad[3:5])
        ctx.dtype = x.dtype
        ctx.save_for_backward(weight, E, D, *((norm or [x]) if trains else []))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):  # type: ignore[override]
        weight, E, D, *source = ctx.saved_tensors
        need_x, _, _, need_E, need_D = ctx.needs_input_grad[:5]
        dx = dE = dD = None
        x: Any = None
        dh: Any = None
        with no_autocast(dy.device):
            dy_rows = dy.reshape(-1, dy.shape[-1])  # (tokens, out)
            if need_D or not ctx.merge:
                dh = dy_rows @ E.to(dy.dtype)  # (tokens, R)
            if need_x:
                if ctx.merge:
                    dx = dy @ _merged(weight, E, D).to(dy.dtype)
                else:
                    dx = dy @ weight.to(dy.dtype) + (dh @ D.t().to(dy.dtype)).view(*dy.shape[:-1], D.shape[0])
            if source:
                x = source[0] if len(source) == 1 else _normalised(*source).to(ctx.dtype)
                x = x.reshape(-1, x.shape[-1])
            if need_D:
                dD = (x.t() @ dh).to(D.dtype)
            if need_E:
                h = x @ D.to(x.dtype)  # (tokens, R)
                dE = (dy_rows.t() @ h).to(E.dtype)
        return dx, None, None, dE, dD, *[None] * (len(ctx.needs_input_grad) - 5)


def _norm_behind(x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """What autograd keeps of the layer norm that gave `x`: its input, mean, reciprocal deviation, weight and bias.
    Empty if `x` comes from elsewhere, or if saved tensors are not to be touched: under hooks, such as those of
    gradient checkpointing, and while compiling."""
    if torch.compiler.is_compiling() or x.grad_fn is None or x.grad_fn.name() != "NativeLayerNormBackward0":
        return ()
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return ()
    node: Any = x.grad_fn
    if len(node._saved_normalized_shape) != 1 or x.output_nr:
        return ()
    parts = node._saved_input, node._saved_result1, node._saved_result2, node._saved_weight, node._saved_bias
    return tuple(None if part is None else part.detach() for part in parts)


def _normalised(
    x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """The output of a layer norm from what it kept, in float32 or wider."""
    y = (x.to(torch.promote_types(x.dtype, torch.float32)) - mean).mul_(deviation)
    y = y if weight is None else y.mul_(weight)
    return y if bias is None else y.add_(bias)


def _merged(weight: torch.Tensor, E: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
    return torch.addmm(weight, E.to(weight.dtype), D.t().to(weight.dtype))


def _merge_pays(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether forming W + dW loses nothing (see the top of this file) and costs less than applying it."""
    out_features, in_features = weight.shape
    tokens = x.numel() // in_features
    return weight.dtype.itemsize >= 4 and tokens * (in_features + out_features) >= in_features * out_features


def base_linear(module: nn.Module | BaseTunerLayer) -> nn.Linear:
    """The linear layer under any number of peft layers."""
    return cast(nn.Linear, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)


def _is_frozen_linear(layer: nn.Module) -> bool:
    """Whether `layer` is F.linear with frozen weights: no subclass, no hook, no patched forward."""
    return (
        type(layer) is nn.Linear
        and not any(parameter.requires_grad for parameter in layer.parameters())
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
        and not layer._backward_pre_hooks
        and "forward" not in vars(layer)
    )


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """`x` as F.linear would take it under the current autocast state."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device)) if x.dtype != torch.float64 else x
    return x
