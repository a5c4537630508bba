"""Rows of pictures or clips with text, in splits: what every reader gives to tasks and evaluation."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Generic, Self

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..distributed import objects, own_share, rank, together
from ..errors import AuroraError, first_line, one_line, short
from ..notes import note
from .items import SPLIT_WORDS, SPLITS, Item, Question, Row, of_split, select
from .media import load_image
from .places import Files
from .video import load_frames, sample

__all__ = ["Dataset", "ImageTextDataset", "Item", "Question", "QuestionDataset", "SPLITS"]
SHOWN = 5  # problems that a message lists
_UNITS = {".json": "row", ".parquet": "row", ".tar": "sample", "": "picture"}  # by the suffix of what holds them
_MEND = 'name it in the rows\' "split", or leave split out of every row and have at least 3 pictures, then one is made'


@dataclass(repr=False)
class Dataset(Sequence[Row], Generic[Row]):
    """Rows, each of one picture or, with ``clips``, of one clip; one split of them, or all. ``broken`` says what
    `check` does with those that do not decode: ``stop``, or ``skip`` their rows. ``note`` says as what the data were
    read, ``mend`` what to do about a split that has no rows."""

    name: str
    items: Sequence[Row]
    files: Files
    source: str = "captions.jsonl"  # the file that holds the rows
    clips: bool = False
    broken: str = "stop"
    note: str = ""
    mend: str = _MEND

    def __post_init__(self) -> None:
        if self.broken not in ("stop", "skip"):
            raise AuroraError(f"broken is {short(self.broken)}; choose stop or skip")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} rows)"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self.items[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.items)

    def where(self, index: int) -> str:
        """What messages call the picture or clip of a row: file, line and name."""
        item = self.items[index]
        return f"{place(item.source or self.source, item.line)}: {brief(item.image)}"

    def read(self, index: int) -> bytes:
        """The encoded picture or clip of a row.

        Raises:
            AuroraError: naming file and line, if it is missing or cannot be read.
        """
        return self._read(index, self.items[index].image)

    def _read(self, index: int, name: str) -> bytes:
        try:
            return self.files.read(name)
        except FileNotFoundError as error:
            what = "clip" if self.clips else "picture"
            raise AuroraError(f"{self.where(index)}: no such {what} in {self.files.name}") from error
        except OSError as error:
            why = error.strerror or first_line(error)
            raise AuroraError(f"{self.where(index)} cannot be read from {self.files.name}: {why}") from error
        except MemoryError as error:
            raise AuroraError(f"{self.where(index)}: larger than the memory that is free") from error

    def content(self, index: int) -> Iterator[bytes]:
        """All that the picture or clip of a row is made of, encoded: one file, or the frames of a folder.

        Raises:
            AuroraError: naming file and line, if it is missing.
        """
        names = self.files.frames(self.items[index].image) if self.clips else []
        for name in names or [self.items[index].image]:
            yield self._read(index, name)

    def image(self, index: int, least: int = 0) -> Image.Image:
        """Picture ``index``, or the frame in the middle of clip ``index``, as upright RGB; ``least`` as in
        `media.load_image`.

        Raises:
            AuroraError: naming file and line, if it is missing or broken.
        """
        return self.frames(index, 1)[0] if self.clips else load_image(self.read(index), self.where(index), least)

    def frames(self, index: int, count: int, rng: random.Random | None = None, least: int = 0) -> list[Image.Image]:
        """``count`` frames of clip ``index`` as upright RGB; see `video.load_frames`, and `media.load_image` for
        ``least``.

        Raises:
            AuroraError: naming file and line, if it is missing or broken.
        """
        where = self.where(index)
        if names := self.files.frames(self.items[index].image):
            chosen = [names[number] for number in sample(range(len(names)), len(names), count, rng)]
            return [
                load_image(self._read(index, name), f"{where}: {PurePosixPath(name).name}", least) for name in chosen
            ]
        return load_frames(self.read(index), count, rng, where)

    def split(self, name: str) -> Self:
        """The rows of one split, which may be called by any of `SPLIT_WORDS`: "val" is "validation".

        Raises:
            AuroraError: if it has none.
        """
        name = SPLIT_WORDS.get(name.lower(), name)
        chosen = of_split(self.items, name)
        if not chosen:
            counts = {split: sum(item.split == split for item in self.items) for split in SPLITS}
            held = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
            raise AuroraError(f"{self.name}: no rows of split {short(name)} (it has {held}); {self.mend}")
        return replace(self, name=f"{self.name}/{name}", items=chosen)

    def few(self, name: str, most: int, seed: int) -> Self:
        """The same with at most so many rows of one split, drawn by ``seed``; rows of other splits are all there."""
        places = [place for place, item in enumerate(self.items) if item.split == name]
        left = set(places).difference(random.Random(seed).sample(places, min(most, len(places))))
        return replace(self, items=select(self.items, [place for place in range(len(self)) if place not in left]))

    def check(self, progress: bool = False) -> None:
        """Decode every picture to its end, and of every clip the frame in the middle, each once.

        With ``broken`` at ``skip``, rows of what does not decode are dropped from this dataset, and one printed line
        names them. Of several ranks each decodes its share, and all drop the same rows.

        Raises:
            AuroraError: with the first few problems and how many there are; if nothing would be left.
        """
        what = "clips" if self.clips else "pictures"
        broken: dict[str, str] = {}
        first: dict[str, int] = {}
        for index, item in enumerate(self.items):
            first.setdefault(item.image, index)
        share = own_share(len(first))
        own = sorted(first.values())[share.start : share.stop]
        for index in tqdm(own, f"checking {what}", leave=False, disable=None if progress else True):
            try:
                self.image(index)
            except AuroraError as error:
                broken[self.items[index].image] = str(error)
        broken = {name: why for part in objects(broken) for name, why in part.items()}
        kept = [index for index, item in enumerate(self.items) if item.image not in broken]
        if self.broken == "stop" or (broken and not kept):
            with together():
                refuse(list(broken.values()))
        elif broken:
            rows = len(self.items) - len(kept)
            if rank() == 0:
                said = f"{self.name}: {len(broken):,} of {len(first):,} {what} left out, {rows:,} rows: "
                print(one_line(said + listed(list(broken.values()))))
            self.items = select(self.items, kept)


@dataclass(repr=False)
class ImageTextDataset(Dataset[Item]):
    """Pictures or clips with captions."""


@dataclass(repr=False)
class QuestionDataset(Dataset[Question]):
    """Pictures or clips with questions. ``candidates`` are the answers that inference by rank chooses from."""

    candidates: tuple[str, ...] = ()


def load_media(
    dataset: Dataset[Any],
    row: int,
    view: Callable[[Image.Image], Tensor],
    frames: int,
    rng: random.Random | None = None,
    least: int = 0,
) -> Tensor:
    """The picture of a row through ``view`` -> (3, H, W); of clips so many frames -> (frames, 3, H, W).

    Args:
        rng: draws the frames; without it they are evenly spread.
        least: pixels a side that ``view`` needs, see `media.load_image`.

    Raises:
        AuroraError: naming file and line, if it is missing or broken; if no frames of a clip are asked for.
    """
    if not dataset.clips:
        return view(dataset.image(row, least))
    need_frames(dataset, frames)
    return torch.stack([view(frame) for frame in dataset.frames(row, frames, rng, least)])


def need_frames(dataset: Dataset[Any], frames: int) -> None:
    """Refuse clips of no frames.

    Raises:
        AuroraError: if ``dataset`` holds clips and ``frames`` is 0.
    """
    if dataset.clips and frames < 1:
        raise AuroraError(f"{dataset.name} holds clips; say how many frames to take of each, like task.frames=8")


def announced(dataset: Any) -> Any:
    """The dataset, whose `note`, if it has one, the first rank has printed to stderr."""
    if dataset.note and rank() == 0:
        note(dataset.note)
    return dataset


def place(source: str, line: int) -> str:
    """Where a row stands, as messages say it: ``mine/captions.jsonl, line 3``."""
    return f"{source}, {_UNITS.get(os.path.splitext(source)[1], 'line')} {line}"


def refuse(problems: list[str]) -> None:
    """Raise the first few ``problems`` and how many there are, if there are any."""
    if problems:
        raise AuroraError(listed(problems))


def listed(problems: list[str]) -> str:
    """The first few of ``problems``, and how many more there are."""
    more = f" (and {len(problems) - SHOWN:,} more)" if len(problems) > SHOWN else ""
    return "; ".join(one_line(problem, 2000) for problem in problems[:SHOWN]) + more


def brief(name: str) -> str:
    """A name as messages show it: on one line, and not longer than people read."""
    return one_line(name, 120)
