"""Flickr30K from BLIP's and Karpathy's files. What it shares with COCO is tested there."""

from collections import Counter

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.protocol import caption_text
from tests.helpers import benchmarks
from tests.helpers.benchmarks import drawn
from tests.helpers.rewrite import refusal


@pytest.mark.parametrize("original", [False, True])
def test_pictures_captions_and_splits(tmp_path, original):
    data = load_dataset("flickr30k", benchmarks.flickr30k(tmp_path / "f", original))
    assert data.name == "flickr30k" and Counter(i.split for i in data) == {"train": 16, "validation": 8, "test": 8}
    found = {item.image: item for item in data}
    for it in drawn():
        item = found[f"flickr30k-images/{1000092795 + it.number}.jpg"]
        assert item.captions == tuple(caption_text(text, 30) for text in it.captions())
    data.check()


def test_pictures_under_another_folder(tmp_path):
    """The paper's code has them in ``flickr30k/images``."""
    root = benchmarks.flickr30k(tmp_path / "f")
    (root / "flickr30k-images").rename(root / "images")
    assert {item.image.split("/")[0] for item in load_dataset("flickr30k", root)} == {"images"}


def test_another_benchmark_s_folder(tmp_path):
    message = refusal("flickr30k", benchmarks.coco(tmp_path / "coco"))
    assert "lacks flickr30k_train.json (files.train), flickr30k_val.json" in message
    assert "dataset_flickr30k.json (files.all)" in message
