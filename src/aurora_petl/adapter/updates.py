"""The updates of all layers, formed together and used until a weight changes.

All slices of a width share U and V, so a few batched products form every update at once:

    E = V M of all slices         (out, R) each       one product, after one of lambda * P
    W + E U^T of all layers       (out, in) each      one copy of every W, one product for each size of layer

A layer by itself needs as many, at each pass. What is formed serves every pass over the same weights (pictures, texts,
both, evaluation), see `Formed.fits`; `gather.py` takes the gradients. E is formed for all layers of a width that have
the adapter. What else a layer computes with is formed from when it asks first, by itself or with those that read the
same x: a unit.

Memory: merged weights are a copy of the adapted ones in the dtype of compute, for the adapter that was used last. All
copies together take no more than `LIMIT`; layers beyond it are computed one by one (`frozen.FrozenLinear`). As long as
autograd's graph of a pass lives, so does what the pass used.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from .factors import AuroraFactors, Widths, expand, no_autocast
from .gather import Gather, Sources, Tokens
from .stamp import UNCHANGED, Stamp, is_plain
from .units import CROSS, JOINT, LAYER, Layer, Unit, merges

LIMIT = 2**30  # bytes of copies of weights, for each tuner model
BLOCKS = 4  # a unit that nobody asked of the last so many blocks is not formed again until it is asked for
LOCK = threading.Lock()  # several threads may run one model


class Formed:
    """What a unit computes with, in the dtype of compute.

    Attributes:
        stack: JOINT: (out + R, in), the weights of the layers above U^T. CROSS: (out, in + R), the weights beside E.
        merged: whether the weights in `stack` hold their updates.
        weight: LAYER: (out, in), without the update.
        bias: (out,), for JOINT (out + R,); None if no layer has one.
        E: (out, R)
        U: (in, R)
        rows: out of each layer.
    """

    stack: Tensor | None = None

    def __init__(self, unit: Unit, block: Block) -> None:
        self.merged, self.rows, self.U = unit.merged, unit.rows, block.U
        self.weight = unit.linears[0].weight if unit.form == LAYER else None
        self._block, self._places, self._pass = block, [block.places[id(P)] for P in unit.P], -1
        self.E = block.rows_of(self._places, block.E)
        self.bias = unit.bias(block.U.shape[1])
        self._stamps = [*block.shared, *(block.own[place] for place in self._places), *unit.frozen]
        self.number = block.number

    def fits(self) -> bool:
        """Whether all that it was formed of is as it was.

        A change in place through ``.data`` leaves no trace. So as soon as a unit asks again, or a backward pass has
        been, the values of the adapter's weights are compared with those of then, on a CPU. Elsewhere, where to look at
        values is to wait for them, all is formed anew if a weight is trained. Gradient checkpointing, which asks again
        within the backward pass, repeats what was.
        """
        if not all(stamp.fits() for stamp in self._stamps):
            return False
        if torch._C._current_graph_task_id() == -1 and not self._block.is_settled():
            if (self._pass == self._block.passes or self._block.sources.spent) and not self._block.begins_pass():
                return False
            self._pass = self._block.passes
        return True

    def tokens(self) -> tuple[Tensor | None, list[Tensor]]:
        """What takes the gradient of U, and those of E, for each layer; none where nothing is to learn."""
        tokens = self._block.tokens() if torch.is_grad_enabled() else ()
        return (
            (tokens[2 * self._places[0] + 1], [tokens[2 * place] for place in self._places]) if tokens else (None, [])
        )


class Block:
    """E of all layers of a width.

    Args:
        group: of the layers: adapter, dtype, widths.
        P: of the layers.
        number: of blocks before it, for the same group.
    """

    def __init__(
        self, factors: AuroraFactors, group: tuple[Any, ...], P: Sequence[nn.ParameterDict], number: int
    ) -> None:
        adapter, dtype, widths = group
        self.number = number
        self.shared = [Stamp(factors, name, values=True) for name in _shared_names(factors, group)]
        self.own = [Stamp(own, adapter, values=True) for own in P]
        self.places = {id(own): place for place, own in enumerate(P)}
        rows = torch.cat([stamp.data for stamp in self.own])
        U, V, _ = (stamp.data for stamp in self.shared)
        self.sources = Sources(factors, self.shared, rows, factors.mode(rows), [len(stamp.data) for stamp in self.own])
        self.wide = expand(V, self.sources.mode)
        self.E, self.U = self.wide.to(dtype), U.to(dtype)
        self.passes = 0
        self._heights = [len(stamp.data) * widths.outputs for stamp in self.own]
        self._tokens: Tokens = ()
        self._settled = UNCHANGED.number

    def is_settled(self) -> bool:
        """Whether a pass has asked already, since when nothing changes weights past their stamps."""
        settled, self._settled = self._settled, UNCHANGED.number
        return settled == self._settled != 0

    def holds(self, unit: Unit) -> bool:
        """Whether it is of this unit's layers, as they are."""
        here = all(self.places.get(id(P)) is not None for P in unit.P)
        return here and all(stamp.fits() for stamp in (*self.shared, *(self.own[self.places[id(P)]] for P in unit.P)))

    def rows_of(self, places: Sequence[int], E: Tensor) -> Tensor:
        """The rows of `E`, `self.E` or `self.wide`, of some layers: a view where these lie side by side."""
        if list(places) == list(range(places[0], places[0] + len(places))):
            start = sum(self._heights[: places[0]])
            return E[start : start + sum(self._heights[place] for place in places)]
        return torch.cat([self.rows_of([place], E) for place in places])

    def tokens(self) -> Tokens:
        """Of E and of U by turns, for each layer; none where nothing is to learn."""
        if not self._tokens:
            inputs = [stamp.tensor for stamp in (*self.shared, *self.own)]
            if any(weight.requires_grad for weight in inputs):
                self._tokens = Gather.apply(self.sources, self.E, *inputs)  # type: ignore[no-untyped-call]
        return self._tokens

    def begins_pass(self) -> bool:
        """Begin another pass; False if values have changed, or may have."""
        if not all(stamp.has_same_values() for stamp in (*self.shared, *self.own)):
            return False
        self.passes, self.sources.spent = self.passes + 1, False
        return True


class Updates:
    """What was formed last of the factors of a model."""

    def __init__(self) -> None:
        self._layers: list[weakref.ref[Layer]] = []
        self._units: dict[tuple[Any, ...], Unit] = {}
        self._blocks: dict[tuple[Any, ...], Block] = {}
        self._stacks: dict[tuple[Any, ...], Stacks] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Updates:
        return Updates()  # the layers of a copy come by themselves

    def __reduce__(self) -> tuple[type[Updates], tuple[()]]:
        return Updates, ()

    def know(self, layer: Layer) -> None:
        """Form the updates of this layer too."""
        self._layers.append(weakref.ref(layer))

    def layers(self) -> list[Layer]:
        """The layers that it knows, as far as they are still in use."""
        self._layers = [known for known in self._layers if known() is not None]
        return [layer for known in self._layers if (layer := known()) is not None]

    def tensors(self) -> list[Tensor]:
        """What is kept of all layers: copies of weights, and updates."""
        formed = [unit.formed for unit in self._units.values() if unit.formed is not None]
        return [part for one in formed for part in (one.stack, one.E, one.bias) if part is not None]

    def forget(self) -> None:
        """Form everything anew when it is asked for next."""
        self._blocks, self._stacks = {}, {}
        for unit in list(self._units.values()):
            unit.formed = None

    def of(self, layers: tuple[Layer, ...], adapter: str, dtype: torch.dtype, form: str) -> Formed | None:
        """What the layers compute with; None if they have to be computed one by one.

        Args:
            layers: of the same widths, with slices by rows.
            dtype: of compute.
            form: LAYER, JOINT or CROSS. A layer whose update is merged into its weight is JOINT.
        """
        if form == LAYER and merges(layers[0]):
            form = JOINT
        key = adapter, dtype, form, *map(id, layers)
        unit = self._units.get(key)
        formed: Formed | None = None if unit is None else unit.formed
        if unit is None or formed is None or not unit.is_of(layers) or not formed.fits():
            formed = None  # else its memory could not serve again
            with LOCK:
                formed = self._form(key, layers)
            unit = self._units.get(key)
        if unit is not None and formed is not None:
            unit.asked = formed.number
        return formed

    def _form(self, key: tuple[Any, ...], layers: tuple[Layer, ...]) -> Formed | None:
        adapter, dtype, form, *_ = key
        factors: Any = layers[0].aurora_factors[adapter]
        units = {name: unit for name, unit in self._units.items() if unit.is_whole()}
        unit = units.get(key)
        if unit is None or not unit.is_of(layers):
            unit = units[key] = Unit(layers, adapter, dtype, form)
        own = sum(other.bytes for other in units.values() if other.adapter == adapter)
        if own > LIMIT or not _can_form(factors, unit):
            return None
        self._units, group = units, unit.group
        with torch.inference_mode(False), torch.no_grad(), no_autocast(unit.linears[0].weight.device):
            block = self._blocks.get(group)
            wanted, stacks = [unit], Stacks()
            if unit.formed is not None or block is None or not block.holds(unit):
                number = 0 if block is None else block.number + 1
                self._blocks = {name: other for name, other in self._blocks.items() if name[0] == adapter}
                self._blocks.pop(group, None)
                self._stacks = {name: known for name, known in self._stacks.items() if name[0] == adapter}
                stacks = self._stacks.pop(group, stacks)
                for other in units.values():
                    if other.group == group or other.adapter != adapter:
                        other.formed = None
                device = _device(factors, factors.core_name)
                P = [own for own in self._P(group) if is_plain(own, adapter) and _device(own, adapter) == device]
                block = self._blocks[group] = Block(factors, group, P, number)
                unit.asked = number
                wanted = [
                    other
                    for other in units.values()
                    if other.group == group
                    and number - other.asked <= BLOCKS
                    and other.device() == device
                    and all(id(own) in block.places for own in other.P)
                ]
                if any(one.form == JOINT and not one.merged for one in wanted):
                    self._stacks[group] = stacks
            form_units(wanted, block, stacks)
        formed: Formed | None = unit.formed
        if type(block.E) is not Tensor:  # of a mode that computes with stand-ins
            self.forget()
        elif formed is not None:
            formed.fits()  # the first time that it is asked for
        return formed

    def _P(self, group: tuple[Any, ...]) -> list[nn.ParameterDict]:
        """Of all layers of a group."""
        adapter, _, widths = group
        return [
            layer.aurora_P
            for layer in self.layers()
            if layer.formed_together
            and adapter in layer.aurora_P
            and layer.slice_widths(adapter) == widths
            and not layer.is_split_by_columns(adapter)
        ]


def _can_form(factors: AuroraFactors, unit: Unit) -> bool:
    """Whether the weights are tensors like any other, all on one device."""
    weights: list[tuple[nn.Module, str]] = [
        *((factors, name) for name in _shared_names(factors, unit.group)),
        *((P, unit.adapter) for P in unit.P),
    ]
    device = unit.device()
    return device is not None and all(
        is_plain(owner, name) and _device(owner, name) == device for owner, name in weights
    )


def _shared_names(factors: AuroraFactors, group: tuple[Any, ...]) -> tuple[str, str, str]:
    """Of U, V, and lambda or C."""
    widths: Widths = group[-1]
    return widths.U, widths.V, factors.core_name


def _device(owner: nn.Module, name: str) -> torch.device:
    return owner._parameters[name].device  # type: ignore[union-attr]


class Stacks:
    """The weights of JOINT units above U^T, as they were formed last for a group, where updates are not merged.

    The weights are frozen, so only U^T is new. On a CPU it is written into the memory of before as soon as no graph and
    no pass computes with that: a copy of all weights took 4% of a step in bfloat16 there. A GPU
    copies them in no time, and a CUDA graph must find its memory as it left it.
    """

    def __init__(self) -> None:
        self._whole = torch.empty(0)
        self._weights: list[list[Stamp]] = []
        self._users: list[weakref.ref[Formed]] = []

    def fill(self, made: list[Formed], units: list[Unit], block: Block) -> None:
        """Give each of the units its part."""
        weights, U_t = [unit.frozen for unit in units], block.U.t()
        heights = [unit.size + len(U_t) for unit in units]
        plain = U_t.device.type == "cpu" and type(U_t) is Tensor
        free = plain and all(user() is None for user in self._users)
        if free and len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights)):
            first = 0
            for height, of_height in groupby(heights):
                end = first + height * len(list(of_height))
                self._whole[first:end].view(-1, height, U_t.shape[1])[:, -len(U_t) :] = U_t
                first = end
        else:
            rows = U_t.to(units[0].linears[0].weight.dtype)
            parts = [part for unit in units for part in (*(linear.weight for linear in unit.linears), rows)]
            self._whole = torch.cat(parts).to(U_t.dtype)
        self._weights, self._users = weights, [weakref.ref(formed) for formed in made]
        for formed, stack in zip(made, self._whole.split(heights), strict=True):
            formed.stack = stack


def form_units(units: list[Unit], block: Block, stacks: Stacks) -> None:
    """Form what units compute with from the updates of their layers."""
    fill = {(JOINT, True): _merged, (JOINT, False): stacks.fill, (CROSS, False): _cross}
    for (form, merged, _), grouped in groupby(sorted(units, key=lambda unit: (_kind(unit), unit.size)), _kind):
        of_kind = list(grouped)
        made = [Formed(unit, block) for unit in of_kind]
        if form != LAYER:
            fill[form, merged](made, of_kind, block)
        for unit, formed in zip(of_kind, made, strict=True):
            unit.formed = formed


def _kind(unit: Unit) -> tuple[str, bool, str]:
    return unit.form, unit.merged, str(unit.linears[0].weight.dtype)


def _merged(made: list[Formed], units: list[Unit], block: Block) -> None:
    """Give each of the units its weights with their updates, above U^T."""
    kind = units[0].linears[0].weight.dtype
    U_t = block.shared[0].data.t().to(kind)
    whole = torch.cat([part for unit in units for part in (*(one.weight for one in unit.linears), U_t)])
    (R, width), first = U_t.shape, 0
    for size, of_size in groupby(units, lambda unit: unit.size):
        places = [block.places[id(P)] for unit in of_size for P in unit.P]
        E = block.rows_of(places, block.wide).view(-1, size, R)
        rows = whole[first : first + len(E) * (size + R)].view(len(E), size + R, width)[:, :size]
        rows.baddbmm_(E.to(kind), U_t.expand(len(E), R, width))
        first += len(E) * (size + R)
    for formed, stack in zip(made, whole.to(block.U.dtype).split([unit.size + R for unit in units]), strict=True):
        formed.stack = stack


def _cross(made: list[Formed], units: list[Unit], block: Block) -> None:
    """Give each of the units its weights beside E."""
    weights = [linear.weight for unit in units for linear in unit.linears]
    E = block.rows_of([block.places[id(P)] for unit in units for P in unit.P], block.E)
    if type(E) is Tensor and E.device.type == "cpu" and weights[0].dtype == E.dtype:  # they are copied once
        both = E.new_empty(len(E), weights[0].shape[1] + E.shape[1])
        torch.cat(weights, out=both[:, : -E.shape[1]])
        both[:, -E.shape[1] :] = E
    else:
        both = torch.cat([torch.cat(weights).to(E.dtype), E], 1)
    for formed, stack in zip(made, both.split([unit.size for unit in units]), strict=True):
        formed.stack = stack
