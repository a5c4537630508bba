"""Whether weights are still what they were when something was formed of them.

A stamp sees another tensor in a weight's place, another memory behind it (``weight.data = ...``), autograd's count of
changes in place, and the steps of optimizers, since fused ones change weights past that count. A change in place
through ``.data`` leaves no trace but the values: see `updates.Formed.fits`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, uint8
from torch.optim.optimizer import register_optimizer_step_post_hook


class Steps:
    """How many steps the optimizers of this process have taken."""

    count = 0

    @classmethod
    def taken(cls, *_: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(Steps.taken)


class Unchanged(threading.local):
    """Of `weights_unchanged`, by thread."""

    number = 0  # of the block that is under way; 0 outside of any


UNCHANGED, NUMBERS = Unchanged(), count(1)


@contextmanager
def weights_unchanged() -> Iterator[None]:
    """Say that within it nothing changes weights through ``.data``: what was formed for one pass serves all of them."""
    if torch.compiler.is_compiling():  # nothing is formed there, and each number would be a graph of its own
        yield
        return
    around, UNCHANGED.number = UNCHANGED.number, UNCHANGED.number or next(NUMBERS)
    try:
        yield
    finally:
        UNCHANGED.number = around


class Stamp:
    """A weight at a moment. It keeps the memory of then, so that nothing else can come to lie in the same place.

    Args:
        values: keep a copy of the values too, of a weight on the CPU.
    """

    __slots__ = ("data", "learns", "name", "owner", "place", "step", "tensor", "values", "version")

    def __init__(self, owner: nn.Module, name: str, values: bool = False) -> None:
        self.owner, self.name, self.step = owner._parameters, name, Steps.count
        tensor: Any = self.owner[name]
        self.tensor, self.data = tensor, tensor.detach()
        self.version, self.place, self.learns = _version(tensor), tensor.data_ptr(), tensor.requires_grad
        self.values = _bytes(self.data).copy() if values and self.data.device.type == "cpu" else None

    def fits(self) -> bool:
        """Whether the module still has this weight, and nothing says that it has changed."""
        tensor: Any = self.owner.get(self.name)
        return (
            tensor is self.tensor
            and (self.step == Steps.count or not self.learns)
            and _version(tensor) == self.version
            and tensor.data_ptr() == self.place
            and tensor.requires_grad == self.learns
        )

    def has_same_values(self) -> bool:
        """Whether the values are those of then. Where they were not kept: whether the weight is frozen."""
        if self.values is None:
            return not self.learns
        return np.array_equal(self.values, _bytes(self.tensor.detach()))

    def is_changed(self) -> bool:
        """Whether autograd counted a change in place, as for tensors that it saves."""
        return _version(self.tensor) != self.version


def is_plain(owner: nn.Module, name: str) -> bool:
    """Whether this weight is a tensor as any other, which nobody shards or gathers."""
    tensor: Any = owner._parameters.get(name)
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and not hasattr(tensor, "ds_id")  # DeepSpeed's stage 3
        and not getattr(owner, "_is_fsdp_managed_module", False)
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(uint8).numpy()
