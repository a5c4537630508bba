"""Adapters combined into one whose update is the weighted sum of theirs.

The factors of all of them lie side by side. With weights w, and with 0 in P where an adapter does not have a layer,

    U = [ U_a | U_b ]     V = [ V_a | V_b ]     P[k] = [ P_a[k] | P_b[k] ]     lambda = [ w_a lambda_a | w_b lambda_b ]

so the rank is the sum of the ranks and nothing is approximated. C of the full core has C_a and C_b as blocks on its
diagonal; a diagonal core among full ones is a C with lambda on its diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import AuroraProjection
from .config import AuroraConfig
from .factors import AuroraFactors
from .layer import AuroraLinear
from .shared import SharedFactors


def check_combinable(configs: dict[str, AuroraConfig], adapters: Sequence[str], weights: Sequence[float]) -> None:
    """Check that these adapters can be combined.

    Args:
        configs: of all adapters of the model.

    Raises:
        ValueError: if an adapter does not exist or has more than updates of layers, or there are more or fewer weights.
    """
    try:
        given = len(weights) if all(map(math.isfinite, weights)) else -1
    except TypeError:  # one number for all, or what is no number
        given = -1
    if not adapters or len(adapters) != given or len(set(adapters)) < len(adapters):
        raise ValueError(
            f"Every adapter should be named once in `adapters` and have one finite number in `weights`, but these are "
            f"{adapters} and {weights}"
        )
    for name in adapters:
        if name not in configs:
            raise ValueError(f"Adapter {name!r} does not exist; the adapters are {', '.join(map(repr, configs))}")
        config = configs[name]
        more = [field for field in ("modules_to_save", "context", "gate") if getattr(config, field)]
        more += ["bias"] if config.bias != "none" else []
        if more:
            raise ValueError(
                f"Adapter {name!r} has `{more[0]}`, but only updates of layers can be combined. Please leave it out, "
                "or activate several adapters, `model.base_model.set_adapter([...])`, whose updates add up."
            )


def combined_config(model: nn.Module, configs: dict[str, AuroraConfig], adapters: Sequence[str]) -> AuroraConfig:
    """The configuration of the combined adapter: the layers that any of them has, by name.

    Raises:
        ValueError: if a layer is of different slices in two of them.
    """
    splits: dict[str, tuple[int, int]] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, AuroraLinear):
            continue
        own = {adapter: layer.aurora_split[adapter] for adapter in adapters if adapter in layer.aurora_P}
        if len(set(own.values())) > 1:
            raise ValueError(
                f"{name} has slices by (rows, columns) of {own}, but adapters that are combined need the same: "
                "please combine others, or activate several, `model.base_model.set_adapter([...])`."
            )
        if own and not isinstance(layer, AuroraProjection):
            splits[name] = next(iter(own.values()))
    groups = {adapter: configs[adapter].factor_groups for adapter in adapters}
    if any(own != groups[adapters[0]] for own in groups.values()):
        raise ValueError(f"Adapters that are combined need the same `factor_groups`, but these have {groups}")
    cores = {configs[adapter].core for adapter in adapters}
    return replace(
        configs[adapters[0]],
        r=sum(configs[adapter].r for adapter in adapters),
        core="diagonal" if cores == {"diagonal"} else "full",
        scale=1.0,
        dropout=0.0,
        target_modules=sorted(splits),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        fused_slices={name: rows for name, (rows, _) in splits.items()},
        fused_columns={name: columns for name, (_, columns) in splits.items() if columns > 1},
    )


@torch.no_grad()
def combine(model: nn.Module, factors: SharedFactors, name: str, weights: dict[str, float]) -> None:
    """Set the weights of the adapter `name`, made by `combined_config`, from those of others."""
    new, parts = _factors(factors, name), {adapter: _factors(factors, adapter) for adapter in weights}
    for factor, value in new.named_parameters():
        if factor == new.core_name:
            value.data = _core(new, parts, weights)
        else:
            value.data = _beside([(getattr(part, factor, None), part.r) for part in parts.values()], len(value), value)
    for layer in model.modules():
        if isinstance(layer, AuroraLinear) and name in layer.aurora_P:
            rows = layer.aurora_P[name]
            own = [(layer.scaled_rows(a) if a in layer.aurora_P else None, part.r) for a, part in parts.items()]
            rows.data = _beside(own, len(rows), rows)


def _core(new: AuroraFactors, parts: dict[str, AuroraFactors], weights: dict[str, float]) -> Tensor:
    cores = [getattr(part, part.core_name) * (part.scale * weights[adapter]) for adapter, part in parts.items()]
    if new.core == "diagonal":
        return torch.cat(cores)
    whole: Tensor = cores[0].new_zeros((new.r,) * 3)
    start = 0
    for core in cores:
        block = slice(start, start := start + len(core))
        whole[block, block, block] = core if core.dim() == 3 else torch.diag_embed(torch.diag(core))
    return whole


def _beside(parts: list[tuple[Tensor | None, int]], height: int, like: Tensor) -> Tensor:
    """Matrices of `height` rows side by side, in the place of a missing one as many columns of 0 as it is wide."""
    wide = next((part for part, _ in parts if part is not None), like)
    filled = [wide.new_zeros(height, width) if part is None else part for part, width in parts]
    return torch.cat([part.to(wide) for part in filled], 1)


def _factors(factors: SharedFactors, name: str) -> AuroraFactors:
    return factors[name]  # type: ignore[return-value]
