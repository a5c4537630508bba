"""What the validation split settles in whole runs, weights and order of candidates, and what search makes of it."""

import json

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from aurora_petl import selection
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation import ranking
from aurora_petl.recipe import load_recipe
from aurora_petl.report import run_summary
from aurora_petl.search.encoder import load_encoder
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.training import load_run, prepare, train

FEW = ["train.max_steps=4", "train.evaluations=2", "method_options.r=4"]


def own(folder, *more):
    return load_recipe("photos-mini", [f"data={folder}", *FEW, *more])


@pytest.fixture
def itm_wins(monkeypatch):
    """Validation that always likes ITM best, with a weight that differs from step to step."""
    weights = iter((7.0, 8.0, 9.0))

    def choose(scores, features):
        beta = next(weights)
        order = ranking.weighted(scores, beta)
        order.choice |= {"ranking": "itm", "beta": beta}
        return order

    monkeypatch.setattr("aurora_petl.tasks.retrieval.choose", choose)


def test_a_rate_that_ruins_the_model_leaves_it_untuned(folder, tmp_path, capsys):
    words = ["photos-mini", f"data={folder}", *FEW, "train.learning_rate=0.5", "train.head_learning_rate=0.5"]
    assert main(["train", *words, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "tuning did not help on the validation split: the untuned model is kept" in printed
    assert printed.split()[0] == "zero-shot" and "tuned ranks" not in printed
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["best_step"] == 0 and metrics["steps"] == 4 and metrics["test"] == metrics["zero_shot_test"]
    recipe, backbone = load_run(tmp_path / "run")
    again = Retrieval(backbone, recipe.task).evaluate(load_dataset(folder).split("test")).metrics
    assert again == pytest.approx(metrics["zero_shot_test"])
    tuned, untuned = (load_encoder(str(tmp_path / "run"), view) for view in ("tuned", "untuned"))
    assert torch.allclose(tuned.texts(["a red circle"]), untuned.texts(["a red circle"]), atol=1e-5)


def test_the_strength_is_a_point_between_the_weights_at_both_ends(folder, tmp_path, monkeypatch):
    ends = {}

    class Ends(TrainerCallback):
        """Notes the weights after the first and the last step."""

        def on_train_begin(self, args, state, control, model=None, **rest):
            ends["start"] = {name: weight.detach().clone() for name, weight in model.trained()}

        def on_train_end(self, args, state, control, model=None, **rest):
            ends["end"] = {name: weight.detach().clone() for name, weight in model.trained()}

    monkeypatch.setattr(selection, "choose_strength", lambda errors: sorted(errors)[2])
    run = train(own(folder), tmp_path / "run", progress=False, callbacks=[Ends()])
    strength = run.metrics["strength"]
    assert strength == selection.STRENGTHS[2] and run.metrics["best_step"] == 4
    assert run.metrics["strengths"][f"{strength:g}"] == run.metrics["validation_best"]
    for name, weight in run.task.trained():
        start, end = ends["start"][name], ends["end"][name]
        assert torch.allclose(weight, start + strength * (end - start), atol=1e-6), name
    _, backbone = load_run(tmp_path / "run")
    saved = dict(backbone.module.named_parameters())
    assert all(torch.equal(saved[name], weight) for name, weight in run.task.trained())
    for more, told in ((-1.0, False), (1.0, True)):  # of another strength
        metrics = {**run.metrics, "strengths": {f"{strength:g}": 50.0, "1": 50.0 + more}, "validation_best": 50.0}
        assert f"strength {strength:g} kept" in run_summary(metrics)
        assert ("which the split cannot tell from the best" in run_summary(metrics)) == told


def test_a_clear_best_strength_is_chosen_and_of_level_ones_the_likely():
    generator = np.random.default_rng(0)
    noise = {strength: generator.normal(0, 0.1, 100) for strength in selection.STRENGTHS}
    clear = {strength: errors - strength for strength, errors in noise.items()}
    assert selection.choose_strength(clear) == 1.0
    worse = {strength: errors + strength for strength, errors in noise.items()}
    assert selection.choose_strength(worse) == 0.0
    level = {strength: generator.permutation([0.0, 1.0] * 50) for strength in selection.STRENGTHS}
    assert selection.choose_strength(level) == selection.LIKELY
    one = {strength: np.array([0.0] * 9 + [float(strength == 0.0)]) for strength in selection.STRENGTHS}
    assert selection.choose_strength(one) == selection.LIKELY
    assert selection.choose_strength({0.0: np.array([1.0]), 0.3: np.array([2.0])}) == 0.0


class Break(TrainerCallback):
    """Ends a run at its second evaluation."""

    def on_evaluate(self, args, state, control, **rest):
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_settles_the_same(folder, tmp_path):
    whole = train(own(folder), tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(own(folder), tmp_path / "broken", progress=False, callbacks=[Break()])
    recipe = load_recipe(tmp_path / "broken/recipe.yaml")
    resumed = train(recipe, tmp_path / "broken", resume=True, progress=False)
    for name in ("chosen", "best_step", "validation_best", "strength", "strengths", "test", "zero_shot_test"):
        assert resumed.metrics[name] == whole.metrics[name], name


def test_search_ranks_as_the_run_was_scored(folder, tmp_path, itm_wins):
    run = train(own(folder, "train.keep=best"), tmp_path / "run", progress=False)
    step = run.metrics["best_step"]
    beta = {2: 8.0, 4: 9.0}[step]
    assert run.metrics["chosen"] == {
        "tuned": {"ranking": "itm", "beta": beta},
        "zero_shot": {"ranking": "itm", "beta": 7.0},
    }
    assert load_encoder(str(run.folder), "tuned").beta == beta and load_encoder(str(run.folder), "untuned").beta == 7
    recipe, backbone = load_run(run.folder)
    assert (recipe.task.ranking, recipe.task.beta) == ("itm", beta)
    test = load_dataset(folder).split("test")
    outcome = Retrieval(backbone, recipe.task).evaluate(test)
    scores, features = outcome.scores, outcome.features
    assert outcome.metrics == run.metrics["test"]
    assert scores.by_similarity().metrics(features) == run.metrics["test_itc_only"]
    build_index(folder, tmp_path / "shapes.index", str(run.folder), progress=False)
    searcher = Searcher(Library(tmp_path / "shapes.index"))
    images = [item.image for item in test]
    for text, own_scores, similarity in zip(features.texts, scores.text_to_image, scores.similarity.T, strict=True):
        by_match = {hit.what: hit.score for hit in searcher.search(text, 24, rerank=24)}
        alone = {hit.what: hit.score for hit in searcher.search(text, 24)}
        assert [by_match[image] for image in images] == pytest.approx(
            own_scores.tolist(), abs=0.02
        )  # indexes hold half
        assert [alone[image] for image in images] == pytest.approx(similarity.tolist(), abs=2e-3)
    summary = run_summary(run.metrics)
    assert f"tuned ranks by ITM match logit + {beta:g} * ITC similarity, as aurora search does with --rerank" in summary
    assert summary.count("ITC only") == 1


def test_untuned_methods_settle_their_order_as_well(folder, tmp_path):
    recipe = load_recipe("photos-mini", ["method=zero-shot", f"data={folder}"])
    run = train(recipe, tmp_path / "run", progress=False)
    task = prepare(recipe).task
    choice = task.evaluate(load_dataset(folder).split("validation")).choice
    assert run.metrics["chosen"]["tuned"] == run.metrics["chosen"]["zero_shot"] == choice
    assert load_run(run.folder)[0].task.ranking in ("itc", "itm")


def test_a_run_that_does_not_say_its_order_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    own(folder).save(run / "recipe.yaml")
    with pytest.raises(AuroraError, match="run holds no finished run: it has no metrics.json"):
        load_run(run)
    for text in ('{"chosen": {}}', '{"chosen": {"tuned": {"ranking": "best"}}}', "[]", '{"chosen": {"tuned": {}}}'):
        (run / "metrics.json").write_text(text)
        with pytest.raises(AuroraError, match='metrics.json does not say in "chosen" how candidates are ranked'):
            load_encoder(str(run), "tuned")
    assert selection.settled(load_recipe("emoji"), run) == load_recipe("emoji")


def test_few_pictures_make_a_smaller_batch_and_enough_steps(folder, tmp_path, capsys):
    recipe = load_recipe("photos-mini", [f"data={folder}"])
    assert prepare(recipe, check=False).recipe.train.batch_size == 24  # 12 pictures with two captions each
    assert "aurora: a batch is 24, not 64: there are 24 training pairs" in capsys.readouterr().err
    for fields, steps in ((["train.epochs=2", "train.min_steps=3"], 3), (["train.epochs=3", "train.min_steps=2"], 3)):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        run = train(load_recipe("photos-mini", [f"data={folder}", "method_options.r=4", *fields]), out, progress=False)
        assert run.metrics["steps"] == steps
