"""Where the factors lie that all layers share: in the adapted model itself, beside its own parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .updates import Updates

CHILD = "aurora_factors"  # their name in the model


class SharedFactors(nn.ModuleDict):
    """The factors of every adapter of a model by name, and what was formed of them last. They are a child of the model,
    so that whoever trains, saves, moves or shards the model does so with them."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = Updates()

    def forward(self, *inputs: Any) -> Any:
        """What goes in comes out: an `nn.Sequential` calls all of its children."""
        return inputs[0] if len(inputs) == 1 else inputs

    def _apply(self, *args: Any, **kwargs: Any) -> SharedFactors:
        self.updates.forget()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # peft calls this on every module that has it after loading with low_cpu_mem_usage
        factors = self[adapter_name] if adapter_name in self else None
        if factors is None or any(factor.device.type == "meta" for factor in factors.parameters()):
            return
        layers = (layer for layer in self.updates.layers() if adapter_name in layer.aurora_P)
        factors.to(device or next(layers).frozen_weight.device)


def factors_of(model: nn.Module) -> SharedFactors | None:
    """The shared factors of `model` itself, not those of a part of it; None if it has none."""
    child = model._modules.get(CHILD)
    return child if isinstance(child, SharedFactors) else None
