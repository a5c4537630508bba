"""What is asked of a scene: questions of several kinds with one short answer each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .chance import below, one_of
from .phrases import article, definite, is_plural, plural
from .scene import CHANGES, MOVES, NUMBERS, Group, Scene


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a ``kind``, such as ``count``, with its one short answer."""

    kind: str
    question: str
    answer: str


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
    template = one_of(rng, _ASKED[kind])
    if group is None:
        return template.format(**words)
    several = len(group.places) > 1 or is_plural(group.name)
    return template.format(
        the=definite(group),
        many=plural(group.name),
        **{"is": "are" if several else "is", "has": "have" if several else "has", "does": "do" if several else "does"},
        **words,
    )


def _pick(rng: Random, scene: Scene) -> Group:
    return scene.groups[below(rng, len(scene.groups))]


def _pair(rng: Random, scene: Scene) -> tuple[int, int] | None:
    """Two neighbours along the axis, in any order; a third thing would make ``left of`` ask for two."""
    if len(scene.groups) != 2:
        return None
    first = below(rng, 2)
    return first, 1 - first


def _absent(rng: Random, scene: Scene, names: Sequence[str]) -> str:
    present = {group.name for group in scene.groups}
    while (name := one_of(rng, names)) in present:
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
    group = tinted[below(rng, len(tinted))]
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
    side = one_of(rng, _SIDES[scene.axis, (-1 if pair[0] == 0 else 1) * (1 if yes else -1)])
    first, second = (scene.groups[number] for number in pair)
    return _ask(rng, "relation", first, side=side, other=definite(second)), "yes" if yes else "no"


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
    side = one_of(rng, _SIDES[scene.axis, -1 if pair[0] == 0 else 1])
    return f"what is {side} {definite(other)}?", answer.name


def _end(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if len(scene.groups) < 2:
        return None
    end = 0 if rng.random() < 0.5 else -1
    return one_of(rng, _ENDS[scene.axis, end]), scene.groups[end].name


def _where(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    pair = _pair(rng, scene)
    if pair is None:
        return None
    group = scene.groups[pair[0]]
    several = len(group.places) > 1 or is_plural(group.name)
    return f"where {'are' if several else 'is'} {definite(group)}?", _WHERE[scene.axis, pair[0]]


def _mover(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    kind = "move" if scene.change.kind in MOVES else scene.change.kind
    return one_of(rng, _WHAT_DOES[kind]), scene.groups[scene.change.group].name


def _direction(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None or scene.change.kind not in MOVES:
        return None
    return _ask(rng, "direction", scene.groups[scene.change.group]), scene.change.kind


def _happens(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    number = scene.change.group
    if len(scene.groups) > 1 and rng.random() < 0.15:
        number = one_of(rng, [other for other in range(len(scene.groups)) if other != number])
        return _ask(rng, "happens", scene.groups[number]), "nothing"
    return _ask(rng, "happens", scene.groups[number]), _ACTS[scene.change.kind][1]


def _does(rng: Random, scene: Scene, names: Sequence[str]) -> tuple[str, str] | None:
    if scene.change is None:
        return None
    group, kind = scene.groups[scene.change.group], scene.change.kind
    yes = rng.random() < 0.5
    if not yes:
        kind = one_of(rng, [other for other in CHANGES if other != kind])
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
