"""Wrong rows and folders in forms of other people's data: told by file and row, never guessed."""

import json
import shutil

import pytest

from aurora_petl.data import load_dataset
from tests.helpers import forms
from tests.helpers.form_cases import FEW, refusal
from tests.helpers.forms import write


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("metadata.jsonl", '{"file_name": "0.png", "text": 3}', 'metadata.jsonl, line 1: "text" must be text'),
        ("metadata.jsonl", '{"file_name": "x.png", "text": "a"}', "line 1: picture x.png is missing from"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a", "split": "x"}', "line 1: split 'x' is none of train"),
        ("metadata.jsonl", '\n["0.png", "a"]', "jsonl: no column file_name, which names the pictures, among"),
        ("metadata.csv", "file_name,text\n0.png,a\n0.png, \n", "metadata.csv, line 3: empty caption for 0.png"),
        (
            "metadata.csv",
            "file_name,text\n0.png,a, b\n",
            "metadata.csv, line 2: 3 fields, where the first line names 2",
        ),
        ("metadata.csv", "file_name,says\n0.png,a\n", "no column caption or captions or text or title or prompt among"),
        ("some.tsv", "filepath\ttitle\n0.png\ta\n../0.png\tb\n", "some.tsv, line 3: picture ../0.png lies outside"),
        ("some.tsv", 'filepath\ttitle\n0.png\t"a\n', "some.tsv, line 2: not CSV (a double quote is open to the end"),
        ("some.csv", "filepath;title\n0.png;\n", "some.csv, line 2: empty caption for 0.png"),
        ("some.jsonl", '{"image": "0.png", "caption": "a"}\n{', "some.jsonl, line 2: not JSON"),
        ("some.csv", "image,text\nhttps://a.b/0.png,a\n", "picture https://a.b/0.png lies on the web; download it"),
        ("some.csv", "image,text\nC:\\0.png,a\n", "some.csv, line 2: picture /C:/0.png lies outside the folder"),
        ("some.csv", "0.png,a\nb\n", "some.csv, line 2: it does not begin with a picture's name"),
        ("0.txt", " \n\n", "0.txt, line 1: empty caption for 0.png"),
        ("1.png", b"", "mine/1.txt, line 1: there is no such file beside 1.png; write its caption in it"),
        ("0.txt", b"\xff", "mine/0.txt, line 1: not UTF-8"),
    ],
)
def test_a_wrong_row_is_named_with_its_file(tmp_path, name, data, said):
    write(tmp_path / "mine/0.png", FEW[0].data)
    write(tmp_path / "mine/0.txt", "a caption" if name[0] in "01" else "")
    if name[0] not in "01":
        (tmp_path / "mine/0.txt").unlink()
    write(tmp_path / "mine" / name, data)
    assert said in refusal(tmp_path / "mine")


@pytest.mark.parametrize(
    ("images", "rows", "said"),
    [
        ([{"id": 1, "file_name": "0.png"}], [{"image_id": 2, "caption": "a"}], 'row 1: of "annotations": none of'),
        ([{"id": 1, "file_name": "0.png"}], [{"image_id": 1, "text": "a"}], 'row 1: of "annotations": it has no'),
        ([{"id": 1, "file_name": "0.png"}], [{"image_id": 1, "caption": ""}], "row 1: empty caption for 0.png"),
        ([{"id": 1, "file_name": "9.png"}], [{"image_id": 1, "caption": "a"}], "row 1: picture 9.png is missing from"),
        ([{"id": 1, "file_name": "0.png"}] * 2, [{"image_id": 1, "caption": "a"}], 'row 2: of "images": the id 1'),
        ([{"id": [1]}], [{"image_id": {}, "caption": "a"}], 'row 1: of "images": it has no "id"'),
        ([{"id": 1}], [{"image_id": 1, "caption": "a"}, 5], 'row 1: of "annotations": its image 1 has no "file_name"'),
        ({}, [{"caption": "a"}], 'has no lists "images" and "annotations"'),
    ],
)
def test_a_wrong_row_of_coco_is_named_with_its_file(tmp_path, images, rows, said):
    for folder in ("a", "b"):
        write(tmp_path / f"mine/{folder}/0.png", FEW[0].data)
    value = {"images": images, "annotations": [*rows, {"image_id": "", "caption": ""}]}
    write(tmp_path / "mine/some.json", json.dumps(value))
    if "9.png" not in said:
        shutil.rmtree(tmp_path / "mine/b")
    message = refusal(tmp_path / "mine")
    assert "mine/some.json" in message and said in message


def test_a_picture_that_lies_in_several_folders_is_not_guessed(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / f"mine/{folder}/0.png", FEW[0].data)
    value = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    write(tmp_path / "mine/some.json", json.dumps(value))
    assert "row 1: 0.png lies in several folders (a/0.png, b/0.png); name the right one" in refusal(tmp_path / "mine")
    (item,) = load_dataset(tmp_path / "mine", tmp_path / "mine/b")
    assert item.image == "0.png"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no captions in a form that is known; it has 0 files"),
        (
            {"a.png": b""},
            "is nearest to pictures with texts beside them: 1 picture without captions; put a text beside",
        ),
        (
            {"a.csv": "bild,text\n"},
            "nearest to a table of files and texts: a.csv has the columns bild, text; say which",
        ),
        ({"a.json": '{"images": [], "annotations": []}'}, "a.json is COCO's, but its annotations have no caption"),
        ({"a.json": '[{"image"'}, "nearest to a table of files and texts: mine/a.json: not JSON"),
        (
            {"a.json": '[{"bild": "a.png", "text": "a"}]'},
            "a.json has the columns bild, text; say which name the pictures",
        ),
        (
            {"a.png": b"", "a.png.json": '{"title": "a.png", "people": [{"name": "b"}]}', "b.json": "{"},
            "is nearest to pictures with texts beside them: 1 picture without captions",
        ),
        ({"a.xlsx": b""}, "nearest to a table of files and texts: a.xlsx is a spreadsheet; save it as CSV UTF-8"),
        ({"a.tar.gz": b""}, "is nearest to webdataset shards: a.tar.gz is compressed"),
        ({"metadata.csv": "file_name,text\n", "metadata.jsonl": "{}"}, "has both metadata.csv and metadata.jsonl"),
        ({"a.csv": "image,text\n", "test.csv": "image,text\n"}, "several tables of captions (a.csv, test.csv)"),
    ],
)
def test_what_is_of_no_form_is_told_the_nearest(tmp_path, files, said):
    (tmp_path / "mine").mkdir()
    for name, data in files.items():
        write(tmp_path / "mine" / name, data)
    assert said in refusal(tmp_path / "mine")


def test_names_of_options_and_forms_are_checked(tmp_path):
    path = forms.imagefolder_whole(tmp_path / "mine", FEW)
    assert "files.form is 'coc'; did you mean coco?" in refusal(path, form="coc")
    assert "is not COCO captions, which is shown by JSON with images" in refusal(path, form="coco")
    assert "no column 'caption', which files.caption_column names; did you mean captions?" in refusal(
        path, caption_column="caption"
    )
    assert "files.train is 3; it must be text or a list of texts" in refusal(path, train=3)
    assert "there is no folder gone, which --root names" in refusal(path, "gone")
    pairs = forms.pairs(tmp_path / "pairs", FEW)
    assert "--root is for tables that name the files of pictures, but this is pictures with" in refusal(pairs, pairs)
    assert "none of a folder, a .tar, or a table" in refusal(path / "train/000.png")


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "some.csv", "metadata.csv"])
def test_wrong_rows_are_left_out_if_asked(tmp_path, name):
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    rows = [{"file_name" if name[0] == "m" else "image": e.name, "caption": "a"} for e in FEW]
    rows[3]["caption"], rows[5]["image" if name[0] != "m" else "file_name"] = " ", "gone.png"
    if name.endswith(".csv"):
        write(tmp_path / "mine" / name, "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    else:
        write(tmp_path / "mine" / name, forms.lines(rows))
    said = refusal(tmp_path / "mine")
    assert "empty caption for 003.png" in said and "picture gone.png is missing" in said
    found = load_dataset(tmp_path / "mine", broken="skip")
    assert len(found) == 10 and "2 rows left out: mine/" in found.note and "gone.png is missing" in found.note
    write(tmp_path / "mine" / name, (tmp_path / "mine" / name).read_text().replace(".png", ".pn"))
    assert "(and 7 more)" in refusal(tmp_path / "mine", broken="skip")  # nothing would be left


def test_other_files_beside_texts_are_no_matter(tmp_path):
    path = forms.pairs(tmp_path / "mine", FEW)
    for name, data in (("notes.json", "{"), ("README.txt", "a, b\n"), ("list.txt", "a.png\n"), ("size.json", "[3]")):
        write(path / name, data)
    assert len(load_dataset(path)) == 12
