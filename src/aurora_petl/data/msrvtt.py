"""MSR-VTT, text to video: 10,000 clips with 20 captions each, in three customary splits.

- ``msrvtt``: 9,000 clips train, the 1,000 pairs of clip and caption of the list 1k-A (JSFusion's) test.
- ``msrvtt-7k``: the 7,010 clips of the official training and validation splits train, 1k-A tests.
- ``msrvtt-full``: the official 6,513 / 497 / 2,990.

Tables are ClipBERT's and BLIP's JSONL, ``{"clip_name": "video7010", "caption": "a man sings"}`` a line, whose splits
are what the files hold; or the official annotation, ``{"videos": [{"video_id": "video0", "split": "train"}],
"sentences": [{"video_id": "video0", "caption": "a car is shown"}]}``, in one file (``MSRVTT_data.json``) or two, with
1k-A's list as a CSV of ``video_id`` and ``sentence``. 1k-A has no validation split: see `held_out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import short
from .protocol import held_out
from .published import Captions, Layout, Published
from .rows import SPLITS, ImageTextDataset, Item, brief

_WORDS = 40  # that BLIP keeps of a clip's caption
_JSONL: Layout = {
    "train": ["msrvtt_train.jsonl", "msrvtt_retrieval/train.jsonl", "train.jsonl"],
    "validation?": ["msrvtt_val.jsonl", "msrvtt_retrieval/val.jsonl", "val.jsonl"],
    "test": ["msrvtt_test.jsonl", "msrvtt_retrieval/test.jsonl", "test.jsonl"],
}
_ONE: Layout = {"all": ["MSRVTT_data.json"]}
_TWO: Layout = {"train_val": ["train_val_videodatainfo.json"], "test_info": ["test_videodatainfo.json"]}
_OFFICIAL = {"train": "train", "validate": "validation", "test": "test"}


def read_msrvtt(root: Path, files: Mapping[str, Any], broken: str = "stop", *, split: str = "9k") -> ImageTextDataset:
    """Clips ``video0`` to ``video9999`` with their captions.

    Args:
        split: ``9k``, ``7k`` (both test on 1k-A) or ``full``, which the official tables are cut into.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    source = Published("msrvtt" if split == "9k" else f"msrvtt-{split}", root, files, broken, clips=True)
    lists: Layout = {} if split == "full" else {"test": ["MSRVTT_JSFUSION_test.csv"]}
    layout, tables = source.tables(_JSONL, {**_ONE, **lists}, {**_TWO, **lists})
    captions = Captions(source, _WORDS)
    if layout == 0:
        for name in SPLITS:
            if name in tables:
                for number, row in source.objects(tables[name]):
                    clip = source.text(tables[name], number, row, "clip_name", "video_id")
                    texts = source.texts(tables[name], number, row, "caption")
                    if clip and texts:
                        captions.add(tables[name], number, clip, texts, name)
    else:
        _official(source, captions, tables, split)
    items: list[Item] = list(captions.items.values())
    if not any(item.split == "validation" for item in items):
        items = held_out(items)
    return source.image_text(items, tables)


def _official(source: Published, captions: Captions, tables: dict[str, Any], split: str) -> None:
    """Rows of the official annotation, cut into the split."""
    tested: set[str] = set()
    if split != "full":
        table = tables["test"]
        for number, row in source.objects(table, columns=("video_id", "sentence")):
            clip, text = source.text(table, number, row, "video_id"), source.text(table, number, row, "sentence")
            if clip and text:
                tested.add(clip)
                captions.add(table, number, clip, [text], "test")
    for table in (table for key, table in tables.items() if key != "test"):
        splits = {}
        for number, row in source.objects(table, "videos"):
            clip = source.text(table, number, row, "video_id")
            named = row.get("split")
            if not isinstance(named, str) or named not in _OFFICIAL:
                source.problem(table, number, f"split {short(named)} is none of {', '.join(_OFFICIAL)}")
            elif clip:
                splits[clip] = _OFFICIAL[named]
        for number, row in source.objects(table, "sentences"):
            clip, text = source.text(table, number, row, "video_id"), source.text(table, number, row, "caption")
            if not clip or not text:
                continue
            if clip not in splits:
                source.problem(table, number, f'a caption of {brief(clip)}, which is not among "videos"')
            elif split == "full":
                captions.add(table, number, clip, [text], splits[clip])
            elif clip not in tested and (split == "9k" or splits[clip] != "test"):
                captions.add(table, number, clip, [text], "train")
