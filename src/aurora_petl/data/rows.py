"""Rows of pictures or clips with text, in splits: what every reader gives to tasks and evaluation."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from PIL import Image
from tqdm import tqdm

from ..errors import AuroraError
from .media import load_image

SPLITS = ("train", "validation", "test")
_SHOWN = 5  # problems that a message lists


class Files(Protocol):
    """Where a dataset's files are read from."""

    name: str

    def names(self) -> set[str]: ...

    def read(self, name: str) -> bytes: ...


class Folder:
    """Files under a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def names(self) -> set[str]:
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Tar:
    """Members of a tar, read in place; nothing is unpacked."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._lock = threading.Lock()
        try:
            with tarfile.open(path, "r:") as archive:
                self._places = {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
        except (tarfile.TarError, OSError) as error:
            raise AuroraError(f"{path} is not a plain tar ({error}); pack the folder with tar -cf") from error

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise FileNotFoundError(name)
        offset, size = self._places[name]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def __getstate__(self) -> dict[str, Any]:  # loader workers get a copy, which needs no lock
        return {key: value for key, value in vars(self).items() if key != "_lock"}


@dataclass(frozen=True)
class Item:
    """One picture or clip with its captions. ``line`` is its row in the caption file, counted from 1; ``source`` names
    that file where a dataset has several."""

    image: str
    captions: tuple[str, ...]
    id: str
    split: str
    line: int
    source: str = ""


@dataclass(frozen=True)
class Question:
    """One question about a picture or clip. ``answers`` are distinct, ``weights`` their shares among the annotators
    (both empty where the answers are not published); ``references`` is what each annotator said, as VQAv2's accuracy
    wants it; ``kind`` groups questions in a breakdown of the score."""

    image: str
    question: str
    answers: tuple[str, ...]
    weights: tuple[float, ...]
    id: str
    split: str
    line: int
    source: str = ""
    references: tuple[str, ...] = ()
    kind: str = ""


Row = TypeVar("Row", Item, Question)


@dataclass
class Dataset(Sequence[Row], Generic[Row]):
    """Rows, each of one picture or, with ``clips``, of one clip; one split of them, or all."""

    name: str
    items: list[Row]
    files: Files = field(repr=False)
    source: str = "captions.jsonl"  # the file that holds the rows
    clips: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self.items[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)

    def where(self, index: int) -> str:
        """What messages call the picture or clip of a row: file, line and name."""
        item = self.items[index]
        return f"{item.source or self.source}, line {item.line}: {item.image}"

    def read(self, index: int) -> bytes:
        """The encoded picture or clip of a row.

        Raises:
            AuroraError: naming file and line, if it is missing.
        """
        try:
            return self.files.read(self.items[index].image)
        except OSError as error:
            what = "clip" if self.clips else "picture"
            raise AuroraError(f"{self.where(index)}: no such {what} in {self.files.name}") from error

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as upright RGB.

        Raises:
            AuroraError: naming file and line, if it is missing or broken.
        """
        return load_image(self.read(index), self.where(index))

    def split(self, name: str) -> Self:
        """The rows of one split.

        Raises:
            AuroraError: if it has none.
        """
        chosen = [item for item in self.items if item.split == name]
        if not chosen:
            counts = {split: sum(item.split == split for item in self.items) for split in SPLITS}
            held = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
            raise AuroraError(
                f'{self.name}: no rows of split {name!r} (it has {held}); name it in the rows\' "split", or leave '
                "split out of every row and have at least 3 pictures, then one is made"
            )
        return replace(self, name=f"{self.name}/{name}", items=chosen)

    def check(self, progress: bool = False) -> None:
        """Decode every picture to its end.

        Raises:
            AuroraError: with the first few problems and how many there are.
        """
        problems = []
        for index in tqdm(range(len(self)), "checking pictures", leave=False, disable=None if progress else True):
            try:
                self.image(index)
            except AuroraError as error:
                problems.append(str(error))
        refuse(self.name, problems)


@dataclass
class ImageTextDataset(Dataset[Item]):
    """Pictures or clips with captions."""


@dataclass
class QuestionDataset(Dataset[Question]):
    """Pictures or clips with questions. ``candidates`` are the answers that inference by rank chooses from."""

    candidates: tuple[str, ...] = ()


def refuse(where: str, problems: list[str]) -> None:
    """Raise the first few ``problems`` and how many there are, if there are any."""
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise AuroraError("; ".join(problems[:_SHOWN]) + more if len(problems) > 1 else problems[0])
