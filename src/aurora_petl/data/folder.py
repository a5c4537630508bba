"""A user's own pictures: a folder (or a .tar of one) with ``captions.jsonl`` or ``captions.csv``.

A line of JSONL is one picture::

    {"image": "cats/1.jpg", "caption": ["a cat", "a kitten"], "split": "train", "id": "cat-1"}

``caption`` is text or a list of texts. ``split`` (train, validation, test) and ``id`` may be left out: without any
split, one is made by hashing ids; pictures of the same id count as right answers for each other. A CSV has the
columns image, caption and, if wanted, split and id, one caption a row.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AuroraError
from .rows import SPLITS, Files, Folder, ImageTextDataset, Item, Tar, refuse

CAPTION_FILES = ("captions.jsonl", "captions.csv")


def read_folder(path: str | Path, captions_file: str | None = None) -> ImageTextDataset:
    """Read and check the caption file of a folder or tar; pictures are looked up but not decoded.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".tar":
        raise AuroraError(f"{path} is a file; give the folder that holds {' or '.join(CAPTION_FILES)}, or a .tar of it")
    files: Files = Tar(path) if path.is_file() else Folder(path)
    held = files.names()
    chosen = captions_file or next((name for name in CAPTION_FILES if name in held), None)
    if chosen is None or chosen not in held:
        near = difflib.get_close_matches(chosen or CAPTION_FILES[0], held, 1) or sorted(
            name for name in held if name.endswith((".jsonl", ".csv", ".json"))
        )
        raise AuroraError(
            f"{path} has no {chosen or ' or '.join(CAPTION_FILES)}; it holds {len(held)} files"
            + (f", of which {near[0]} may be meant: rename it" if near else "")
        )
    where = f"{path.name}/{chosen}"
    try:
        text = files.read(chosen).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = files.read(chosen)[: error.start].count(b"\n") + 1
        raise AuroraError(f"{where}, line {line}: not UTF-8; save the file as UTF-8") from error
    problems: list[str] = []
    parse = _csv_rows if chosen.endswith(".csv") else _json_rows
    items: dict[str, Item] = {}
    lower = {name.lower(): name for name in held}
    for line, row in parse(text, where, problems):
        try:
            item = _item(row, line)
        except ValueError as error:
            problems.append(f"{where}, line {line}: {error}")
            continue
        if item.image not in held:
            near_name = lower.get(item.image.lower()) or next(
                iter(difflib.get_close_matches(item.image, held, 1, 0.8)), None
            )
            hint = f"; did you mean {near_name}?" if near_name else ""
            problems.append(f"{where}, line {line}: picture {item.image} is missing from {path}{hint}")
            continue
        known = items.get(item.image)
        if known and (known.split, known.id) != (item.split, item.id):
            problems.append(
                f"{where}, line {line}: {item.image} stands in line {known.line} with another split or id; keep one"
            )
            continue
        items[item.image] = replace(known, captions=known.captions + item.captions) if known else item
    refuse(where, problems)
    if not items:
        raise AuroraError(f"{where} holds no rows")
    return ImageTextDataset(path.stem, _with_splits(list(items.values()), where), files, where)


def _json_rows(text: str, where: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(
                f"{where}, line {number}: not JSON ({error.msg} at column {error.colno}); "
                'a line looks like {"image": "cat.jpg", "caption": "a cat"}'
            )
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(f"{where}, line {number}: a {type(row).__name__}, not an object with image and caption")


def _csv_rows(text: str, where: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = reader.fieldnames or []
    if lacking := [name for name in ("image", "caption") if name not in columns]:
        raise AuroraError(
            f"{where}, line 1: no column {' and no column '.join(lacking)} among {', '.join(columns) or 'none'}; "
            "the first line must be image,caption (comma separated)"
        )
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key and value is not None}
    except csv.Error as error:
        problems.append(f"{where}, line {reader.line_num}: not CSV ({error})")


def _item(row: dict[str, Any], line: int) -> Item:
    """A checked row; ValueError says what is wrong with it."""
    image, captions, split = row.get("image"), row.get("caption"), row.get("split") or ""
    if not isinstance(image, str) or not image.strip():
        raise ValueError('no "image"; name the picture\'s file, relative to the folder')
    image = PurePosixPath(image.strip()).as_posix()
    if image.startswith("/") or ".." in PurePosixPath(image).parts:
        raise ValueError(f"picture {image} lies outside the folder; copy it inside and give its relative path")
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError('"caption" must be text or a list of texts')
    if not captions or not all(text.strip() for text in captions):
        raise ValueError(f"empty caption for {image}; write one or remove the row")
    if split and split not in SPLITS:
        near = {"val": "validation", "dev": "validation", "valid": "validation"}.get(str(split).lower())
        raise ValueError(
            f"split {split!r} is none of {', '.join(SPLITS)}" + (f"; did you mean {near}?" if near else "")
        )
    name = row.get("id", image)
    if not isinstance(name, (str, int)) or not str(name).strip():
        raise ValueError(f'"id" is {name!r}; it must be text or a number')
    return Item(image, tuple(text.strip() for text in captions), str(name), split, line)


def _with_splits(items: list[Item], where: str) -> list[Item]:
    """Rows with a split each: their own, or 80/10/10 by the hash of their ids if none names one."""
    if any(item.split for item in items):
        if bare := [item for item in items if not item.split]:
            raise AuroraError(
                f"{where}, line {bare[0].line}: no split, though other rows name one; name it in all "
                f"{len(bare)} rows without, or in none"
            )
        return items
    ids = sorted({item.id for item in items}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    tenth = max(1, round(len(ids) / 10)) if len(ids) >= 3 else 0
    split = {name: "test" if n < tenth else "validation" if n < 2 * tenth else "train" for n, name in enumerate(ids)}
    return [replace(item, split=split[item.id]) for item in items]
