"""COCO captions, Karpathy's splits: 113,287 pictures train, 5,000 validate and 5,000 test (25,010 captions)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .karpathy import read_karpathy
from .rows import ImageTextDataset

_BLIP = {
    "train": ["coco_karpathy_train.json"],
    "validation": ["coco_karpathy_val.json"],
    "test": ["coco_karpathy_test.json"],
}
_ORIGINAL = {"all": ["dataset_coco.json"]}


def read_coco(root: Path, files: Mapping[str, Any], broken: str = "stop") -> ImageTextDataset:
    """Pictures of ``train2014`` and ``val2014`` with their captions; see `karpathy` for the tables.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    return read_karpathy("coco", (_BLIP, _ORIGINAL), root, files, broken)
