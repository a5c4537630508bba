"""A user's own folder: what is read, and what every wrong row is told. Then the embedded packs."""

import io
import json
import pickle
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from aurora_petl.data import ImageTextDataset, QuestionDataset, load_dataset, pack_names
from aurora_petl.data.folder import read_folder
from aurora_petl.data.rows import SPLITS
from aurora_petl.errors import AuroraError
from tests.helpers.pictures import draw, make_folder

GOOD = {"image": "a.png", "caption": "a red circle"}


def folder(path: Path, *rows, pictures=("a.png", "b.png", "c.png")) -> Path:
    """A dataset folder called ``mine``; rows are objects, or lines as they are."""
    made = path / "mine"
    made.mkdir()
    for name in pictures:
        (made / name).parent.mkdir(exist_ok=True)
        draw("circle", "red", 16).save(made / name)
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    (made / "captions.jsonl").write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return made


def table(path: Path, text: str) -> Path:
    made = folder(path)
    (made / "captions.jsonl").unlink()
    (made / "captions.csv").write_text(text)
    return made


def refusal(path: Path) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        read_folder(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def packed(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            archive.add(file, file.relative_to(source).as_posix(), recursive=False)
    return path


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


# Refusals: what was found, in which line, and what to do


def wrong(**changes):
    return {**GOOD, **changes}


@pytest.mark.parametrize(
    ("row", "found", "mend"),
    [
        (wrong(image="A.PNG"), "picture A.PNG is missing from", "did you mean a.png?"),
        (wrong(image="ab.png"), "picture ab.png is missing from", "did you mean"),
        (wrong(caption=""), "empty caption for a.png", "write one or remove the row"),
        (wrong(caption=["x", "  "]), "empty caption for a.png", "write one or remove the row"),
        (wrong(caption=[]), "empty caption for a.png", "write one or remove the row"),
        (wrong(caption=5), '"caption"', "must be text or a list of texts"),
        (wrong(caption=["x", None]), '"caption"', "must be text or a list of texts"),
        ({"image": "a.png"}, '"caption"', "must be text or a list of texts"),
        ({"caption": "x"}, 'no "image"', "name the picture's file, relative to the folder"),
        (wrong(image=3), 'no "image"', "name the picture's file"),
        (wrong(image=" "), 'no "image"', "name the picture's file"),
        (wrong(split="val"), "split 'val' is none of train, validation, test", "did you mean validation?"),
        (wrong(split="Dev"), "split 'Dev' is none of", "did you mean validation?"),
        (wrong(split="holdout"), "split 'holdout'", "is none of train, validation, test"),
        (wrong(split=["train"]), "split a list of 1 is none of", "is none of train, validation, test"),
        (wrong(split=1), "split 1", "is none of train, validation, test"),
        (wrong(id=""), "\"id\" is ''", "it must be text or a number"),
        (wrong(id={"a": 1}), '"id" is', "it must be text or a number"),
        (wrong(id=None), '"id" is None', "it must be text or a number"),
        (wrong(image="../a.png"), "picture ../a.png lies outside the folder", "copy it inside"),
        (wrong(image="x/../../a.png"), "lies outside the folder", "copy it inside"),
        (wrong(image="/etc/a.png"), "picture /etc/a.png lies outside the folder", "give its relative path"),
        ("[1]", "a list, not an object", "with image and caption"),
        ('"a.png"', "a str, not an object", "with image and caption"),
        ('{"image": "a.png", "caption": "x"', "not JSON", 'a line looks like {"image": "cat.jpg"'),
        ("{'image': 'a.png'}", "not JSON", "at column 2"),
    ],
)
def test_a_wrong_row_names_file_line_and_mend(tmp_path, row, found, mend):
    message = refusal(folder(tmp_path, {"image": "b.png", "caption": "fine"}, "", row))
    assert message.startswith("mine/captions.jsonl, line 3: ")
    assert found in message and mend in message


def test_the_folder_of_a_missing_picture_is_named_without_a_hint_if_nothing_is_near(tmp_path):
    made = folder(tmp_path, wrong(image="elephant.jpg"))
    assert refusal(made) == f"mine/captions.jsonl, line 1: picture elephant.jpg is missing from {made}"


def test_some_problems_are_listed_and_all_are_counted(tmp_path):
    message = refusal(folder(tmp_path, *[wrong(caption="")] * 8))
    assert [f"line {n}:" in message for n in range(1, 9)] == [True] * 5 + [False] * 3
    assert message.endswith("(and 3 more)")


def test_not_utf8(tmp_path):
    made = folder(tmp_path, GOOD, '{"image": "b.png", "caption": "Größe"}'.encode("latin-1"))
    assert refusal(made) == "mine/captions.jsonl, line 2: not UTF-8; save the file as UTF-8"


def test_some_rows_with_a_split_and_some_without(tmp_path):
    made = folder(
        tmp_path, wrong(split="train"), {"image": "b.png", "caption": "x"}, {"image": "c.png", "caption": "x"}
    )
    message = refusal(made)
    assert message.startswith("mine/captions.jsonl, line 2: no split, though other rows name one")
    assert "all 2 rows without, or in none" in message


@pytest.mark.parametrize("other", [{"split": "test"}, {"split": "train", "id": "z"}])
def test_one_picture_in_two_splits_or_of_two_ids(tmp_path, other):
    message = refusal(folder(tmp_path, wrong(split="train"), wrong(**other)))
    assert message == "mine/captions.jsonl, line 2: a.png stands in line 1 with another split or id; keep one"


def test_no_rows(tmp_path):
    assert refusal(folder(tmp_path, "", " ")) == "mine/captions.jsonl holds no rows"


def test_no_captions_file(tmp_path):
    made = folder(tmp_path)
    (made / "captions.jsonl").unlink()
    assert refusal(made) == f"{made} has no captions.jsonl, captions.csv or questions.jsonl; it holds 3 files"
    (made / "caption.jsonl").write_text("{}")
    assert refusal(made).endswith("it holds 4 files, of which caption.jsonl may be meant: rename it")


def test_no_dataset_of_that_name(tmp_path):
    with pytest.raises(AuroraError, match=r"no dataset 'nowhere': it is neither an embedded pack \(fluent-contrast"):
        load_dataset("nowhere")


def test_a_file_that_is_no_tar(tmp_path):
    path = tmp_path / "mine.tar"
    path.write_bytes(b"not a tar at all")
    message = refusal(path)
    assert message.startswith(f"{path} is not a plain tar") and message.endswith("pack the folder with tar -cf")


@pytest.mark.parametrize("name", ["captions.jsonl", "mine.zip"])
def test_a_file_in_place_of_its_folder(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(GOOD))
    message = refusal(path)
    assert str(path) in message and "\n" not in message
    assert "give the folder that holds captions.jsonl, captions.csv or questions.jsonl, or a .tar of it" in message


def test_csv_without_a_column(tmp_path):
    message = refusal(table(tmp_path, "image;caption\na.png;x\n"))
    assert message.startswith("mine/captions.csv, line 1: no column image and no column caption among image;caption")
    assert "the first line must be image,caption" in message


def test_csv_with_an_open_quote(tmp_path):
    message = refusal(table(tmp_path, 'image,caption\na.png,"open\n'))
    assert message.startswith("mine/captions.csv, line ") and "not CSV" in message


def test_csv_row_without_a_caption(tmp_path):
    made = table(tmp_path, "image,caption\na.png,fine\nb.png,\nc.png\n")
    message = refusal(made)
    assert "mine/captions.csv, line 3: empty caption for b.png" in message
    assert "mine/captions.csv, line 4: 1 field, where the first line names 2 columns" in message


def test_broken_pictures_are_found_by_decoding(tmp_path):
    made = folder(
        tmp_path, GOOD, {"image": "b.jpg", "caption": "x"}, {"image": "c.png", "caption": "x"}, pictures=("a.png",)
    )
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "JPEG")
    (made / "b.jpg").write_bytes(whole.getvalue()[:-400])
    (made / "c.png").write_text("no picture")
    dataset = read_folder(made)  # looks pictures up and leaves decoding to check
    with pytest.raises(AuroraError) as caught:
        dataset.check()
    first, second = str(caught.value).split("; mine/")
    assert first.startswith("mine/captions.jsonl, line 2: b.jpg: the picture is broken (") and "replace it" in first
    assert second.startswith("captions.jsonl, line 3: c.png: not a picture that can be read; save it again")


def test_a_picture_that_vanished(tmp_path):
    made = folder(tmp_path, GOOD)
    dataset = read_folder(made)
    (made / "a.png").unlink()
    with pytest.raises(AuroraError) as caught:
        dataset.image(0)
    assert str(caught.value) == f"mine/captions.jsonl, line 1: a.png: no such picture in {made}"


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


# Questions

ASKED = {"image": "a.png", "question": "what colour is it?", "answer": "red"}


def questions(path, *rows):
    made = folder(path)
    (made / "captions.jsonl").unlink()
    (made / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_questions_with_every_form_of_answers(tmp_path):
    found = load_dataset(
        questions(
            tmp_path,
            {**ASKED, "split": "train", "id": "q"},
            {**ASKED, "answer": ["red", "dark red", "red", "red"], "split": "train"},
            {**ASKED, "answer": {"red": 0.7, "crimson": 0.2}, "split": "validation", "id": 9},
            {"image": "b.png", "question": " is it round? ", "split": "test"},
        )
    )
    assert isinstance(found, QuestionDataset) and found.name == "mine" and not found.clips
    assert [(q.id, q.question, q.answers, q.weights, q.references) for q in found] == [
        ("q", "what colour is it?", ("red",), (1.0,), ("red",)),
        ("2", "what colour is it?", ("red", "dark red"), (0.75, 0.25), ("red", "dark red", "red", "red")),
        ("9", "what colour is it?", ("red", "crimson"), (0.7, 0.2), ("red", "crimson")),
        ("4", "is it round?", (), (), ()),
    ]
    assert found.candidates == ("red", "dark red")  # of training, the most frequent first
    found.check()


def test_questions_of_one_picture_stay_in_one_split(tmp_path):
    rows = [{**ASKED, "image": f"{name}.png", "question": f"{n}?"} for n in range(4) for name in "abc"]
    found = read_folder(questions(tmp_path, *rows))
    assert len({(q.image, q.split) for q in found}) == 3
    assert [len(found.split(name)) for name in SPLITS] == [4, 4, 4]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": 4}, '"question" must be text'),
        ({"question": " "}, '"question" must be text'),
        ({"answer": 4}, '"answer" must be text, a list of texts, or positive weights by answer'),
        ({"answer": []}, '"answer" must be text'),
        ({"answer": ["", " "]}, '"answer" must be text'),
        ({"answer": {"x": 1e400}}, '"answer" must be text'),
        ({"answer": {"x": 10**400}}, '"answer" must be text'),
        ({"answer": {"x": 0}}, '"answer" must be text'),
        ({"answer": {"x": "1"}}, '"answer" must be text'),
        ({"answer": {}}, '"answer" must be text'),
        ({"answer": None}, 'no "answer", which a question of split train must have'),
        ({"id": 1}, "id 1 stands in line 1 as well; give each question its own"),
        ({"image": "z.png"}, "picture z.png is missing from"),
        ({"split": "dev"}, "split 'dev' is none of"),
    ],
)
def test_wrong_questions(tmp_path, change, said):
    first = {**ASKED, "split": "train", "id": 1}
    message = refusal(questions(tmp_path, first, {**first, "id": 2, **change}))
    assert message.startswith("mine/questions.jsonl, line 2: ") and said in message


def test_captions_come_before_questions_unless_the_file_is_named(tmp_path):
    made = questions(tmp_path, {**ASKED, "split": "train"})
    (made / "captions.jsonl").write_text(json.dumps(GOOD))
    assert isinstance(load_dataset(made), ImageTextDataset)
    assert isinstance(load_dataset(made, files={"rows": "questions.jsonl"}), QuestionDataset)


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
