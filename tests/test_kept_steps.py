"""Checkpoints that a finished run keeps by choice, and what can be done with them."""

import json

import pytest
import torch
from transformers import TrainerCallback

import aurora_petl
from aurora_petl import checkpoints
from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.run_model import load_run
from aurora_petl.selection import steps_to_keep
from aurora_petl.training import train

FIELDS = [
    *("train.max_steps=7", "train.evaluations=3", "train.batch_size=6", "train.precision=fp32"),
    *("train.learning_rate=3e-3", "method_options.r=4", "task.queue_size=6", "task.ranking=choose"),
]


class Weights(TrainerCallback):
    """Notes the weights after every step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **rest):
        self.after[state.global_step] = {name: weight.detach().clone() for name, weight in model.trained()}


@pytest.fixture(scope="module")
def noted():
    return Weights()


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory, noted):
    recipe = load_recipe(None, [f"data={folder}", *FIELDS, "train.checkpoints=all", "train.keep=last"])
    return train(recipe, tmp_path_factory.mktemp("runs") / "run", progress=False, callbacks=[noted])


HISTORY = [{"step": 0, "eval_m": 9.0}, {"step": 1, "loss": 1.0}, {"step": 2, "eval_m": 5.0}, {"step": 4, "eval_m": 7.0}]
HISTORY += [{"step": 6, "eval_m": 7.0}]


@pytest.mark.parametrize(
    ("choice", "steps"),
    [("none", set()), ("best", {4}), ("last", {6}), ("all", {0, 2, 4, 6}), (1, {6}), (2, {4, 6}), (9, {2, 4, 6})],
)
def test_which_steps_stay(choice, steps):
    assert steps_to_keep(choice, HISTORY, "m") == steps
    assert steps_to_keep(choice, HISTORY[:2], "m") == ({0} if choice == "all" else set())


def test_all_evaluated_steps_are_there_and_nothing_else(run):
    assert checkpoints.steps(run.folder / "checkpoints") == [0, 2, 4, 6, 7]
    assert len(list((run.folder / "checkpoints").iterdir())) == 5  # no features of the untuned model


@pytest.mark.parametrize("step", [2, 6])
def test_a_kept_step_is_loaded_with_the_order_that_it_settled(run, noted, step):
    recipe, backbone = load_run(run.folder, step=step)
    own = dict(backbone.module.named_parameters())
    assert all(torch.equal(own[name], weight) for name, weight in noted.after[step].items())
    assert not any(weight.requires_grad for weight in own.values())
    (row,) = (row for row in run.history if row["step"] == step and "eval_ranking" in row)
    assert (recipe.task.ranking, recipe.task.beta) == (row["eval_ranking"], row["eval_beta"])


def test_the_last_weights_are_those_of_the_last_step(run, noted):
    assert run.metrics["best_step"] == 7 and run.metrics["validation_best"] is not None
    _, last = load_run(run.folder)
    own = dict(last.module.named_parameters())
    assert all(torch.equal(own[name], weight) for name, weight in noted.after[7].items())
    _, step = load_run(run.folder, step=7)
    assert all(torch.equal(own[name], weight) for name, weight in step.module.named_parameters())


def test_a_run_that_ended_in_its_last_evaluation_owes_it(run, folder, tmp_path):
    class Break(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            if state.global_step == 7 and "eval_mean_recall" in (logs or {}):
                raise KeyboardInterrupt

    recipe = load_recipe(None, [f"data={folder}", *FIELDS, "train.checkpoints=all", "train.keep=last"])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", progress=False, callbacks=[Break()])
    resumed = train(load_recipe(tmp_path / "run/recipe.yaml"), tmp_path / "run", resume=True, progress=False)
    assert resumed.metrics["best_step"] == 7 and resumed.metrics["test"] == run.metrics["test"]
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [0, 2, 4, 6, 7]


def test_evaluate_scores_a_step(run, tmp_path, capsys):
    assert main(["evaluate", str(run.folder), "--step", "7", "--json", str(tmp_path / "step.json")]) == 0
    assert json.loads((tmp_path / "step.json").read_text())["metrics"] == run.metrics["test"]
    assert main(["evaluate", str(run.folder), "--step", "0", "--zero-shot", "--json", str(tmp_path / "zero.json")]) == 0
    assert "step 0" in capsys.readouterr().out
    found = json.loads((tmp_path / "zero.json").read_text())
    assert found["metrics"] == pytest.approx(found["zero_shot"]["metrics"])  # training begins as the untuned model


def test_from_python(run):
    pictures = [item.image for item in aurora_petl.data.load_dataset(run.recipe.data)][:2]
    pictures = [f"{run.recipe.data}/{name}" for name in pictures]
    begun, ended = (aurora_petl.load(run.folder, step=step).encode_images(pictures) for step in (0, 7))
    assert begun == pytest.approx(aurora_petl.load(run.recipe.model).encode_images(pictures), abs=1e-5)
    assert ended == pytest.approx(aurora_petl.load(run.folder).encode_images(pictures), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--step", "5"], "has no checkpoint of step 5; it has 0, 2, 4, 6, 7"),
        (["RUN", "--step", "2", "--strength", "0.5"], "--step is 2; it must be a step's number, and goes without"),
        (["RUN", "--step", "-2"], "--step is -2; it must be a step's number"),
        (["RUN", "RUN", "--step", "0"], "--step is for one run; leave it out, or name one run"),
    ],
)
def test_a_step_that_cannot_be_scored_is_one_line(words, message, run, capsys):
    assert main(["evaluate", *(word.replace("RUN", str(run.folder)) for word in words)]) == 1
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    file = checkpoints.path_of(run.folder / "checkpoints", 4) / checkpoints.STATE
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AuroraError, match="is not as it was written"):
        load_run(run.folder, step=4)
    file.write_bytes(content)


@pytest.mark.parametrize(("choice", "left"), [("none", None), ("1", [7]), ("last", [7]), ("best", None)])
def test_a_finished_run_keeps_what_its_recipe_says(choice, left, folder, tmp_path):
    recipe = load_recipe(None, [f"data={folder}", *FIELDS, f"train.checkpoints={choice}"])
    run = train(recipe, tmp_path / "run", progress=False)
    if choice == "best":
        left = [run.metrics["best_step"]]
    steps = checkpoints.steps(tmp_path / "run/checkpoints")
    assert steps == (left or []) and (tmp_path / "run/checkpoints").exists() == bool(left)


def test_a_run_that_kept_none_says_how(folder, tmp_path):
    recipe = load_recipe(None, [f"data={folder}", "method=heads", "train.max_steps=1", "train.evaluations=1"])
    train(recipe, tmp_path / "run", progress=False)
    with pytest.raises(AuroraError, match="no checkpoint of step 1; it kept none; train with train.checkpoints=all"):
        load_run(tmp_path / "run", step=1)


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5", "true"])
def test_other_choices_are_refused(value):
    with pytest.raises(AuroraError, match="train.checkpoints is") as caught:
        load_recipe(None, [f"train.checkpoints={value}"])
    assert "none, best, last or all" in str(caught.value), str(caught.value)
