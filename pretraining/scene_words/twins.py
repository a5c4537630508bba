"""Scenes that differ from another in one respect: hard negatives."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from .chance import below, one_of, some_of
from .layout import fill, path, side_by_side
from .scene import CHANGES, COLOURS, GROUNDS, MOST, MOVES, Change, Group, Scene


def twin(rng: Random, scene: Scene) -> Scene:
    """The same names in a scene that differs in one respect: sides, a count, a tint, the ground, or the change.

    It is a hard negative: no caption of `captions` is true of both.
    """
    ways = []
    if len(scene.groups) > 1:
        ways += ["sides", "sides"]
    if scene.change is not None:
        ways += ["change", "change"]
    else:
        ways += ["count"]
    if sum(bool(group.colour) for group in scene.groups):
        ways.append("colour")
    if scene.ground:
        ways.append("ground")
    way = one_of(rng, ways)
    if way == "sides":
        return _swapped(rng, scene)
    if way == "change":
        return _changed(rng, scene)
    if way == "ground":
        return replace(scene, ground=one_of(rng, [ground for ground in GROUNDS if ground != scene.ground]))
    number = below(rng, len(scene.groups))
    groups = list(scene.groups)
    group = groups[number]
    if way == "colour":
        number = one_of(rng, [number for number, group in enumerate(groups) if group.colour])
        others = [colour for colour in COLOURS if colour != groups[number].colour]
        groups[number] = replace(groups[number], colour=one_of(rng, others))
        return replace(scene, groups=tuple(groups))
    limit = 4 if len(groups) == 2 else MOST if len(groups) == 1 else 2
    counts = [len(group.places) for group in groups]
    counts[number] = one_of(rng, [count for count in range(1, limit + 1) if count != len(group.places)])
    if len(groups) == 1:
        places = [fill(rng, counts[0], 0.0, 0.0, 1.0, 1.0)]
    else:
        places = side_by_side(rng, counts, scene.axis)
    made = tuple(replace(group, places=held) for group, held in zip(groups, places, strict=True))
    return replace(scene, groups=made)


def _swapped(rng: Random, scene: Scene) -> Scene:
    """Two groups in each other's place; each keeps its own name, count and change."""
    first, second = some_of(rng, range(len(scene.groups)), 2)
    groups = list(scene.groups)
    groups[first], groups[second] = groups[second], groups[first]
    counts = [len(group.places) for group in groups]
    if scene.change is None:
        places = side_by_side(rng, counts, scene.axis)
        made = tuple(replace(group, places=held) for group, held in zip(groups, places, strict=True))
        return replace(scene, groups=made)
    turned = {first: second, second: first}
    which = turned.get(scene.change.group, scene.change.group)
    return _with_change(rng, scene, tuple(groups), scene.change.kind, which)


def _changed(rng: Random, scene: Scene) -> Scene:
    """Another change of the same thing, or, of two things, the same change of the other."""
    assert scene.change is not None
    kind, which = scene.change.kind, scene.change.group
    if len(scene.groups) > 1 and rng.random() < 0.3:
        which = one_of(rng, [number for number in range(len(scene.groups)) if number != which])
    elif kind in MOVES:
        kind = {"left": "right", "right": "left", "up": "down", "down": "up"}[kind]
    else:
        kind = one_of(rng, [other for other in CHANGES if other not in MOVES and other != kind])
    return _with_change(rng, scene, scene.groups, kind, which)


def _with_change(rng: Random, scene: Scene, groups: tuple[Group, ...], kind: str, which: int) -> Scene:
    axis = scene.axis or ("y" if kind in MOVES and MOVES[kind][0] else "x")
    small = kind in MOVES or kind in ("grows", "shrinks")
    places = side_by_side(rng, [1] * len(groups), axis, 0.34 if small else 0.5)
    start, end = path(rng, kind, places[which][0], axis, len(groups))
    places[which] = (start,)
    made = tuple(replace(group, places=held) for group, held in zip(groups, places, strict=True))
    return replace(scene, groups=made, change=Change(kind, which, (end,)))
