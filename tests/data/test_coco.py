"""COCO from BLIP's and Karpathy's files; then what every benchmark's folder has in common: where files may lie, what
a folder that is not whole is told, and rows that are left out."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from aurora_petl.data import READERS, load_dataset
from aurora_petl.data.protocol import caption_text
from aurora_petl.errors import AuroraError
from tests.helpers import benchmarks
from tests.helpers.benchmarks import drawn
from tests.helpers.rewrite import refusal, rewrite


@pytest.fixture(scope="module", params=["blip", "original"])
def whole(request, tmp_path_factory):
    return benchmarks.coco(tmp_path_factory.mktemp(request.param) / "coco", original=request.param == "original")


@pytest.fixture
def root(tmp_path):
    return benchmarks.coco(tmp_path / "coco")


def test_pictures_captions_and_splits(whole):
    data = load_dataset("coco", whole)
    assert Counter(item.split for item in data) == {"train": 16, "validation": 8, "test": 8}
    found = {item.image.rsplit("/", 1)[-1].rsplit("_", 1)[-1]: item for item in data}
    for it in drawn():
        item = found[f"{it.number:012d}.jpg"]
        assert item.split == {"train": "train", "val": "validation", "test": "test"}[it.split]
        assert item.captions == tuple(caption_text(text, 30) for text in it.captions())
        decoded = np.asarray(data.image(data.items.index(item)), dtype=int)
        assert np.abs(decoded - np.asarray(it.picture())).mean() < 5
    assert not data.clips
    data.check()


def test_both_layouts_are_one_dataset(tmp_path):
    one, other = (load_dataset("coco", benchmarks.coco(tmp_path / str(n), bool(n))) for n in range(2))
    assert {(i.image, i.captions, i.split) for i in one} == {(i.image, i.captions, i.split) for i in other}


def test_captions_are_written_as_blip_writes_them():
    assert caption_text('A man, "smiling"; (left) #1: runs.  Fast!\n', 30) == "a man, smiling left 1 runs fast"
    assert caption_text("one two three four", 3) == "one two three"
    assert caption_text("...", 30) == "..."  # rather than nothing


def test_files_may_lie_anywhere_below_the_folder(root):
    (root / "images/deep").mkdir(parents=True)
    shutil.move(root / "val2014", root / "images/deep")
    (root / "annotation").mkdir()
    for table in root.glob("*.json"):
        table.rename(root / "annotation" / table.name)
    data = load_dataset("coco", root)
    assert len(data) == 32 and any(item.image.startswith("images/deep/val2014/") for item in data)


def test_what_is_called_otherwise_is_named(root, tmp_path):
    (root / "coco_karpathy_train.json").rename(root / "mine.json")
    for folder in ("train2014", "val2014"):
        shutil.move(root / folder, tmp_path / "pictures" / folder)
    data = load_dataset("coco", root, {"train": "mine.json", "images": "../pictures"})
    assert len(data) == 32 and data[0].source == "mine.json"
    data.check()
    both = [str(tmp_path / "pictures/train2014"), str(tmp_path / "pictures/val2014")]
    assert len(load_dataset("coco", root, {"train": "mine.json", "images": both})) == 32


def test_a_split_may_be_left_out(root):
    for split in ("train", "val"):
        (root / f"coco_karpathy_{split}.json").unlink()
    shutil.rmtree(root / "train2014")  # pictures of the test split are all in val2014
    data = load_dataset("coco", root, {"train": None, "validation": None})
    assert [item.split for item in data] == ["test"] * 8


# Folders that are not whole


def test_no_folder(tmp_path):
    assert "there is no folder" in refusal("coco", tmp_path / "gone")
    with pytest.raises(AuroraError, match="coco is a benchmark whose files you have; give their folder with --root"):
        load_dataset("coco")
    with pytest.raises(AuroraError, match="--root is the folder of a benchmark .*'fluent-flat' is none"):
        load_dataset("fluent-flat", tmp_path)


def test_missing_tables_are_listed_with_what_is_there(root):
    (root / "coco_karpathy_val.json").unlink()
    message = refusal("coco", root)
    assert (
        "lacks coco_karpathy_val.json (files.validation), has coco_karpathy_train.json, coco_karpathy_test.json"
        in message
    )
    assert "or it lacks dataset_coco.json (files.all)" in message
    assert "It holds 34 files, 32 of them images" in message and "files.train=my.json" in message


def test_wrong_names_in_files(root):
    assert "files has no key tests; its keys are all, images, test, train, validation" in refusal(
        "coco", root, {"tests": "x"}
    )
    assert "there is no file" in refusal("coco", root, {"test": "x.json"})
    assert "there is no folder" in refusal("coco", root, {"images": "nowhere"})


def test_missing_pictures_are_counted_and_some_are_named(root):
    shutil.rmtree(root / "train2014")
    message = refusal("coco", root)
    assert "coco: 8 of 32 images are missing under" in message
    assert "train2014/COCO_train2014_000000000000.jpg; " in message and "(and 3 more)" in message
    assert "The folder holds 24 images" in message and "broken=skip" in message


def test_rows_of_missing_pictures_are_left_out_on_demand(root, capsys):
    shutil.rmtree(root / "train2014")
    data = load_dataset("coco", root, broken="skip")
    assert len(data) == 24 and data.broken == "skip"
    printed = capsys.readouterr().out
    assert "8 of 32 images are missing" in printed and "left out, and with them 40 rows" in printed


def test_a_picture_in_two_places(root):
    (root / "thumbs").mkdir()
    shutil.copy(root / "train2014/COCO_train2014_000000000000.jpg", root / "thumbs")
    assert len(load_dataset("coco", root)) == 32  # the published path decides
    (root / "a").mkdir()
    shutil.move(root / "train2014", root / "a/pictures")
    message = refusal("coco", root)
    assert "lies in several places (a/pictures/COCO_train2014_000000000000.jpg; thumbs/" in message
    assert "files.images=" in message


def test_links_are_followed_and_loops_end(root, tmp_path):
    shutil.move(root / "val2014", tmp_path / "elsewhere")
    (root / "val2014").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert len(load_dataset("coco", root)) == 32


# Rows


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caption": 5}, 'coco_karpathy_train.json, row 3: "caption" is 5, not text'),
        ({"caption": " "}, "row 3: \"caption\" is ' ', not text"),
        ({"image": None}, 'row 3: "image" is None, not text'),
        (None, "row 3: a list, not an object"),
    ],
)
def test_wrong_rows_of_the_training_file(root, change, said):
    def edit(rows):
        rows[2] = {**rows[2], **change} if change else []

    rewrite(root / "coco_karpathy_train.json", edit)
    assert said in refusal("coco", root)


@pytest.mark.parametrize(
    ("value", "said"),
    [([], '"caption" is empty'), (["x", 3], '"caption" has 3, not text'), ({}, '"caption" is an empty dict')],
)
def test_wrong_rows_of_the_test_file(root, value, said):
    rewrite(root / "coco_karpathy_test.json", lambda rows: rows[1].update(caption=value))
    assert f"coco_karpathy_test.json, row 2: {said}" in refusal("coco", root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "dev"}, "row 2: split 'dev' is none of train, restval, val, test"),
        ({"sentences": "x"}, 'row 2: "sentences" is not a list of objects'),
        ({"sentences": [{"tokens": []}]}, 'row 2: "sentences" has None, not text'),
        ({"filename": 3}, 'row 2: "filename" is 3, not text'),
    ],
)
def test_wrong_rows_of_the_original_file(tmp_path, change, said):
    root = benchmarks.coco(tmp_path / "coco", original=True)
    rewrite(root / "dataset_coco.json", lambda value: value["images"][1].update(change))
    assert f"dataset_coco.json, {said}" in refusal("coco", root)


def test_one_picture_in_two_splits(root):
    first = json.loads((root / "coco_karpathy_train.json").read_text())[0]["image"]
    rewrite(root / "coco_karpathy_test.json", lambda rows: rows[0].update(image=first))
    assert f"{first} is in split test here and in train in coco_karpathy_train.json" in refusal("coco", root)


def test_files_that_are_no_tables(root):
    table = root / "coco_karpathy_test.json"
    table.write_text(table.read_text()[:200])
    assert "coco_karpathy_test.json, line 1: not JSON" in refusal("coco", root)
    table.write_text('{"a": 1}')
    assert "does not hold a list of rows; is it the published file?" in refusal("coco", root)
    table.write_bytes(b'["\xff"]')
    assert "not UTF-8" in refusal("coco", root)


def test_every_reader_is_known():
    assert list(READERS) == [
        "coco", "flickr30k", "msrvtt", "msrvtt-7k", "msrvtt-full", "didemo", "vqav2", "vqav2-trainval", "msrvtt-qa",
    ]  # fmt: skip
