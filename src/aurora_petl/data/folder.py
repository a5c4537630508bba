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
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from ..errors import AuroraError, short
from .folder_rows import item_row, question_row
from .protocol import most_frequent
from .reading import Raw, RowReader
from .rows import ImageTextDataset, Question, QuestionDataset, brief, place, refuse
from .source import Source
from .splits import with_splits
from .tables import csv_header, csv_rows, json_lines

ROW_FILES = ("captions.jsonl", "captions.csv", "questions.jsonl")
_LINE = 'a line looks like {"image": "cat.jpg", "caption": "a cat"}'
_COMPARED = 2000  # tables that a missing one is compared with


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
    if path.is_file() and path.suffix != ".tar":
        raise AuroraError(f"{path} is a file; give the folder that holds {_choices()}, or a .tar of it")
    return read_own(Source(path, None, {} if rows_file is None else {"rows": rows_file}, broken, absent))


def read_own(source: Source) -> ImageTextDataset | QuestionDataset:
    """The same of a place; its option ``rows`` names the file with the rows.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    chosen = rows_file(source)
    if chosen is None or chosen not in source.names:
        held = list(source.names)
        tables = sorted(name for name in held if name.endswith((".jsonl", ".csv", ".json")))
        near = difflib.get_close_matches(chosen or ROW_FILES[0], tables[:_COMPARED], 1) or tables
        raise AuroraError(
            f"{source.path} has no {short(chosen) if chosen else _choices()}; it holds {len(held):,} files"
            + (f", of which {brief(near[0])} may be meant: rename it" if near else "")
        )
    reader = source.reader(source.where(chosen), anywhere=True)
    rows = _rows(source, chosen, reader)
    questions = PurePosixPath(chosen).name.startswith("questions")
    return (_questions if questions else _captions)(source, reader, rows)


def rows_file(source: Source) -> str | None:
    """The file with the rows: the one that is named, else the first of ``ROW_FILES`` that is there, or None.

    Raises:
        AuroraError: if the option is no text.
    """
    named = source.options.get("rows")
    if named is not None and not isinstance(named, str):
        raise AuroraError(f"files.rows is {short(named)}; name the file in {source.path} that holds the rows")
    return named or next((name for name in ROW_FILES if name in source.names), None)


def _choices() -> str:
    return f"{', '.join(ROW_FILES[:-1])} or {ROW_FILES[-1]}"


def _rows(source: Source, name: str, reader: RowReader) -> Iterator[Raw]:
    text, where = source.text(name), reader.where
    if name.endswith(".csv"):
        delimiter = csv_header(next((line for line in text.splitlines() if line.strip()), ""))[1]
        for line, row in csv_rows(text, where, ("image", "caption"), reader.problems, delimiter):
            yield Raw(where, line, row)
        return
    for line, row in json_lines(text, where, _LINE, reader.problems):
        if isinstance(row, dict):
            yield Raw(where, line, row)
        else:
            reader.problem(Raw(where, line, {}), f"a {type(row).__name__}, not an object with image and caption")


def _captions(source: Source, reader: RowReader, rows: Iterator[Raw]) -> ImageTextDataset:
    items = reader.captions(rows, partial(item_row, roots=source.roots))
    note = reader.settle(items)
    made = with_splits(items, reader.where)
    return ImageTextDataset(source.path.stem, made, reader.files, reader.where, reader.clips, source.broken, note)


def _questions(source: Source, reader: RowReader, rows: Iterator[Raw]) -> QuestionDataset:
    questions = questions_of(reader, rows, source.roots)
    note = reader.settle(questions)
    made = with_splits(questions, reader.where)
    made, left_out = answered(reader.where, made, source.broken)
    note = "; ".join(filter(None, (note, left_out)))
    given = source.path.stem, made, reader.files, reader.where, reader.clips, source.broken, note
    return QuestionDataset(*given, candidates=most_frequent(made))


def questions_of(reader: RowReader, rows: Iterable[Raw], roots: Sequence[Path]) -> list[Question]:
    """The questions of rows; what is wrong with others is noted with the reader, so is an id that stands twice."""
    questions: list[Question] = []
    places: dict[str, tuple[str, int]] = {}
    for question in reader.read(rows, partial(question_row, roots=roots)):
        here = question.source, question.line
        if (first := places.setdefault(question.id, here)) != here:
            there = f"line {first[1]}" if first[0] == question.source else place(first[0], first[1])
            said = f"id {brief(question.id)} stands in {there} as well; give each question its own"
            reader.problem(question, said)
        else:
            questions.append(question)
    return questions


def answered(where: str, questions: Sequence[Question], broken: str) -> tuple[Sequence[Question], str]:
    """The questions that have an answer, which those of the test split need not; and words on how many have none, where
    ``broken`` is ``skip``.

    Raises:
        AuroraError: with the first few that have none, where it is not.
    """
    bare = [row for row in questions if not row.answers and row.split != "test"]
    if bare and broken == "skip" and len(bare) < len(questions):
        left = [row for row in questions if row.answers or row.split == "test"]
        return left, f"{len(bare):,} questions without an answer left out"
    refuse(
        [
            f'{place(row.source or where, row.line)}: no "answer", which a question of split {row.split} must have'
            for row in bare
        ]
    )
    return questions, ""
