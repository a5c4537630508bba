"""What a scene is made of: groups of things with their places and colours, and the change of one of them."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (208, 32, 38),
    "orange": (236, 124, 20),
    "green": (28, 140, 58),
    "blue": (32, 84, 200),
    "purple": (126, 48, 160),
    "pink": (236, 92, 160),
    "brown": (124, 74, 36),
    "black": (0, 0, 0),
}
"""Colours that a black drawing can be tinted with, in sRGB; each is told apart from the others at a glance."""

GROUNDS = {
    "white": (255, 255, 255),
    "yellow": (255, 236, 140),
    "green": (190, 232, 186),
    "blue": (186, 216, 250),
    "pink": (250, 204, 222),
    "grey": (208, 208, 208),
}
"""Colours of a background on which every colour of `COLOURS` shows."""

MOVES = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
CHANGES = (*MOVES, "grows", "shrinks", "appears", "disappears")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
MOST = len(NUMBERS) - 1
"""The most things of one name in a scene."""


@dataclass(frozen=True, slots=True)
class Place:
    """A square by its centre and side, as shares of the picture's side; y is 0 at the top."""

    x: float
    y: float
    size: float


@dataclass(frozen=True, slots=True)
class Group:
    """All things of one name: one place each. ``colour`` is a tint of `COLOURS`, or empty."""

    name: str
    places: tuple[Place, ...]
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What the things of one group do over time: a word of `CHANGES`, and where each one ends."""

    kind: str
    group: int
    ends: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Groups in the order of ``axis``: ``x`` from left to right, ``y`` from top to bottom, empty if there is one.

    ``ground`` is the background's colour, or empty if nothing is to be said of it. No name is in two groups.
    """

    groups: tuple[Group, ...]
    axis: str = ""
    ground: str = ""
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawing to paste."""

    name: str
    colour: str
    place: Place


def drawn(scene: Scene, time: float = 0.0) -> list[Drawn]:
    """The drawings of a scene at a time from 0 to 1, in the order in which they are pasted."""
    change = scene.change
    result = []
    for number, group in enumerate(scene.groups):
        moving = change is not None and change.group == number
        for each, place in enumerate(group.places):
            if moving:
                assert change is not None
                if (change.kind == "appears" and time < 3 / 4) or (change.kind == "disappears" and time >= 3 / 4):
                    continue
                end = change.ends[each]
                place = Place(
                    place.x + (end.x - place.x) * time,
                    place.y + (end.y - place.y) * time,
                    place.size + (end.size - place.size) * time,
                )
            result.append(Drawn(group.name, group.colour, place))
    return result
