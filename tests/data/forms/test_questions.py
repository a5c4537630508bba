"""Questions and answers in the forms that people keep them in."""

import csv
import io
import json

import pytest

from aurora_petl import cli
from aurora_petl.data import load_dataset
from aurora_petl.data.rows import QuestionDataset
from tests.helpers import forms
from tests.helpers.form_cases import FEW, refusal
from tests.helpers.forms import lines, write

ASKED = [(e, "what is it, then?", f"no. {n // 2}") for n, e in enumerate(FEW)]
EXPECTED = sorted((e.name, e.split, question, (answer,)) for e, question, answer in ASKED)


def table(path):
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["image", "question", "answer", "split", "caption"])
    rows.writerows([e.name, question, answer, e.split, "not this"] for e, question, answer in ASKED)
    write(path / "some.csv", text.getvalue())


def tables(path):
    """A file for each split, with VQAv2's answers."""
    for split, part in forms.by_split(FEW):
        rows = [
            {"image": e.name, "question": question, "answers": [{"answer": answer, "answer_id": n} for n in range(3)]}
            for e, question, answer in ASKED
            if e in part
        ]
        write(path / f"vqa_{split}.json", json.dumps(rows))


def imagefolder(path):
    rows = [{"file_name": e.name, "question": q, "answer": a, "split": e.split} for e, q, a in ASKED]
    write(path / "metadata.jsonl", lines(rows))


def llava(path):
    rows = [
        {
            "id": e.name,
            "image": e.name,
            "split": e.split,
            "conversations": [
                {"from": "human", "value": f"<image>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
        for e, question, answer in ASKED
    ]
    write(path / "llava.json", json.dumps([*rows, {"id": "bare", "conversations": rows[0]["conversations"]}]))


def messages(path):
    rows = [
        {
            "split": e.split,
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "image", "image": e.name}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
        }
        for e, question, answer in ASKED
    ]
    write(path / "some.jsonl", lines(rows))


@pytest.mark.parametrize("form", [table, tables, imagefolder, llava, messages])
def test_the_same_questions_in_every_form_are_the_same_data(tmp_path, form):
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    form(tmp_path / "mine")
    found = load_dataset(tmp_path / "mine")
    assert isinstance(found, QuestionDataset) and found.image(0).size[0] >= 16
    assert sorted((row.image, row.split, row.question, row.answers) for row in found) == EXPECTED
    assert len({row.id for row in found}) == 12
    assert ": 12 questions about 12 pictures (train 8, validation 2, test 2)" in found.note
    assert found.candidates == tuple(f"no. {n}" for n in (0, 3, 1, 2, 4, 5)) or set(found.candidates) <= {
        f"no. {n}" for n in range(6)
    }
    assert (form is llava) == found.note.endswith("; 1 rows without a picture left out")


def test_conversations_in_tables_of_the_library(tmp_path, library):
    """LLaVA's, those of chat templates and the Cauldron's, with one picture a row, alone or in a list."""
    human, gpt = "human", "gpt"
    turns = {
        "conversations": lambda q, a: [{"from": human, "value": f"<image>\n{q}"}, {"from": gpt, "value": a}],
        "messages": lambda q, a: [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": q}]},
            {"role": "assistant", "content": [{"type": "text", "text": a}]},
        ],
        "texts": lambda q, a: [{"user": q, "assistant": a, "source": "some"}, {"user": "and?", "assistant": "no"}],
    }
    for name, made in turns.items():
        several = name != "conversations"
        pictures = [[e.data] if several else e.data for e in FEW]
        empty = [] if several else None
        rows = {
            "images" if several else "image": [*pictures, empty],
            name: [*(made(question, answer) for _, question, answer in ASKED), made("what?", "it")],
            "split": [*(e.split for e in FEW), "train"],
        }
        table = library.Dataset.from_dict(rows)
        kind = library.List(library.Image()) if several else library.Image()
        table.cast_column("images" if several else "image", kind).to_parquet(tmp_path / f"{name}.parquet")
        for data in (table, library.load_dataset("parquet", data_files=str(tmp_path / f"{name}.parquet"))["train"]):
            data.save_to_disk(tmp_path / "saved")  # as bytes, and as pictures
            found = load_dataset(tmp_path / "saved")
            said = [(row.split, row.question, row.answers) for row in found if row.question != "and?"]
            assert said == [(e.split, question, (answer,)) for e, question, answer in ASKED]
            assert len(found) == len({row.id for row in found}) == (24 if name == "texts" else 12)
            assert found.note.endswith("; 1 rows without a picture left out")
            assert found.split("test").image(0).size == (20, 20)


@pytest.mark.parametrize("name", ["questions.jsonl", "some.jsonl"])
def test_questions_without_an_answer_are_refused_or_left_out(tmp_path, name):
    rows = [{"image": e.name, "question": q, "answer": a, "split": e.split} for e, q, a in ASKED]
    for split in ("test", "train"):
        number = next(n for n, row in enumerate(rows) if row["split"] == split)
        rows[number]["answer"] = None
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    write(tmp_path / "mine" / name, lines(rows))
    message = refusal(tmp_path / "mine")
    assert message == f'mine/{name}, line {number + 1}: no "answer", which a question of split train must have'
    found = load_dataset(tmp_path / "mine", broken="skip")
    assert len(found) == 11 and found.note.endswith("1 questions without an answer left out")


def test_rows_of_the_library_without_a_picture_or_with_several_are_told(tmp_path, library):
    asked = [{"user": "what?", "assistant": "it"}]
    pictures = [[FEW[0].data], [FEW[0].data, FEW[1].data], *[[FEW[1].data]] * 3]
    library.Dataset.from_dict({"images": pictures, "texts": [asked] * 5}).save_to_disk(tmp_path / "questions")
    assert refusal(tmp_path / "questions") == "questions/rows, picture 2: 2 pictures; Aurora takes one a row"
    table = library.Dataset.from_dict({"image": [FEW[0].data, None, *[FEW[1].data] * 3], "caption": [*"abcde"]})
    table.save_to_disk(tmp_path / "captions")
    assert refusal(tmp_path / "captions") == "captions/rows, picture 2: it has no picture"
    for data in ("questions", "captions"):
        assert len(load_dataset(tmp_path / data, broken="skip")) == 4


def test_questions_in_tables_of_the_library(tmp_path, library):
    rows = {
        "image": [e.data for e in FEW],
        "question": [question for _, question, _ in ASKED],
        "answers": [[{"answer": answer, "answer_confidence": "yes"}] for *_, answer in ASKED],
        "split": [e.split for e in FEW],
    }
    (tmp_path / "mine").mkdir()
    library.Dataset.from_dict(rows).to_parquet(tmp_path / "mine/some.parquet")
    found = load_dataset(tmp_path / "mine")
    assert [(row.split, row.question, row.answers) for row in found] == [
        (e.split, question, (answer,)) for e, question, answer in ASKED
    ]
    assert found.note.startswith("reads parquet with pictures in it: 12 questions about 12 pictures")
    assert found.split("test").image(0).size == (20, 20)
    rows["question"][3] = ""
    library.Dataset.from_dict(rows).to_parquet(tmp_path / "mine/some.parquet")
    assert refusal(tmp_path / "mine") == 'mine/some.parquet, row 4: "question" must be text'


def test_columns_of_questions_by_option_and_captions_of_a_table_with_both(tmp_path):
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    table(tmp_path / "mine")
    assert load_dataset(tmp_path / "mine", files={"caption_column": "caption"})[0].captions == ("not this",)
    named = {"question_column": "caption", "answer_column": "split", "split_column": "none"}
    row = load_dataset(tmp_path / "mine", files=named)[0]
    assert (row.question, row.answers) == ("not this", ("train",))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": "000.png", "question": "", "answer": "2"}, 'some.json, row 1: "question" must be text'),
        ({"image": "000.png", "question": "a?", "answer": ""}, 'row 1: "answer" must be text, a list of texts'),
        ({"image": "x.png", "question": "a?", "answer": "2"}, "some.json, row 1: picture x.png is missing from"),
        ({"image": "000.png", "question": "a?", "answer": None, "split": "train"}, 'row 1: no "answer", which'),
        ({"image": "000.png", "conversations": "a?"}, "some.json, row 1: its turns must be a list of objects"),
        ({"image": "000.png", "conversations": [{"value": 3}]}, "some.json, row 1: a turn says 3; it must be text"),
        (
            {"image": ["000.png", "001.png"], "conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]},
            "some.json, row 1: a turn says None",
        ),
    ],
)
def test_a_wrong_question_is_named_with_its_file(tmp_path, row, said):
    write(tmp_path / "mine/000.png", FEW[0].data)
    write(tmp_path / "mine/some.json", json.dumps([row]))
    assert said in refusal(tmp_path / "mine")


def test_train_takes_every_option_that_the_documents_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"pic": e.name, "says": e.captions[0], "part": e.split, "thing": n} for n, e in enumerate(FEW)]
    write(tmp_path / "mine/rows.jsonl", lines(rows))
    for example in FEW:
        write(tmp_path / "mine" / example.name, example.data)
    words = ["image_column=pic", "caption_column=says", "split_column=part", "id_column=thing", "rows=rows.jsonl"]
    words += ["form=table"]
    assert cli.main(["train", "--data", "mine", *(f"files.{word}" for word in words), "--out", "run", "--dry-run"]) == 0
    assert "12 pictures, 12 captions (train 8, validation 2, test 2)" in capsys.readouterr().err
    assert cli.main(["train", "--data", "mine", "files.captoin_column=says", "--out", "run", "--dry-run"]) == 1
    assert "files has no key 'captoin_column'; did you mean caption_column?" in capsys.readouterr().err
    assert cli.main(["train", "emoji", "files.caption_column=says", "--out", "run", "--dry-run"]) == 1
    assert "files.caption_column says how own data are read, and fluent-contrast is embedded" in capsys.readouterr().err
