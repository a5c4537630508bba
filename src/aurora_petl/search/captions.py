"""Captions that a folder of pictures has, to be found by picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.folder import ROW_FILES, read_folder
from ..data.forms import read_beside
from ..data.rows import ImageTextDataset, Item
from ..errors import AuroraError


def read_captions(folder: Path) -> tuple[list[str], list[str], str]:
    """The distinct captions of a folder, none if it has none; the pictures that have captions and are not there, whose
    captions are left out; and as what the captions were read, or why they were not, if they are not in
    ``captions.jsonl`` or ``captions.csv``.

    Raises:
        AuroraError: if a row of these is wrong.
    """
    rows, absent, note = _read(folder)
    return list(dict.fromkeys(text for item in rows for text in item.captions)), list(dict.fromkeys(absent)), note


def captions_of_pictures(folder: Path) -> tuple[dict[str, tuple[str, ...]], str]:
    """The captions of each picture of a folder by its path in the folder, as an index names it; and why there are
    none, if they cannot be read."""
    try:
        rows, _, note = _read(folder)
    except AuroraError as error:
        return {}, f"captions are left out: {error}"
    captions: dict[str, tuple[str, ...]] = {}
    for item in rows:
        captions[item.image] = captions.get(item.image, ()) + item.captions
    return captions, "" if captions else note


def _read(folder: Path) -> tuple[Sequence[Item], list[str], str]:
    """Rows, pictures that are not there, and a note, see `read_captions`."""
    absent: list[str] = []
    name = next((name for name in ROW_FILES if (folder / name).is_file()), "")
    if name.startswith("questions"):
        return [], absent, ""  # questions are no captions
    if name:
        rows = read_folder(folder, name, absent=absent)
        assert isinstance(rows, ImageTextDataset)
        return rows, absent, ""
    try:  # other people's tables may lie here by chance
        beside = read_beside(folder, absent)
    except AuroraError as error:
        return [], [], f"captions are left out: {error}"
    return (beside, absent, beside.note) if beside else ([], absent, "")
