"""Aurora's own ``captions.jsonl``, ``captions.csv`` and ``questions.jsonl``, see `data.folder`."""

from __future__ import annotations

from pathlib import PurePosixPath

from ..folder import read_own, rows_file
from ..source import Source
from .common import IMAGE_COLUMNS, Look, OwnDataset, column, texts_in
from .tabular import columns_of


def look(source: Source) -> Look:
    """Whether the place has one of these files, or the option ``rows`` names one with their columns."""
    name = rows_file(source)
    if name is None or name not in source.names:
        return Look()
    columns = columns_of(source, name) if name.endswith((".jsonl", ".csv")) else []
    if {"image", "clip"} & set(columns) and {"caption", "question"} & set(columns):
        return Look([name])
    called_so = PurePosixPath(name).stem in ("captions", "questions")
    other = column(source, "image_column", IMAGE_COLUMNS, columns, "") and texts_in(source, columns)
    return Look([name] if called_so and not other else [])


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""
    return read_own(source)
