"""A dataset of the Hugging Face hub by its id, through ``datasets``, which keeps it in its cache."""

from __future__ import annotations

import re
from dataclasses import replace

from ...errors import AuroraError
from ..source import Source
from .arrow import Tables, failed, library, read_tables
from .common import Look, OwnDataset, splits_of

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)


def is_id(name: str) -> bool:
    """Whether a name may be a dataset's on the hub."""
    return _ID.fullmatch(name) is not None


def look(source: Source) -> Look:
    """Nothing that lies here is of this form: `read_data` knows ids."""
    return Look()


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset whose id is the source's path.

    Raises:
        AuroraError: if there is none of that id, or ``datasets`` is not installed.
    """
    name = str(source.path)
    source = replace(source, called=name)
    datasets = library(f"{name}, which is no folder here but may be a dataset of the hub,")
    try:
        found = datasets.load_dataset(name, source.option("config") or None)
    except Exception as error:
        raise failed(f"{name} is no folder here, and as a dataset of the hub it", error) from error
    if not isinstance(found, datasets.DatasetDict):
        raise AuroraError(f"{name} is a dataset that {type(found).__name__} reads; download it to a folder")
    tables = {name: (found[name], split) for name, split in splits_of(source, map(str, found)).items()}
    return read_tables(source, name, tables, Tables(name))
