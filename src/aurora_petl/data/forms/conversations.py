"""Conversations about pictures, as models that write are tuned on them: JSON or JSONL whose rows have
``conversations`` of ``human`` and ``gpt``, as LLaVA's, or ``messages`` of ``user`` and ``assistant``.

What is asked is a question, whose answer follows; the questions of one conversation stand apart. Rows without a picture
are left out and counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import AuroraError
from ..reading import Raw, RowReader
from ..source import Source
from .common import IMAGE_COLUMNS, Look, OwnDataset, Texts, fields_of, read_rows, splits_of, tables
from .tabular import columns_of, rows_of
from .turns import TURNS, Turn, asked, turns_of

_MOST = 1000  # tables that are looked at
_MEDIA = (*IMAGE_COLUMNS, "videos")


def look(source: Source) -> Look:
    """Whether there are tables whose rows hold turns."""
    found = {}
    for name in tables(source, ".json", ".jsonl")[:_MOST]:
        try:
            columns = columns_of(source, name)
        except AuroraError:  # which the form of tables tells
            continue
        if turns := next((column for column in TURNS if column in columns), None):
            found[name] = turns
    return Look(list(found), more=found)


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    where = source.where(look.shown_by[0]) if len(look.shown_by) == 1 else source.title
    without = 0

    def rows(reader: RowReader) -> Iterator[Raw]:
        nonlocal without
        for name, split in splits_of(source, look.shown_by).items():
            for line, row in rows_of(source, name, reader, ["image", look.more[name]]):
                try:
                    turns = list(turns_of(row.get(look.more[name])))
                except ValueError as error:
                    reader.problem(Raw(source.where(name), line, {}), str(error))
                    continue
                media = _media(row, turns)
                if not media:
                    without += 1
                    continue
                for number, (question, answer) in enumerate(asked(turns)):
                    fields = fields_of(source, row, media, {"question": question, "answer": answer}, split)
                    yield Raw(source.where(name), line, {**fields, "id": f"{name}:{line}:{number}"})

    dataset = read_rows(source, where, rows, texts=Texts("question", "answer"), anywhere=True)
    if without:
        dataset.note += f"; {without:,} rows without a picture left out"
    return dataset


def _media(row: Mapping[str, Any], turns: list[Turn]) -> Any:
    """The picture or clip of a row, or None; of several a list, which is refused."""
    named = [row[key] for key in _MEDIA if row.get(key)] or [place for turn in turns for place in turn.media if place]
    every = [place for value in named for place in (value if isinstance(value, list) else [value])]
    return every[0] if len(every) == 1 else every or None
