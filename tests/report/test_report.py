"""Tables, JSON and pictures of a report."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from aurora_petl import report
from aurora_petl.report import GalleryQuery, Hit, sheets

RECALLS = {key: float(n) for n, key in enumerate(report.RECALLS)}


def test_table_aligns_first_left_and_others_right():
    found = report.table(["method", "weights"], [["LoRA", "1,234,567"], ["a long name", "9"]]).splitlines()
    assert found == ["method         weights", "-" * 22, "LoRA         1,234,567", "a long name          9"]


def test_markdown_table_escapes_pipes():
    found = report.markdown_table(["method", "R@1"], [["a|b", "1.0"]]).splitlines()
    assert found == ["| method | R@1 |", "| --- | ---: |", "| a\\|b | 1.0 |"]


@given(st.text(max_size=300), st.integers(40, 400), st.integers(1, 5))
@example("a\u2029b", 100, 1)  # Pillow cannot lay out a paragraph separator
def test_wrapped_lines_fit_and_lose_nothing_but_the_end(text, width, most):
    font = report.load_font(13)
    lines = report.wrap_text(text, width, font, most)
    assert 1 <= len(lines) <= most
    assert all(font.getlength(line) <= width for line in lines)
    whole = "".join(text.split())
    shown = "".join("".join(lines).split())
    assert shown == whole or (shown.endswith("...") and whole.startswith(shown[:-3]))


def test_wrap_breaks_between_words():
    font = report.load_font(13)
    assert report.wrap_text("one two three", int(font.getlength("one two")) + 1, font, 5) == ["one two", "three"]


@pytest.mark.parametrize("history", [[], [{"step": 0, "eval_mean_recall": 20.0}, {"step": 2, "loss": math.nan}]])
def test_curve_of_a_short_history(tmp_path, history):
    report.plot_curve(history, tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size == (975, 546)


def _picture(colour):
    return Image.new("RGB", (40, 20), colour)


def _green(path):
    """Pixels of the colour of right answers."""
    return int((np.asarray(Image.open(path)) == sheets._GREEN).all(-1).sum())


def test_gallery_frames_right_pictures_only(tmp_path):
    wrong, right = (Hit(_picture("red"), None, correct, 0.5) for correct in (False, True))
    for name, after in (("wrong", [wrong, wrong]), ("one", [right, wrong]), ("two", [right, right])):
        report.query_gallery(tmp_path / name, [GalleryQuery("a cat", None, [wrong, wrong], after)])
    assert _green(tmp_path / "wrong") == 0
    assert 4 * 80 * 4 < _green(tmp_path / "one") < _green(tmp_path / "two") == 2 * _green(tmp_path / "one")


def test_gallery_takes_any_text_and_uneven_blocks(tmp_path):
    texts = ["naïve Größe Ελληνικά", "猫 🐱", "", "x" * 500, "a\tb\nc", "many words " * 99]
    hits = [Hit(None, text, n == 1, 0.1) for n, text in enumerate(texts[:5])]
    queries = [GalleryQuery(text, None, [Hit(_picture("blue"), None, False, 0.1)] * 5, []) for text in texts]
    queries.append(GalleryQuery(None, _picture("blue"), hits, hits[:2]))
    report.query_gallery(tmp_path / "gallery.png", queries)
    narrow = tmp_path / "narrow.png"
    report.query_gallery(narrow, [GalleryQuery("a", None, [], queries[0].before)])
    assert Image.open(tmp_path / "gallery.png").width == Image.open(narrow).width
    report.query_gallery(tmp_path / "empty.png", [])


def test_answers_tick_right_ones_only(tmp_path):
    green = []
    for before, after in ((False, False), (False, True), (True, True)):
        asked = report.AnsweredQuestion(_picture("blue"), "is it " * 60, "yes", ("yes", before), ("yes", after))
        report.answer_gallery(tmp_path / "gallery.png", [asked] * 2)
        green.append(_green(tmp_path / "gallery.png"))
    assert green[0] == 0 < green[1] and green[2] == 2 * green[1]
    report.answer_gallery(tmp_path / "empty.png", [])


def test_metrics_of_other_tasks_need_no_legend():
    rows = {"test": {"accuracy": 20.0, "yes/no": 50.0}, "zero_shot_test": {"accuracy": 10.0, "yes/no": 60.0}}
    rows |= {"weights": {"trainable": 10, "model": 1000}, "steps": 3, "train_seconds": 1.0}
    found = [line.split() for line in report.run_summary(rows).splitlines()]
    assert found[0] == ["zero-shot", "tuned", "gain", "p"]
    assert found[2:4] == [["accuracy", "10.0", "20.0"], ["yes/no", "60.0", "50.0"]]
    summary = report.run_summary(rows | {"test": {}, "zero_shot_test": {}, "test_rows": 9})
    assert summary.splitlines()[0] == "no scores: split test comes without right answers"


def _finished(best_step, ranking="itc", beta=5.0):
    rows = {name: RECALLS | {"mean_recall": mean} for name, mean in (("test", 60.0), ("zero_shot_test", 50.0))}
    if ranking == "itm":
        rows |= {f"{name}_itc_only": found | {"mean_recall": 40.0} for name, found in rows.items()}
    chosen = {view: {"ranking": ranking, "beta": beta} for view in ("tuned", "zero_shot")}
    weights = {"trainable": 10, "model": 1000}
    intervals = {name: {"mean_recall": (mean - 6, mean + 5)} for name, mean in (("test", 60), ("zero_shot_test", 50))}
    gain = {"test": {"mean_recall": {"value": 10.0, "low": -2.0, "high": 22.0, "p": 0.09}}}
    rows |= {"intervals": intervals, "gain": gain, "test_pictures": 300, "test_rows": 300}
    return rows | {"weights": weights, "steps": 8, "train_seconds": 1.0, "best_step": best_step, "chosen": chosen}


def test_summary_of_a_run_ranked_by_similarity():
    lines = report.run_summary(_finished(4)).splitlines()
    assert lines[8].split("  ")[0] == "mean"
    assert lines[8].endswith("50.0 [44.0, 55.0]  60.0 [54.0, 65.0]  +10.0 [-2.0, +22.0]  0.090")
    assert lines[13] == "caution: 300 test pictures cannot tell a gain of mean recall below 12.0 points from chance"
    assert lines[15] == "tuned ranks by ITC similarity alone, as aurora search does: the best on the validation split"
    assert lines[16] == "10 weights trained (1.00% of 1,000) in 8 steps and 1 s; those of step 4 are kept"


def test_a_gain_that_can_be_told_needs_no_caution():
    metrics = _finished(4)
    metrics["gain"]["test"]["mean_recall"]["low"] = 0.5
    assert "caution" not in report.run_summary(metrics)
    assert "caution" in report.run_summary(metrics | {"test_pictures": report.FEW - 1})


def test_summary_of_a_run_ranked_by_matching_shows_the_similarity_as_well():
    lines = report.run_summary(_finished(4, "itm", 0.0)).splitlines()
    assert lines[10].split("  ")[0] == "ITC only" and lines[18].split() == ["mean", "40.0", "40.0"]
    assert lines[-2].startswith("tuned ranks by ITM match logit, as aurora search does with --rerank: ")


def test_summary_of_a_run_that_kept_the_untuned_model():
    lines = report.run_summary(_finished(0)).splitlines()
    assert lines[0].split() == ["zero-shot"] and not any(line.startswith("tuned") for line in lines)
    assert lines[-2] == "tuning did not help on the validation split: the untuned model is kept"
    assert lines[-1].endswith("in 8 steps and 1 s")
