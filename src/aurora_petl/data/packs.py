"""The packs that ship with the package: tars of plain dataset folders, some of which describe their pictures."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from .folder import read_own
from .rows import ImageTextDataset, QuestionDataset
from .scenes import SCENES, Scenes
from .source import Source


def pack_names() -> list[str]:
    """Names of the embedded packs."""
    return sorted(path.stem for path in _folder().glob("*.tar"))


def load_pack(name: str) -> ImageTextDataset | QuestionDataset:
    """The embedded pack called ``name``, see `pack_names`."""
    source = Source(_folder() / f"{name}.tar")
    if SCENES in source.files.names():
        source.files = Scenes(source.files, _folder())
    return read_own(source)


def _folder() -> Path:
    return Path(str(files("aurora_petl"))) / "assets/packs"
