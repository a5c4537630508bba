"""The momentum encoder for the price of an adapter: an exponential moving average (EMA) of trained weights alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages(nn.Module):
    """EMA of trained weights, which starts as they are. A model computes with the averages within `swapped_in`.

    Args:
        weights: the trained weights by name.
        momentum: share of the average that a step keeps.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.values = nn.ParameterDict(
            {_key(name): nn.Parameter(weight.detach().clone(), False) for name, weight in weights.items()}
        )

    def __len__(self) -> int:
        return len(self.values)

    @torch.no_grad()
    def put(self, name: str, value: Tensor) -> None:
        """Set the average of a weight."""
        self.values[_key(name)].copy_(value)

    @torch.no_grad()
    def advance(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Take a step towards the weights."""
        if weights:
            averages = [self.values[_key(name)] for name in weights]
            torch._foreach_lerp_(averages, list(weights.values()), 1 - self.momentum)

    @contextmanager
    def swapped_in(self, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Within it, the model that owns ``weights`` computes with the averages."""
        own = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self.values[_key(name)].data
            yield
        finally:
            for name, weight in weights.items():
                weight.data = own[name]


def _key(name: str) -> str:
    """A name as `nn.ParameterDict` takes it."""
    return name.replace(".", "/")
