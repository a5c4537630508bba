"""Finished runs scored whole: at every strength, beside the untuned model, against another run, on other data."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.scoring import Manner, evaluate
from aurora_petl.training import load_run, train, untuned
from tests.helpers.pictures import make_folder

MANNER = Manner(cache=False)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run whose order of candidates is settled, as it was, and the weights that it began with."""
    starts = {}

    class Start(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **rest):
            starts.update({name: weight.detach().clone() for name, weight in model.trained()})

    fields = [f"data={folder}", "train.max_steps=4", "train.evaluations=1", "method_options.r=4", "train.keep=best"]
    fields += ["train.learning_rate=1e-2"]
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(load_recipe("photos-mini", fields), out, progress=False, callbacks=[Start()]), starts


@pytest.fixture(scope="module")
def run(trained):
    return trained[0].folder


def test_the_ends_of_the_way_are_untuned_and_tuned_to_the_bit(trained, run, folder):
    finished, _ = trained
    (start,), (end,) = (evaluate([run], manner=Manner(strength=strength, cache=False)) for strength in (0.0, 1.0))
    assert list(start.outcomes) == ["strength 0"] and list(end.outcomes) == ["tuned"]
    assert start.metrics == finished.metrics["zero_shot_test"] and end.metrics == finished.metrics["test"]
    recipe = load_run(run, 0.0)[0]
    plain = untuned(recipe, load_dataset(folder).split("test")).scores
    scores = start.outcomes["strength 0"].scores
    assert np.array_equal(scores.text_to_image, plain.text_to_image)
    assert not np.array_equal(end.outcomes["tuned"].scores.similarity, plain.similarity)


def test_between_the_ends_weights_are_on_the_line_that_training_took(trained, run, tmp_path):
    finished, starts = trained
    between = dict(load_run(run, 0.25)[1].module.named_parameters())
    for name, end in finished.task.trained():
        assert torch.allclose(between[name], starts[name] + 0.25 * (end - starts[name]), atol=1e-6), name
    other = tmp_path / "run"
    shutil.copytree(run, other)
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 1"))
    with pytest.raises(AuroraError, match="the weights that its training began with cannot be drawn again here"):
        load_run(other, 0.5)


def test_the_gain_of_a_run_is_told_with_its_interval(trained, run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["intervals"].keys() >= {"test", "zero_shot_test"} and metrics["test_pictures"] == 6
    for key in ("test", "zero_shot_test"):
        for name, value in metrics[key].items():
            low, high = metrics["intervals"][key][name]
            assert low - 1e-9 <= value <= high + 1e-9, name
    found = metrics["gain"]["test"]["mean_recall"]
    assert found["value"] == pytest.approx(metrics["test"]["mean_recall"] - metrics["zero_shot_test"]["mean_recall"])
    assert found["low"] <= found["value"] <= found["high"] and 0 < found["p"] <= 1
    (both,) = evaluate([run], zero_shot=True, manner=MANNER)
    again = both.outcomes["tuned"].gain_over(both.outcomes["zero-shot"])["mean_recall"]
    assert [again.value, again.low, again.high, again.p] == pytest.approx(list(found.values()))


def test_queries_with_their_ranks(trained, run, pictures, tmp_path, capsys):
    file = tmp_path / "deep" / "queries.csv"
    assert main(["evaluate", str(run), "--zero-shot", "--queries", str(file), "--no-cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-4:] == ["zero-shot", "tuned", "gain", "p"] and max(map(len, lines)) <= 100
    assert lines[-1].startswith("caution: 6 test pictures cannot tell a gain of mean recall below ")
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    test, (both,) = pictures.split("test"), evaluate([run], zero_shot=True, manner=MANNER)
    assert [row["query"] for row in rows[:6]] == [item.image for item in test]
    assert [row["query"] for row in rows[6:]] == [text for item in test for text in item.captions]
    assert [row["right"] for row in rows[:6]] == [" | ".join(item.captions) for item in test]
    assert [row["right"] for row in rows[6:]] == [item.image for item in test for _ in item.captions]
    assert [row["direction"] for row in rows] == ["image to text"] * 6 + ["text to image"] * 12
    for column, name in (("zero_shot", "zero-shot"), ("tuned", "tuned")):
        outcome = both.outcomes[name]
        ranks = [int(row[f"rank_{column}"]) for row in rows]
        assert outcome.metrics["text_recall@1"] == pytest.approx(100 * np.mean([rank == 1 for rank in ranks[:6]]))
        assert outcome.metrics["image_mrr"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks[6:]]))
        for row, rank in zip(rows, ranks, strict=True):
            assert (rank == 1) == (row[f"first_{column}"] in row["right"].split(" | "))


def test_what_a_run_has_forgotten(run, tmp_path, capsys):
    other = make_folder(tmp_path / "other", 8)
    words = ["--also", str(other), "--json", str(tmp_path / "found.json"), "--strength", "0", "--no-cache"]
    assert main(["evaluate", str(run), *words]) == 0
    assert "\nbeside it, other/test:\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    also = found["also"]
    assert also["data"] == "other/test" and "gain" not in found
    assert also["zero_shot"]["metrics"] == also["metrics"]  # at strength 0
    assert {difference["value"] for difference in also["gain"]["metrics"].values()} == {0}
    assert also["metrics"] == evaluate([run], data=str(other), manner=Manner(strength=0, cache=False))[0].metrics


def test_two_runs_on_the_same_data(run, folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("features"))
    assert main(["evaluate", str(run), str(other), "--json", str(tmp_path / "found.json"), "--no-cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines[:2]] == ["A: ", "B: "] and lines[2].split()[-6:] == [
        "A",
        "B",
        "B",
        "-",
        "A",
        "p",
    ]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"] == found["A"]["metrics"] and found["runs"] == {"A": str(run), "B": str(other)}
    assert found["gain"]["metrics"]["mean_recall"]["p"] == 1


def test_questions_are_compared_and_listed(tmp_path, capsys):
    folder = make_folder(tmp_path / "shapes")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    asked = [
        {"image": row["image"], "question": "what is it?", "answer": row["caption"][0].split()[-1], "split": "test"}
        for row in rows[:8]
    ]
    (folder / "captions.jsonl").unlink()
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    recipe = load_recipe(None, [f"data={folder}", "task.name=vqa", "method=zero-shot", "task.inference=generate"])
    train(recipe, tmp_path / "run", progress=False)
    words = ["--zero-shot", "--queries", str(tmp_path / "asked.csv"), "--also", str(folder), "--no-cache"]
    assert main(["evaluate", str(tmp_path / "run"), *words]) == 0
    assert capsys.readouterr().out.count("accuracy") >= 2
    with (tmp_path / "asked.csv").open(newline="") as opened:
        listed = list(csv.DictReader(opened))
    assert [row["picture"] for row in listed] == [row["image"] for row in asked]
    assert [row["right"] for row in listed] == [row["answer"] for row in asked]
    assert all(float(row["score_tuned"]) == float(row["answer_tuned"] == row["right"]) for row in listed)
    assert all(row["answer_zero_shot"] == row["answer_tuned"] for row in listed)
