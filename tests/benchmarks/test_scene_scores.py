"""The table of the packs of scenes: scores that need no model, by hand and by simulation."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from aurora_petl.data.rows import ImageTextDataset, Item, Question, QuestionDataset
from aurora_petl.evaluation.recall import ranks_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def table():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("scene_scores")


def test_chance_of_retrieval_is_that_of_random_orders(table):
    captions = [3, 1, 2, 3, 3, 2, 1, 3, 3, 3, 2, 2]
    items = [Item(f"{row}", ("x",) * count, f"{row}", "test", row) for row, count in enumerate(captions)]
    found = table.chance_of_retrieval(ImageTextDataset("toy", items, files=None))
    texts = [item.id for item in items for _ in item.captions]
    rng = np.random.default_rng(0)
    ids = [item.id for item in items]
    ranks = np.array([ranks_of(rng.random((len(ids), len(texts))), ids, texts) for _ in range(2000)])
    for k in (1, 5, 10):
        assert found[f"text_recall@{k}"] == pytest.approx(100 * (ranks <= k).mean(), abs=1)
        assert found[f"image_recall@{k}"] == pytest.approx(100 * k / 12)
    assert found["mean_recall"] == pytest.approx(sum(value for key, value in found.items() if "@" in key) / 6)


def questions(split, rows):
    made = [
        Question("p", "?", (answer,), (1.0,), f"{row}-{kind}", split, row, references=(answer,))
        for row, (kind, answer) in enumerate(rows)
    ]
    return QuestionDataset("toy", made, files=None)


def test_answers_without_looking(table):
    known = questions("train", [("count", "two")] * 3 + [("count", "one")] + [("exists", "yes"), ("exists", "no")] * 2)
    asked = questions("test", [("count", "two"), ("count", "one"), ("exists", "yes"), ("exists", "no")])
    found = table.answers_without_looking(known, asked)
    assert found == {"chance": 50.0, "majority": 25.0, "majority of its kind": 50.0}  # two; two and no
    assert table.kinds_of_answers(["two", "two", "yes", "no"], asked) == {"count": 50.0, "exists": 100.0}


def test_tables_go_between_the_marks(table):
    insert = import_module("pages").insert
    page = f"before\n{table.MARKS[0]}\n\nold\n\n{table.MARKS[1]}\nafter\n"
    scores = {"text_recall@1": 1.0, "image_recall@1": 2.0, "mean_recall": 3.0}
    blind = {"chance": 30.0, "majority": 10.0, "majority of its kind": 40.0}
    results = [
        {"pack": "scenes-ink", "chance": scores, "untuned": scores},
        {"pack": "scenes-questions", "blind": blind, "untuned": {"accuracy": 35.0}},
    ]
    written = insert(page, table.in_tables(results), table.MARKS)
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    assert "| `scenes-ink` | 1.00, 2.00, 3.00 | 1.0, 2.0, 3.0 |" in written
    assert "| `scenes-questions` | 30.0 | 10.0 | 40.0 | 35.0 |" in written
    assert insert(written, "new", table.MARKS).count("new") == 1
    with pytest.raises(SystemExit, match="lacks the marks"):
        insert("no marks", "new", table.MARKS)


def test_the_page_has_the_marks(table):
    page = (BENCHMARKS.parent / "docs/blip-mini.md").read_text()
    assert all(page.count(mark) == 1 for mark in table.MARKS)


def test_chance_needs_no_model_of_a_real_pack(table):
    found = table.chance_of_retrieval(table.load_dataset("scenes-ink").split("test"))
    assert found["image_recall@1"] == pytest.approx(100 / 400) and 0.2 < found["text_recall@1"] < 0.3
