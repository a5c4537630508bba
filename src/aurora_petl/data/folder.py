"""A user's own pictures or clips: a folder (or a .tar of one) with captions, or with questions.

A line of ``captions.jsonl`` is one picture::

    {"image": "cats/1.jpg", "caption": ["a cat", "a kitten"], "split": "train", "id": "cat-1"}

``caption`` is text or a list of texts. ``split`` (train, validation, test) and ``id`` may be left out: without any
split, one is made by hashing ids; pictures of the same id count as right answers for each other. ``captions.csv`` has
the columns image, caption and, if wanted, split and id, one caption a row.

A line of ``questions.jsonl`` is one question::

    {"image": "cats/1.jpg", "question": "how many cats?", "answer": ["2", "2", "two"], "split": "train", "id": 7}

``answer`` is text, what each of several people said, or weights by answer (``{"2": 0.7, "two": 0.3}``); a test split's
may be left out. In both, ``clip`` in the place of ``image`` names a video, an animation or a folder of frames.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AuroraError
from .folder_rows import item_row, question_row
from .protocol import most_frequent
from .rows import Files, Folder, ImageTextDataset, Item, Question, QuestionDataset, Row, Tar, refuse

ROW_FILES = ("captions.jsonl", "captions.csv", "questions.jsonl")


@dataclass
class _Table:
    """A caption or question file in a folder or tar."""

    path: Path
    files: Files
    name: str

    def __post_init__(self) -> None:
        self.where = f"{self.path.name}/{self.name}"
        self.held = self.files.names()
        self.folders = {str(parent) for name in self.held for parent in PurePosixPath(name).parents}
        self._lower = {name.lower(): name for name in self.held}
        self.problems: list[str] = []

    def read(self, make: Callable[[dict[str, Any], int], Row]) -> Iterator[Row]:
        """The rows that are right and whose files are there; what is wrong with others is noted."""
        try:
            text = self.files.read(self.name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.files.read(self.name)[: error.start].count(b"\n") + 1
            raise AuroraError(f"{self.where}, line {line}: not UTF-8; save the file as UTF-8") from error
        parse = _csv_rows if self.name.endswith(".csv") else _json_rows
        kinds: dict[str, int] = {}
        for line, row in parse(text, self.where, self.problems):
            kinds.setdefault("clip" if "clip" in row else "image", line)
            try:
                made = make(row, line)
            except ValueError as error:
                self.problem(line, str(error))
                continue
            if made.image in self.held or ("clip" in row and made.image in self.folders):
                yield made
            else:
                what = "clip" if "clip" in row else "picture"
                near = self._lower.get(made.image.lower()) or next(
                    iter(difflib.get_close_matches(made.image, self.held, 1, 0.8)), None
                )
                hint = f"; did you mean {near}?" if near else ""
                self.problem(line, f"{what} {made.image} is missing from {self.path}{hint}")
        self.clips = "clip" in kinds
        if len(kinds) > 1:
            self.problem(max(kinds.values()), "clips and pictures in one file; give each a folder of its own")

    def problem(self, line: int, what: str) -> None:
        self.problems.append(f"{self.where}, line {line}: {what}")

    def settle(self, rows: list[Row]) -> list[Row]:
        """The rows with their splits, if nothing is wrong."""
        refuse(self.where, self.problems)
        if not rows:
            raise AuroraError(f"{self.where} holds no rows")
        return _with_splits(rows, self.where)


def read_folder(
    path: str | Path, rows_file: str | None = None, broken: str = "stop"
) -> ImageTextDataset | QuestionDataset:
    """Read and check the captions or questions of a folder or tar; pictures and clips are looked up, not decoded.

    Args:
        rows_file: the file with the rows, if it is none of ``ROW_FILES`` or not the first of those there.
        broken: what `Dataset.check` does with what does not decode.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".tar":
        raise AuroraError(f"{path} is a file; give the folder that holds {_choices()}, or a .tar of it")
    files: Files = Tar(path) if path.is_file() else Folder(path)
    held = files.names()
    chosen = rows_file or next((name for name in ROW_FILES if name in held), None)
    if chosen is None or chosen not in held:
        near = difflib.get_close_matches(chosen or ROW_FILES[0], held, 1) or sorted(
            name for name in held if name.endswith((".jsonl", ".csv", ".json"))
        )
        raise AuroraError(
            f"{path} has no {chosen or _choices()}; it holds {len(held)} files"
            + (f", of which {near[0]} may be meant: rename it" if near else "")
        )
    table = _Table(path, files, chosen)
    return _questions(table, broken) if PurePosixPath(chosen).name.startswith("questions") else _captions(table, broken)


def _choices() -> str:
    return f"{', '.join(ROW_FILES[:-1])} or {ROW_FILES[-1]}"


def _captions(table: _Table, broken: str) -> ImageTextDataset:
    items: dict[str, Item] = {}
    for item in table.read(item_row):
        known = items.get(item.image)
        if known and (known.split, known.id) != (item.split, item.id):
            table.problem(item.line, f"{item.image} stands in line {known.line} with another split or id; keep one")
            continue
        items[item.image] = replace(known, captions=known.captions + item.captions) if known else item
    rows = table.settle(list(items.values()))
    return ImageTextDataset(table.path.stem, rows, table.files, table.where, table.clips, broken)


def _questions(table: _Table, broken: str) -> QuestionDataset:
    rows: list[Question] = []
    lines: dict[str, int] = {}
    for question in table.read(question_row):
        if (first := lines.setdefault(question.id, question.line)) != question.line:
            table.problem(question.line, f"id {question.id} stands in line {first} as well; give each question its own")
        rows.append(question)
    rows = table.settle(rows)
    for row in rows:
        if not row.answers and row.split != "test":
            table.problem(row.line, f'no "answer", which a question of split {row.split} must have')
    refuse(table.where, table.problems)
    candidates = most_frequent(rows)
    return QuestionDataset(table.path.stem, rows, table.files, table.where, table.clips, broken, candidates)


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


def _with_splits(rows: list[Row], where: str) -> list[Row]:
    """Rows with a split each: their own, or 80/10/10 by the hash of their ids if none names one. Questions are split by
    their picture, so that none is in two splits."""
    if any(row.split for row in rows):
        if bare := [row for row in rows if not row.split]:
            raise AuroraError(
                f"{where}, line {bare[0].line}: no split, though other rows name one; name it in all "
                f"{len(bare)} rows without, or in none"
            )
        return rows
    groups = [row.id if isinstance(row, Item) else row.image for row in rows]
    ids = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    tenth = max(1, round(len(ids) / 10)) if len(ids) >= 3 else 0
    split = {name: "test" if n < tenth else "validation" if n < 2 * tenth else "train" for n, name in enumerate(ids)}
    return [replace(row, split=split[group]) for row, group in zip(rows, groups, strict=True)]
