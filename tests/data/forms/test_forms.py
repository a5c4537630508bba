"""Forms of other people's data: the same pictures give the same data set in each, and what is wrong is told by row."""

import io
import json
import pickle
import shutil
from pathlib import Path

import pytest
from PIL import Image

from aurora_petl import cli
from aurora_petl.data import load_dataset
from aurora_petl.data.forms import FORMS
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe, located
from aurora_petl.search.captions import read_captions
from tests.helpers import forms
from tests.helpers.forms import WRITERS, examples, lines, pack, write

MADE = examples()
FEW = examples(12)
DOCS = Path(__file__).parents[3] / "docs/data.md"


def refusal(data, root=None, broken="stop", **files) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        load_dataset(data, root, files, broken).check()
    message = str(caught.value)
    assert "\n" not in message
    return message


def counts(dataset) -> tuple[int, int, int]:
    return tuple(sum(item.split == split for item in dataset) for split in forms.SPLITS)


def content(dataset):
    """All of a data set but what its pictures are called."""
    pictures = [dataset.image(row) for row in range(len(dataset))]
    return sorted(
        (item.captions, item.split, picture.size, picture.tobytes())
        for item, picture in zip(dataset, pictures, strict=True)
    )


EXPECTED = sorted(
    (e.captions, e.split, (16 + n, 16 + n), Image.open(io.BytesIO(e.data)).tobytes()) for n, e in enumerate(MADE)
)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library ``datasets``, with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


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


# Shards


def test_shards_by_pattern_are_the_named_ones_in_order(tmp_path):
    path = forms.webdataset(tmp_path / "mine", MADE)
    found = load_dataset(f"{path}/train/{{00000..00001}}.tar")
    assert len(found) == 24 and found[0].image == "00000.tar/000.png" and found[12].image == "00001.tar/001.png"
    assert len(load_dataset(f"{path}/{{train,test}}/*.tar")) == 48
    assert "2 of its 5 files are not there, the first is" in refusal(f"{path}/train/{{00000..00004}}.tar")
    assert "fits no files" in refusal(f"{path}/*.tar")
    assert "stands for 100,000,000 files" in refusal("{0..9999}{0..9999}.tar")
    assert load_dataset(path / "test/00000.tar")[0].source == "00000.tar"


def test_wrong_samples_are_named_or_left_out(tmp_path):
    picture = FEW[0].data
    members = [
        ("a.jpg", picture),
        *(("b.png", picture), ("b.txt", b" \n")),
        *(("c.json", b"{"), ("c.png", picture)),
        *(("d.json", b'{"caption": 3}'), ("d.png", picture)),
        ("e.txt", b"e"),
        *(("f.png", picture), ("f.txt", b"\xff")),
        *(("g.png", picture), ("g.seg.png", b""), ("g.txt", b"one\n\ntwo"), ("g.cls", b"3")),
        *(("../h.png", picture), ("../h.txt", b"h")),
        *(("i.png", picture), ("i.txt", b"i"), ("j.png", picture), ("j.txt", b"j"), ("i.png", b""), ("i.txt", b"i")),
    ]
    path = pack(tmp_path / "mine/x.tar", members).parent
    message = refusal(path)
    for said in (
        "empty caption for x.tar/b.png",
        "c.json: not JSON",
        '"caption" must be text',
        "f.txt, line 1: not UTF",
    ):
        assert f": {said}" in message
    assert message.startswith("mine/x.tar, sample 1: ") and message.endswith("(and 3 more)")
    found = load_dataset(path, broken="skip")
    assert found[0].captions == ("one", "two") and [item.image for item in found][:3] == [
        "x.tar/g.png",
        "x.tar/i.png",
        "x.tar/j.png",
    ]
    assert "; 8 samples left out: " in found.note


def test_a_shard_that_is_cut_off_is_refused(tmp_path):
    path = forms.webdataset(tmp_path / "mine", FEW)
    shard = path / "train/00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert refusal(path).startswith(f"{shard} is not a plain tar (unexpected end of data)")


def test_an_index_of_shards_takes_few_bytes_a_sample(tmp_path):
    members = [(f"{n:06}{suffix}", b"fifty characters about a picture, as they are often"[:50]) for n in range(500)
               for suffix in (".jpg", ".txt")]  # fmt: skip
    found = load_dataset(pack(tmp_path / "mine/0.tar", members).parent)
    assert len(found) == 500
    assert len(pickle.dumps(found)) / 500 < 210  # bytes, of which 50 are the caption and 18 the name


# The library datasets, and the hub


def test_without_the_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    write(tmp_path / "mine/train.parquet", b"PAR1")
    assert "mine/train.parquet needs the library datasets: in the checkout of aurora-petl, run" in refusal(
        tmp_path / "mine"
    )
    assert refusal("nobody/nothing").startswith(
        "nobody/nothing, which is no folder here but may be a dataset of the hub,"
    )


def test_a_dataset_of_the_hub_by_its_id(tmp_path, monkeypatch, library):
    saved = library.load_from_disk(forms.saved(tmp_path / "saved", MADE))
    asked = []
    monkeypatch.setattr(library, "load_dataset", lambda *words: asked.append(words) or saved)
    found = load_dataset("some/thing", files={"config": "small"})
    assert content(found) == EXPECTED and asked == [("some/thing", "small")]
    assert found.where(0).startswith("some/thing/train, picture 1: ")

    def fail(*words):
        raise ConnectionError("cannot reach it\nat all")

    monkeypatch.setattr(library, "load_dataset", fail)
    assert refusal("some/thing") == (
        "some/thing is no folder here, and as a dataset of the hub it cannot be read by datasets: cannot reach it"
    )


def test_wrong_rows_of_parquet_are_named_with_their_file(tmp_path, library):
    rows = {"image": [e.data for e in FEW], "text": ["a", "", None, *"abcdefghi"]}
    (tmp_path / "mine").mkdir()
    library.Dataset.from_dict(rows).to_parquet(tmp_path / "mine/some.parquet")
    message = refusal(tmp_path / "mine")
    assert message == (
        "mine/some.parquet, row 2: empty caption for some.parquet/00000001; write one or remove the row; "
        'mine/some.parquet, row 3: "text" must be text or a list of texts'
    )
    assert len(load_dataset(tmp_path / "mine/some.parquet", broken="skip")) == 10
    library.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "mine/some.parquet")
    assert "mine/some.parquet: no column of pictures among text; name it, as in" in refusal(tmp_path / "mine")
    write(tmp_path / "other/some.parquet", b"no parquet")
    assert refusal(tmp_path / "other").startswith("other/some.parquet cannot be read by datasets: ")


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


def test_a_pattern_of_shards_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(load_recipe(None, ["data=in/{0..3}.tar"])).data == str(tmp_path / "in/{0..3}.tar")
    assert located(load_recipe(None, ["data=some/thing"])).data == "some/thing"


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
    options = ("rows", "form", "image_column", "caption_column", "split_column", "id_column", "templates", "config")
    assert [name for name in options if f"files.{name}" not in text] == []
