"""Aurora's own ``captions.jsonl``, ``captions.csv`` and ``questions.jsonl``, see `data.folder`."""

from __future__ import annotations

from ..folder import read_own, rows_file
from ..rows import ImageTextDataset, QuestionDataset
from ..source import Source
from .common import Look
from .tabular import columns_of


def look(source: Source) -> Look:
    """Whether the place has one of these files, or the option ``rows`` names one with their columns."""
    name = rows_file(source)
    if name is None or name not in source.names:
        return Look()
    if source.options.get("rows") and name.rpartition("/")[2].partition(".")[0] not in ("captions", "questions"):
        columns = columns_of(source, name) if name.endswith((".jsonl", ".csv")) else []
        if not {"image", "clip"} & set(columns) or not {"caption", "question"} & set(columns):
            return Look()
    return Look([name])


def read(source: Source, look: Look) -> ImageTextDataset | QuestionDataset:
    """The dataset."""
    return read_own(source)
