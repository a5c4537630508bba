"""VQAv2 from the official pairs and BLIP's merged tables: answers, weights, candidates, and what wrong rows say."""

from collections import Counter

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.data.protocol import question_text, shares
from tests.helpers import benchmarks
from tests.helpers.benchmarks import annotators, drawn
from tests.helpers.rewrite import refusal, rewrite

QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


@pytest.fixture
def official(tmp_path):
    return benchmarks.vqav2(tmp_path / "v", official=True)


@pytest.fixture
def merged(tmp_path):
    return benchmarks.vqav2(tmp_path / "v")


@pytest.mark.parametrize("layout", [False, True])
def test_questions_answers_and_weights(tmp_path, layout):
    data = load_dataset("vqav2", benchmarks.vqav2(tmp_path / "v", layout))
    assert Counter(question.split for question in data) == {"train": 48, "validation": 24, "test": 24}
    found = {question.id: question for question in data}
    for it in drawn():
        for n, (asked, answer, kind) in enumerate(it.questions()):
            question = found[str(1000 * it.number + n)]
            assert question.question == asked.lower() and question.image.endswith(f"{it.number:012d}.jpg")
            if it.split == "test":  # its answers are not published
                assert question.answers == question.weights == question.references == ()
                continue
            said = annotators(answer, it.number)
            assert question.references == tuple(said)
            expected = {text: said.count(text) / 10 for text in said}
            assert dict(zip(question.answers, question.weights, strict=True)) == pytest.approx(expected)
            assert question.kind == (kind if layout else "")
    data.check()


def test_shares():
    assert shares(["a", "b", "a", "c"]) == (("a", "b", "c"), (0.5, 0.25, 0.25))
    assert shares(["a", "", "a", "b"]) == (("a", "b"), (0.5, 0.25))  # an annotator who said nothing still counts


def test_questions_are_written_as_blip_writes_them():
    assert question_text('What is "on" the sign (left)? ') == "what is on the sign left?"
    assert len(question_text("w " * 80).split()) == 50
    assert question_text("...") == "..."  # rather than nothing


def test_candidates_are_the_most_frequent_training_answers(official):
    data = load_dataset("vqav2", official)
    counts = Counter(
        said for it in drawn() if it.split == "train" for _, a, _ in it.questions() for said in annotators(a, it.number)
    )
    assert data.candidates == tuple(sorted(counts, key=lambda answer: (-counts[answer], answer)))
    assert data.candidates[0] == "yes" and data.split("test").candidates == data.candidates


def test_blip_s_answer_list_is_taken_where_it_lies(tmp_path):
    root = benchmarks.vqav2(tmp_path / "v", answer_list=True)
    assert load_dataset("vqav2", root).candidates[:2] == ("red", "green")
    rewrite(root / "answer_list.json", lambda value: [*value, 3])
    assert "is not a list of answers" in refusal("vqav2", root)


def test_visual_genome_joins_training_where_it_is_named(merged):
    benchmarks.visual_genome(merged)
    assert len(load_dataset("vqav2", merged)) == 96
    data = load_dataset("vqav2", merged, {"vg": "vg_qa.json"})
    more = [question for question in data if question.id.startswith("vg-")]
    assert [(q.id, q.image, q.split, q.answers, q.weights) for q in more] == [
        (f"vg-{986769 + n}", f"VG_100K/{n}.jpg", "train", (it.colour,), (0.2,)) for n, it in enumerate(drawn()[:2], 1)
    ]


@pytest.mark.parametrize("layout", [False, True])
def test_trainval_trains_on_both_but_for_some_pictures(tmp_path, layout):
    data = load_dataset("vqav2-trainval", benchmarks.vqav2(tmp_path / "v", layout))
    pictures = {split: {q.image for q in data if q.split == split} for split in ("train", "validation", "test")}
    assert [len(found) for found in pictures.values()] == [22, 2, 8]
    assert not pictures["train"] & pictures["validation"]
    assert sum(q.split == "validation" for q in data) == 6  # all three questions of either picture


def test_the_test_dev_questions_will_do(official):
    table = official / "v2_OpenEnded_mscoco_test2015_questions.json"
    rewrite(table, lambda value: value.update(data_subtype="test-dev2015"))
    table.rename(official / "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    assert len(load_dataset("vqav2", official).split("test")) == 24


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": 4}, 'row 2: "question" is 4, not text'),
        ({"question_id": "x"}, 'row 2: "question_id" and "image_id" must be numbers'),
        ({"image_id": 77}, "1 of 33 images are missing under"),
        ({"question_id": 5}, f"row 2: question 5 has no annotation in {ANNOTATIONS}"),
    ],
)
def test_wrong_questions(official, change, said):
    rewrite(official / QUESTIONS, lambda value: value["questions"][1].update(change))
    assert said in refusal("vqav2", official)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question_id": 5}, f"{ANNOTATIONS}, row 2: the annotation of question 5, which {QUESTIONS} does not ask"),
        ({"question_id": 0}, f"{ANNOTATIONS}, row 2: question 0 is annotated twice"),
        ({"answers": []}, f"{QUESTIONS}, row 2: the annotation of question 1 has no list of answers"),
        ({"answers": [{"answer": 3}]}, "the annotation of question 1 has no list of answers"),
    ],
)
def test_wrong_annotations(official, change, said):
    rewrite(official / ANNOTATIONS, lambda value: value["annotations"][1].update(change))
    assert said in refusal("vqav2", official)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question_id": 0}, "vqa_train.json, row 2: question id 0 stands in vqa_train.json, row 1, as well"),
        ({"answer": []}, 'vqa_train.json, row 2: "answer" is empty'),
        ({"answer": ["x", None]}, 'row 2: "answer" has None, not text'),
        ({"question": ""}, "row 2: \"question\" is '', not text"),
        ({"image": "gone.jpg"}, "1 of 33 images are missing"),
    ],
)
def test_wrong_merged_rows(merged, change, said):
    rewrite(merged / "vqa_train.json", lambda rows: rows[1].update(change))
    assert said in refusal("vqav2", merged)


def test_questions_of_one_id_in_two_splits(official):
    rewrite(
        official / "v2_OpenEnded_mscoco_test2015_questions.json",
        lambda value: value["questions"][0].update(question_id=1),
    )
    assert f"question id 1 stands in {QUESTIONS}, row 2, as well" in refusal("vqav2", official)


def test_a_file_that_is_not_the_published_one(official):
    rewrite(official / QUESTIONS, lambda value: value.pop("data_subtype") and None)
    assert 'has no "data_subtype"; is it the published file?' in refusal("vqav2", official)
    (official / ANNOTATIONS).unlink()
    assert f"lacks {ANNOTATIONS} (files.train_answers), has {QUESTIONS}" in refusal("vqav2", official)
