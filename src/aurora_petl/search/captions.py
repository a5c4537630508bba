"""Captions that a folder of pictures has, to be found by picture."""

from __future__ import annotations

from pathlib import Path

from ..data.folder import ROW_FILES, read_folder
from ..data.rows import ImageTextDataset


def read_captions(folder: Path) -> tuple[list[str], list[str]]:
    """The distinct captions of a folder, none if it has no file of captions; and the pictures that have captions and
    are not there, whose captions are left out.

    Raises:
        AuroraError: if a row is wrong.
    """
    absent: list[str] = []
    name = next((name for name in ROW_FILES if (folder / name).is_file()), "questions")
    if name.startswith("questions"):
        return [], absent  # questions are no captions
    rows = read_folder(folder, name, absent=absent)
    assert isinstance(rows, ImageTextDataset)
    return list(dict.fromkeys(text for item in rows for text in item.captions)), list(dict.fromkeys(absent))
