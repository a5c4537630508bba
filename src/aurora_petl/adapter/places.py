"""Which modules of a model can be adapted, and by which layer: the rest is refused in words that say why."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from .attention import AuroraAttention
from .config import AuroraConfig
from .kinds import Aurora4bit, Aurora8bit, AuroraConv, AuroraConv1D, AuroraTorchao
from .layer import AuroraLinear, base_linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BITSANDBYTES = {"Linear8bitLt": Aurora8bit, "Linear4bit": Aurora4bit}
KNOWN = "torch.nn.Linear, Conv1D of transformers, convolutions and nn.MultiheadAttention"


def check_target(config: AuroraConfig, name: str, module: nn.Module) -> tuple[int, int]:
    """How a targeted module is split into slices, by rows and by columns.

    Raises:
        ValueError: if it cannot be adapted or does not divide into its slices.
    """
    if words := unfit(name, module):
        raise ValueError(words)
    base = base_linear(module)
    kind = layer_class(base)
    assert kind is not None
    if kind is AuroraAttention:
        return 3, 1  # query, key and value
    columns_of_base, rows_of_base = kind.sizes(base)
    short = name.rpartition(".")[2]
    rows, columns = split = config.split_of(name)
    for field, slices, side, size in (
        ("fused_slices", rows, "rows", rows_of_base),
        ("fused_columns", columns, "columns", columns_of_base),
    ):
        if size % slices:
            raise ValueError(
                f"`{field}` makes {slices} slices of target module {name}, but its {size} {side} do not divide by "
                f"{slices}. Please set `{field}={{{short!r}: 1}}` or the right number."
            )
    if rows > 1 and columns > 1:
        raise ValueError(
            f"Target module {name} is in `fused_slices` ({rows}) and in `fused_columns` ({columns}), but a layer "
            f"can be split one way only. Please set it to 1 in `fused_slices` or in `fused_columns`."
        )
    return split


def unfit(name: str, module: nn.Module) -> str | None:
    """Why a module cannot be adapted, and what to do, in words; None if it can be."""
    base: Any = base_linear(module)
    if layer_class(base) is None:
        if is_of_attention(base):
            return (
                f"Target module {name} belongs to a torch.nn.MultiheadAttention, which takes the weight and never "
                f"calls the layer, so an adapter would do nothing. Please add {name!r} to `exclude_modules`; to adapt "
                f"the attention as a whole, name {name.rpartition('.')[0]!r} in `target_modules`."
            )
        if isinstance(base, nn.Linear):
            return (
                f"Target module {name} is quantised ({type(base).__name__} with weights of {_type_of(base.weight)}), "
                "but of quantised layers only those of bitsandbytes and torchao's of 8 bits can be adapted. Please "
                "load the model quantised by these, or without quantisation, in bfloat16 say."
            )
        return (
            f"Target module {name} is a {type(base).__name__}, but only {KNOWN} can be adapted. "
            "Please narrow `target_modules` or name it in `exclude_modules`."
        )
    if isinstance(base, CONVOLUTIONS) and base.groups > 1:
        return (
            f"Target module {name} is a {type(base).__name__} of {base.groups} groups, but only convolutions of one "
            "group can be adapted. Please name it in `exclude_modules`."
        )
    if isinstance(base, nn.MultiheadAttention):
        if not base._qkv_same_embed_dim:
            return (
                f"Target module {name} is a torch.nn.MultiheadAttention whose keys or values have a width of their "
                "own, but only one of a single width can be adapted. Please name it in `exclude_modules`."
            )
        if isinstance(module, BaseTunerLayer) and not isinstance(module, AuroraAttention):
            return f"Target module {name} is adapted by another method of peft. Please name it in `exclude_modules`."
    return None


def layer_class(base: nn.Module) -> type[AuroraLinear] | None:
    """The class of adapted layers for a module of this type; None if there is none."""
    if isinstance(base, nn.Linear):
        if origin := _quantised_by(base):
            if origin == "torchao":
                return None if type(base.weight).__name__ == "Int4Tensor" else AuroraTorchao
            return BITSANDBYTES.get(type(base).__name__) if origin == "bitsandbytes" else None
        return None if is_of_attention(base) else AuroraLinear
    if isinstance(base, Conv1D):
        return AuroraConv1D
    if isinstance(base, CONVOLUTIONS):
        return AuroraConv
    return AuroraAttention if isinstance(base, nn.MultiheadAttention) else None


def like_weight(base: nn.Module) -> torch.Tensor:
    """A tensor of the dtype and on the device that the adapter's weights have beside this module: of its weight, in
    float32 if that is quantised."""
    weight: torch.Tensor = base.in_proj_weight if isinstance(base, nn.MultiheadAttention) else base.weight  # type: ignore
    return torch.empty(0, device=weight.device) if _quantised_by(base) else weight


def is_all_linear(targets: object) -> bool:
    return isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, or one that peft has wrapped."""
    return isinstance(module, (nn.Linear, Conv1D, BaseTunerLayer))


def is_of_attention(module: nn.Module) -> bool:
    """Whether it is the output layer of an `nn.MultiheadAttention`."""
    return isinstance(base_linear(module), NonDynamicallyQuantizableLinear)


def _quantised_by(base: nn.Module) -> str:
    """The library that quantised a layer, "unknown" for weights of 8 bits or less; "" if none did. bitsandbytes
    quantises on the way to the GPU: until then only names tell."""
    weight: Any = getattr(base, "weight", None)
    origins = {parent.__module__.partition(".")[0] for kind in (base, weight) for parent in type(kind).__mro__}
    known = sorted(origins & {"bitsandbytes", "torchao"})
    if known or weight is None:
        return "".join(known[:1])
    return "" if weight.is_floating_point() and weight.itemsize >= 2 else "unknown"


def _type_of(weight: Any) -> str:
    return type(weight).__name__ if type(weight) is not nn.Parameter else str(weight.dtype)
