"""A user's own folder: rows, splits and clips as they are read. Then the embedded packs."""

import json
import pickle
import random
from pathlib import Path

import pytest

from aurora_petl.data import load_dataset, pack_names
from aurora_petl.data.folder import read_folder
from aurora_petl.data.rows import SPLITS
from aurora_petl.errors import AuroraError
from tests.helpers.folders import GOOD, folder, packed, refusal, table
from tests.helpers.pictures import draw, make_folder

# Reading


def test_rows_hold_what_the_file_says(tmp_path):
    made = folder(
        tmp_path,
        {"image": "a.png", "caption": " one ", "split": "train", "id": "x"},
        "",
        {"image": "./b.png", "caption": ["two", "three"], "split": "validation", "id": 7},
        {"image": "c.png", "caption": "four", "split": "test"},
    )
    found = read_folder(made)
    assert [(i.image, i.captions, i.split, i.id, i.line) for i in found] == [
        ("a.png", ("one",), "train", "x", 1),
        ("b.png", ("two", "three"), "validation", "7", 3),
        ("c.png", ("four",), "test", "c.png", 4),
    ]
    assert found.name == "mine" and len(found) == 3
    assert [len(found.split(name)) for name in SPLITS] == [1, 1, 1]
    assert found.split("test")[0].image == "c.png" and found.split("test").name == "mine/test"
    assert found.image(0).tobytes() == draw("circle", "red", 16).tobytes()
    found.check()


@pytest.mark.parametrize("word", ["val", "Dev", "valid", "validation"])
def test_a_split_by_any_of_its_usual_names(tmp_path, word):
    found = read_folder(folder(tmp_path, {**GOOD, "split": "Train"}, {"image": "b.png", "caption": "x", "split": word}))
    assert [item.split for item in found] == ["train", "validation"]
    assert found.split(word).name == "mine/validation" and len(found.split(word)) == 1


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    made = folder(tmp_path, GOOD, {"image": "b.png", "caption": "Größe 猫"})
    file = made / "captions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert [item.captions[0] for item in read_folder(made)] == ["a red circle", "Größe 猫"]


def test_line_separators_inside_a_caption_do_not_shift_the_lines(tmp_path):
    made = folder(tmp_path, '{"image": "a.png", "caption": "one\u2028two"}', {"image": "gone.png", "caption": "x"})
    assert "line 2: picture gone.png" in refusal(made)


def test_rows_of_one_picture_are_merged(tmp_path):
    found = read_folder(folder(tmp_path, GOOD, {"image": "b.png", "caption": "x"}, {**GOOD, "caption": ["y", "z"]}))
    assert [(i.image, i.captions) for i in found] == [("a.png", ("a red circle", "y", "z")), ("b.png", ("x",))]


def test_csv_with_several_captions_a_picture(tmp_path):
    text = 'image,caption,split,id\na.png,"red, round",train,1\nb.png,blue,test,2\na.png,"two\nlines",train,1\n'
    found = read_folder(table(tmp_path, text))
    assert [(i.image, i.captions, i.split, i.id) for i in found] == [
        ("a.png", ("red, round", "two\nlines"), "train", "1"),
        ("b.png", ("blue",), "test", "2"),
    ]


def test_csv_without_split_and_id(tmp_path):
    found = read_folder(table(tmp_path, "caption,image\none,a.png\ntwo,b.png\nthree,c.png\n"))
    assert [item.id for item in found] == ["a.png", "b.png", "c.png"]
    assert sorted(item.split for item in found) == sorted(SPLITS)


def test_tar_equals_folder(tmp_path):
    made = make_folder(tmp_path / "shapes", 6)
    one, other = read_folder(made), read_folder(packed(tmp_path / "shapes.tar", made))
    assert one.items == other.items and one.name == other.name
    assert all(one.image(n).tobytes() == other.image(n).tobytes() for n in range(6))


def test_a_dataset_of_a_tar_travels_to_loader_workers(tmp_path):
    made = make_folder(tmp_path / "shapes", 4)
    here = read_folder(packed(tmp_path / "shapes.tar", made))
    there = pickle.loads(pickle.dumps(here))
    assert there.items == here.items and there.image(3).tobytes() == here.image(3).tobytes()
    assert pickle.loads(pickle.dumps(there)).image(0).size == (96, 96)


# Splits


def numbered(path: Path, count: int, order=None, **more) -> Path:
    names = [f"{n}.png" for n in range(count)]
    rows = [{"image": name, "caption": "x", **more} for name in (order or list)(names)]
    return folder(path, *rows, pictures=names)


def test_a_made_split_ignores_row_order(tmp_path):
    def shuffled(names):
        return random.Random(1).sample(names, len(names))

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (read_folder(numbered(tmp_path / n, 40, order)) for n, order in (("one", None), ("two", shuffled)))
    assert [len(one.split(name)) for name in SPLITS] == [20, 10, 10]
    assert {i.image: i.split for i in one} == {i.image: i.split for i in two}


@pytest.mark.parametrize(
    ("count", "part"), [(3, 1), (4, 1), (5, 1), (9, 2), (60, 15), (200, 50), (500, 50), (504, 50), (506, 51), (900, 90)]
)
def test_a_made_split_has_fifty_to_score_on_or_a_quarter_or_a_tenth(tmp_path, count, part):
    found = read_folder(numbered(tmp_path, count))
    assert [len(found.split(name)) for name in SPLITS] == [count - 2 * part, part, part]


def test_pictures_of_one_id_stay_in_one_split(tmp_path):
    names = [f"{n}.png" for n in range(30)]
    rows = [{"image": name, "caption": "x", "id": n // 3} for n, name in enumerate(names)]
    found = read_folder(folder(tmp_path, *rows, pictures=names))
    assert len({(item.id, item.split) for item in found}) == 10
    assert [len(found.split(name)) for name in SPLITS] == [18, 6, 6]


def test_two_pictures_all_train(tmp_path):
    found = read_folder(numbered(tmp_path, 2))
    assert len(found.split("train")) == 2
    with pytest.raises(AuroraError, match="no rows of split 'test'.*at least 3 pictures"):
        found.split("test")


def test_a_split_without_rows(tmp_path):
    found = read_folder(
        folder(tmp_path, {**GOOD, "split": "train"}, {"image": "b.png", "caption": "x", "split": "test"})
    )
    with pytest.raises(AuroraError) as caught:
        found.split("validation")
    assert str(caught.value).startswith("mine: no rows of split 'validation' (it has train 1, test 1); name it")


# Clips


def clips_folder(path, *rows, file="captions.jsonl"):
    made = folder(path, pictures=())
    (made / "captions.jsonl").unlink()
    (made / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw("circle", "red", 16).save(made / "a.gif")
    (made / "frames").mkdir()
    for n in range(3):
        draw("cross", "blue", 16).save(made / f"frames/{n}.jpg")
    return made


def test_captions_of_clips_and_of_folders_of_frames(tmp_path):
    made = clips_folder(
        tmp_path,
        {"clip": "a.gif", "caption": "one", "split": "train"},
        {"clip": "frames", "caption": "two", "split": "test"},
    )
    for found in (read_folder(made), read_folder(packed(tmp_path / "mine.tar", made))):
        assert found.clips and [item.image for item in found] == ["a.gif", "frames"]
        assert [len(found.frames(n, 4)) for n in range(2)] == [4, 4]
        found.check()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"clip": "b.gif", "caption": "x"}, "line 2: clip b.gif is missing from"),
        ({"clip": "", "caption": "x"}, 'line 2: no "clip"; name the clip\'s file, relative to the folder'),
        ({"clip": "../a.gif", "caption": "x"}, "line 2: clip ../a.gif lies outside the folder"),
        ({"image": "a.gif", "caption": "x"}, "line 2: clips and pictures in one file; give each a folder of its own"),
        ({"image": "frames", "caption": "x"}, "line 2: picture frames is missing from"),
    ],
)
def test_wrong_rows_of_clips(tmp_path, row, said):
    assert said in refusal(clips_folder(tmp_path, {"clip": "a.gif", "caption": "fine"}, row))


# Embedded packs


def test_pack_names():
    scenes = ("changes", "clip-questions", "colour", "ink", "moves", "questions")
    assert pack_names() == ["fluent-contrast", "fluent-flat", *(f"scenes-{name}" for name in scenes)]


@pytest.mark.parametrize("name", ["fluent-flat", "fluent-contrast"])
def test_packs(name):
    pack = load_dataset(name)
    assert [len(pack.split(split)) for split in SPLITS] == [994, 300, 300]
    ids = [{item.id for item in pack.split(split)} for split in SPLITS]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    test = pack.split("test")
    test.check()
    assert min(test.image(0).size) >= 64
    assert all(caption == " ".join(caption.split()) for item in pack for caption in item.captions)
