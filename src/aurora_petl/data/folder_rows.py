"""What a row of a user's own captions or questions must hold."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from .protocol import shares
from .rows import SPLITS, Item, Question


def item_row(row: dict[str, Any], line: int) -> Item:
    """A checked row of captions; ValueError says what is wrong with it."""
    image, split = _media(row), _split(row)
    captions = row.get("caption")
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError('"caption" must be text or a list of texts')
    if not captions or not all(text.strip() for text in captions):
        raise ValueError(f"empty caption for {image}; write one or remove the row")
    return Item(image, tuple(text.strip() for text in captions), _name(row, image), split, line)


def question_row(row: dict[str, Any], line: int) -> Question:
    """A checked row of questions; ValueError says what is wrong with it."""
    image, split, asked, said = _media(row), _split(row), row.get("question"), row.get("answer")
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError('"question" must be text')
    if isinstance(said, str):
        said = [said]
    references: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    if said is None:
        pass  # of a test split
    elif isinstance(said, list) and said and all(isinstance(text, str) and text.strip() for text in said):
        references = tuple(text.strip() for text in said)
        answers, weights = shares(references)
    elif (
        isinstance(said, dict) and said and all(_weight(value) for value in said.values()) and all(map(str.strip, said))
    ):
        answers, weights = tuple(text.strip() for text in said), tuple(float(value) for value in said.values())
        references = answers
    else:
        raise ValueError('"answer" must be text, a list of texts, or positive weights by answer')
    name = _name(row, f"{line}")
    return Question(image, asked.strip(), answers, weights, name, split, line, references=references)


def _weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _media(row: dict[str, Any]) -> str:
    key = "clip" if "clip" in row else "image"
    what = "clip" if key == "clip" else "picture"
    image = row.get(key)
    if not isinstance(image, str) or not image.strip():
        raise ValueError(f'no "{key}"; name the {what}\'s file, relative to the folder')
    image = PurePosixPath(image.strip()).as_posix()
    if image.startswith("/") or ".." in PurePosixPath(image).parts:
        raise ValueError(f"{what} {image} lies outside the folder; copy it inside and give its relative path")
    return image


def _split(row: dict[str, Any]) -> str:
    split = row.get("split") or ""
    if split and split not in SPLITS:
        near = {"val": "validation", "dev": "validation", "valid": "validation"}.get(str(split).lower())
        raise ValueError(
            f"split {split!r} is none of {', '.join(SPLITS)}" + (f"; did you mean {near}?" if near else "")
        )
    return split


def _name(row: dict[str, Any], default: str) -> str:
    name = row.get("id", default)
    if not isinstance(name, (str, int)) or not str(name).strip():
        raise ValueError(f'"id" is {name!r}; it must be text or a number')
    return str(name)
