"""Random scenes of several things, and what can be said and asked of them, without any picture.

A scene is made from a list of names, such as those of a set of drawings; whoever draws it pastes the drawing of each
name where `drawn` says. Positions are numbers: the centre (x to the right, y down) and the side of a square, all as
shares of the picture's side. The module needs nothing but Python, and a scene with its words takes about 25
microseconds, so that scenes can be made while a model trains.

    rng = random.Random(0)
    scene = still_scene(rng, ["red apple", "dog", "car"], colours=list(COLOURS))
    captions(rng, scene, 3)                 # ["two dogs left of a red apple", ...]
    questions(rng, scene, names)            # [Question("count", "how many dogs are there?", "two"), ...]
    drawn(scene)                            # [Drawn("dog", "", Place(0.2, 0.3, 0.3)), ...]
    clip = moving_scene(rng, names)         # one thing moves, grows, shrinks, appears or disappears
    drawn(clip, 0.5)                        # half-way through
    twin(rng, scene)                        # the same things, but another side, count, colour or change
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from random import Random
from typing import TypeVar

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a ``kind``, such as ``count``, with its one short answer."""

    kind: str
    question: str
    answer: str


# Scenes


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
        spot = Place(_spot(_below(rng, 3), size), _spot(_below(rng, 3), size), size)
        counts, axis = [1], ""
        places = [(spot,)]
    elif kind < 0.32:  # several of one kind
        counts, axis = [2 + _below(rng, most - 1)], ""
        places = [_fill(rng, counts[0], 0.0, 0.0, 1.0, 1.0)]
    elif kind < 0.88:  # two kinds on two sides, half of the time with counts
        several = rng.random() < 0.6
        counts = [1 + _below(rng, min(4, most)) if several else 1 for _ in range(2)]
        axis = "x" if rng.random() < 0.5 else "y"
        places = _along(rng, counts, axis)
    else:  # three things in a row
        counts, axis = [1, 1, 1], "x" if rng.random() < 0.5 else "y"
        places = _along(rng, counts, axis)
    chosen = _some(rng, names, len(counts))
    groups = tuple(Group(name, held, _tint(rng, name, colours)) for name, held in zip(chosen, places, strict=True))
    return Scene(groups, axis, _one(rng, grounds) if grounds else "")


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
    kind = _one(rng, changes)
    if kind in MOVES:  # the others lie beside the lane
        axis = "y" if MOVES[kind][0] else "x"
        count = min(count, 2)
    else:
        axis = "x" if rng.random() < 0.5 else "y"
    chosen = _some(rng, names, count)
    places = _along(rng, [1] * count, axis, largest=0.34 if kind in MOVES or kind in ("grows", "shrinks") else 0.5)
    which = _below(rng, count)
    start, end = _path(rng, kind, places[which][0], axis, count)
    places[which] = (start,)
    groups = tuple(Group(name, held, _tint(rng, name, colours)) for name, held in zip(chosen, places, strict=True))
    ground = _one(rng, grounds) if grounds else ""
    return Scene(groups, axis if count > 1 else "", ground, Change(kind, which, (end,)))


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
    way = _one(rng, ways)
    if way == "sides":
        return _swapped(rng, scene)
    if way == "change":
        return _changed(rng, scene)
    if way == "ground":
        return replace(scene, ground=_one(rng, [ground for ground in GROUNDS if ground != scene.ground]))
    number = _below(rng, len(scene.groups))
    groups = list(scene.groups)
    group = groups[number]
    if way == "colour":
        number = _one(rng, [number for number, group in enumerate(groups) if group.colour])
        others = [colour for colour in COLOURS if colour != groups[number].colour]
        groups[number] = replace(groups[number], colour=_one(rng, others))
        return replace(scene, groups=tuple(groups))
    limit = 4 if len(groups) == 2 else MOST if len(groups) == 1 else 2
    counts = [len(group.places) for group in groups]
    counts[number] = _one(rng, [count for count in range(1, limit + 1) if count != len(group.places)])
    if len(groups) == 1:
        places = [_fill(rng, counts[0], 0.0, 0.0, 1.0, 1.0)]
    else:
        places = _along(rng, counts, scene.axis)
    made = tuple(replace(group, places=held) for group, held in zip(groups, places, strict=True))
    return replace(scene, groups=made)


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


def facts(scene: Scene) -> tuple[object, ...]:
    """What captions say of a scene, in a form to compare: scenes of equal facts have the same captions."""
    alone = len(scene.groups) == 1 and len(scene.groups[0].places) == 1 and scene.change is None
    return (
        tuple((group.name, len(group.places), group.colour) for group in scene.groups),
        scene.axis,
        scene.ground,
        (scene.change.kind, scene.change.group) if scene.change else "",
        spot_name(scene.groups[0].places[0]) if alone else "",
    )


def implied(scene: Scene) -> set[tuple[object, ...]]:
    """`facts` of all that is true of a scene because of some of its groups: a scene of these alone has such facts."""
    result = set()
    every = range(len(scene.groups))
    for size in every:
        for chosen in combinations(every, size + 1):
            if scene.change is None:
                change = None
            elif scene.change.group in chosen:
                change = replace(scene.change, group=chosen.index(scene.change.group))
            else:
                continue
            groups = tuple(scene.groups[number] for number in chosen)
            result.add(facts(Scene(groups, scene.axis if size else "", scene.ground, change)))
    return result


def _below(rng: Random, end: int) -> int:
    return int(rng.random() * end)  # of all that Random gives, random() alone is the same in every version of Python


def _one(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _some(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """So many different items in random order."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(rng.random() * len(items))] = None
    return [items[number] for number in chosen]


def _tint(rng: Random, name: str, colours: Sequence[str]) -> str:
    return _one(rng, colours) if colours and tintable(name) else ""


_COLOUR_WORDS = frozenset((*COLOURS, *GROUNDS, "gray", "rainbow", "golden", "silver", "dark", "light", "coloured"))


@cache
def tintable(name: str) -> bool:
    """Whether a name says nothing of a colour itself."""
    return _COLOUR_WORDS.isdisjoint(name.lower().replace("-", " ").split())


def _spot(third: int, size: float) -> float:
    """The centre of something of this size at the near edge, in the middle or at the far edge."""
    return (size / 2 + 0.02, 0.5, 0.98 - size / 2)[third]


def _fill(rng: Random, count: int, x: float, y: float, width: float, height: float) -> tuple[Place, ...]:
    """So many places of one size in a box, each in a cell of its own."""
    columns, rows = _cells(count, width, height)
    if columns * rows == count and count in (2, 3) and width == height and rng.random() < 0.5:
        columns, rows = rows, columns
    wide, high = width / columns, height / rows
    size = min(wide, high, 0.5) * (0.72 + 0.23 * rng.random())
    cells = sorted(_some(rng, range(columns * rows), count)) if columns * rows > count else range(count)
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


def _along(rng: Random, counts: Sequence[int], axis: str, largest: float = 0.5) -> list[tuple[Place, ...]]:
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
            result.append(_fill(rng, count, *box))
    return result


def _path(rng: Random, kind: str, place: Place, axis: str, count: int) -> tuple[Place, Place]:
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


def _swapped(rng: Random, scene: Scene) -> Scene:
    """Two groups in each other's place; each keeps its own name, count and change."""
    first, second = _some(rng, range(len(scene.groups)), 2)
    groups = list(scene.groups)
    groups[first], groups[second] = groups[second], groups[first]
    counts = [len(group.places) for group in groups]
    if scene.change is None:
        places = _along(rng, counts, scene.axis)
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
        which = _one(rng, [number for number in range(len(scene.groups)) if number != which])
    elif kind in MOVES:
        kind = {"left": "right", "right": "left", "up": "down", "down": "up"}[kind]
    else:
        kind = _one(rng, [other for other in CHANGES if other not in MOVES and other != kind])
    return _with_change(rng, scene, scene.groups, kind, which)


def _with_change(rng: Random, scene: Scene, groups: tuple[Group, ...], kind: str, which: int) -> Scene:
    axis = scene.axis or ("y" if kind in MOVES and MOVES[kind][0] else "x")
    small = kind in MOVES or kind in ("grows", "shrinks")
    places = _along(rng, [1] * len(groups), axis, 0.34 if small else 0.5)
    start, end = _path(rng, kind, places[which][0], axis, len(groups))
    places[which] = (start,)
    made = tuple(replace(group, places=held) for group, held in zip(groups, places, strict=True))
    return replace(scene, groups=made, change=Change(kind, which, (end,)))


# Words

_SPOTS = (
    ("in the upper left corner", "at the top", "in the upper right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left corner", "at the bottom", "in the lower right corner"),
)
_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "loaf": "loaves",
    "shelf": "shelves",
    "scarf": "scarves",
    "ox": "oxen",
    "bus": "buses",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "cactus": "cacti",
}
_SAME = frozenset(
    ("sheep", "fish", "deer", "bread", "rice", "bacon", "corn", "garlic", "milk", "sushi", "salt", "fire")
)
_LINKS = (" of ", " with ", " without ", " on ", " in ", " behind ", " for ", " holding ", " at ", " from ", " and ")
_AN_AS_A = ("uni", "eu", "uk", "one", "use", "ut")
_A_AS_AN = ("hour", "heir", "honest")


def spot_name(place: Place) -> str:
    """Where something is, by thirds of the picture: ``in the upper left corner``."""
    return _SPOTS[min(2, int(place.y * 3))][min(2, int(place.x * 3))]


@cache
def is_plural(name: str) -> bool:
    """Whether a name says several things, such as ``scissors`` or ``clinking glasses``."""
    word = _head(name)[0].rpartition(" ")[2].lower()
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "as", "os")) and word not in _IRREGULAR


@cache
def article(words: str) -> str:
    """``words`` with a or an before them, or as they are if they are plural."""
    if is_plural(words):
        return words
    start = words.lower()
    vowel = (start[:1] in "aeiou" and not start.startswith(_AN_AS_A)) or start.startswith(_A_AS_AN)
    return f"{'an' if vowel else 'a'} {words}"


@cache
def plural(name: str) -> str:
    """A name's plural: ``glass of milk`` gives ``glasses of milk``."""
    head, rest = _head(name)
    before, space, word = head.rpartition(" ")
    low = word.lower()
    if is_plural(name) or low in _SAME or low.endswith("fish"):
        many = word
    elif low in _IRREGULAR:
        many = _IRREGULAR[low]
    elif low.endswith(("man",)) and low not in ("human", "german", "talisman"):
        many = word[:-2] + "en"
    elif low.endswith(("s", "x", "z", "ch", "sh")):
        many = word + "es"
    elif low.endswith("y") and low[-2:-1] not in tuple("aeiou"):
        many = word[:-1] + "ies"
    else:
        many = word + "s"
    return before + space + many + rest


@cache
def _head(name: str) -> tuple[str, str]:
    """What a name names, and what it says besides: ``glass``, `` of milk``."""
    ends = [place for link in _LINKS if (place := name.find(link)) > 0]
    end = min(ends, default=len(name))
    return name[:end], name[end:]


def counted(group: Group, article_too: bool = True) -> str:
    """A group in words: ``three red apples``, ``an apple``."""
    count = len(group.places)
    name = f"{group.colour} {group.name}" if group.colour else group.name
    if count == 1:
        return article(name) if article_too else name
    return f"{NUMBERS[count]} {plural(name)}"


def _the(group: Group) -> str:
    """``the apple`` or ``the apples``; the tint is left out, since names are unique in a scene."""
    return f"the {group.name if len(group.places) == 1 else plural(group.name)}"


_ONE = ("{a} {spot}", "you can see {a} {spot}", "a picture of {a} {spot}", "{spot} {a}", "just {a}, {spot}")
_SEVERAL = ("{a}", "there are {a}", "a picture of {a}", "{a} and nothing else", "you can see {a}")
_TWO = {
    "x": (
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{b} right of {a}",
        "{b} to the right of {a}",
        "{a} on the left and {b} on the right",
        "on the right {b}, on the left {a}",
        "{a} with {b} on the right side",
    ),
    "y": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "{a} at the top and {b} at the bottom",
        "at the bottom {b}, at the top {a}",
        "{a} with {b} underneath",
    ),
}
_THREE = {
    "x": (
        "{a}, {b} and {c} from left to right",
        "from left to right {a}, {b} and {c}",
        "{b} between {a} on the left and {c} on the right",
        "{c} on the right, {a} on the left and {b} in the middle",
        "a row of {a}, {b} and {c}, seen from the left",
    ),
    "y": (
        "{a}, {b} and {c} from top to bottom",
        "from top to bottom {a}, {b} and {c}",
        "{b} between {a} at the top and {c} at the bottom",
        "{c} at the bottom, {a} at the top and {b} in the middle",
        "a column of {a}, {b} and {c}, seen from the top",
    ),
}
_DOES = {
    "left": ("{a} moves to the left", "{a} goes left", "{a} slides to the left", "{a} drifts to the left side"),
    "right": ("{a} moves to the right", "{a} goes right", "{a} slides to the right", "{a} drifts to the right side"),
    "up": ("{a} moves up", "{a} rises", "{a} goes up", "{a} climbs to the top"),
    "down": ("{a} moves down", "{a} sinks", "{a} goes down", "{a} falls to the bottom"),
    "grows": ("{a} grows", "{a} gets bigger", "{a} becomes larger", "{a} is growing"),
    "shrinks": ("{a} shrinks", "{a} gets smaller", "{a} becomes smaller", "{a} is shrinking"),
    "appears": ("{a} appears", "{a} shows up", "{a} comes into view", "{a} comes in late"),
    "disappears": ("{a} disappears", "{a} vanishes", "{a} goes away", "{a} is gone in the end"),
}
_BESIDE = {  # where the thing that changes is, seen from another
    ("x", 0): ("left of {b}", "to the left of {b}", "with {b} on its right"),
    ("x", 1): ("right of {b}", "to the right of {b}", "with {b} on its left"),
    ("y", 0): ("above {b}", "over {b}", "with {b} below it"),
    ("y", 1): ("below {b}", "under {b}", "with {b} above it"),
}
_GROUND = (
    "{words} on a {ground} background",
    "{words}, the background is {ground}",
    "on a {ground} background {words}",
)


def caption(rng: Random, scene: Scene) -> str:
    """One caption, which says all of `facts`."""
    groups = scene.groups
    if scene.change is not None:
        words = _happening(rng, scene)
    elif len(groups) == 1:
        a = counted(groups[0])
        if len(groups[0].places) == 1:
            words = _one(rng, _ONE).format(a=a, spot=spot_name(groups[0].places[0]))
        else:
            words = _one(rng, _SEVERAL).format(a=a)
    elif len(groups) == 2:
        words = _one(rng, _TWO[scene.axis]).format(a=counted(groups[0]), b=counted(groups[1]))
    else:
        a, b, c = (counted(group) for group in groups)
        words = _one(rng, _THREE[scene.axis]).format(a=a, b=b, c=c)
    if scene.ground:
        words = _one(rng, _GROUND).format(words=words, ground=scene.ground)
    return words


def captions(rng: Random, scene: Scene, count: int) -> list[str]:
    """Up to ``count`` different captions, fewer if chance says the same again and again."""
    words: dict[str, None] = {}
    for _ in range(3 * count):
        words[caption(rng, scene)] = None
        if len(words) == count:
            break
    return list(words)


def _happening(rng: Random, scene: Scene) -> str:
    change = scene.change
    assert change is not None
    group = scene.groups[change.group]
    does = _one(rng, _DOES[change.kind])
    if is_plural(group.name):
        does = _several_do(does)
    does = does.format(a=counted(group))
    if len(scene.groups) == 1:
        return does
    if len(scene.groups) == 2:
        side = _BESIDE[scene.axis, change.group]
        return f"{does} {_one(rng, side).format(b=counted(scene.groups[1 - change.group]))}"
    a, b, c = (counted(other) for other in scene.groups)
    row = _one(rng, _THREE[scene.axis][:2]).format(a=a, b=b, c=c)
    the = _DOES[change.kind][0]
    return f"{row}; {(_several_do(the) if is_plural(group.name) else the).format(a=_the(group))}"


@cache
def _several_do(words: str) -> str:
    """``{a} moves`` for what is plural: ``{a} move``."""
    before, _, after = words.partition("{a} ")
    verb, space, rest = after.partition(" ")
    verb = {"goes": "go", "is": "are", "vanishes": "vanish"}.get(verb, verb.removesuffix("s"))
    return f"{before}{{a}} {verb}{space}{rest}" if verb else words


# Questions

_ASKED = {
    "thing": ("what is this?", "what is in the picture?", "what do you see?", "what does the picture show?"),
    "count": ("how many {many} are there?", "how many {many} do you see?", "what is the number of {many}?"),
    "total": ("how many things are there?", "how many things do you see in all?", "what is the number of things?"),
    "colour": ("what colour {is} {the}?", "which colour {has} {the}?", "what is the colour of {the}?"),
    "ground": (
        "what colour is the background?",
        "which colour has the background?",
        "what is the background's colour?",
    ),
    "exists": ("is there {a}?", "can you see {a}?", "do you see {a}?"),
    "relation": ("{is} {the} {side} {other}?", "can you see {the} {side} {other}?"),
    "more": ("are there more {many} than {others}?", "do {many} outnumber {others}?"),
    "direction": ("where {does} {the} go?", "which way {does} {the} move?", "in which direction {does} {the} move?"),
    "happens": ("what happens to {the}?", "what {does} {the} do?", "how {does} {the} change?"),
    "does": ("{does} {the} {act}?", "is it true that {the} {acts}?"),
}
_SIDES = {
    ("x", -1): ("left of", "to the left of"),
    ("x", 1): ("right of", "to the right of"),
    ("y", -1): ("above", "over"),
    ("y", 1): ("below", "under"),
}
_ENDS = {
    ("x", 0): ("what is on the left?", "what is on the left side?"),
    ("x", -1): ("what is on the right?", "what is on the right side?"),
    ("y", 0): ("what is at the top?", "what is in the upper part?"),
    ("y", -1): ("what is at the bottom?", "what is in the lower part?"),
}
_WHERE = {("x", 0): "left", ("x", 1): "right", ("y", 0): "top", ("y", 1): "bottom"}
_WHAT_DOES = {
    "move": ("what moves?", "which thing is moving?", "what does not stay in its place?"),
    "grows": ("what grows?", "what gets bigger?", "which thing becomes larger?"),
    "shrinks": ("what shrinks?", "what gets smaller?", "which thing becomes smaller?"),
    "appears": ("what appears?", "what shows up?", "what comes into view?"),
    "disappears": ("what disappears?", "what vanishes?", "what is gone in the end?"),
}
_ACTS = {
    **{move: (f"move {move}", f"moves {move}") for move in MOVES},
    "grows": ("grow", "grows"),
    "shrinks": ("shrink", "shrinks"),
    "appears": ("appear", "appears"),
    "disappears": ("disappear", "disappears"),
}
QUESTIONS = {
    "thing": "what is the only kind of thing",
    "count": "how many of a name",
    "total": "how many things in all",
    "colour": "which tint",
    "ground": "which background",
    "exists": "yes or no: is there one of a name",
    "relation": "yes or no: is one beside the other",
    "more": "yes or no: more of one than of another",
    "side": "what is left of, right of, above or below another thing",
    "end": "what is on the left, right, top or bottom",
    "where": "is it left, right, top or bottom",
    "mover": "what moves, grows, shrinks, appears or disappears",
    "direction": "where does it go: left, right, up or down",
    "happens": "what happens to it; nothing, for those that do not change",
    "does": "yes or no: does it do so",
}
"""Kinds of questions, and what they ask for."""


def questions(
    rng: Random, scene: Scene, names: Sequence[str], kinds: Sequence[str] = tuple(QUESTIONS)
) -> list[Question]:
    """One question of each kind that the scene has an answer to, in the order of ``kinds``.

    Yes and no are equally likely; ``no`` asks for a name that is not in the scene, the other side, or another change.

    Args:
        names: where names of absent things come from; at least one that is not in the scene.
        kinds: of `QUESTIONS`.
    """
    asked = (question(rng, scene, names, kind) for kind in kinds)
    return [one for one in asked if one is not None]


def question(rng: Random, scene: Scene, names: Sequence[str], kind: str) -> Question | None:
    """A question of this kind, or None if the scene has no answer to one; see `questions`."""
    made = _MAKERS[kind](rng, scene, names)
    return None if made is None else Question(kind, *made)


def _ask(rng: Random, kind: str, group: Group | None = None, **words: str) -> str:
    template = _one(rng, _ASKED[kind])
    if group is None:
        return template.format(**words)
    several = len(group.places) > 1 or is_plural(group.name)
    return template.format(
        the=_the(group),
        many=plural(group.name),
        **{"is": "are" if several else "is", "has": "have" if several else "has", "does": "do" if several else "does"},
        **words,
    )


def _pick(rng: Random, scene: Scene) -> Group:
    return scene.groups[_below(rng, len(scene.groups))]


def _pair(rng: Random, scene: Scene) -> tuple[int, int] | None:
    """Two neighbours along the axis, in any order; a third thing would make ``left of`` ask for two."""
    if len(scene.groups) != 2:
        return None
    first = _below(rng, 2)
    return first, 1 - first


def _absent(rng: Random, scene: Scene, names: Sequence[str]) -> str:
    present = {group.name for group in scene.groups}
    while (name := _one(rng, names)) in present:
        pass
    return name


def _thing(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    return (_ask(rng, "thing"), scene.groups[0].name) if len(scene.groups) == 1 else None


def _count(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    group = _pick(rng, scene)
    return None if is_plural(group.name) else (_ask(rng, "count", group), NUMBERS[len(group.places)])


def _total(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    total = sum(len(group.places) for group in scene.groups)
    several = any(is_plural(group.name) for group in scene.groups)
    return None if several or total >= len(NUMBERS) else (_ask(rng, "total"), NUMBERS[total])


def _colour(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    tinted = [group for group in scene.groups if group.colour]
    if not tinted:
        return None
    group = tinted[_below(rng, len(tinted))]
    return _ask(rng, "colour", group), group.colour


def _ground(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    return (_ask(rng, "ground"), scene.ground) if scene.ground else None


def _exists(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str]:
    yes = rng.random() < 0.5
    name = _pick(rng, scene).name if yes else _absent(rng, scene, names)
    return _ask(rng, "exists", a=article(name)), "yes" if yes else "no"


def _relation(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    pair = _pair(rng, scene)
    if pair is None:
        return None
    yes = rng.random() < 0.5
    side = _one(rng, _SIDES[scene.axis, (-1 if pair[0] == 0 else 1) * (1 if yes else -1)])
    first, second = (scene.groups[number] for number in pair)
    return _ask(rng, "relation", first, side=side, other=_the(second)), "yes" if yes else "no"


def _more(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    pair = _pair(rng, scene)
    if pair is None:
        return None
    first, second = (scene.groups[number] for number in pair)
    if len(first.places) == len(second.places) or is_plural(first.name) or is_plural(second.name):
        return None
    answer = "yes" if len(first.places) > len(second.places) else "no"
    return _ask(rng, "more", first, others=plural(second.name)), answer


def _side(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    pair = _pair(rng, scene)
    if pair is None:
        return None
    answer, other = (scene.groups[number] for number in pair)
    side = _one(rng, _SIDES[scene.axis, -1 if pair[0] == 0 else 1])
    return f"what is {side} {_the(other)}?", answer.name


def _end(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if len(scene.groups) < 2:
        return None
    end = 0 if rng.random() < 0.5 else -1
    return _one(rng, _ENDS[scene.axis, end]), scene.groups[end].name


def _where(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    pair = _pair(rng, scene)
    if pair is None:
        return None
    group = scene.groups[pair[0]]
    several = len(group.places) > 1 or is_plural(group.name)
    return f"where {'are' if several else 'is'} {_the(group)}?", _WHERE[scene.axis, pair[0]]


def _mover(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    kind = "move" if scene.change.kind in MOVES else scene.change.kind
    return _one(rng, _WHAT_DOES[kind]), scene.groups[scene.change.group].name


def _direction(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None or scene.change.kind not in MOVES:
        return None
    return _ask(rng, "direction", scene.groups[scene.change.group]), scene.change.kind


def _happens(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    number = scene.change.group
    if len(scene.groups) > 1 and rng.random() < 0.15:
        number = _one(rng, [other for other in range(len(scene.groups)) if other != number])
        return _ask(rng, "happens", scene.groups[number]), "nothing"
    return _ask(rng, "happens", scene.groups[number]), _ACTS[scene.change.kind][1]


def _does(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    group, kind = scene.groups[scene.change.group], scene.change.kind
    yes = rng.random() < 0.5
    if not yes:
        kind = _one(rng, [other for other in CHANGES if other != kind])
    act, acts = _ACTS[kind]
    if is_plural(group.name):
        acts = act
    return _ask(rng, "does", group, act=act, acts=acts), "yes" if yes else "no"


_MAKERS = {
    "thing": _thing,
    "count": _count,
    "total": _total,
    "colour": _colour,
    "ground": _ground,
    "exists": _exists,
    "relation": _relation,
    "more": _more,
    "side": _side,
    "end": _end,
    "where": _where,
    "mover": _mover,
    "direction": _direction,
    "happens": _happens,
    "does": _does,
}
