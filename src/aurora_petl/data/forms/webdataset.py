"""Shards of webdataset, as img2dataset writes them: plain tars in which ``0001.jpg`` and ``0001.txt`` or ``0001.json``
are one sample. Each line of a ``.txt`` that is not blank is a caption; of a ``.json`` the column of captions counts,
which may be a list.

The shards are read once for what they hold and where. What is kept are arrays, some hundred bytes a sample; pictures
are then read from their places in any order, so that a training that is resumed in its middle goes on with the same.
"""

from __future__ import annotations

import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import AuroraError
from ...files import parse_json, parse_text
from ..folder_rows import item_row
from ..items import SPLITS, Item, PackedItems
from ..kinds import CLIP_SUFFIXES, PICTURE_SUFFIXES
from ..places import members
from ..reading import MOST_PROBLEMS
from ..rows import brief, listed, place, refuse
from ..source import Source
from ..splits import named_split
from .common import Look, OwnDataset, captions_in, fields_of, splits_of, tables, with_captions

_MEDIA = [suffix[1:] for suffix in (*PICTURE_SUFFIXES, *CLIP_SUFFIXES)]
_COLUMNS = ("caption_column", "split_column", "id_column")  # options for what a .json says
_LONGEST = 1000  # bytes of a member's name
_LARGEST = 1 << 24  # bytes of a text


@dataclass
class _Shard:
    """A tar's pictures: their names in order, and where each lies."""

    path: Path
    names: np.ndarray  # of bytes
    offsets: np.ndarray
    sizes: np.ndarray

    def find(self, name: bytes) -> tuple[int, int] | None:
        row = int(np.searchsorted(self.names, name))
        if row == len(self.names) or self.names[row] != name:
            return None
        return int(self.offsets[row]), int(self.sizes[row])


class Shards:
    """Pictures in tars, called ``00000.tar/0001.jpg``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shards: dict[str, _Shard] = {}

    def names(self) -> set[str]:
        return {f"{shard}/{name.decode()}" for shard, held in self.shards.items() for name in held.names.tolist()}

    def read(self, name: str, most: int = -1) -> bytes:
        shard, place = self._find(name)
        if shard is None or place is None:
            raise FileNotFoundError(name)
        with shard.path.open("rb") as file:
            file.seek(place[0])
            return file.read(place[1] if most < 0 else min(most, place[1]))

    def _find(self, name: str) -> tuple[_Shard | None, tuple[int, int] | None]:
        end = name.find(".tar/")
        while end >= 0:
            if shard := self.shards.get(name[: end + 4]):
                return shard, shard.find(name[end + 5 :].encode())
            end = name.find(".tar/", end + 1)
        return None, None

    def frames(self, name: str) -> list[str]:
        return []

    def why(self, name: str) -> str | None:
        return None


def look(source: Source) -> Look:
    """Whether there are tars of samples, or the place is one; the first members of the first tar tell."""
    names = [source.path.name] if source.path.is_file() else tables(source, ".tar")
    if not names:
        packed = [name for name in source.visible if name.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".zip"))]
        return Look(almost=f"{packed[0]} is compressed, and pictures are read in place; unpack it" if packed else "")
    kinds: defaultdict[bytes, set[str]] = defaultdict(set)
    for member, _ in members(_folder(source) / names[0]):
        key, suffix = _key(member.name)
        kinds[key].add(suffix)
        if kinds[key] & set(_MEDIA) and kinds[key] & {"txt", "json"}:
            return Look(names)
        if len(kinds) > 1000:
            break
    return Look(almost=f"{names[0]} has no samples such as 0001.jpg and 0001.txt")


def _folder(source: Source) -> Path:
    return source.path.parent if source.path.is_file() else source.path


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset. Samples without a picture or a caption are refused, or left out if ``broken`` is ``skip``.

    Raises:
        AuroraError: with the first few of them and how many there are.
    """
    shards = Shards(str(source.path))
    problems: list[str] = []
    splits = splits_of(source, look.shown_by).items()
    made = PackedItems.pack(
        item for name, split in splits for item in _Reading(source, name, split, problems).items(shards)
    )
    if source.broken == "stop" or not made:
        refuse(problems)
    if not made:
        raise AuroraError(f"{source.path} holds no samples")
    if source.path.is_file() and not made[0].split:
        made = _by_folder(made, len(source.path.name) + 1)
    clips = made[0].image.lower().endswith(CLIP_SUFFIXES)
    dataset = with_captions(source, source.title, made, shards, clips=clips)
    if problems:
        dataset.note += f"; {len(problems):,} samples left out: {listed(problems)}"
    return dataset


def _by_folder(items: PackedItems, prefix: int) -> PackedItems:
    """Samples of one tar in the splits that their folders in it tell, as if it were unpacked, if all tell one."""
    folders = [item.image[prefix:].rpartition("/")[0] for item in items]
    told = {folder: named_split(folder) for folder in dict.fromkeys(folders)}
    if not all(told.values()):
        return items
    return items.with_splits(np.array([SPLITS.index(told[folder]) for folder in folders]))


@dataclass
class _Sample:
    """What was read of a sample so far."""

    media: str = ""  # the suffix
    name: str = ""
    offset: int = 0
    size: int = 0
    text: bytes | None = None  # the .txt
    more: bytes | None = None  # the .json

    @property
    def whole(self) -> bool:
        return bool(self.media) and (self.text is not None or self.more is not None)


@dataclass
class _Reading:
    """One shard as it is read."""

    source: Source
    shard: str
    split: str
    problems: list[str]

    def __post_init__(self) -> None:
        self.where = self.shard if self.source.path.is_file() else self.source.where(self.shard)
        self.names: list[bytes] = []
        self.places = array("q")
        self.numbers = array("q")
        self.number = 0

    def items(self, shards: Shards) -> Iterator[Item]:
        """The shard's samples in its order; then ``shards`` has their places."""
        path = _folder(self.source) / self.shard
        waiting: dict[bytes, _Sample] = {}
        last = b""
        for member, file in members(path):
            key, suffix = _key(member.name)
            if not member.isreg() or not suffix:
                continue
            if key != last and last in waiting and waiting[last].whole:
                yield from self._made(last, waiting.pop(last))
            last = key
            self._take(waiting.setdefault(key, _Sample()), member, file, suffix)
        done = {name.rpartition(b".")[0] for name in self.names} if len(waiting) > 1 else set()
        for key, sample in waiting.items():
            if sample.whole or key not in done:  # else it is what came later of a sample that was made
                yield from self._made(key, sample)
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        places = np.array(self.places, dtype=np.int64).reshape(-1, 2)[order]
        names = np.array([self.names[row] for row in order], dtype=bytes)
        shards.shards[self.shard] = _Shard(path, names, places[:, 0].copy(), places[:, 1].copy())
        for before, row in pairwise(order):
            if self.names[before] == self.names[row]:
                named = brief(self.names[row].decode())
                self._problem(self.numbers[row], f"{named} is in sample {self.numbers[before]} as well; keep one")

    def _take(self, sample: _Sample, member: tarfile.TarInfo, file: BinaryIO, suffix: str) -> None:
        if suffix in _MEDIA and member.size >= 0:
            if not sample.media or _MEDIA.index(suffix) <= _MEDIA.index(sample.media):
                sample.media, sample.name = suffix, member.name
                sample.offset, sample.size = member.offset_data, member.size
        elif suffix in ("txt", "json") and 0 <= member.size <= _LARGEST:
            file.seek(member.offset_data)
            data = file.read(member.size)
            sample.text, sample.more = (data, sample.more) if suffix == "txt" else (sample.text, data)

    def _made(self, key: bytes, sample: _Sample) -> Iterator[Item]:
        self.number += 1
        shown = brief(key.decode(errors="surrogateescape"))
        try:
            if not sample.media:
                raise ValueError(f"{shown} has no picture")
            if len(key) > _LONGEST:
                raise ValueError(f"the name {shown} has more than {_LONGEST:,} characters; shorten it")
            more, caption = self._texts(sample, shown)
            fields = fields_of(self.source, more, f"{self.shard}/{sample.name}", {"caption": caption}, self.split)
            item = item_row(fields, self.number)
        except (AuroraError, ValueError) as error:
            self._problem(self.number, str(error))
            return
        self.names.append(item.image[len(self.shard) + 1 :].encode())
        self.numbers.append(self.number)
        self.places.extend((sample.offset, sample.size))
        yield replace(item, source=self.where)

    def _texts(self, sample: _Sample, shown: str) -> tuple[dict[str, Any], Any]:
        """What the sample's .json says, if it is needed, and the captions."""
        named = self.source.options_of("caption_column")
        more: dict[str, Any] = {}
        if sample.more is not None and (sample.text is None or any(map(self.source.options_of, _COLUMNS))):
            value = parse_json(sample.more, f"{shown}.json")
            more = value if isinstance(value, dict) else {}
        if sample.text is not None and not named:
            lines = parse_text(sample.text, f"{shown}.txt").splitlines()
            return more, [line for line in lines if line.strip()]
        if not (texts := captions_in(self.source, list(more))):
            name = " or ".join(named) or "caption"
            raise ValueError(f"{shown} has no caption: no {shown}.txt, and no {name} in {shown}.json")
        return more, texts.of(more)["caption"]

    def _problem(self, number: int, what: str) -> None:
        self.problems.append(f"{place(self.where, number)}: {what}")
        if len(self.problems) >= MOST_PROBLEMS:
            refuse(self.problems)


def _key(name: str) -> tuple[bytes, str]:
    """What the files of a sample have in common, and a file's suffix: all behind the first dot of the last part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    base, _, suffix = last.partition(".")
    return f"{folder}{slash}{base}".encode(errors="surrogateescape"), suffix.lower()
