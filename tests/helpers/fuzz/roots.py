"""Bad tables of the six benchmarks, in miniature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .case import Case, Draw, Expectation, accept, either, refuse
from .damage import HARMS, ODD, PLACES, TEXT_RUINS, cut, places_of, put, with_text
from .rows import table

TASKS: dict[str, tuple[str, ...]] = {
    "coco": (),
    "flickr30k": (),
    "msrvtt": ("task.frames=2",),
    "didemo": ("task.frames=2",),
    "vqav2": ("task.name=vqa",),
    "msrvtt_qa": ("task.name=vqa", "task.frames=2"),
}
MEDIA = (".jpg", ".mp4")


def _words(draw: Draw, name: str, root: Path) -> list[Any]:
    model = draw.ground.answerer if "task.name=vqa" in TASKS[name] else draw.ground.model
    more = ["--out", "out", "--dry-run", "--quiet", "train.batch_size=2", *TASKS[name]]
    return ["train", "--data", name.replace("_", "-"), "--root", root, "--model", model, *more]


def _same(draw: Draw, name: str) -> Any:
    expected = _counts(draw.ground.printed(*map(str, _words(draw, name, draw.ground.benchmark(name)))))

    def check(outcome: Any) -> str | None:
        found = _counts(outcome.out)
        return None if found == expected and found else f"rows {found}, of the undamaged files {expected}"

    return check


def _counts(text: str) -> dict[str, list[str]]:
    """Pictures and texts by split; another answer may be right as well, so that answers are not counted."""
    return {split: counts.split()[:2] for split, counts in table(text).items()}


def _rows(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def roots(draw: Draw) -> Case:
    name = list(TASKS)[draw.number % 6]
    root = draw.folder / "root"
    shutil.copytree(draw.ground.benchmark(name), root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix not in MEDIA]
    file = draw.rng.choice(tables)
    way = draw.one_of(["value", "value", "value", "ruin", "place", "media", "csv"], 6, f"way of {name}")
    words, same = _words(draw, name, root), _same(draw, name)
    if way == "csv" and file.suffix != ".csv":
        way = "ruin"
    if file.suffix == ".csv" and way == "value":
        way = "csv"
    if way == "value":
        value = _rows(file)
        place = draw.rng.choice(places_of(value))
        text = draw.rng.choice([*ODD, None])
        if file.suffix == ".jsonl":
            lines = file.read_text().splitlines()
            row = place[0]
            lines[row] = with_text(value[row], place[1:], text) if place[1:] else (text or "")
            file.write_text("\n".join(lines) + "\n")
        else:
            file.write_text(with_text(value, place, text))
        about = f"{file.name}: {'.'.join(map(str, place))} = {text and text[:30]}"
        # a list without one of its rows, and one text for many, are right as well
        right = text is None and isinstance(place[-1], int)
        right = right or (isinstance(_at(value, place), list) and bool(text) and text.startswith('"'))
        # a picture that is missing is named, with the folder, not with the row
        expects: Expectation = either(file.name, "are missing under", check=None if right else same)
    elif way == "ruin":
        about = draw.rng.choice(list(TEXT_RUINS))
        file.write_bytes(TEXT_RUINS[about](file.read_bytes(), draw.rng))
        about, expects = f"{file.name}: {about}", refuse(file.name)
    elif way == "place":
        about = draw.rng.choice(list(PLACES))
        put(file, about)
        about, expects = f"{file.name}: {about}", either(file.name, str(root), check=_other_layout(file))
    elif way == "csv":
        text = file.read_text().splitlines()
        about = draw.rng.choice(["comma", "cut", "no header", "quote", "latin-1", "unknown clip", "few fields"])
        changes: dict[str, bytes] = {
            "comma": "\n".join([*text[:2], text[2] + ", and more", *text[3:]]).encode(),
            "cut": file.read_bytes()[: len(text[0]) + 10],
            "no header": "\n".join(text[1:]).encode(),
            "quote": "\n".join([*text[:2], text[2] + '"', text[3][:-3] + '"x', *text[4:]]).encode(),
            "latin-1": file.read_bytes().replace(b"a ", b"\xe4 "),
            "unknown clip": "\n".join([*text[:2], text[2].replace("video", "nothing"), *text[3:]]).encode(),
            "few fields": "\n".join([*text[:2], text[2].split(",")[0], *text[3:]]).encode(),
        }
        file.write_bytes(changes[about])
        about, expects = f"{file.name}: {about}", refuse(file.name)
    else:
        media = draw.rng.choice([path for path in files if path.suffix in MEDIA])
        about = draw.rng.choice([*PLACES, "cut", "empty", "head"])
        if about in PLACES:
            put(media, about)
        elif about == "cut":
            media.write_bytes(cut(media.read_bytes(), draw.rng))
        else:
            media.write_bytes(b"" if about == "empty" else HARMS["head"](media.read_bytes(), draw.rng))
        expects = either(media.stem, check=same)
        if draw.rng.random() < 0.3 and about in ("nothing", "empty"):
            words.append("broken=skip")
            expects = accept()
        about = f"{media.name}: {about}"
    return Case(f"{name}, {about}", words, expects)


def _other_layout(file: Path) -> Any:
    """Without a table a folder may be read by another one that stands beside it, but with rows of all splits."""

    def check(outcome: Any) -> str | None:
        found = table(outcome.out)
        return None if len(found) == 3 else f"rows {found} without {file.name}"

    return check
