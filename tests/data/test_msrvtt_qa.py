"""MSRVTT-QA from its own JSON and from ClipBERT's JSONL."""

from collections import Counter

import pytest

from aurora_petl.data import load_dataset
from tests.helpers import benchmarks
from tests.helpers.benchmarks import drawn
from tests.helpers.rewrite import refusal, rewrite

pytest.importorskip("av")


@pytest.mark.parametrize("jsonl", [False, True])
def test_questions_and_candidates(tmp_path, jsonl):
    data = load_dataset("msrvtt-qa", benchmarks.msrvtt_qa(tmp_path / "q", jsonl))
    assert data.clips and Counter(q.split for q in data) == {"train": 48, "validation": 24, "test": 24}
    expected = [(it, asked, answer) for it in drawn() for asked, answer, _ in it.questions()]
    for question, (it, asked, answer) in zip(data, expected, strict=True):
        assert question.image == f"videos/video{it.number}.mp4" and question.question == asked.lower()
        assert question.answers == question.references == (answer,) and question.weights == (1.0,)
        assert question.kind == asked.lower().split()[0]
    counts = Counter(answer for it, _, answer in expected if it.split == "train")
    assert data.candidates == tuple(sorted(counts, key=lambda answer: (-counts[answer], answer)))
    data.check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 0}, "train_qa.json, row 2: question id 0 stands in train_qa.json, row 1, as well"),
        ({"video_id": None}, 'train_qa.json, row 2: "video_id" must be a number or a name'),
        ({"video_id": 900}, "1 of 33 videos are missing"),
        ({"answer": 1}, 'train_qa.json, row 2: "answer" is 1, not text'),
        ({"question": ""}, "train_qa.json, row 2: \"question\" is '', not text"),
    ],
)
def test_wrong_rows(tmp_path, change, said):
    root = benchmarks.msrvtt_qa(tmp_path / "q")
    rewrite(root / "train_qa.json", lambda rows: rows[1].update(change))
    assert said in refusal("msrvtt-qa", root)


def test_a_folder_that_is_not_whole(tmp_path):
    root = benchmarks.msrvtt_qa(tmp_path / "q")
    (root / "test_qa.json").unlink()
    assert "lacks test_qa.json (files.test), has train_qa.json, val_qa.json" in refusal("msrvtt-qa", root)
