"""A folder that ``save_to_disk`` of ``datasets`` wrote, of a dataset or of several in splits."""

from __future__ import annotations

from ..source import Source
from .arrow import Tables, failed, library, read_tables
from .common import Look, OwnDataset, splits_of

_MARKS = ("dataset_dict.json", "state.json")


def look(source: Source) -> Look:
    """Whether there is such a folder's description."""
    return Look([] if source.path.is_file() else [name for name in _MARKS if name in source.names][:1])


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset.

    Raises:
        AuroraError: if it is not whole, or ``datasets`` is not installed.
    """
    datasets = library(str(source.path))
    try:
        found = datasets.load_from_disk(str(source.path))
    except Exception as error:
        raise failed(str(source.path), error) from error
    held = dict(found) if isinstance(found, datasets.DatasetDict) else {"rows": found}
    tables = {name: (held[name], split) for name, split in splits_of(source, held).items()}
    return read_tables(source, source.title, tables, Tables(str(source.path)))
