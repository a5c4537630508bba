"""Rows of CSV and JSONL: which are read, and what is said of those that are not as they should be."""

import json

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.folder import read_folder
from aurora_petl.data.tables import csv_rows
from aurora_petl.errors import AuroraError
from tests.helpers import benchmarks
from tests.helpers.pictures import draw
from tests.helpers.rewrite import refusal

QUOTE = "put the caption in double quotes"


def rows(text, columns=("image", "caption")):
    problems = []
    return list(csv_rows(text, "a.csv", columns, problems)), problems


def test_rows_are_told_by_the_lines_that_they_begin_in():
    text = '\n"image","caption"\r\na.png,"two\nlines"\n\n,\nb.png,"say ""hi"", friend"\n'
    assert rows(text) == (
        [
            (3, {"image": "a.png", "caption": "two\nlines"}),
            (7, {"image": "b.png", "caption": 'say "hi", friend'}),
        ],
        [],
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("image,caption\na.png,a dog, running\n", 2, "3 fields, where the first line names 2 columns; " + QUOTE),
        ("image,caption\na.png,x\nb.png\n", 3, "1 field, where the first line names 2 columns; " + QUOTE),
        ("image,caption,split\na.png,x\n", 2, "2 fields, where the first line names 3 columns; " + QUOTE),
        ('image,caption\na.png,"a "dog" runs"\n', 2, "not CSV (',' expected after '\"')"),
        ('image,caption\na.png,x\nb.png,"open\nc.png,y\n', 3, "a double quote is open to the end of the file"),
        ('"image"x,caption\na.png,x\n', 1, "not CSV"),
        ('image,"caption\na.png,x\n', 1, "a double quote is open to the end of the file"),
        ("image,caption\na.png," + "x" * 200_000 + "\n", 2, "a field of more than 131,072 characters"),
    ],
)
def test_a_row_that_is_not_as_it_should_be(text, line, said):
    try:
        _, problems = rows(text)
    except AuroraError as error:
        problems = [str(error)]
    assert len(problems) == 1 and problems[0].startswith(f"a.csv, line {line}: ") and said in problems[0]
    assert len(problems[0]) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a.csv is empty; its first line must be image,caption"),
        ("image,caption,image\na,b,c\n", "line 1: the column 'image' stands twice; keep one"),
        ('im"age,caption\na,b\n', 'line 1: no column image among im"age, caption'),
        ("image\tcaption\na\tb\n", r"no column image and no column caption among image\tcaption"),
        ("i\0m\0a\0g\0e\0", "line 1: holds NUL, so it is no text; save the file as UTF-8"),
        ("image,caption\na.png,x\0y\n", "line 2: holds NUL"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(text, said):
    with pytest.raises(AuroraError) as caught:
        rows(text)
    assert said in str(caught.value)


def test_spaces_about_column_names_do_not_matter():
    assert rows(" image , caption\na.png,x\n")[0] == [(2, {"image": "a.png", "caption": "x"})]


def folder(path, name, data):
    made = path / "mine"
    made.mkdir()
    draw("circle", "red", 16).save(made / "a.png")
    (made / name).write_bytes(data)
    return made


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
PAIR = rb"\ud83d"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("captions.csv", b"image,caption\na.png,a dog, running\n", "captions.csv, line 2: 3 fields"),
        ("captions.csv", "image,caption\na.png,Größe\n".encode("latin-1"), "captions.csv, line 2: not UTF-8; save"),
        ("captions.csv", LFS, "captions.csv is a pointer of git-lfs"),
        ("captions.csv", b"", "captions.csv is empty"),
        ("captions.jsonl", LFS, "captions.jsonl is a pointer of git-lfs"),
        ("captions.jsonl", b"", "captions.jsonl holds no rows"),
        ("captions.jsonl", b'{"image": "a.png", "caption": "x ' + PAIR + b'"}', "line 1: holds half of a surrogate"),
        ("captions.jsonl", b'{"image": "a.png' + PAIR + b'", "caption": "x"}', "line 1: holds half of a surrogate"),
        ("captions.jsonl", b'{"image": "a.png", "caption": "x", "id": "' + PAIR + b'"}', "line 1: holds half of a"),
        (
            "questions.jsonl",
            b'{"image": "a.png", "question": "x", "answer": {"' + PAIR + b'": 1}}',
            "line 1: holds half",
        ),
        ("captions.jsonl", b'\n{"image": "a.png", "id": ' + b"9" * 5000 + b"}", "line 2: Exceeds the limit"),
        ("captions.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        (
            "captions.jsonl",
            b'{"image": "a.png", "caption": ' + b"[" * 500 + b"]" * 500 + b"}",
            '"caption" must be text',
        ),
        ("captions.jsonl", b'{"image": "a.png", "caption": "' + b"x" * 2_000_000 + b'"}', "2,000,000 characters"),
        ("captions.jsonl", b'{"image": "a\\u0000.png", "caption": "x"}', r"picture a\x00.png is missing"),
        ("captions.jsonl", b'{"image": "a.png", "caption": "x", "id": true}', '"id" is True; it must be text'),
        ("captions.jsonl", b'{"image": "a.png", "caption": "x", "id": [[[1]]]}', '"id" is a list of 1; it must'),
        ("captions.jsonl", b'{"image": ["a.png"], "caption": "x"}', 'no "image"'),
    ],
)
def test_texts_that_are_not_as_they_should_be(tmp_path, name, data, said):
    with pytest.raises(AuroraError) as caught:
        read_folder(folder(tmp_path, name, data))
    message = str(caught.value)
    assert said in message and name in message and "\n" not in message and len(message) < 500


def test_blanks_among_answers_are_read_the_same_in_every_layout(tmp_path):
    """One annotator of ten who said nothing is none of the answers, and one of ten all the same."""
    said = ["red"] * 6 + [" "] + ["blue"] * 3
    made = folder(
        tmp_path,
        "questions.jsonl",
        json.dumps({"image": "a.png", "question": "x?", "answer": said, "split": "train"}).encode(),
    )
    found = {"own": read_folder(made)}
    for layout in (False, True):
        root = benchmarks.vqav2(tmp_path / str(layout), layout)
        if layout:
            table = root / "v2_mscoco_train2014_annotations.json"
            value = json.loads(table.read_text())
            value["annotations"][0]["answers"] = [{"answer": text} for text in said]
        else:
            table = root / "vqa_train.json"
            value = json.loads(table.read_text())
            value[0]["answer"] = said
        table.write_text(json.dumps(value))
        found[f"official {layout}"] = load_dataset("vqav2", root)
    for data in found.values():
        question = data[0]
        assert question.answers == ("red", "blue") and question.weights == (0.6, 0.3)
        assert len(question.references) == 10 and sum(not text.strip() for text in question.references) == 1
        assert all(candidate.strip() for candidate in data.candidates)


@pytest.mark.parametrize("layout", [False, True])
def test_no_answer_but_blanks_is_refused(tmp_path, layout):
    root = benchmarks.vqav2(tmp_path / "v", layout)
    table = root / ("v2_mscoco_train2014_annotations.json" if layout else "vqa_train.json")
    value = json.loads(table.read_text())
    if layout:
        value["annotations"][1]["answers"] = [{"answer": ""}] * 10
    else:
        value[1]["answer"] = [""] * 10
    table.write_text(json.dumps(value))
    assert "row 2: " in refusal("vqav2", root)


# Benchmarks


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"key,vid_key,video_id,sentence\nret0,msr0,video24,a dog, running\n", "line 2: 5 fields, where the first"),
        ("key,vid_key,video_id,sentence\nret0,msr0,video24,Größe\n".encode("latin-1"), "line 2: not UTF-8"),
        (b"key;video_id;sentence\n", "line 1: no column video_id and no column sentence among key;video_id;sentence"),
        (b'key,video_id,"sentence\n', "line 1: not CSV"),
        (b"", "is empty; download it again"),
        (LFS, "is a pointer of git-lfs"),
    ],
)
def test_the_list_of_1k_a(tmp_path, data, said):
    root = benchmarks.msrvtt(tmp_path / "m", "one")
    (root / "MSRVTT_JSFUSION_test.csv").write_bytes(data)
    message = refusal("msrvtt", root)
    assert said in message and "MSRVTT_JSFUSION_test.csv" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"image": 1' + b"0" * 5000 + b"}]", "Exceeds the limit"),
        (b'[{"image": "' + PAIR + b'"}]', "half of a surrogate pair"),
        (b'[{"image":\n"\xff"}]', "line 2: not UTF-8"),
        (b'[{"image":\n"x"', "line 2: not JSON"),
        (b" ", "is empty; download it again"),
        (LFS, "is a pointer of git-lfs"),
    ],
)
def test_tables_that_are_not_whole(tmp_path, data, said):
    root = benchmarks.coco(tmp_path / "coco")
    (root / "coco_karpathy_test.json").write_bytes(data)
    message = refusal("coco", root)
    assert said in message and "coco_karpathy_test.json" in message


def test_lines_of_jsonl_that_are_broken_are_named(tmp_path):
    root = benchmarks.didemo(tmp_path / "d")
    table = root / "test.jsonl"
    table.write_text(table.read_text() + '\n{"clip_name": \n')
    assert "test.jsonl, line 10: not JSON (Expecting value at column 15); it may be cut off" in refusal("didemo", root)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("coco", lambda root: benchmarks.coco(root, original=True)),
        ("vqav2", lambda root: benchmarks.vqav2(root, official=True)),
        ("msrvtt-qa", benchmarks.msrvtt_qa),
        ("msrvtt", lambda root: benchmarks.msrvtt(root, "one")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_any_kind_in_the_place_of_names_and_numbers(tmp_path, name, make):
    """In every field of every table, one after the other: they are read, or told in a message that people read."""
    root = make(tmp_path / name)
    for table in root.glob("*.json"):
        whole = table.read_text()
        parts = json.loads(whole)
        for key, part in (parts if isinstance(parts, dict) else {None: parts}).items():
            for field in part[1] if isinstance(part, list) and part and isinstance(part[1], dict) else ():
                for value in ([1], {"a": 1}, True, 10**400, "x" * 1_000_000, None, -1.5):
                    changed = json.loads(whole)
                    (changed if key is None else changed[key])[1][field] = value
                    table.write_text(json.dumps(changed))
                    try:
                        load_dataset(name, root)
                    except AuroraError as error:
                        assert "\n" not in str(error) and len(str(error)) < 2500
        table.write_text(whole)
