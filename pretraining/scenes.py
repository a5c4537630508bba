"""Build the six embedded packs of scenes, one for each kind of task of the paper, from the embedded packs of drawings.

    python pretraining/scenes.py --out src/aurora_petl/assets/packs       (or: make scenes)

A pack is a tar with ``scenes.jsonl``, which says where each drawing goes (``aurora_petl.data.scenes`` composes them),
and ``captions.jsonl`` or ``questions.jsonl``. All chance comes from the pack's name, so the bytes are the same every
time. A scene shows only drawings of its own split in the packs of drawings. Every second scene is given a twin, which
differs in one respect. What is said of a scene is true of no other scene of its split.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scene_words as words

PACKS = Path("src/aurora_petl/assets/packs")
SIDE, FRAMES = 224, 8  # those of aurora_petl.data.scenes
FLAT, INK = "fluent-flat", "fluent-contrast"
SPLITS = ("train", "validation", "test")
TWINS = 0.5
CAPTIONS = 3
LONGEST = 24  # characters of a name
MOVES, OTHERS = tuple(words.MOVES), tuple(change for change in words.CHANGES if change not in words.MOVES)

# What is in names that one cannot count, that name no thing, or whose drawing is a mark or one of many faces
_NO_WORDS = """
    adult american arrow baby bacon badminton baseball basketball biohazard biting bowling boy bread
    breast-feeding bubble butter button camping chart check child children cinema circle circled cityscape claim
    clockwise closed closet collision construction cooking copyright coral cross curling currency custard dango
    dash dashed dashing dharma diamond divide dizzy dna dot dotted drop droplet dvd e-mail ear eight-pointed
    eight-spoked elevator emblem exploding eye eyes face facing fast field finger fire fist flag fleur-de-lis
    fog foggy foot football garlic gesture ginger girl globe hair hamsa hand hands handshake heart heavy herb
    hockey ice id index infinity information input japanese kaaba keycap khanda lacrosse leg letter link lip
    locked loop love low luggage mahjong man mark martial mate meat men milky minus mode moon motorway mouth
    multiply mute muted national night no non-potable nose not o'clock oden off om palms passport pause people
    person ping-pong placard play plus polish popcorn potable pouring prohibited racing radioactive rainbow
    registered repeat restroom rolling rugby sake salad salt salute selfie sign silhouette skis slider soap
    softball spaghetti speaker speaking speech square star-struck stop suit sunrise sunset sushi symbol tear-off
    tennis thought thread thumbs tilted tongue trade triangle unlocked volume warning wedding wheelchair
    wireless woman women wood worship yarn yin
"""
_NO_PARTS = """
    cat with, kissing cat, pouting cat, crying cat, weary cat, grinning cat, head shaking, skull and, star and,
    high voltage, -thirty, cricket game, ping pong, behind small, behind large, behind rain
"""
_LICENSE = """Scenes of Fluent emoji, composed of the drawings in the packs fluent-flat and fluent-contrast. Those packs
hold the licence of the drawings: MIT License, Copyright (c) Microsoft Corporation.
"""


@dataclass(frozen=True)
class Pack:
    """What a pack of scenes holds.

    Args:
        hands: the packs of drawings, one of which each scene is drawn with.
        changes: what things of its clips do; none: they are pictures.
        grounds: whether backgrounds have colours.
        questions: kinds of `scene_words.QUESTIONS`, and how often each is asked beside the others; none: captions.
        sizes: scenes of each split; of questions, pictures or clips.
    """

    hands: tuple[str, ...]
    changes: tuple[str, ...] = ()
    grounds: bool = False
    questions: tuple[tuple[str, float], ...] = ()
    sizes: tuple[int, int, int] = (1500, 300, 400)
    asked: int = 2  # questions a scene


TASKS = {
    "scenes-colour": Pack((FLAT,), grounds=True),
    "scenes-ink": Pack((INK,)),
    "scenes-moves": Pack((FLAT,), MOVES),
    "scenes-changes": Pack((INK,), OTHERS),
    "scenes-questions": Pack(
        (FLAT, INK),
        grounds=True,
        questions=(
            *(("count", 3.0), ("total", 1.0), ("colour", 2.0), ("ground", 1.0)),
            *(("exists", 1.0), ("relation", 2.0), ("more", 1.0), ("where", 2.0)),
        ),
    ),
    "scenes-clip-questions": Pack(
        (FLAT, INK),
        words.CHANGES,
        questions=(
            *(("direction", 2.0), ("happens", 3.0), ("does", 1.0), ("mover", 2.0)),
            *(("where", 1.0), ("exists", 1.0), ("colour", 1.0)),
        ),
    ),
}


def things(packs: Path) -> dict[str, dict[str, str]]:
    """Split -> name -> code of the drawings that scenes are made of; both packs have the same."""
    with tarfile.open(packs / f"{FLAT}.tar") as archive:
        file = archive.extractfile("captions.jsonl")
        assert file is not None
        rows = [json.loads(line) for line in file.read().decode().splitlines()]
    chosen: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for row in rows:
        name = row["caption"].partition(":")[0].replace("’", "'")
        if _is_thing(name):
            chosen[row["split"]].setdefault(name, Path(row["image"]).stem)
    return chosen


def _is_thing(name: str) -> bool:
    if len(name) > LONGEST or words.is_plural(name) or re.search("[0-9A-Z]", name):
        return False
    parts = (" ".join(part.split()) for part in _NO_PARTS.split(","))
    return not set(_NO_WORDS.split()) & set(name.split()) and not any(part in name for part in parts)


def scenes(rng: random.Random, pack: Pack, names: Sequence[str], count: int) -> Iterator[tuple[str, words.Scene]]:
    """So many scenes, each with the pack that it is drawn with; what is said of one is not true of another."""
    grounds = tuple(words.GROUNDS) if pack.grounds else ()
    tintable = [name for name in names if words.tintable(name)]
    seen: set[object] = set()
    implied: set[object] = set()
    while len(seen) < count:
        hand = pack.hands[int(rng.random() * len(pack.hands))]
        colours = tuple(words.COLOURS) if hand == INK else ()
        shown = names if hand == FLAT else tintable
        if pack.changes:
            scene = words.moving_scene(rng, shown, colours, grounds, pack.changes)
        else:
            scene = words.still_scene(rng, shown, colours, grounds)
        made = [scene, words.twin(rng, scene)] if rng.random() < TWINS else [scene]
        for one in made:
            facts, parts = words.facts(one), words.implied(one)
            if len(seen) < count and facts not in implied and not parts & seen:
                seen.add(facts)
                implied |= parts
                yield hand, one


def asked(rng: random.Random, pack: Pack, scene: words.Scene, names: Sequence[str]) -> list[words.Question]:
    """The questions of a scene: a few kinds by chance and weight of those that it has answers to."""
    weights = dict(pack.questions)
    held = words.questions(rng, scene, names, tuple(weights))
    # counts of one are in most scenes: those of more are asked more often
    order = sorted(
        held, key=lambda one: rng.random() ** (1 / (weights[one.kind] * (0.3 if one.answer == "one" else 1)))
    )
    return order[-pack.asked :]


def described(name: str, hand: str, scene: words.Scene, codes: dict[str, str]) -> dict[str, Any]:
    """A line of ``scenes.jsonl``."""
    row: dict[str, Any] = {"name": name, "pack": hand}
    if scene.ground not in ("", "white"):
        row["ground"] = words.GROUNDS[scene.ground]
    first = [(number, place) for number, group in enumerate(scene.groups) for place in group.places]
    row["things"] = []
    for number, place in first:
        group, change = scene.groups[number], scene.change
        thing: dict[str, Any] = {"drawing": codes[group.name]}
        if group.colour:
            thing["tint"] = words.COLOURS[group.colour]
        thing["box"] = _box(place)
        if change is not None and change.group == number:
            shown = [frame for frame in range(FRAMES) if _is_there(scene, number, frame / (FRAMES - 1))]
            if len(shown) < FRAMES:
                thing["shown"] = [shown[0], shown[-1] + 1]
            end = _box(change.ends[group.places.index(place)])
            if end != thing["box"]:
                thing["to"] = end
        row["things"].append(thing)
    return row


def _box(place: words.Place) -> list[int]:
    """Left, top and side in pixels."""
    side = round(place.size * SIDE)
    left, top = (round(middle * SIDE - side / 2) for middle in (place.x, place.y))
    return [min(max(left, 0), SIDE - side), min(max(top, 0), SIDE - side), side]


def _is_there(scene: words.Scene, number: int, time: float) -> bool:
    return any(drawn.name == scene.groups[number].name for drawn in words.drawn(scene, time))


def build(name: str, packs: Path = PACKS) -> dict[str, bytes]:
    """The files of a pack by their names."""
    pack = TASKS[name]
    key = "clip" if pack.changes else "image"
    drawings: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for (split, codes), size in zip(things(packs).items(), pack.sizes, strict=True):
        rng = random.Random(f"{name} {split}")
        names = list(codes)
        said: set[str] = set()
        for number, (hand, scene) in enumerate(scenes(rng, pack, names, size)):
            medium = f"{split}-{number:04}" + ("" if pack.changes else ".bmp")
            drawings.append(described(medium, hand, scene, codes))
            if not pack.questions:
                captions = words.captions(rng, scene, CAPTIONS)
                if said & set(captions):
                    raise SystemExit(f"{name}: a caption of {medium} is that of another scene: {captions}")
                said.update(captions)
                rows.append({key: medium, "caption": captions, "split": split})
                continue
            for one in asked(rng, pack, scene, names):
                asks = {"question": one.question, "answer": one.answer, "split": split}
                rows.append({key: medium, **asks, "id": f"{split}-{number:04}-{one.kind}"})
    table = "questions.jsonl" if pack.questions else "captions.jsonl"
    return {"LICENSE": _LICENSE.encode(), table: _lines(rows), "scenes.jsonl": _lines(drawings)}


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()


def packed(files: dict[str, bytes]) -> bytes:
    """A tar without dates or owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKS)
    parser.add_argument("--packs", type=Path, default=PACKS, help="folder of the packs of drawings")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        tar = packed(build(name, options.packs))
        partial_file = options.out / f"{name}.tar.part"
        partial_file.write_bytes(tar)
        partial_file.replace(options.out / f"{name}.tar")
        print(f"{name}: {len(tar) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
