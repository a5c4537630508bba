"""What an adapter adds to a model beside its updates of layers, and which families of models have a place for it.

A field of `AuroraConfig` such as `context` asks for an addition. This package knows no family of models: a family says
by `register` where in its models the addition goes. An addition is a child of a module of the frozen model and works by
forward hooks, since a wrapped layer would hide its parts from peft and rename their weights. The hooks are bound
methods, which copying and pickling carry along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .config import AuroraConfig
from .layer import AuroraLayer, check_mixed_batch
from .shared import SharedFactors


class Pass(threading.local):
    """What additions know of the forward pass of their own thread: several threads may run one model."""

    mixed: tuple[nn.ModuleDict, list[str]] | None = None  # a tuner model's factors, the adapter of each item of a batch


PASS = Pass()


class AuroraAddition(nn.Module, AuroraLayer):
    """Weights of adapters that act by hooks on the modules around them.

    A subclass sets `field`, keeps the hooks' `handles`, and gives an adapter its weights in `add_adapter`.

    Args:
        factors: the tuner model's shared factors; their names are those of all adapters.
    """

    field = ""  # of `AuroraConfig`
    about = ""  # what it is, in words
    bias = None  # type: ignore[assignment]  # it has no base layer whose bias could be trained
    other_param_names: tuple[str, ...] = ("aurora_form", "aurora_factors")
    handles: list[RemovableHandle]

    def __init__(self, factors: nn.ModuleDict) -> None:
        super().__init__()
        self.aurora_form: dict[str, str] = {}  # adapter name -> the configuration's choice
        self.merged_adapters: list[str] = []
        object.__setattr__(self, "aurora_factors", factors)  # past nn.Module, which would register it

    def add_adapter(self, name: str, config: AuroraConfig, like: Tensor) -> None:
        """Make the weights of the adapter `name`, on the device and in the dtype of `like`, (width,)."""
        raise NotImplementedError

    def applied(self, batch: int, device: torch.device) -> Iterator[tuple[str, Tensor | None]]:
        """Adapters that act now, each with the items of the batch that it acts on, (batch,) of bool; None: on all.

        Raises:
            ValueError: if `adapter_names` has another length than the batch, or adapters are merged.
        """
        if self.disable_adapters:
            self.merged_adapters = []  # as the adapted layers do
        elif PASS.mixed is None or PASS.mixed[0] is not self.aurora_factors:
            names = self.merged_adapters or self.active_adapters
            yield from ((name, None) for name in names if name in self.aurora_form)
        else:
            names = PASS.mixed[1]
            check_mixed_batch(batch, names, self.merged)
            for adapter in sorted(set(names) & set(self.aurora_form)):
                yield adapter, torch.tensor([name == adapter for name in names], device=device)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing here folds into weights: what is merged goes on being applied as it was."""
        self.merged_adapters += [n for n in check_adapters_to_merge(self, adapter_names) if n in self.aurora_form]

    def unmerge(self) -> None:
        """Forget what `merge` noted."""
        self.merged_adapters = []

    def leave(self, parent: nn.Module, name: str) -> None:
        """The tuner model lets go of `parent`, whose child `name` this is: stay, frozen, with what is merged, or go."""
        for adapter in set(self.aurora_form) - set(self.merged_adapters):
            self.delete_adapter(adapter)
        object.__setattr__(self, "aurora_factors", SharedFactors())
        self.requires_grad_(False)
        if not self.merged:
            for handle in self.handles:
                handle.remove()
            delattr(parent, name)

    def _get_available_adapters(self) -> set[str]:
        return set(self.aurora_form)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name in self.aurora_form:  # there is no base layer; the factors have been moved already
            self.to(device or next(self.aurora_factors[adapter_name].parameters()).device)


def on_items(items: Tensor | None, added: Tensor) -> Tensor:
    """`added`, (batch, ...), with zeros in place of all but the given items, (batch,) of bool; None: as it is."""
    return added if items is None else torch.where(items.view(-1, *[1] * (added.dim() - 1)), added, 0.0)


class Adder(NamedTuple):
    """How the models of one family take what a field of `AuroraConfig` asks for."""

    place: str  # what a model needs to have for it, in words: "a text encoder of ..."
    find: Callable[[nn.Module], list[Any]]  # the places in a model, none if it is of another family
    add: Callable[[Any, str, AuroraConfig, nn.ModuleDict], None]  # to a place, for an adapter's name, with the factors


ADDERS: dict[str, dict[str, Adder]] = {"context": {}, "gate": {}}  # field of `AuroraConfig` -> family -> adder


def register(field: str, family: str, adder: Adder) -> None:
    """Say how the models of `family` take what `field` asks for, in place of what was said of both before."""
    ADDERS[field][family] = adder


def check_additions(model: nn.Module, config: AuroraConfig) -> None:
    """Check that `model` has a place for every addition that `config` asks for.

    Raises:
        ValueError: if it has none, or no family has registered.
    """
    for field in _fields(config):
        adders, asked = ADDERS[field].values(), f"`{field}`={getattr(config, field)!r}"
        if not adders:
            raise ValueError(
                f"{asked}, but no family of models is known: please `import aurora_petl`, or leave it out."
            )
        if not any(adder.find(model) for adder in adders):
            raise ValueError(
                f"{asked} belongs into {' or '.join(adder.place for adder in adders)}, but {type(model).__name__} has "
                "none. Please leave it out."
            )


def add_additions(model: nn.Module, name: str, config: AuroraConfig, factors: nn.ModuleDict) -> None:
    """Put what `config` asks for into `model`, for the adapter `name`."""
    for field in _fields(config):
        for adder in ADDERS[field].values():
            for place in adder.find(model):
                adder.add(place, name, config, factors)


def additions(model: nn.Module) -> list[tuple[nn.Module, str, AuroraAddition]]:
    """Every addition in `model`, with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, AuroraAddition)
    ]


def _fields(config: AuroraConfig) -> list[str]:
    """The fields by which `config` asks for an addition."""
    return [field for field in ADDERS if getattr(config, field)]
