"""Parquet files with a column of pictures, which hold their bytes, and one of captions. Several are the splits that
their names tell: ``train-00000-of-00002.parquet``. ``datasets`` keeps an Arrow copy of them in its cache, from which
rows are read in any order."""

from __future__ import annotations

from ..source import Source
from .arrow import Tables, failed, library, read_tables
from .common import Look, OwnDataset, splits_of, tables


def look(source: Source) -> Look:
    """Whether there are such files."""
    if source.path.is_file():
        return Look()
    beside = {name.partition("/")[0] for name in source.visible if "/" in name}  # img2dataset's notes on a folder
    return Look([name for name in tables(source, ".parquet") if name.removesuffix(".parquet") not in beside])


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset.

    Raises:
        AuroraError: if a file is no parquet, or ``datasets`` is not installed.
    """
    datasets = library(source.where(look.shown_by[0]))
    held = {}
    for name, split in splits_of(source, look.shown_by).items():
        try:  # one by one, so that rows keep their numbers in their file
            table = datasets.Dataset.from_parquet(str(source.path / name))
        except Exception as error:
            raise failed(source.where(name), error) from error
        held[name] = table, split
    where = source.where(look.shown_by[0]) if len(look.shown_by) == 1 else source.title
    return read_tables(source, where, held, Tables(str(source.path)))
