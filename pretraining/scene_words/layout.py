"""Random places of things: in a box, along an axis, in one of nine spots, and along the way of what changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

from .chance import some_of
from .scene import MOVES, Place


def centre(third: int, size: float) -> float:
    """The centre of something of this size at the near edge, in the middle or at the far edge."""
    return (size / 2 + 0.02, 0.5, 0.98 - size / 2)[third]


def fill(rng: Random, count: int, x: float, y: float, width: float, height: float) -> tuple[Place, ...]:
    """So many places of one size in a box, each in a cell of its own."""
    columns, rows = _cells(count, width, height)
    if columns * rows == count and count in (2, 3) and width == height and rng.random() < 0.5:
        columns, rows = rows, columns
    wide, high = width / columns, height / rows
    size = min(wide, high, 0.5) * (0.72 + 0.23 * rng.random())
    cells = sorted(some_of(rng, range(columns * rows), count)) if columns * rows > count else range(count)
    places = []
    for cell in cells:
        row, column = divmod(cell, columns)
        free, low = wide - size, high - size
        places.append(
            Place(
                x + column * wide + size / 2 + free * (0.1 + 0.8 * rng.random()),
                y + row * high + size / 2 + low * (0.1 + 0.8 * rng.random()),
                size,
            )
        )
    return tuple(places)


@cache
def _cells(count: int, width: float, height: float) -> tuple[int, int]:
    """The columns and rows, at least so many cells, that leave the most room for each."""
    shapes = [(columns, -(-count // columns)) for columns in range(1, count + 1)]
    return max(shapes, key=lambda shape: (min(width / shape[0], height / shape[1]), -shape[0] * shape[1]))


def side_by_side(rng: Random, counts: Sequence[int], axis: str, largest: float = 0.5) -> list[tuple[Place, ...]]:
    """Places of several groups, one beside or below the other."""
    share = 1 / len(counts)
    result: list[tuple[Place, ...]] = []
    for number, count in enumerate(counts):
        start = number * share
        box = (start, 0.0, share, 1.0) if axis == "x" else (0.0, start, 1.0, share)
        if count == 1:  # anywhere across, in the middle along
            size = min(largest, share * (0.78 + 0.2 * rng.random()))
            along = start + share / 2
            across = size / 2 + 0.02 + (0.96 - size) * rng.random()
            place = Place(along, across, size) if axis == "x" else Place(across, along, size)
            result.append((place,))
        else:
            result.append(fill(rng, count, *box))
    return result


def path(rng: Random, kind: str, place: Place, axis: str, count: int) -> tuple[Place, Place]:
    """Where the thing that changes starts and ends, within the lane of its place."""
    if kind in MOVES:
        across, down = MOVES[kind]
        size = place.size
        start, end = 0.5 + 0.06 * (2 * rng.random() - 1), size / 2 + 0.02 + 0.06 * rng.random()
        if across + down > 0:
            end = 1 - end
        lane = place.y if axis == "y" else place.x
        if count == 1:
            lane = 0.5
        if across:
            return Place(start, lane, size), Place(end, lane, size)
        return Place(lane, start, size), Place(lane, end, size)
    if kind not in ("grows", "shrinks"):
        return place, place
    widest = min(0.96 / count, 0.6)
    x, y = place.x, place.y
    if axis == "y":
        x = min(max(x, widest / 2 + 0.02), 0.98 - widest / 2)
    else:
        y = min(max(y, widest / 2 + 0.02), 0.98 - widest / 2)
    middle = widest * 0.62
    return Place(x, y, middle), Place(x, y, widest if kind == "grows" else middle * 0.3)
