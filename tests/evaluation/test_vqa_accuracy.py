"""VQAv2's accuracy rule by rule, exact match, and the upload."""

import pytest

from aurora_petl.data.rows import Question
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation.vqa_accuracy import (
    CONTRACTIONS,
    exact_match,
    normalize,
    question_score,
    upload_rows,
    vqa_accuracy,
    vqa_metrics,
)


def question(**fields) -> Question:
    plain = dict(image="a.jpg", question="?", answers=("cat",), weights=(1.0,), id="7", split="test", line=1)
    return Question(**plain | fields)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Cat", "cat"),
        ("an apple and a pear", "apple and pear"),
        ("zero", "0"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("someone", "someone"),  # a numeral is a word of its own
        ("two-seater", "2 seater"),  # a mark between letters becomes a space
        ("two - seater", "2 seater"),
        ("black-and white -ish", "blackand white ish"),  # beside a space anywhere it vanishes everywhere
        ("yes, it is", "yes it is"),
        ("yes,it is", "yes it is"),
        ("1,000", "1000"),
        ("1,000-2,000 m/s", "10002000 ms"),  # a comma between digits: all marks vanish
        ("1,a", "1"),  # not between digits: a space, and the article goes
        ("no.", "no"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("u.s.a.", "usa"),
        (".5", ".5"),
        ("5.", "5"),
        ("a.m. or p.m.", "am or pm"),
        ("dont", "don't"),
        ("Couldntve", "couldntve"),  # of two apostrophes only one may be missing
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("hell", "hell"),
        ("somebody'd", "somebodyd"),
        ("its: here", "its: here"),  # the colon is no mark
        ("it's", "it's"),
        ("50%", "50%"),
        ("(left)", "left"),
        ("what?!", "what"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normal_form(answer, normal):
    assert normalize(answer) == normal


def test_only_the_first_32_periods_go():
    assert normalize("." * 40) == "." * 8


def test_contractions_only_move_apostrophes():
    assert len(CONTRACTIONS) == 114
    assert all(bare.replace("'", "") == word.replace("'", "") for bare, word in CONTRACTIONS.items())


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_accuracy_of_ten_annotators(matches, accuracy):
    """k of ten agree with the answer: k subsets lack one of them, the other 10 - k lack another."""
    by_hand = (matches * min((matches - 1) / 3, 1) + (10 - matches) * min(matches / 3, 1)) / 10
    assert vqa_accuracy("cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(accuracy)
    assert by_hand == pytest.approx(accuracy)


def test_answers_are_normalised_only_where_annotators_disagree():
    assert vqa_accuracy("the cat", ["cat"] * 10) == 0
    assert vqa_accuracy("The cat!", ["cat"] * 9 + ["a cat"]) == 1
    assert vqa_accuracy("two", ["2"] * 5 + ["two"] * 5) == 1
    assert vqa_accuracy(" cat\n", ["cat", "cat\t"] * 5) == 1  # white space is nothing to disagree about


def test_accuracy_needs_references():
    with pytest.raises(ValueError, match="no references"):
        vqa_accuracy("cat", [])


def test_exact_match_but_for_case_and_spaces():
    assert exact_match(" Black  cat", ["black cat"]) == 1
    assert exact_match("cat", ["black cat", "dog"]) == 0
    assert exact_match("dog", ["black cat", "dog"]) == 1
    assert exact_match("the dog", ["dog"]) == 0


def test_scores_by_what_is_known():
    assert question_score("cat", question(references=("cat",) * 3 + ("dog",) * 7)) == pytest.approx(0.9)
    assert question_score("cat", question()) == 1
    assert question_score("cat", question(answers=(), weights=())) is None


def test_metrics_by_kind_in_the_benchmarks_order():
    kinds = ("other", "number", "yes/no", "other", "")
    found = vqa_metrics([1.0, 0.5, 0.0, 0.0, 1.0], [question(kind=kind) for kind in kinds])
    assert found == {"accuracy": 50.0, "yes/no": 0.0, "number": 50.0, "other": 50.0}
    assert list(found) == ["accuracy", "yes/no", "number", "other"]
    assert vqa_metrics([1.0, 0.0], [question(), question()]) == {"accuracy": 50.0}
    assert vqa_metrics([1.0, None], [question(), question()]) == {}


def test_upload_has_whole_numbers_for_ids():
    rows = upload_rows(["red", "2"], [question(id="262148000"), question(id="42")])
    assert rows == [{"question_id": 262148000, "answer": "red"}, {"question_id": 42, "answer": "2"}]
    with pytest.raises(AuroraError, match=r"q\.json, line 3: question id 'x7' is no number"):
        upload_rows(["red"], [question(id="x7", source="q.json", line=3)])


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_a_right_answer_counts_in_full_however_many_annotators_there_are(count):
    asked = Question("a.png", "what?", ("cat",), (1.0,), "1", "test", 1, references=("cat",) * count)
    assert (question_score("cat", asked), question_score("dog", asked)) == (1.0, 0.0)
