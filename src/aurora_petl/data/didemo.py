"""DiDeMo, paragraph to video: about 10,000 clips (8,395 train, 1,065 validate, 1,004 test); all descriptions of a clip
joined are its one text.

Tables are ClipBERT's JSONL, ``{"clip_name": "10015567@N08_3655084291_2a1a8c6a3e.avi", "caption": "..."}``, where the
paragraph is joined already, or the official JSON, a row a description: ``{"video": "10015567@N08_....avi",
"description": "a dog runs", "times": [[0, 0]]}``. Clips may have another suffix than the tables say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .protocol import caption_text
from .published import Layout, Published
from .rows import SPLITS, ImageTextDataset, Item

_WORDS = 40  # that the paper keeps of a paragraph
_JSONL: Layout = {
    "train": ["didemo_retrieval/train.jsonl", "train.jsonl"],
    "validation": ["didemo_retrieval/val.jsonl", "val.jsonl"],
    "test": ["didemo_retrieval/test.jsonl", "test.jsonl"],
}
_OFFICIAL: Layout = {
    "train": ["train_data.json", "didemo_ret_train.json"],
    "validation": ["val_data.json", "didemo_ret_val.json"],
    "test": ["test_data.json", "didemo_ret_test.json"],
}


def read_didemo(root: Path, files: Mapping[str, Any], broken: str = "stop") -> ImageTextDataset:
    """Clips with one paragraph each.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    source = Published("didemo", root, files, broken, clips=True)
    _, tables = source.tables(_JSONL, _OFFICIAL)
    items: list[Item] = []
    for split in SPLITS:
        if split not in tables:
            continue
        table = tables[split]
        paragraphs: dict[str, tuple[int, list[str]]] = {}
        for number, row in source.objects(table):
            clip = source.text(table, number, row, "clip_name", "video")
            texts = source.texts(table, number, row, "caption", "description")
            if clip and texts:
                paragraphs.setdefault(clip, (number, []))[1].extend(texts)
        for clip, (number, texts) in paragraphs.items():
            if place := source.locate(clip):
                text = caption_text(" ".join(texts), _WORDS)
                items.append(Item(place, (text,), clip, split, number, table.name))
    return source.image_text(items, tables)
