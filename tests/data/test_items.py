"""Rows in one block of memory are the same rows, and are split alike."""

import hashlib

import numpy as np

from aurora_petl.data.items import Item, PackedItems, of_split, select
from aurora_petl.data.rows import ImageTextDataset
from aurora_petl.data.splits import divided, named_split, with_validation
from aurora_petl.tasks.retrieval import Retrieval

ITEMS = [
    Item(f"é{n}.png", tuple(f"猫 {n}/{k}" for k in range(n % 3 + 1)), f"é{n}.png" if n % 2 else str(n % 7),
         ("train", "test", "validation", "")[n % 4], n + 1, f"s{n % 2}.tar")
    for n in range(50)
]  # fmt: skip


def test_packed_items_are_the_items():
    packed = PackedItems.pack(iter(ITEMS))
    assert list(packed) == ITEMS and packed[-1] == ITEMS[-1] and list(packed[3:40:7]) == ITEMS[3:40:7]
    for split in ("train", "validation", "test", "other"):
        assert list(of_split(packed, split)) == of_split(ITEMS, split)
    part = of_split(packed, "train")
    assert list(select(part, [2, 0])) == [ITEMS[8], ITEMS[0]] and list(select(ITEMS, [2, 0])) == [ITEMS[2], ITEMS[0]]
    assert len(PackedItems.pack([])) == 0
    part.with_splits(np.zeros(len(part), dtype=int))
    assert list(packed) == ITEMS  # nothing that was handed in has changed


def test_packed_items_are_split_as_lists_are_and_as_the_hashes_say():
    plain = [item for item in ITEMS if item.split != "validation"]
    groups = [item.id for item in plain]
    made = divided(plain, groups)
    assert list(divided(PackedItems.pack(plain), groups)) == made
    ordered = sorted(set(groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    part = max(1, round(len(ordered) / 10), min(50, len(ordered) // 4))
    assert {item.id for item in made if item.split == "test"} == set(ordered[:part])
    assert {item.id for item in made if item.split == "validation"} == set(ordered[part : 2 * part])
    named = [item for item in ITEMS if item.split in ("train", "test")]
    kept = with_validation(named, [item.id for item in named])
    assert list(with_validation(PackedItems.pack(named), [item.id for item in named])) == kept
    moved = {item.id for item in kept if item.split == "validation"}
    train = {item.id for item in named if item.split == "train"}
    assert len(moved) == max(1, len(train) // 10) and not moved & {i.id for i in kept if i.split == "train"}


def test_pairs_of_pictures_and_captions_are_made_when_they_are_asked_for():
    for items in (ITEMS, PackedItems.pack(ITEMS)):
        pairs = Retrieval.examples(ImageTextDataset("mine", items, None))
        numbers = list(dict.fromkeys(item.id for item in ITEMS))
        expected = [
            (row, {"caption": caption, "id": numbers.index(item.id)})
            for row, item in enumerate(ITEMS)
            for caption in item.captions
        ]
        assert list(pairs) == expected and pairs[-1] == expected[-1] and pairs[4:9] == expected[4:9]


def test_splits_are_told_by_words_in_names():
    told = {"train2017/x": "train", "val.csv": "validation", "a/test-00.tar": "test", "contest/x": "", "train_test": ""}
    assert {name: named_split(name) for name in told} == told
    assert named_split("train/dev_set/x.json") == "validation"  # the nearest part
