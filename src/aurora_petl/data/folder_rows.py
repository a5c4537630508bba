"""What a row of a user's own captions or questions must hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import short
from .items import SPLIT_WORDS
from .protocol import composed, shares
from .rows import SPLITS, Item, Question, brief

_MOST = 100_000  # characters of a text: a file of megabytes was put in a caption's place
_MOST_ID = 1000


def item_row(row: dict[str, Any], line: int, roots: Sequence[Path] = (), column: str = "caption") -> Item:
    """A checked row of captions; ValueError says what is wrong with it.

    Args:
        roots: the folder that absolute paths of pictures must lie in, under each of its names.
        column: what messages call the captions.
    """
    image, split = _media(row, roots), _split(row)
    captions = row.get("caption")
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f'"{column}" must be text or a list of texts')
    if not captions or not all(text.strip() for text in captions):
        raise ValueError(f"empty caption for {brief(image)}; write one or remove the row")
    for text in captions:
        _check_length(column, text)
    return Item(image, tuple(text.strip() for text in captions), _name(row, composed(image)), split, line)


def question_row(row: dict[str, Any], line: int, roots: Sequence[Path] = ()) -> Question:
    """A checked row of questions, as `item_row`. Blanks among several answers are those of annotators who said
    nothing."""
    image, split, asked, said = _media(row, roots), _split(row), row.get("question"), row.get("answer")
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError('"question" must be text')
    _check_length("question", asked)
    if isinstance(said, str):
        said = [said]
    references: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    if said is None:
        pass  # of a test split
    elif isinstance(said, list) and all(isinstance(text, str) for text in said) and any(map(str.strip, said)):
        references = tuple(text.strip() for text in said)
        answers, weights = shares(references)
    elif isinstance(said, dict) and said and all(map(_weight, said.values())) and all(map(str.strip, said)):
        summed: dict[str, float] = {}
        for text, value in said.items():
            summed[text.strip()] = summed.get(text.strip(), 0.0) + float(value)
        references = answers = tuple(summed)
        weights = tuple(summed.values())
    else:
        raise ValueError('"answer" must be text, a list of texts, or positive weights by answer')
    for text in answers:
        _check_length("answer", text)
    name = _name(row, f"{line}")
    return Question(image, asked.strip(), answers, weights, name, split, line, references=references)


def _check_length(key: str, text: str) -> None:
    if len(text) > _MOST:
        raise ValueError(f'"{key}" has {len(text):,} characters, of which models read some hundred; shorten it')


def _weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30


def _media(row: dict[str, Any], roots: Sequence[Path]) -> str:
    key = "clip" if "clip" in row else "image"
    what = "clip" if key == "clip" else "picture"
    image = row.get(key)
    if isinstance(image, str) and re.match(r"\s*(https?|s3|gs|hf)://", image):
        raise ValueError(f"{what} {brief(image)} lies on the web; download it, as img2dataset does, and name the file")
    if isinstance(image, str) and re.match(r"\s*(file://|[A-Za-z]:[\\/])", image):
        image = "/" + image.strip().removeprefix("file://").replace("\\", "/").lstrip("/")
    parts = image.strip().split("/") if isinstance(image, str) else []
    name = "/".join(part for part in parts if part not in ("", "."))
    if not name:
        raise ValueError(f'no "{key}"; name the {what}\'s file, relative to the folder')
    if parts[0] == "" or ".." in parts:
        inside = None if ".." in parts else _inside(f"/{name}", roots)
        if inside is None:
            shown = brief("/" * (parts[0] == "") + name)
            raise ValueError(
                f"{what} {shown} lies outside the folder; copy it inside and give its relative path, or name a folder "
                "above it with --root"
            )
        name = inside
    if "\udc80" <= max(name) <= "\udcff":
        raise ValueError(f"the name of {what} {brief(name)} is not UTF-8; rename it")
    return name


def _inside(path: str, roots: Sequence[Path]) -> str | None:
    """An absolute path as it is relative to the first of the roots that it lies in."""
    for root in (f"/{root.as_posix().lstrip('/')}" for root in roots):
        if path.startswith(above := f"{root.rstrip('/')}/") and path != above:
            return path[len(above) :]
    return None


def _split(row: dict[str, Any]) -> str:
    split = row.get("split")
    if split is None or split == "":
        return ""
    if not isinstance(split, str) or split.lower() not in SPLIT_WORDS:
        raise ValueError(f"split {short(split)} is none of {', '.join(SPLITS)}")
    return SPLIT_WORDS[split.lower()]


def _name(row: dict[str, Any], default: str) -> str:
    name = row.get("id", default)
    if not isinstance(name, (str, int)) or isinstance(name, bool) or not str(name).strip():
        raise ValueError(f'"id" is {short(name)}; it must be text or a number')
    if "id" in row and len(str(name)) > _MOST_ID:
        raise ValueError(f'"id" has {len(str(name)):,} characters; at most {_MOST_ID} are read')
    return str(name)
