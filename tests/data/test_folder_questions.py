"""A user's own folder of questions: the forms of answers, the splits, and what a wrong row is told."""

import json

import pytest

from aurora_petl.data import ImageTextDataset, QuestionDataset, load_dataset
from aurora_petl.data.folder import read_folder
from aurora_petl.data.rows import SPLITS
from tests.helpers.folders import GOOD, folder, refusal

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
        ({"split": "part"}, "split 'part' is none of"),
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
