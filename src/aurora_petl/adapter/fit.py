"""Whether saved weights are those of an adapter: none missing, none too many, all of its shapes and finite.

peft warns of missing weights at most and drops what has no place, and a model with half an adapter goes on computing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

FACTORS = "base_model.model.aurora_factors."  # how the names of shared factors begin in a file
EARLIER = "base_model.aurora_factors."  # and how they began before the factors were part of the model


def check_weights(model: PeftModel, weights: Mapping[str, Tensor], adapter_name: str = "default") -> None:
    """Check the content of an `adapter_model.safetensors` against the adapter of `model` that it is for, of any method
    of peft.

    Args:
        weights: by the names that the file has.

    Raises:
        ValueError: if weights are missing, have no place, are of another shape or not finite; the message names them.
    """
    own = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    weights = current_names(weights)
    words = misfit(weights, own, own)
    for name, weight in own.items() if words is None else ():
        if weights[name].shape != weight.shape:
            words = f"{name} is of shape {tuple(weights[name].shape)} where {tuple(weight.shape)} is due"
            break
    if words is not None:
        raise ValueError(f"the weights do not fit adapter {adapter_name!r}: {words}")


def current_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file by the names that files have now."""
    return {
        FACTORS + name.removeprefix(EARLIER) if name.startswith(EARLIER) else name: weight
        for name, weight in weights.items()
    }


def misfit(weights: Mapping[str, Tensor], own: Collection[str], places: Collection[str]) -> str | None:
    """What keeps `weights` from being those of an adapter, in words; None if nothing does.

    Args:
        own: the names of the adapter's weights.
        places: every name that has a place in the model.
    """
    missing, surplus = sorted(set(own) - set(weights)), sorted(set(weights) - set(places))
    words = [f"{name} is missing{_and_others(missing)}" for name in missing[:1]]
    words += [f"{name} has no place in the model{_and_others(surplus)}" for name in surplus[:1]]
    broken = [name for name, weight in weights.items() if not (missing or surplus or _is_finite(weight))]
    words += [f"{name} holds NaN or infinite values{_and_others(broken)}" for name in broken[:1]]
    return "; ".join(words) or None


def _and_others(names: list[str]) -> str:
    return f", and so for {len(names) - 1} more" if len(names) > 1 else ""


def _is_finite(weight: Tensor) -> bool:
    return weight.device.type == "meta" or not weight.is_floating_point() or bool(torch.isfinite(weight).all())
