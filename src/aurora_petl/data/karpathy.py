"""Karpathy's splits of COCO and Flickr30K: BLIP's JSON files, or the original ``dataset_*.json``.

BLIP's training file has a row a caption, ``{"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "a woman",
"image_id": "coco_522418"}``, the other two a row a picture with a list of captions. The original is one object,
``{"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test", "sentences":
[{"raw": "A man"}]}]}``, where Flickr30K has no ``filepath`` and COCO's split ``restval`` counts as training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import short
from .published import Captions, Layout, Published
from .rows import SPLITS, ImageTextDataset

_WORDS = 30  # that BLIP keeps of a caption
_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def read_karpathy(
    name: str, layouts: tuple[Layout, Layout], root: Path, files: Mapping[str, Any], broken: str
) -> ImageTextDataset:
    """Read a folder of one of two ``layouts``: BLIP's three tables, or the original one under the key ``all``."""
    source = Published(name, root, files, broken)
    layout, tables = source.tables(*layouts)
    captions = Captions(source, _WORDS)
    if layout == 0:
        for split in SPLITS:
            if split not in tables:
                continue
            for number, row in source.objects(tables[split]):
                image = source.text(tables[split], number, row, "image")
                texts = source.texts(tables[split], number, row, "caption")
                if image and texts:
                    captions.add(tables[split], number, image, texts, split)
    else:
        table = tables["all"]
        for number, row in source.objects(table, "images"):
            image = source.text(table, number, row, "filename")
            sentences = row.get("sentences")
            if not isinstance(sentences, list) or not all(isinstance(sentence, dict) for sentence in sentences):
                source.problem(table, number, '"sentences" is not a list of objects')
                continue
            texts = source.texts(
                table, number, {"sentences": [sentence.get("raw") for sentence in sentences]}, "sentences"
            )
            named, folder = row.get("split"), row.get("filepath")
            if not isinstance(named, str) or named not in _SPLITS:
                source.problem(table, number, f"split {short(named)} is none of {', '.join(_SPLITS)}")
            elif folder is not None and not isinstance(folder, str):
                source.problem(table, number, f'"filepath" is {short(folder)}, not text')
            elif image and texts:
                captions.add(table, number, f"{folder}/{image}" if folder else image, texts, _SPLITS[named])
    return source.image_text(list(captions.items.values()), tables)
