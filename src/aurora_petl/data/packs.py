"""The picture packs that ship with the package: tars of plain dataset folders."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .folder import read_folder
from .rows import ImageTextDataset


def pack_names() -> list[str]:
    """Names of the embedded packs."""
    return sorted(path.stem for path in _folder().glob("*.tar"))


def load_pack(name: str) -> ImageTextDataset:
    """The embedded pack called ``name``, see `pack_names`."""
    return read_folder(_folder() / f"{name}.tar")


def _folder() -> Path:
    return Path(str(files("aurora_petl"))) / "assets/packs"
