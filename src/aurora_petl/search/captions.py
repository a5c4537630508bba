"""Captions that a folder of pictures has, to be found by picture."""

from __future__ import annotations

from pathlib import Path

from ..data.folder import ROW_FILES, read_folder
from ..data.forms import read_beside
from ..data.rows import ImageTextDataset
from ..errors import AuroraError


def read_captions(folder: Path) -> tuple[list[str], list[str], str]:
    """The distinct captions of a folder, none if it has none; the pictures that have captions and are not there, whose
    captions are left out; and as what the captions were read, or why they were not, if they are not in
    ``captions.jsonl`` or ``captions.csv``.

    Raises:
        AuroraError: if a row of these is wrong.
    """
    absent: list[str] = []
    name = next((name for name in ROW_FILES if (folder / name).is_file()), "")
    if name.startswith("questions"):
        return [], absent, ""  # questions are no captions
    note = ""
    if name:
        rows = read_folder(folder, name, absent=absent)
        assert isinstance(rows, ImageTextDataset)
    else:
        try:  # other people's tables may lie here by chance
            found = read_beside(folder, absent)
        except AuroraError as error:
            return [], [], f"captions are left out: {error}"
        if found is None:
            return [], absent, ""
        rows, note = found, found.note
    return list(dict.fromkeys(text for item in rows for text in item.captions)), list(dict.fromkeys(absent)), note
