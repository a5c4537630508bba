"""MSR-VTT from JSONL and from the official annotation, in its three splits."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.protocol import caption_text, held_out
from tests.helpers import benchmarks
from tests.helpers.benchmarks import drawn
from tests.helpers.rewrite import refusal, rewrite

pytest.importorskip("av")


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return benchmarks.msrvtt(tmp_path_factory.mktemp("jsonl") / "m")


@pytest.fixture(scope="module", params=["one", "two"])
def official(request, tmp_path_factory):
    return benchmarks.msrvtt(tmp_path_factory.mktemp(request.param) / "m", request.param)


def ids(data, split):
    return {item.id for item in data if item.split == split}


def names(*splits):
    return {f"video{it.number}" for it in drawn() if it.split in splits}


def test_splits_of_jsonl_are_what_the_files_hold(jsonl):
    data = load_dataset("msrvtt", jsonl)
    assert data.clips
    assert [ids(data, s) for s in ("train", "validation", "test")] == [names("train"), names("val"), names("test")]
    item = next(item for item in data if item.id == "video3")
    assert item.captions == tuple(caption_text(text, 40) for text in drawn()[3].captions())
    assert all(len(item.captions) == 1 for item in data.split("test"))
    data.check()
    middle = np.asarray(data.image(data.items.index(item)), dtype=int)
    assert np.abs(middle - np.asarray(drawn()[3].picture())).mean() < 8


def test_without_a_validation_file_some_of_training_is_held_out(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m")
    (root / "txt_db/msrvtt_retrieval/val.jsonl").unlink()
    data = load_dataset("msrvtt", root)
    assert Counter(item.split for item in data) == {"train": 15, "validation": 1, "test": 8}
    assert ids(data, "train") | ids(data, "validation") == names("train")
    assert data.items == load_dataset("msrvtt", root).items


def test_9k_trains_on_all_that_1k_a_does_not_test(official):
    data = load_dataset("msrvtt", official)
    tested = {f"video{it.number}" for it in drawn() if it.split == "test"} & ids(data, "test")
    assert len(tested) == 4 and all(len(item.captions) == 1 for item in data.split("test"))
    assert ids(data, "train") | ids(data, "validation") == names("train", "val", "test") - tested
    assert len(ids(data, "validation")) == 2


def test_7k_trains_on_the_official_training_and_validation_splits(official):
    data = load_dataset("msrvtt-7k", official)
    assert ids(data, "train") | ids(data, "validation") == names("train", "val") and len(ids(data, "test")) == 4


def test_full_is_the_official_split(official):
    data = load_dataset("msrvtt-full", official)
    assert [ids(data, s) for s in ("train", "validation", "test")] == [names("train"), names("val"), names("test")]
    assert all(len(item.captions) == 5 for item in data)


def test_1k_a_needs_its_list(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m", "one", lists=False)
    message = refusal("msrvtt", root)
    assert "lacks MSRVTT_JSFUSION_test.csv (files.test), has MSRVTT_data.json" in message
    assert len(load_dataset("msrvtt-full", root)) == 32


def test_folders_of_frames_are_clips(tmp_path):
    data = load_dataset("msrvtt", benchmarks.msrvtt(tmp_path / "m", frames=True))
    assert data[0].image == "frames/video0"
    first, last = (np.asarray(frame, dtype=int) for frame in (data.frames(0, 6)[n] for n in (0, 5)))
    assert np.abs(first - np.asarray(drawn()[0].picture(-12))).mean() < 5
    assert np.abs(last - np.asarray(drawn()[0].picture(8))).mean() < 5
    data.check()


def test_videos_come_before_their_frames_and_a_choice_of_videos_is_asked_for(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m")
    shutil.copytree(benchmarks.msrvtt(tmp_path / "f", frames=True) / "frames", root / "frames")
    assert load_dataset("msrvtt", root)[0].image == "videos/all/video0.mp4"
    assert load_dataset("msrvtt", root, {"videos": "frames"})[0].image == "frames/video0"
    shutil.copytree(root / "videos/all", root / "videos/compress")
    assert "video0 lies in several places (videos/all/video0.mp4; videos/compress" in refusal("msrvtt", root)
    assert load_dataset("msrvtt", root, {"videos": "videos/compress"})[0].image == "videos/compress/video0.mp4"


def test_tables_of_one_name_are_told_apart(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m")
    shutil.copytree(root / "txt_db/msrvtt_retrieval", root / "txt_db/other")
    assert load_dataset("msrvtt", root)[0].source == "txt_db/msrvtt_retrieval/train.jsonl"
    (root / "txt_db/msrvtt_retrieval").rename(root / "txt_db/third")
    message = refusal("msrvtt", root)
    assert "train.jsonl lies in several places (txt_db/other/train.jsonl; txt_db/third/train.jsonl)" in message


def test_missing_clips_are_named(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m")
    (root / "videos/all/video2.mp4").unlink()
    assert "1 of 32 videos are missing under" in refusal("msrvtt", root)
    assert len(load_dataset("msrvtt", root, broken="skip")) == 31


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caption": 3}, 'train.jsonl, line 2: "caption" is 3, not text'),
        ({"clip_name": 7}, 'line 2: "clip_name" is 7, not text'),
    ],
)
def test_wrong_rows_of_jsonl(tmp_path, change, said):
    root = benchmarks.msrvtt(tmp_path / "m")
    rewrite(root / "txt_db/msrvtt_retrieval/train.jsonl", lambda rows: rows[1].update(change))
    assert said in refusal("msrvtt", root)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("sentences", {"video_id": "video999"}, 'row 2: a caption of video999, which is not among "videos"'),
        ("sentences", {"caption": None}, 'row 2: "caption" is None, not text'),
        ("videos", {"split": "dev"}, "row 2: split 'dev' is none of train, validate, test"),
    ],
)
def test_wrong_rows_of_the_official_file(tmp_path, part, change, said):
    root = benchmarks.msrvtt(tmp_path / "m", "one")
    rewrite(root / "MSRVTT_data.json", lambda value: value[part][1].update(change))
    assert f"MSRVTT_data.json, {said}" in refusal("msrvtt", root)


def test_a_line_that_is_not_json(tmp_path):
    root = benchmarks.msrvtt(tmp_path / "m")
    table = root / "txt_db/msrvtt_retrieval/test.jsonl"
    table.write_text(table.read_text() + '{"clip_name": \n')
    assert "test.jsonl, line 9: not JSON" in refusal("msrvtt", root)


def test_what_is_held_out_does_not_depend_on_where_clips_lie(jsonl):
    rows = [item for item in load_dataset("msrvtt", jsonl) if item.split == "train"]
    moved = [replace(row, image=f"/elsewhere/{row.id}.webm") for row in reversed(rows)]
    assert ids(held_out(rows), "validation") == ids(held_out(moved), "validation") != set()
