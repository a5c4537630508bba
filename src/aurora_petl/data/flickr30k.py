"""Flickr30K, Karpathy's splits: 29,000 pictures train, 1,014 validate and 1,000 test, five captions each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .karpathy import read_karpathy
from .rows import ImageTextDataset

_BLIP = {
    "train": ["flickr30k_train.json"],
    "validation": ["flickr30k_val.json"],
    "test": ["flickr30k_test.json"],
}
_ORIGINAL = {"all": ["dataset_flickr30k.json"]}


def read_flickr30k(root: Path, files: Mapping[str, Any], broken: str = "stop") -> ImageTextDataset:
    """Pictures of ``flickr30k-images`` with their captions; see `karpathy` for the tables.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    return read_karpathy("flickr30k", (_BLIP, _ORIGINAL), root, files, broken)
