"""A user's own folder: what every wrong row and file is told."""

import io
import json

import pytest
from PIL import Image

from aurora_petl.data import load_dataset
from aurora_petl.data.folder import read_folder
from aurora_petl.errors import AuroraError
from tests.helpers.folders import GOOD, folder, refusal, table


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
    message = refusal(table(tmp_path, "bild;caption\na.png;x\n"))
    assert message.startswith("mine/captions.csv, line 1: no column image among bild, caption")
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
