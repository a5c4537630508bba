"""One row of a dataset: a picture or clip with captions, or with a question; and many such rows in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar, overload

import numpy as np

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # what splits are called in names of files, folders and columns, as Hugging Face datasets reads them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


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


class _Store:
    """The texts of many items in one block of UTF-8, and where each begins."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends = array("q")  # of each text in the block
        self.first = array("q", [0])  # text of each item: picture, its id if that is another name, captions
        self.lines = array("q")
        self.sources = array("q")
        self.named: dict[str, int] = {}  # the sources by name, numbered in this order
        self.own_id = bytearray()  # whether the id is a text of its own

    def add(self, item: Item) -> None:
        own = item.id != item.image
        for text in (item.image, *([item.id] if own else []), *item.captions):
            self.text += text.encode()
            self.ends.append(len(self.text))
        self.first.append(len(self.ends))
        self.lines.append(item.line)
        self.sources.append(self.named.setdefault(item.source, len(self.named)))
        self.own_id.append(own)

    def texts(self, row: int) -> list[str]:
        first, last = self.first[row], self.first[row + 1]
        start, texts = self.ends[first - 1] if first else 0, []
        for end in self.ends[first:last]:
            texts.append(self.text[start:end].decode())
            start = end
        return texts


class PackedItems(Sequence[Item]):
    """Items whose texts lie in one block of memory: about 45 bytes each beside the texts themselves, where objects take
    some 500. They are made anew whenever they are asked for.

    Args:
        store, splits, rows: the parts of a selection; `pack` makes the whole.
    """

    def __init__(self, store: _Store, splits: np.ndarray, rows: np.ndarray) -> None:
        self._store, self._splits, self._rows = store, splits, rows
        self._sources = list(store.named)

    @classmethod
    def pack(cls, items: Iterable[Item]) -> Self:
        """All of ``items``, which are taken one by one."""
        store, splits = _Store(), bytearray()
        for item in items:
            store.add(item)
            splits.append(SPLITS.index(item.split) if item.split else len(SPLITS))
        return cls(store, np.frombuffer(bytes(splits), np.uint8), np.arange(len(splits)))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Item | Self:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        row = int(self._rows[index])
        image, *texts = self._store.texts(row)
        name = texts.pop(0) if self._store.own_id[row] else image
        split = (*SPLITS, "")[self._splits[row]]
        source = self._sources[self._store.sources[row]]
        return Item(image, tuple(texts), name, split, self._store.lines[row], source)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The items at these places, which share the memory of all."""
        return type(self)(self._store, self._splits, self._rows[np.asarray(indices, dtype=np.int64)])

    def of_split(self, name: str) -> Self:
        """Those of one split."""
        code = SPLITS.index(name) if name in SPLITS else -1
        return self.select(np.flatnonzero(self._splits[self._rows] == code))

    def with_splits(self, codes: np.ndarray) -> Self:
        """The same items in the splits that `SPLITS` has under these numbers; -1 is none."""
        splits = self._splits.copy()
        splits[self._rows] = np.where(codes < 0, len(SPLITS), codes)
        return type(self)(self._store, splits, self._rows)


def in_splits(items: Sequence[Row], codes: np.ndarray) -> Sequence[Row]:
    """The same rows in the splits that `SPLITS` has under these numbers, one each; -1 is none."""
    if isinstance(items, PackedItems):
        return items.with_splits(codes)
    names = (*SPLITS, "")
    return [replace(item, split=names[code]) for item, code in zip(items, codes.tolist(), strict=True)]


def select(items: Sequence[Row], indices: Sequence[int]) -> Sequence[Row]:
    """The rows at these places; of packed ones packed."""
    if isinstance(items, PackedItems):
        return items.select(indices)
    return [items[index] for index in indices]


def of_split(items: Sequence[Row], name: str) -> Sequence[Row]:
    """The rows of one split; of packed ones packed."""
    return items.of_split(name) if isinstance(items, PackedItems) else [item for item in items if item.split == name]
