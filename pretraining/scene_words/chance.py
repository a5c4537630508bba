"""Random choices that are the same in every version of Python."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def below(rng: Random, end: int) -> int:
    return int(rng.random() * end)  # of all that Random gives, random() alone is the same in every version of Python


def one_of(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def some_of(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """So many different items in random order."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(rng.random() * len(items))] = None
    return [items[number] for number in chosen]
