"""The adapted linear layer.

     merged forward (default)                     low-rank forward (bf16 base, few tokens)

             x                                        x ------------.
             |                                        |             | D^T
      [ W + E D^T ]   one dense product             [ W ]         ( R )
             |                                        |             | E
             y                                        y <---- + ----'

E and D are the thin factors of the layer's update (`factors.py`); for slices by rows, D is U. For T tokens
through a d x d slice, forming E D^T costs d*d*R multiply-adds once, applying it costs 2*T*d*R: at T = 16 * 577
and d = 768, 24 times as much. The extra work of the backward pass is thin (width R): x D, dy E, and from them

    dD = x^T (dy E)        dE = dy^T (x D)  ->  dU, dV, dP, dlambda by products that no longer see the tokens

which for a fused qkv layer is 8 products of size T x d x R. The gradient of x is dy (W + E D^T), or dy W + (dy E) D^T
where there are too few tokens for the sum to pay.

Of the size of x, the backward pass needs x alone. Where x is the output of a frozen layer norm (`norm.py`), not even
that is kept: the norm's own backward pass keeps its input, from which x is formed again. Over weights in half precision
on a GPU x is kept all the same, since the GPU would wait for the launch of the kernel that forms it.

What does not depend on x, E and W + E U^T, is formed for all layers together, once for each set of weights, and so are
the gradients of V, P and lambda (`updates.py`). A layer forms its own under torch.compile, where shards of its weights
come and go, with rank dropout, and for slices by columns. Layers that read the same x, as query, key and value of an
attention do, can be computed as one (`together.py`), and share x U where they are not (`frozen.Taken`).

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

from .factors import AuroraFactors, Widths, at_hand, autocast_dtype, no_autocast, thin
from .frozen import FormedLinear, FrozenLinear, apply, merge_pays, plain_operations
from .norm import norm_inputs
from .shared import SharedFactors
from .units import LAYER
from .updates import Formed


class AuroraLayer(BaseTunerLayer):
    """Everything of this method that peft switches, merges and deletes by adapter name.

    `aurora_factors`, the shared factors by adapter name, is a plain reference, not a submodule: the adapted model alone
    registers them, so they appear once in `parameters()` and in a state dict.
    """

    aurora_factors: SharedFactors


class AuroraLinear(nn.Module, AuroraLayer):
    """A frozen `nn.Linear` plus the low-rank updates of its active adapters.

    y = (W + sum over active adapters of dW) x + b, with dW made of scale * V M_k U^T by slices. Layers of other types
    are subclasses (`kinds.py`, `attention.py`).

    Args:
        base_layer: the linear layer, possibly wrapped by another peft layer.
        factors: the shared factors of the model by adapter name.
    """

    adapter_layer_names: tuple[str, ...] = ("aurora_P", "aurora_factors")
    other_param_names: tuple[str, ...] = ("aurora_split", "aurora_group", "aurora_scale")
    formed_together = True  # with all layers of its width, see `updates.py`; a subclass computes its own update

    def __init__(self, base_layer: nn.Module, factors: SharedFactors) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.aurora_P = nn.ParameterDict()  # adapter name -> (slices, R)
        self.aurora_split: dict[str, tuple[int, int]] = {}  # adapter name -> slices by rows and by columns
        self.aurora_group: dict[str, int] = {}  # adapter name -> which factors the layer's slices share, see `Widths`
        self.aurora_scale: dict[str, float] = {}  # adapter name -> factor on this layer's update, 1 where there is none
        object.__setattr__(self, "aurora_factors", factors)  # past nn.Module, which would register it
        self.merged_adapters = []
        self.in_features, self.out_features = self.sizes(base_linear(self))
        factors.updates.know(self)

    @staticmethod
    def sizes(base: Any) -> tuple[int, int]:
        """Columns and rows of the weight of a layer of this type, as a matrix."""
        return base.in_features, base.out_features

    @property
    def frozen_weight(self) -> torch.Tensor:
        """The base weight that the update is added to."""
        return base_linear(self).weight

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.aurora_factors.updates.know(self)  # copies of updates know no layers

    def requires_grad_(self, requires_grad: bool = True) -> AuroraLinear:
        """As of any module. To freeze one layer freezes the shared factors as well: transformers freezes what it has
        loaded layer by layer."""
        if not requires_grad:
            self.aurora_factors.requires_grad_(False)
        super().requires_grad_(requires_grad)
        return self

    def add_adapter(self, name: str, split: tuple[int, int], group: int = 0) -> None:
        """Give the layer its rows of the adapter `name`, whose factors exist already."""
        self.aurora_split[name], self.aurora_group[name] = split, group
        self.aurora_P[name] = self._factors(name).add(
            self.slice_widths(name), math.prod(split), self.frozen_weight.device
        )

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """dW of one adapter, without rank dropout, in float32 or wider and in the shape of the base weight: for an
        `nn.Linear` (out_features, in_features)."""
        return self._delta(adapter, training=False)

    def _delta(self, adapter: str, training: bool) -> torch.Tensor:
        E, D = self._thin(adapter, training)
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
            RuntimeError: as the base layer does, for x of another dtype than its weight outside autocast.
        """
        if adapter_names is not None:
            check_mixed_batch(len(x), adapter_names, self.merged)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters:
            return self._base(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        adapters = [name for name in self.active_adapters if name in self.aurora_P]
        if self.merged or not adapters:
            return self._base(x, *args, **kwargs)
        plain = self.formed_together and len(adapters) == 1 and not args and not kwargs
        if plain and one_step(self.base_layer, x):
            formed, from_norm = formed_for((self,), adapters[0], x, LAYER), norm_inputs(x)
            if formed is not None:
                of_U, of_E = formed.tokens()
                return apply(FormedLinear, x, formed, from_norm, None, of_U, *of_E)
            linear, columns = base_linear(self), self.is_split_by_columns(adapters[0])
            x, factors = x.to(taken_as(x)), self.of_layer(adapters[0])
            merge = merge_pays(x, linear.weight)
            return apply(FrozenLinear, x, linear.weight, linear.bias, *factors, columns, merge, from_norm)
        y = self._base(x, *args, **kwargs)
        for adapter in adapters:
            y = y + self._low_rank(x, adapter).to(y.dtype)
        return y

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        y = self._base(x, *args, **kwargs)
        for adapter in sorted(set(adapter_names) & set(self.aurora_P)):
            items = torch.tensor([i for i, name in enumerate(adapter_names) if name == adapter], device=x.device)
            y = y.index_add(0, items, self._low_rank(x[items], adapter).to(y.dtype))
        return y

    def _base(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def weight_with_updates(self) -> torch.Tensor:
        """The base weight plus the updates that are to be added now; the base weight itself if there are none."""
        weight = self.frozen_weight
        if not (self.disable_adapters or self.merged):
            for adapter in self.active_adapters:
                if adapter in self.aurora_P:
                    weight = weight + self._delta(adapter, self.training).to(weight.dtype)
        return weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the adapters (default: the active ones) to the base weight.

        Raises:
            ValueError: with `safe_merge`, if the sum is not finite.
        """
        self.aurora_factors.updates.forget()
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.aurora_P:
                merged = self._shifted_base_weight(name, sign=1)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
                self._set_base_weight(merged)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract again what `merge` added (equal up to rounding)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            self._set_base_weight(self._shifted_base_weight(self.merged_adapters.pop(), sign=-1))

    @torch.no_grad()
    def _shifted_base_weight(self, adapter: str, sign: int) -> torch.Tensor:
        weight, delta = self.frozen_weight, self.get_delta_weight(adapter)
        return (weight.to(delta.dtype) + sign * delta.to(weight.device)).to(weight.dtype)

    def _set_base_weight(self, weight: torch.Tensor) -> None:
        self.frozen_weight.data = weight

    def _factors(self, adapter: str) -> AuroraFactors:
        return self.aurora_factors[adapter]  # type: ignore[return-value]

    def slice_widths(self, adapter: str) -> Widths:
        """Input and output width of the layer's slices, and their group."""
        rows, columns = self.aurora_split[adapter]
        return Widths(self.in_features // columns, self.out_features // rows, self.aurora_group[adapter])

    def is_split_by_columns(self, adapter: str) -> bool:
        return self.aurora_split[adapter][1] > 1

    def of_layer(self, adapter: str, training: bool | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U, V and mode of the layer's update, on the layer's own device, with rank dropout in training."""
        training = self.training if training is None else training
        return self._factors(adapter).of_layer(self.scaled_rows(adapter), self.slice_widths(adapter), training)

    def scaled_rows(self, adapter: str) -> torch.Tensor:
        """The rows of P times the layer's own scale, in which dW is linear: (slices, R)"""
        rows = at_hand(self.aurora_P, adapter)
        scale = self.aurora_scale.get(adapter, 1.0)
        return rows if scale == 1.0 else rows * scale

    def _thin(self, adapter: str, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """E (out_features, R) and D (in_features, R) of dW = E D^T."""
        return thin(*self.of_layer(adapter, training), self.is_split_by_columns(adapter))

    def set_scale(self, adapter: str, scale: float) -> None:
        """Multiply the adapter's update of this layer by `scale` from now on, in the place of an earlier factor."""
        if adapter in self.aurora_P:
            self.aurora_scale[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the updates of the active adapters by `scale` more."""
        for adapter in self.active_adapters:
            self.set_scale(adapter, self.aurora_scale.get(adapter, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer(scale)`; None: take the updates of the active adapters as they were trained."""
        for adapter in self.active_adapters:
            self.set_scale(adapter, 1.0 if scale is None else self.aurora_scale.get(adapter, 1.0) / scale)

    def only_adapter(self) -> str | None:
        """The adapter, if exactly one is at work."""
        adapters = [name for name in self.active_adapters if name in self.aurora_P]
        return adapters[0] if len(adapters) == 1 and not (self.disable_adapters or self.merged) else None

    def _low_rank(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        E, D = self._thin(adapter, self.training)
        return F.linear(x @ D.to(x.dtype), E.to(x.dtype))

    def _get_available_adapters(self) -> set[str]:
        return set(self.aurora_P)  # the shared factors name the adapters of other layers too

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft's version casts to the base dtype too, which would round loaded float32 rows
        rows = self.aurora_P[adapter_name] if adapter_name in self.aurora_P else None
        if rows is not None and rows.device.type != "meta":
            rows.data = rows.data.to(device or self.frozen_weight.device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True  # the update is additive

    def __repr__(self) -> str:
        return "aurora." + super().__repr__()


def formed_for(layers: tuple[AuroraLinear, ...], adapter: str, x: torch.Tensor, form: str) -> Formed | None:
    """What `updates.py` formed for layers that read x; None where each has to form its own: under torch.compile and in
    CUDA graphs, which would not notice that weights change, with rank dropout, drawn anew for each, for slices by
    columns, for scaled layers, and for what `Updates.of` refuses."""
    first = layers[0]
    factors = first.aurora_factors
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
        or (first._factors(adapter).dropout > 0 and any(layer.training for layer in layers))
        or any(layer.is_split_by_columns(adapter) or layer.aurora_scale.get(adapter, 1.0) != 1.0 for layer in layers)
    ):
        return None
    return factors.updates.of(layers, adapter, taken_as(x), form)


def base_linear(module: nn.Module | BaseTunerLayer) -> nn.Linear:
    """The linear layer under any number of peft layers."""
    return cast(nn.Linear, module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)


def check_mixed_batch(items: int, adapter_names: list[str], merged: bool) -> None:
    """Check what peft's `adapter_names` say of a batch of so many items.

    Raises:
        ValueError: in peft's words, if the number of names is another or adapters are merged.
    """
    if items != len(adapter_names):
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {items} respectively."
        )
    if merged:
        raise ValueError(
            "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
        )


def one_step(layer: nn.Module, x: torch.Tensor) -> bool:
    """Whether `FrozenLinear` may stand in for `layer` and an update: the layer is F.linear with frozen weights, no
    subclass, no hook, no patched forward; it takes x; and derivatives are first ones in reverse mode.
    """
    return (
        type(layer) is nn.Linear
        and not (layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad))
        and not has_hooks(layer)
        and "forward" not in vars(layer)
        and (x.dtype == layer.weight.dtype or taken_as(x) == taken_as(layer.weight))
        and not plain_operations()
    )


def has_hooks(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(hooks)


def taken_as(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which F.linear takes a tensor under the current autocast state."""
    dtype = autocast_dtype(tensor.device)
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor.dtype
    return dtype
