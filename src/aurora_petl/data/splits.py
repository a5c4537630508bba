"""Splits: made by hash where rows name none, and read from the names of files and folders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import AuroraError
from .items import SPLIT_WORDS, SPLITS, Item, Row, in_splits
from .protocol import composed
from .rows import place

TOLD = 50  # ids that a made validation or test split has if there are enough
_TRAIN, _VALIDATION, _TEST = range(len(SPLITS))


def named_split(path: str) -> str:
    """The split that a path tells by a word in its nearest part that has one: ``train2017/a.json``, ``val-00.tar``; ""
    if none does."""
    for part in reversed(path.split("/")):
        named = {SPLIT_WORDS[word] for word in re.findall("[a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(named) == 1:
            return named.pop()
    return ""


def with_splits(rows: Sequence[Row], where: str) -> Sequence[Row]:
    """Rows with a split each: their own, or a made one if none names one. Questions are split by their picture, so that
    none is in two splits.

    Raises:
        AuroraError: if some rows name a split and others do not.
    """
    if any(row.split for row in rows):
        bare = next((row for row in rows if not row.split), None)
        if bare is not None:
            count = sum(not row.split for row in rows)
            raise AuroraError(
                f"{place(bare.source or where, bare.line)}: no split, though other rows name one; name it in all "
                f"{count} rows without, or in none"
            )
        return rows
    return divided(rows, (row.id if isinstance(row, Item) else composed(row.image) for row in rows))


def divided(rows: Sequence[Row], groups: Iterable[str]) -> Sequence[Row]:
    """Rows in splits by the hash of their groups, none of which is in two. Validation and test have a tenth of the
    groups each, but up to a quarter where `TOLD` would be missed: figures of fewer say little."""
    which, count = _ranked(groups, len(rows))
    part = max(1, round(count / 10), min(TOLD, count // 4)) if count >= 3 else 0
    return in_splits(rows, np.where(which < part, _TEST, np.where(which < 2 * part, _VALIDATION, _TRAIN)))


def with_validation(rows: Sequence[Row], groups: Iterable[str]) -> Sequence[Row]:
    """Rows of training and test splits with a tenth of the training groups, at least 1 and at most 500, as validation
    split; none where training has a single one."""
    codes = np.fromiter((SPLITS.index(row.split) for row in rows), np.int64, len(rows))
    training = codes == _TRAIN
    which, count = _ranked((group for group, own in zip(groups, training, strict=True) if own), int(training.sum()))
    codes[training] = np.where(which < min(500, max(1, count // 10), count - 1), _VALIDATION, _TRAIN)
    return in_splits(rows, codes)


def _ranked(groups: Iterable[str], rows: int) -> tuple[np.ndarray, int]:
    """The place of each row's group among all groups in the order of their hashes, and how many groups there are."""
    digests = np.fromiter((hashlib.sha256(name.encode()).digest() for name in groups), "S32", rows)
    every, which = np.unique(digests, return_inverse=True)
    return which, len(every)
