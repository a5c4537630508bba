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

import difflib
import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import AuroraError, first_line, short
from ..files import parse_text
from .folder_rows import item_row, question_row
from .places import Files, Folder, Tar
from .protocol import composed, most_frequent
from .rows import SHOWN, ImageTextDataset, Item, Question, QuestionDataset, Row, brief, refuse
from .tables import csv_rows, json_lines

ROW_FILES = ("captions.jsonl", "captions.csv", "questions.jsonl")
TOLD = 50  # ids that a made validation or test split has if there are enough
_LINE = 'a line looks like {"image": "cat.jpg", "caption": "a cat"}'
_NEAR = 2000  # names that a missing one is compared with: comparing is slow


@dataclass
class _Table:
    """A caption or question file in a folder or tar."""

    path: Path
    files: Files
    name: str
    absent: list[str] | None = None  # takes the media that are missing, which are a problem otherwise

    def __post_init__(self) -> None:
        self.where = f"{self.path.name}/{self.name}"
        self.held = self.files.names()
        self.problems: list[str] = []

    def read(self, make: Callable[[dict[str, Any], int], Row]) -> Iterator[Row]:
        """The rows that are right and whose files are there; what is wrong with others is noted."""
        try:
            text = parse_text(self.files.read(self.name), self.where)
        except OSError as error:
            raise AuroraError(f"{self.where} cannot be read: {error.strerror or first_line(error)}") from error
        kinds: dict[str, int] = {}
        for line, row in self._rows(text):
            kinds.setdefault("clip" if "clip" in row else "image", line)
            try:
                made = make(row, line)
            except ValueError as error:
                self.problem(line, str(error))
                continue
            place = self._place(made.image, self.held)
            if place is None and "clip" in row:
                place = self._place(made.image, self.folders)
            if place is None and self.absent is not None:
                self.absent.append(made.image)
            elif place is None:
                self._missing(line, "clip" if "clip" in row else "picture", made.image)
            else:
                yield made if place == made.image else replace(made, image=place)
        self.clips = "clip" in kinds
        if len(kinds) > 1:
            self.problem(max(kinds.values()), "clips and pictures in one file; give each a folder of its own")

    def _rows(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.name.endswith(".csv"):
            yield from csv_rows(text, self.where, ("image", "caption"), self.problems)
            return
        for line, row in json_lines(text, self.where, _LINE, self.problems):
            if isinstance(row, dict):
                yield line, row
            else:
                self.problem(line, f"a {type(row).__name__}, not an object with image and caption")

    def _place(self, name: str, places: set[str]) -> str | None:
        """The name on disk of what a row names: systems differ in how they write a letter with its accent."""
        if name in places:
            return name
        place = self._composed.get(composed(name))
        return place if place in places else None

    @cached_property
    def folders(self) -> set[str]:
        """All that hold files, at any depth."""
        found: set[str] = set()
        for name in self.held:
            while (name := name.rpartition("/")[0]) and name not in found:
                found.add(name)
        return found

    @cached_property
    def _composed(self) -> dict[str, str]:
        return {composed(name): name for name in (*self.folders, *self.held)}

    def _missing(self, line: int, what: str, name: str) -> None:
        said = f"{what} {brief(name)} is missing from {self.path}"
        if why := self.files.why(name):
            said += f": {why}"
        elif len(self.problems) < SHOWN and (near := self._near(name)):
            said += f"; did you mean {brief(near)}?"
        self.problem(line, said)

    def _near(self, name: str) -> str | None:
        """A name on disk that may be meant."""
        if len(name) > 255:
            return None
        whole, last = self._alike
        if near := whole.get(name.casefold()) or last.get(name.rpartition("/")[2].casefold()):
            return near
        middle = bisect_left(self._sorted, name)
        around = self._sorted[max(0, middle - _NEAR // 2) : middle + _NEAR // 2]
        return next(iter(difflib.get_close_matches(name, around, 1, 0.8)), None)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.held)

    @cached_property
    def _alike(self) -> tuple[dict[str, str], dict[str, str]]:
        """Names by what they are but for case, and by their last parts."""
        return (
            {name.casefold(): name for name in self._sorted},
            {name.rpartition("/")[2].casefold(): name for name in self._sorted},
        )

    def problem(self, line: int, what: str) -> None:
        self.problems.append(f"{self.where}, line {line}: {what}")

    def settle(self, rows: list[Row]) -> list[Row]:
        """The rows with their splits, if nothing is wrong."""
        refuse(self.problems)
        if not rows and self.absent:
            return rows
        if not rows:
            raise AuroraError(f"{self.where} holds no rows")
        return _with_splits(rows, self.where)


def read_folder(
    path: str | Path, rows_file: str | None = None, broken: str = "stop", absent: list[str] | None = None
) -> ImageTextDataset | QuestionDataset:
    """Read and check the captions or questions of a folder or tar; pictures and clips are looked up, not decoded.

    Args:
        rows_file: the file with the rows, if it is none of ``ROW_FILES`` or not the first of those there.
        broken: what `Dataset.check` does with what does not decode.
        absent: takes the names of media that are missing, whose rows are then left out; None: they are refused.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    path = Path(path)
    if rows_file is not None and not isinstance(rows_file, str):
        raise AuroraError(f"files.rows is {short(rows_file)}; name the file in {path} that holds the rows")
    if path.is_file() and path.suffix != ".tar":
        raise AuroraError(f"{path} is a file; give the folder that holds {_choices()}, or a .tar of it")
    files: Files = Tar(path) if path.is_file() else Folder(path)
    held = files.names()
    chosen = rows_file or next((name for name in ROW_FILES if name in held), None)
    if chosen is None or chosen not in held:
        tables = sorted(name for name in held if name.endswith((".jsonl", ".csv", ".json")))
        near = difflib.get_close_matches(chosen or ROW_FILES[0], tables[:_NEAR], 1) or tables
        raise AuroraError(
            f"{path} has no {short(chosen) if chosen else _choices()}; it holds {len(held):,} files"
            + (f", of which {brief(near[0])} may be meant: rename it" if near else "")
        )
    table = _Table(path, files, chosen, absent)
    return _questions(table, broken) if PurePosixPath(chosen).name.startswith("questions") else _captions(table, broken)


def _choices() -> str:
    return f"{', '.join(ROW_FILES[:-1])} or {ROW_FILES[-1]}"


def _captions(table: _Table, broken: str) -> ImageTextDataset:
    items: dict[str, Item] = {}
    for item in table.read(item_row):
        known = items.get(item.image)
        if known and (known.split, known.id) != (item.split, item.id):
            table.problem(
                item.line, f"{brief(item.image)} stands in line {known.line} with another split or id; keep one"
            )
            continue
        items[item.image] = replace(known, captions=known.captions + item.captions) if known else item
    rows = table.settle(list(items.values()))
    return ImageTextDataset(table.path.stem, rows, table.files, table.where, table.clips, broken)


def _questions(table: _Table, broken: str) -> QuestionDataset:
    rows: list[Question] = []
    lines: dict[str, int] = {}
    for question in table.read(question_row):
        if (first := lines.setdefault(question.id, question.line)) != question.line:
            table.problem(
                question.line, f"id {brief(question.id)} stands in line {first} as well; give each question its own"
            )
        rows.append(question)
    rows = table.settle(rows)
    for row in rows:
        if not row.answers and row.split != "test":
            table.problem(row.line, f'no "answer", which a question of split {row.split} must have')
    refuse(table.problems)
    candidates = most_frequent(rows)
    return QuestionDataset(table.path.stem, rows, table.files, table.where, table.clips, broken, candidates)


def _with_splits(rows: list[Row], where: str) -> list[Row]:
    """Rows with a split each: their own, or one by the hash of their ids if none names one. Validation and test then
    have a tenth of the ids each, but up to a quarter where `TOLD` would be missed: figures of fewer say little.
    Questions are split by their picture, so that none is in two splits."""
    if any(row.split for row in rows):
        if bare := [row for row in rows if not row.split]:
            raise AuroraError(
                f"{where}, line {bare[0].line}: no split, though other rows name one; name it in all "
                f"{len(bare)} rows without, or in none"
            )
        return rows
    groups = [row.id if isinstance(row, Item) else composed(row.image) for row in rows]
    ids = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    part = max(1, round(len(ids) / 10), min(TOLD, len(ids) // 4)) if len(ids) >= 3 else 0
    split = {name: "test" if n < part else "validation" if n < 2 * part else "train" for n, name in enumerate(ids)}
    return [replace(row, split=split[group]) for row, group in zip(rows, groups, strict=True)]
