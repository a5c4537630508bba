"""Settings of training and what they do: rates, early ending, fewer rows, trackers, recomputed layers."""

import functools
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from aurora_petl.backbones.blip.attention import VisionAttention
from aurora_petl.baselines import is_head
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.stopping import Signals
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.train_arguments import training_arguments
from aurora_petl.training import _fit, fit, prepare, train
from tests.helpers.short_runs import settings


def test_gradient_checkpointing_computes_layers_again_to_the_same_weights(folder, tmp_path, monkeypatch):
    calls, forward = [], VisionAttention.forward
    counted = functools.wraps(forward)(lambda *a, **k: calls.append(1) or forward(*a, **k))
    monkeypatch.setattr(VisionAttention, "forward", counted)
    counts, weights = [], []
    for on in ("false", "true"):
        calls.clear()
        recipe = load_recipe(None, settings(folder, f"train.gradient_checkpointing={on}"))
        train(recipe, tmp_path / on, progress=False)
        counts.append(len(calls))
        weights.append(load_file(tmp_path / on / "adapter/adapter_model.safetensors"))
    assert counts[1] == counts[0] + 6 * 6  # steps, layers of the vision tower
    assert all(torch.allclose(weights[1][name], plain, atol=1e-4) for name, plain in weights[0].items())


@pytest.mark.parametrize("evaluations", [1, 6])
def test_a_training_that_diverges_says_so(evaluations, folder, tmp_path, monkeypatch):
    def far_too_fast(*given):
        arguments = training_arguments(*given)
        arguments.learning_rate = 1e30  # more than a recipe may say
        return arguments

    monkeypatch.setattr("aurora_petl.trainer.training_arguments", far_too_fast)
    fields = ["train.max_grad_norm=0", "train.precision=fp32", f"train.evaluations={evaluations}"]
    recipe = load_recipe(None, settings(folder, *fields))
    with pytest.raises(AuroraError, match=r"training diverged.*; lower train.learning_rate"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run/metrics.json").exists()


def test_heads_have_their_own_rate(folder, tmp_path):
    recipe = load_recipe(None, settings(folder, "train.max_steps=1", "train.head_learning_rate=1e-5"))
    prepared = prepare(recipe, check=False)
    rates = {}
    fit(tmp_path, prepared, progress=False, callbacks=[_Rates(rates)])
    task = prepared.task
    heads = {name for name, _ in task.named_parameters() if is_head(task.backbone, name)}
    trained = {name for name, weight in task.named_parameters() if weight.requires_grad}
    assert {name: rates[name] for name in trained} == {name: 1e-5 if name in heads else 3e-3 for name in trained}
    assert trained & heads and trained - heads


class _Rates(TrainerCallback):
    def __init__(self, rates):
        self.rates = rates

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **rest):
        names = {id(weight): name for name, weight in model.named_parameters()}
        for group in optimizer.param_groups:
            self.rates |= {names[id(weight)]: group["initial_lr"] for weight in group["params"]}


def test_a_training_that_brings_nothing_more_ends_early(folder, tmp_path, monkeypatch):
    recipe = load_recipe(None, settings(folder, "train.max_steps=8", "train.evaluations=8", "train.patience=2"))

    def steps(out, values, resume=False):
        def evaluate(*_, **__):
            if (value := values.pop(0)) is None:
                raise KeyboardInterrupt
            return SimpleNamespace(metrics={"mean_recall": value}, choice={})

        monkeypatch.setattr(Retrieval, "evaluate", evaluate)
        out.mkdir(exist_ok=True)
        with Signals() as signals:
            run = _fit(out, prepare(recipe, check=False), signals, resume, False, None, None)
        return run.metrics["steps"], run.metrics["best_step"], values

    assert steps(tmp_path / "run", [10, 20, 30, 30, 25]) == (4, 2, [])
    with pytest.raises(KeyboardInterrupt):  # in the evaluation that would have ended it
        steps(tmp_path / "broken", [10, 20, 30, 30, None])
    assert steps(tmp_path / "broken", [25], resume=True) == (4, 2, [])


def test_trackers_are_told_of_the_run_and_refused_before_the_data(folder, tmp_path, monkeypatch, capsys):
    heard = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            heard.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr("aurora_petl.train_arguments.get_available_reporting_integrations", lambda: ["wandb"])
    train(load_recipe(None, settings(folder, "train.report_to=[wandb]")), tmp_path / "run", progress=False)
    assert any("loss" in row for row in heard) and any("eval_mean_recall" in row for row in heard)
    for name, told in (("clearml", "clearml is not installed; get it with"), ("wanbd", "did you mean wandb?")):
        assert main(["train", "--data", "gone", f"train.report_to=[{name}]"]) == 1
        assert told in capsys.readouterr().err


def test_fewer_training_rows_are_drawn_by_the_seed(folder):
    def rows(seed, most):
        recipe = load_recipe(None, settings(folder, f"train.seed={seed}", f"train.max_train_samples={most}"))
        dataset = prepare(recipe, check=False).dataset
        return [item.image for item in dataset.split("train")], len(dataset.split("test"))

    every, test = rows(0, 0)
    drawn, others = rows(0, 7)
    assert len(drawn) == 7 < len(every) and others == test
    assert [name for name in every if name in drawn] == drawn == rows(0, 7)[0] != rows(1, 7)[0]
    assert rows(0, 10**6) == (every, test)
