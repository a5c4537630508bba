"""What is said of a scene: captions from templates, and the facts that they say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

from .chance import one_of
from .phrases import counted, definite, is_plural, spot_name
from .scene import Scene

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
            words = one_of(rng, _ONE).format(a=a, spot=spot_name(groups[0].places[0]))
        else:
            words = one_of(rng, _SEVERAL).format(a=a)
    elif len(groups) == 2:
        words = one_of(rng, _TWO[scene.axis]).format(a=counted(groups[0]), b=counted(groups[1]))
    else:
        a, b, c = (counted(group) for group in groups)
        words = one_of(rng, _THREE[scene.axis]).format(a=a, b=b, c=c)
    if scene.ground:
        words = one_of(rng, _GROUND).format(words=words, ground=scene.ground)
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
    does = one_of(rng, _DOES[change.kind])
    if is_plural(group.name):
        does = _several_do(does)
    does = does.format(a=counted(group))
    if len(scene.groups) == 1:
        return does
    if len(scene.groups) == 2:
        side = _BESIDE[scene.axis, change.group]
        return f"{does} {one_of(rng, side).format(b=counted(scene.groups[1 - change.group]))}"
    a, b, c = (counted(other) for other in scene.groups)
    row = one_of(rng, _THREE[scene.axis][:2]).format(a=a, b=b, c=c)
    the = _DOES[change.kind][0]
    return f"{row}; {(_several_do(the) if is_plural(group.name) else the).format(a=definite(group))}"


@cache
def _several_do(words: str) -> str:
    """``{a} moves`` for what is plural: ``{a} move``."""
    before, _, after = words.partition("{a} ")
    verb, space, rest = after.partition(" ")
    verb = {"goes": "go", "is": "are", "vanishes": "vanish"}.get(verb, verb.removesuffix("s"))
    return f"{before}{{a}} {verb}{space}{rest}" if verb else words


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
