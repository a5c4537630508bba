"""Random scenes: still ones, and ones in which one thing changes over time."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from .chance import below, one_of, some_of
from .layout import centre, fill, path, side_by_side
from .phrases import tintable
from .scene import CHANGES, MOST, MOVES, Change, Group, Place, Scene


def still_scene(
    rng: Random,
    names: Sequence[str],
    colours: Sequence[str] = (),
    grounds: Sequence[str] = (),
    most: int = MOST,
) -> Scene:
    """A scene of one to three kinds of things, none of which overlap.

    Args:
        names: at least three different names.
        colours: tints of `COLOURS` to draw from; a name that itself says a colour is not tinted.
        grounds: backgrounds of `GROUNDS` to draw from.
        most: the most things of one name, at most `MOST`.
    """
    places: list[tuple[Place, ...]]
    kind = rng.random()
    if kind < 0.12:  # one thing in one of nine spots
        size = 0.3 + 0.25 * rng.random()
        spot = Place(centre(below(rng, 3), size), centre(below(rng, 3), size), size)
        counts, axis = [1], ""
        places = [(spot,)]
    elif kind < 0.32:  # several of one kind
        counts, axis = [2 + below(rng, most - 1)], ""
        places = [fill(rng, counts[0], 0.0, 0.0, 1.0, 1.0)]
    elif kind < 0.88:  # two kinds on two sides, half of the time with counts
        several = rng.random() < 0.6
        counts = [1 + below(rng, min(4, most)) if several else 1 for _ in range(2)]
        axis = "x" if rng.random() < 0.5 else "y"
        places = side_by_side(rng, counts, axis)
    else:  # three things in a row
        counts, axis = [1, 1, 1], "x" if rng.random() < 0.5 else "y"
        places = side_by_side(rng, counts, axis)
    chosen = some_of(rng, names, len(counts))
    groups = tuple(Group(name, held, _tint(rng, name, colours)) for name, held in zip(chosen, places, strict=True))
    return Scene(groups, axis, one_of(rng, grounds) if grounds else "")


def moving_scene(
    rng: Random,
    names: Sequence[str],
    colours: Sequence[str] = (),
    grounds: Sequence[str] = (),
    changes: Sequence[str] = CHANGES,
) -> Scene:
    """A scene of one to three things, one of which changes over time.

    What moves starts near the middle of its lane and ends near the edge that it moves to, what grows or shrinks starts
    at a middle size, what appears is there for the last quarter, and what disappears is there until then: the
    change can be told from the frames in any order, as by models that average over frames.

    Args:
        names, colours, grounds: see `still_scene`.
        changes: words of `CHANGES` to draw from.
    """
    draw = rng.random()
    count = 1 if draw < 0.2 else 2 if draw < 0.75 else 3
    kind = one_of(rng, changes)
    if kind in MOVES:  # the others lie beside the lane
        axis = "y" if MOVES[kind][0] else "x"
        count = min(count, 2)
    else:
        axis = "x" if rng.random() < 0.5 else "y"
    chosen = some_of(rng, names, count)
    places = side_by_side(
        rng, [1] * count, axis, largest=0.34 if kind in MOVES or kind in ("grows", "shrinks") else 0.5
    )
    which = below(rng, count)
    start, end = path(rng, kind, places[which][0], axis, count)
    places[which] = (start,)
    groups = tuple(Group(name, held, _tint(rng, name, colours)) for name, held in zip(chosen, places, strict=True))
    ground = one_of(rng, grounds) if grounds else ""
    return Scene(groups, axis if count > 1 else "", ground, Change(kind, which, (end,)))


def _tint(rng: Random, name: str, colours: Sequence[str]) -> str:
    return one_of(rng, colours) if colours and tintable(name) else ""
