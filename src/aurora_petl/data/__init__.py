"""Rows of pictures with text: embedded packs and a user's own folders."""

from __future__ import annotations

from pathlib import Path

from ..errors import AuroraError
from .folder import read_folder
from .packs import load_pack, pack_names
from .rows import ImageTextDataset

__all__ = ["ImageTextDataset", "load_dataset", "pack_names"]


def load_dataset(name_or_path: str | Path) -> ImageTextDataset:
    """An embedded pack by name, a folder with ``captions.jsonl`` or ``captions.csv``, or a ``.tar`` of one.

    Raises:
        AuroraError: if there is no such dataset, or its rows are wrong.
    """
    name = str(name_or_path)
    if not name:
        raise AuroraError(f"no data named; give --data FOLDER or an embedded pack ({', '.join(pack_names())})")
    if name in pack_names():
        return load_pack(name)
    if Path(name).exists():
        return read_folder(name)
    raise AuroraError(
        f"no dataset {name!r}: it is neither an embedded pack ({', '.join(pack_names())}) nor a folder or .tar here"
    )
