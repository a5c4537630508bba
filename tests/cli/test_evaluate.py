"""The command `aurora evaluate`: its figures, and the scores that it does not compare."""

import json

import pytest

from aurora_petl import devices
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.retrieval import Retrieval
from tests.helpers.commands import row
from tests.helpers.pictures import make_folder


def cells(figures: dict, metric: str) -> list[str]:
    """Words of a metric's row by both protocols."""
    found = []
    for protocol in ("metrics", "itc_only"):
        value, (low, high) = figures[protocol][metric], figures["intervals"][protocol][metric]
        found += [f"{value:.1f}", f"[{low:.1f},", f"{high:.1f}]"]
    return found


def test_evaluate_refuses_an_unknown_split_and_unknown_data(refusal, runs):
    message = refusal("evaluate", runs["heads"], "--split", "tset")
    assert message.startswith("shapes: no rows of split 'tset' (it has train 12, validation 6, test 6)")
    assert refusal("evaluate", runs["heads"], "--data", "nowhere").startswith("no dataset 'nowhere'")


def test_nothing_to_merge(refusal, runs):
    message = refusal("evaluate", runs["heads"], "--merge")
    assert message == f"{runs['heads']} was tuned by heads, which has nothing to merge"


def test_evaluate_refuses_a_run_that_did_not_finish(refusal, here):
    load_recipe().save(here / "recipe.yaml")
    message = refusal("evaluate", ".")
    assert message == "adapter has no adapter_model.safetensors; the run did not finish, continue it with --resume"


def test_merged_or_not_the_figures_are_the_same(printed, runs, here):
    apart = printed("evaluate", runs["aurora"], "--json", "deep/apart.json")
    assert printed("evaluate", runs["aurora"], "--merge", "--json", "merged.json") == apart
    found = json.loads((here / "merged.json").read_text())
    assert found == json.loads((here / "deep/apart.json").read_text())
    assert [name.strip() for name in apart.splitlines()[0].split("  ") if name] == ["ITC, ITM rerank", "ITC only"]
    assert row(apart, "T R@5") == cells(found, "text_recall@5")
    assert row(apart, "I MedR") == cells(found, "image_median_rank")


def test_evaluate_on_another_split_and_other_data(printed, runs, tmp_path, monkeypatch):
    seen, score = [], Retrieval.evaluate
    monkeypatch.setattr(
        Retrieval, "evaluate", lambda task, split, **rest: seen.append((split.name, len(split))) or score(task, split)
    )
    other = make_folder(tmp_path / "other", 8)
    for words in ([], ["--data", other], ["--data", other, "--split", "train"]):
        printed("evaluate", runs["aurora"], *words)
    assert seen == [("shapes/test", 6), ("other/test", 2), ("other/train", 4)]


def test_the_device_is_used(printed, runs, monkeypatch):
    used = []
    monkeypatch.setattr(devices, "use", used.append)
    printed("evaluate", runs["heads"], "--device", "cpu", "--no-cache")
    assert used == ["cpu"]


def test_a_small_split_is_told_with_what_it_is_worth(printed, runs):
    out = printed("evaluate", runs["heads"], "--no-cache")
    told = "caution: 6 test pictures cannot tell a gain of T R@1 below 100.0 points from chance"
    assert out.splitlines()[-1] == told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --strength 1.5", "--strength is 1.5; it must lie between 0, the untuned model, and 1"),
        ("RUN --strength nan", "--strength is nan; it must lie between 0"),
        ("RUN --strength 0 --merge", "--merge has nothing to merge at --strength 0, the untuned model"),
        ("RUN --strength 0.5", "RUN: the weights that its training began with cannot be drawn again here"),
        ("RUN RUN RUN", "aurora evaluate takes one run, or two to compare; 3 are given"),
        ("RUN RUN --also fluent-flat", "--also is for one run; leave it out, or name one run"),
        ("RUN RUN --zero-shot", "--zero-shot is for one run; leave it out, or name one run"),
        ("RUN RUN --upload x.json", "--upload is for one run; leave it out, or name one run"),
        ("RUN gone", "gone holds no run: it has no recipe.yaml; name a run's folder, which a model by itself gets by"),
        ("RUN other", "RUN was trained on "),
        ("RUN questions", "RUN is of task retrieval and questions of vqa; compare runs of one task"),
        ("RUN --also coco", "--also takes a folder, a .tar or an embedded pack, and coco is a benchmark; see --data"),
        ("RUN --also nowhere", "no dataset 'nowhere'"),
        ("RUN --queries .", ". is a folder, not a file; name another file"),
    ],
)
def test_scores_that_cannot_be_compared(words, message, refusal, runs, here):
    for name, field in (("other", "data=fluent-flat"), ("questions", "task.name=vqa")):
        (here / name).mkdir()
        load_recipe(None, [field]).save(here / name / "recipe.yaml")
    run = str(runs["aurora"])
    assert refusal("evaluate", *(run if word == "RUN" else word for word in words.split())).startswith(
        message.replace("RUN", run)
    )
