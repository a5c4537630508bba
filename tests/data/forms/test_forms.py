"""Forms of other people's data: the same pictures give the same data in each, by names and options."""

import pickle
import shutil
from pathlib import Path

import pytest

from aurora_petl import cli
from aurora_petl.data import load_dataset
from aurora_petl.data.forms import FORMS
from aurora_petl.data.forms.common import ANSWER_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS
from aurora_petl.data.forms.table import OPTIONS
from aurora_petl.errors import AuroraError
from aurora_petl.search.captions import read_captions
from tests.helpers import forms
from tests.helpers.form_cases import EXPECTED, FEW, MADE, content, counts, refusal
from tests.helpers.forms import WRITERS, lines, write

DOCS = Path(__file__).parents[3] / "docs/data.md"


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_pictures_in_every_form_are_the_same_data(tmp_path, request, form):
    if form in forms.LIBRARY:
        request.getfixturevalue("library")
    found = load_dataset(WRITERS[form](tmp_path / "mine", MADE))
    assert content(found) == EXPECTED
    assert len({item.id for item in found}) == len(found) == 60 and not found.clips
    if form != "own":
        title = FORMS[form.partition(",")[0]].title
        assert found.note == f"reads {title}: 60 pictures, 120 captions (train 36, validation 12, test 12)"
    test = found.split("test")
    there = pickle.loads(pickle.dumps(test))  # as it travels to a loader worker
    assert list(there) == [item for item in found if item.split == "test"]
    assert there.image(3).tobytes() == test.image(3).tobytes()


@pytest.mark.parametrize("form", ["imagefolder", "coco", "pairs"])
def test_a_tar_of_a_folder_holds_the_same(tmp_path, form):
    assert content(load_dataset(forms.tar_of(WRITERS[form](tmp_path / "mine", MADE)))) == EXPECTED


# Other roots, absolute paths, other names of columns


def test_pictures_under_another_root_by_relative_and_absolute_names(tmp_path, monkeypatch):
    path = forms.open_clip(tmp_path / "mine", FEW)
    content_before = content(load_dataset(path))
    shutil.move(path / "pictures", tmp_path / "disk")
    assert "if the pictures lie elsewhere, give --root FOLDER" in refusal(path)
    assert "lies outside the folder" in refusal(path, tmp_path / "disk")  # absolute names of where they were
    for table in path.glob("*.tsv"):
        table.write_text(table.read_text().replace(f"{path}/pictures/", ""))
    monkeypatch.setattr("aurora_petl.data.places.walk", None)  # no more than the folders that are named is listed
    source = path / "train.tsv"
    assert content(load_dataset(source, tmp_path / "disk"))[0][0] == content_before[0][0]
    text = source.read_text().replace("000.png", str(tmp_path / "disk/000.png")).replace("001.png", "./001.png")
    source.write_text(text)
    assert {"000.png", "001.png"} <= {item.image for item in load_dataset(source, tmp_path / "disk")}
    source.write_text(text.replace("001.png", "001.PNG"))
    assert "line 4: picture 001.PNG is missing from" in (said := refusal(source, tmp_path / "disk"))
    assert "did you mean 001.png?" in said


def test_own_captions_take_a_root_too(tmp_path):
    path = forms.own(tmp_path / "mine", FEW)
    (tmp_path / "disk").mkdir()
    for picture in path.glob("*.png"):
        picture.rename(tmp_path / "disk" / picture.name)
    found = load_dataset(path, tmp_path / "disk")
    assert len(found) == 12 and found.image(0).size == (16, 16) and not found.note


def test_columns_splits_and_ids_by_option(tmp_path):
    rows = [{"pic": e.name, "says": e.captions[0], "part": e.split[:3], "thing": n // 2} for n, e in enumerate(FEW)]
    write(tmp_path / "mine/rows.jsonl", lines(rows).replace('"tra"', '"train"').replace('"tes"', '"test"'))
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    named = {"image_column": "pic", "caption_column": "says", "split_column": "part", "id_column": "thing"}
    for data in (tmp_path / "mine", tmp_path / "mine/rows.jsonl"):
        found = load_dataset(data, files=named)
        assert counts(found) == (8, 2, 2) and [item.id for item in found][:3] == ["0", "0", "1"]
    write(tmp_path / "mine/rows.jsonl", lines(rows[:1]) + lines({**row, "part": None} for row in rows[1:]))
    assert "line 1: split 'tra' is none of" in refusal(tmp_path / "mine", **named)


@pytest.mark.parametrize(
    "table",
    [
        "Image Name,Caption\n{0},{1}\n{0},{2}\n",
        "file,captions\n{0},\"['{1}', '{2}']\"\n",
        'file,captions\n{0},"[""{1}"", ""{2}""]"\n',
        "image;caption\n.\\images\\{0};{1}\nimages\\{0};{2}\n",
        "{0},{1}\n{0},{2}\n",
        "image,text\nfile://{3}/images/{0},{1}\n{3}/images/{0},{2}\n",
        "image,caption_0,Caption 10,caption_1,caption_2,text_1\n{0},{1},,{2},,other\n",
    ],
)
def test_tables_as_other_programs_write_them(tmp_path, table):
    for example in FEW[:3]:
        write(tmp_path / "mine/images" / example.name, example.data)
    write(tmp_path / "mine/some.csv", table.format("000.png", "a cat", "a, dog"[3:], tmp_path / "mine"))
    (item,) = load_dataset(tmp_path / "mine")
    assert (item.image, item.captions) == ("images/000.png", ("a cat", "dog"))


def test_several_columns_of_captions_by_number_and_by_name(tmp_path):
    """Numbers count as numbers; what a row lacks is left out, and a row without any is refused."""
    row = {"image": "000.png", "caption_10": "c", "caption_9": ["a", "b"], "caption_x": "other", "says": "d"}
    write(tmp_path / "mine/000.png", FEW[0].data)
    write(tmp_path / "mine/some.jsonl", lines([row]))
    assert load_dataset(tmp_path / "mine")[0].captions == ("a", "b", "c")
    named = {"caption_column": ["says", "caption_10"]}
    assert load_dataset(tmp_path / "mine", files=named)[0].captions == ("d", "c")
    for wrong in (["nowhere"], ["says", "nowhere"]):
        assert "files.caption_column=NAME" in refusal(tmp_path / "mine", caption_column=wrong)
    write(tmp_path / "mine/some.jsonl", lines([row, {"image": "000.png", "caption_9": None}]))
    assert "line 2: empty caption for 000.png" in refusal(tmp_path / "mine")


def test_thumbnails_of_systems_are_no_pictures(tmp_path):
    path = tmp_path / "mine"
    for number, example in enumerate(FEW):
        write(path / ("cats", "dogs")[number % 2] / example.name, example.data)
    before = content(load_dataset(path))
    for folder in (path / "@eaDir/000.png", path / "__MACOSX"):
        write(folder / "SYNOPHOTO_THUMB_M.png", FEW[0].data)
    assert content(load_dataset(path)) == before


# Splits


def test_splits_by_name_of_what_is_there(tmp_path):
    path = forms.coco(tmp_path / "mine", MADE)
    train, val = "annotations/captions_train2017.json", "annotations/captions_val2017.json"
    assert counts(load_dataset(path, files={"train": train})) == (36 - 2 * 9, 9, 9)  # made by hash
    given = load_dataset(path, files={"train": train, "test": val})
    assert counts(given) == (33, 3, 12) and given.note.endswith("; validation is made of train)")
    lacking = load_dataset(path, files={"train": train, "validation": val})
    with pytest.raises(AuroraError, match="no rows of split 'test'.*as in files.test=NAME"):
        lacking.split("test")
    whole = load_dataset(path, files={"train": [train, val], "test": "annotations/*test*"})
    assert counts(whole) == (44, 4, 12)


def test_a_folder_called_test_among_others_is_no_split(tmp_path):
    for number, example in enumerate(FEW):
        folder = ("test", "cats", "dogs")[number % 3]
        write(tmp_path / "mine" / folder / example.name, example.data)
        write(tmp_path / "mine" / folder / f"{example.name[:3]}.caption", "x")
    assert counts(load_dataset(tmp_path / "mine")) == (6, 3, 3)
    assert counts(load_dataset(tmp_path / "mine", files={"test": "test", "train": "cats"})) == (3, 1, 4)


# By class


def test_pictures_by_class(tmp_path):
    for number, example in enumerate(FEW):
        write(tmp_path / "mine" / ("black_cats", "dogs")[number % 2] / example.name, example.data)
    found = load_dataset(tmp_path / "mine")
    assert {(item.captions, item.id) for item in found} == {
        (("a photo of black cats",), "black_cats"),
        (("a photo of dogs",), "dogs"),
    }
    assert counts(found) == (6, 3, 3) and found.note.endswith("; 2 classes: black_cats, dogs")
    templates = load_dataset(tmp_path / "mine", files={"templates": ["a {}", "many {}"]})
    assert templates[0].captions == ("a black cats", "many black cats")
    assert "files.templates has 'cats', which lacks {}" in refusal(tmp_path / "mine", templates="cats")
    (tmp_path / "mine/dogs/train").mkdir()
    for split in ("train", "test"):
        shutil.copytree(tmp_path / "mine/dogs", tmp_path / "split" / split / "dogs")
        shutil.copytree(tmp_path / "mine/black_cats", tmp_path / "split" / split / "cats")
    assert counts(load_dataset(tmp_path / "split")) == (11, 1, 12)


# Around


def test_an_index_takes_captions_in_other_forms(tmp_path):
    path = forms.coco(tmp_path / "mine", FEW)
    (path / "train2017/000.png").unlink()
    texts, absent, note = read_captions(path)
    assert (
        len(texts) == 22 and absent == ["000.png"] and note.startswith("reads COCO captions: 11 pictures, 22 captions")
    )
    write(tmp_path / "other/prices.csv", "file,title\n../a.png,3\n")
    texts, absent, note = read_captions(tmp_path / "other")
    assert texts == absent == [] and note.startswith(
        "captions are left out: other/prices.csv, line 2: picture ../a.png"
    )
    write(tmp_path / "bare/a.png", FEW[0].data)
    assert read_captions(tmp_path / "bare") == ([], [], "")


def test_evaluate_says_how_data_are_read():
    assert cli._files(["caption_column=says", "templates=[a, b]"]) == {
        "caption_column": "says",
        "templates": ["a", "b"],
    }
    with pytest.raises(AuroraError, match="'files.rows' is not of the form key=value"):
        cli._files(["rows"])


def test_the_documents_tell_every_form_and_option():
    text = DOCS.read_text()
    assert [form.title for form in FORMS.values() if form.title not in text and form.title != "own rows"] == []
    assert [name for name in OPTIONS if f"files.{name}" not in text] == []
    assert [name for name in (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *ANSWER_COLUMNS) if f"`{name}`" not in text] == []
