"""Trainings that begin with the weights of another run or of an adapter, and what keeps them from it."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from aurora_petl import warm_start
from aurora_petl.backbones import hub, load_backbone
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.report import run_summary
from aurora_petl.run_model import load_run
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.training import prepare, train

STEPS = ["train.max_steps=2", "train.evaluations=1", "train.batch_size=6", "train.precision=fp32", "train.seed=3"]
FIELDS = [*STEPS, "train.learning_rate=3e-3", "method_options.r=4", "task.queue_size=6"]


def recipe_of(folder, *more):
    return load_recipe(None, [f"data={folder}", *FIELDS, *more])


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    """A finished run with a ranking that its validation split settled."""
    return train(recipe_of(folder, "task.ranking=choose"), tmp_path_factory.mktemp("runs") / "other", progress=False)


@pytest.fixture(scope="module")
def onward(folder, other, tmp_path_factory):
    """A run that went on from it, with another seed."""
    out = tmp_path_factory.mktemp("runs") / "onward"
    recipe_of(folder, "train.seed=4", "task.ranking=choose").save(out.parent / "own.yaml")
    assert main(["train", str(out.parent / "own.yaml"), "--from", str(other.folder), "--out", str(out), "--quiet"]) == 0
    return out


class Starts(TrainerCallback):
    """Notes the weights before the first step."""

    def __init__(self):
        self.weights = {}

    def on_train_begin(self, args, state, control, model=None, **rest):
        self.weights = {name: weight.detach().clone() for name, weight in model.trained()}


def adapter(run):
    return load_file(run / "adapter/adapter_model.safetensors")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "vera")]


@pytest.mark.parametrize("method", ["aurora", "heads", "full", *SLOW])
def test_training_begins_with_the_weights_that_the_other_ended_with(method, folder, tmp_path):
    fields = [f"data={folder}", *STEPS, f"method={method}", "task.queue_size=0"]
    fields += [] if method in ("heads", "full") else ["method_options={r: 2}"]
    first = train(load_recipe(None, fields), tmp_path / "first", progress=False)
    ends = {name: weight.detach().clone() for name, weight in first.task.trained()}
    starts = Starts()
    again = [*fields, "train.seed=7", f"train.init_from={tmp_path / 'first'}"]
    second = train(load_recipe(None, again), tmp_path / "second", progress=False, callbacks=[starts])
    _, saved = load_run(tmp_path / "first")
    saved = dict(saved.module.named_parameters())
    assert starts.weights.keys() == ends.keys()
    assert all(torch.equal(weight, saved[name].to(weight)) for name, weight in starts.weights.items())
    assert any(not torch.equal(weight, starts.weights[name]) for name, weight in second.task.trained())


def test_the_start_is_named_beside_the_untuned_model(onward, other, folder):
    metrics = json.loads((onward / "metrics.json").read_text())
    assert metrics["zero_shot_test"] == other.metrics["zero_shot_test"]  # what is untuned is the pretrained model
    assert metrics["start_test"] == pytest.approx(other.metrics["test"]) and metrics["init_from"] == str(other.folder)
    assert metrics["chosen"]["zero_shot"] == other.metrics["chosen"]["zero_shot"]
    assert metrics["backbone"] == other.metrics["backbone"] == warm_start.fingerprint(load_backbone("blip-mini"))
    (first, *_) = (row for row in json.loads((onward / "history.json").read_text()) if "eval_mean_recall" in row)
    _, backbone = load_run(other.folder)
    validation = Retrieval(backbone, recipe_of(folder, "task.ranking=choose").task).evaluate(
        load_dataset(folder).split("validation")
    )
    assert first["step"] == 0 and first["eval_mean_recall"] == pytest.approx(validation.metrics["mean_recall"])
    gain = metrics["gain"]["start_test"]["mean_recall"]
    assert gain["value"] == pytest.approx(metrics["test"]["mean_recall"] - metrics["start_test"]["mean_recall"])
    summary = run_summary(metrics)
    assert "tuned - start" in summary and f"start: {other.folder}" in summary and "zero-shot" in summary
    rows = ModelCard.load(onward / "adapter/README.md").text.splitlines()
    assert (
        "| began with | the weights of other |" in rows and "|  | untuned | start | tuned | tuned, ITC only |" in rows
    )


def test_an_adapter_s_folder_and_one_of_the_hub_will_do(folder, other, tmp_path, monkeypatch):
    weights = adapter(other.folder)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **more: str(other.folder / "adapter"))
    for name in (str(other.folder / "adapter"), "you/mine"):
        prepared = prepare(recipe_of(folder, f"train.init_from={name}"), check=False)
        own = warm_start.own_weights(prepared.backbone, "aurora")
        assert own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own), name


def test_a_run_goes_on_when_the_other_is_gone(folder, other, tmp_path):
    class Break(TrainerCallback):
        def on_evaluate(self, args, state, control, **rest):
            if state.global_step == 2:
                raise KeyboardInterrupt

    place = shutil.copytree(other.folder, tmp_path / "other")
    fields = [f"train.init_from={place}", "train.max_steps=4", "train.evaluations=2", "train.keep=strength"]
    whole = train(recipe_of(folder, *fields), tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_of(folder, *fields), tmp_path / "broken", progress=False, callbacks=[Break()])
    shutil.rmtree(place)
    recipe = load_recipe(tmp_path / "broken/recipe.yaml")
    resumed = train(recipe, tmp_path / "broken", resume=True, progress=False)
    for name in ("test", "start_test", "zero_shot_test", "strength", "strengths", "best_step"):
        assert resumed.metrics[name] == whole.metrics[name], name
    ours, theirs = adapter(tmp_path / "broken"), adapter(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # part of the way is on the line from the start
    start = load_file(tmp_path / "whole/start/adapter_model.safetensors")
    _, half = load_run(tmp_path / "whole", 0.5)
    own = warm_start.own_weights(half, "aurora")
    assert all(torch.allclose(own[key], (start[key] + theirs[key]) / 2, atol=1e-6) for key in start)


def test_a_training_that_does_not_help_keeps_what_it_began_with(folder, other, tmp_path, monkeypatch):
    monkeypatch.setattr("aurora_petl.selection.choose_strength", lambda errors: 0.0)
    fields = [f"train.init_from={other.folder}", "train.keep=strength", "train.learning_rate=0.1"]
    run = train(recipe_of(folder, *fields), tmp_path / "run", progress=False)
    ours, theirs = adapter(tmp_path / "run"), adapter(other.folder)
    assert run.metrics["best_step"] == 0 and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.metrics["test"] == run.metrics["start_test"]
    assert "the model that it began with is kept" in run_summary(run.metrics)


CASES = {
    (
        "method_options.r=8",
        "method_options.scale=2",
    ): "has method_options.r 4 (this recipe 8), method_options.scale 1.0 "
    "(this recipe 2.0); give method_options.r=4 method_options.scale=1.0",
    ("method_options.core=full",): "has method_options.core 'diagonal' (this recipe 'full'); give",
    ("method_options.gate=scale_shift",): "has method_options.gate None (this recipe 'scale_shift'); give "
    "method_options.gate=null",
    ("method_options.target_modules=[qkv]",): "does not; give both the same method_options.target_modules",
    ("train_heads=false",): "does not; give both the same train_heads",
    ("method=lora",): "has method 'aurora' (this recipe 'lora'); give method=aurora",
    ("method=zero-shot",): "train.init_from: method zero-shot trains nothing; leave one of them out",
}


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: fields[0])
def test_what_differs_is_named_before_data_are_read(fields, other, tmp_path, capsys):
    own = [] if any("method=" in word for word in fields) else ["method_options.r=4"]
    load_recipe(None, ["data=nowhere", *STEPS, *own, *fields]).save(tmp_path / "own.yaml")
    assert main(["train", str(tmp_path / "own.yaml"), "--from", str(other.folder), "--dry-run"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("aurora: error: train.init_from: ") and CASES[fields] in err and err.count("\n") == 1


def test_another_model_is_told_by_its_weights(folder, other, tmp_path, capsys):
    model = shutil.copytree(load_backbone_folder(), tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "vision_model" in name and weights[name].is_floating_point())
    weights[name] = weights[name] + 0.5
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    recipe_of(folder, f"model={model}").save(tmp_path / "own.yaml")
    assert main(["train", str(tmp_path / "own.yaml"), "--from", str(other.folder), "--dry-run"]) == 1
    assert f"was trained in model blip-mini, whose weights are not those of {model}" in capsys.readouterr().err


def load_backbone_folder():
    from aurora_petl.backbones.load import folder_of

    return folder_of("blip-mini", weights=True, company=True)


def test_a_fingerprint_is_of_the_weights_not_of_their_type_or_the_pictures_size():
    plain = warm_start.fingerprint(load_backbone("blip-mini"))
    assert warm_start.fingerprint(load_backbone("blip-mini", dtype=torch.bfloat16)) == plain
    assert warm_start.fingerprint(load_backbone("blip-mini", image_size=132)) == plain
    changed = load_backbone("blip-mini")
    next(iter(changed.model.parameters())).data.add_(0.1)
    assert warm_start.fingerprint(changed) != plain


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gone", "there is no folder 'gone'; name a finished run, or an adapter's"),
        ("file", "there is no folder 'file'"),
        ("empty", "empty holds no adapter, or name another folder"),
        ("begun", "begun holds a run that is not finished; train it to its end, or name another folder"),
    ],
)
def test_a_start_that_is_none_is_one_line(place, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("empty", "begun"):
        (tmp_path / name).mkdir()
    load_recipe("emoji").save(tmp_path / "begun/recipe.yaml")
    with pytest.raises(AuroraError, match=message):
        prepare(load_recipe("emoji", [f"train.init_from={place}"]))
