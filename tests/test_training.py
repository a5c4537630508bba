"""Whole runs through the command line: overfitting, killing, resuming, reloading, merging."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils

from aurora_petl import files
from aurora_petl.backbones.blip.attention import VisionAttention
from aurora_petl.baselines import is_head
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError
from aurora_petl.methods import METHODS
from aurora_petl.recipe import load_recipe
from aurora_petl.stopping import Signals
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.train_arguments import one_gpu, training_arguments
from aurora_petl.training import _fit, fit, load_run, prepare, train

SMALL = [
    "train.precision=fp32",
    "train.batch_size=6",
    "train.max_steps=6",
    "train.evaluations=3",
    "task.queue_size=6",
    "method_options.r=4",
]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "aurora_petl.cli", *map(str, words)]


def settings(folder: Path, *more: str) -> list[str]:
    return [f"data={folder}", "method=aurora", "train.learning_rate=3e-3", *SMALL, *more]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(load_recipe(None, settings(folder)), out, progress=False)
    return out


def test_a_run_leaves_what_it_promises(finished):
    held = {path.name for path in finished.iterdir()}
    pictures = {"curve.png", "gallery.png"}
    assert held - {".lock"} == {"adapter", "metrics.json", "recipe.yaml", "history.json", "losses.jsonl"} | pictures
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["test"]) == set(metrics["zero_shot_test"]) and metrics["steps"] == 6
    assert sum(path.stat().st_size for path in (finished / "adapter").iterdir()) < 500_000


def test_killed_and_resumed_ends_with_the_same_weights(folder, finished, tmp_path):
    out = tmp_path / "killed"
    log = (tmp_path / "log").open("w")
    load_recipe(None, settings(folder)).save(tmp_path / "recipe.yaml")
    process = subprocess.Popen(
        command("train", tmp_path / "recipe.yaml", "--out", out, "--quiet"),
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as many as here, for sums of other threads round differently
    )
    deadline = time.time() + 240
    while not (out / "checkpoints/checkpoint-2/trainer_state.json").exists():
        assert process.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()
    # a checkpoint that the kill cut short is passed over
    cut = out / "checkpoints/checkpoint-5"
    cut.mkdir()
    (cut / "trainer_state.json").write_text("{")
    assert main(["train", "--out", str(out), "--resume", "--quiet"]) == 0
    ours = load_file(out / "adapter/adapter_model.safetensors")
    theirs = load_file(finished / "adapter/adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    same = [json.loads((path / "metrics.json").read_text())["test"] for path in (out, finished)]
    assert same[0] == same[1]


class Break(TrainerCallback):
    """Ends a run right after the evaluation of the first steps."""

    def on_evaluate(self, args, state, control, **rest):
        if state.global_step:
            raise KeyboardInterrupt


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


def test_context_and_gates_resume_with_the_bank(folder, tmp_path):
    more = [f"method_options.{option}" for option in ("context=batch", "gate=scale_shift")]
    fields = settings(folder, "train.max_steps=4", "train.evaluations=2", *more)
    whole = train(load_recipe(None, fields), tmp_path / "whole", progress=False)
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(None, fields), out, progress=False, callbacks=[Break()])
    state = load_file(out / "checkpoints/checkpoint-2/training_state.safetensors")
    (bank,) = (value for name, value in state.items() if "aurora_bank" in name)
    assert bank.any(1).sum() == 12  # two batches of 6 texts
    resumed = train(load_recipe(out / "recipe.yaml"), out, resume=True, progress=False)
    ours, theirs = (load_file(path / "adapter/adapter_model.safetensors") for path in (out, tmp_path / "whole"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("aurora_bank" in name for name in ours)
    assert all(value.any() for name, value in ours.items() if "aurora_eta" in name or "aurora_gamma" in name)
    recipe, backbone = load_run(out)
    metrics = Retrieval(backbone, recipe.task).evaluate(load_dataset(folder).split("test")).metrics
    assert metrics == resumed.metrics["test"] == whole.metrics["test"]


def test_reloaded_in_a_new_process_scores_the_same(finished, pictures, tmp_path):
    recipe, backbone = load_run(finished)
    here = Retrieval(backbone, recipe.task).evaluate(pictures.split("test")).scores
    code = (
        "import sys, numpy; from pathlib import Path; from aurora_petl.training import load_run; "
        "from aurora_petl.tasks.retrieval import Retrieval; from aurora_petl.data import load_dataset\n"
        "recipe, backbone = load_run(Path(sys.argv[1]))\n"
        "scores = Retrieval(backbone, recipe.task).evaluate(load_dataset(recipe.data).split('test')).scores\n"
        "numpy.save(sys.argv[2], scores.image_to_text)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(finished), str(tmp_path / "scores.npy")], check=True, env={**os.environ}
    )
    there = torch.from_numpy(__import__("numpy").load(tmp_path / "scores.npy"))
    assert (torch.from_numpy(here.image_to_text) - there).abs().max() <= 1e-6


def test_merged_scores_the_same(finished, pictures):
    recipe, backbone = load_run(finished)
    task = Retrieval(backbone, recipe.task)
    apart = task.evaluate(pictures.split("test")).scores
    layers = {name: weight.clone() for name, weight in backbone.model.named_parameters() if "base_layer" in name}
    backbone.adapter.merge_adapter()
    merged_in = dict(backbone.model.named_parameters())
    assert not all(torch.equal(merged_in[name], weight) for name, weight in layers.items())
    merged = task.evaluate(pictures.split("test")).scores
    assert abs(apart.image_to_text - merged.image_to_text).max() <= 1e-4


def test_evaluate_repeats_the_runs_own_figures(finished, tmp_path, capsys):
    assert main(["evaluate", str(finished), "--json", str(tmp_path / "found.json")]) == 0
    assert "ITM rerank" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    assert found == json.loads((finished / "metrics.json").read_text())["test"]


def test_finished_runs_are_not_overwritten(finished, capsys):
    assert main(["train", "--out", str(finished), "--resume"]) == 1
    assert "finished run" in capsys.readouterr().err


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"aurora"}))
def test_every_method_trains_saves_and_loads(method, folder, tmp_path):
    options = [] if METHODS[method].config is None else ["method_options={r: 2}"]
    fields = [f"data={folder}", f"method={method}", "train.batch_size=6", "train.max_steps=2", "train.evaluations=1"]
    run = train(load_recipe(None, [*fields, *options]), tmp_path / "run", progress=False)
    recipe, backbone = load_run(tmp_path / "run")
    metrics = Retrieval(backbone, recipe.task).evaluate(load_dataset(folder).split("test")).metrics
    assert metrics == run.metrics["test"]
    (ends, half) = (dict(load_run(tmp_path / "run", s)[1].module.named_parameters()) for s in (1.0, 0.5))
    moved = {name for name, weight in ends.items() if not torch.equal(weight, half[name])}
    assert bool(moved) == METHODS[method].learns and moved <= {name for name, _ in run.task.trained()}
    weights = run.metrics["weights"]
    whole = sum(weight.numel() for weight in __import__("aurora_petl").load_backbone("blip-mini").parameters())
    assert weights["model"] == whole
    assert weights["trainable"] == {"full": whole, "zero-shot": 0, "heads": weights["heads"]}.get(
        method, weights["adapter"] + weights["heads"]
    )


def test_zero_shot_needs_the_test_split_alone_and_scores_it_once(folder, tmp_path, monkeypatch, capsys):
    source = tmp_path / "only_test"
    source.mkdir()
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    kept = [row | {"split": "test"} for row in rows[:4]]
    (source / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    for row in kept:
        (source / row["image"]).parent.mkdir(parents=True, exist_ok=True)
        (source / row["image"]).write_bytes((folder / row["image"]).read_bytes())
    scored, evaluate = [], Retrieval.evaluate
    monkeypatch.setattr(Retrieval, "evaluate", lambda self, *a, **k: scored.append(1) or evaluate(self, *a, **k))
    words = ["--data", str(source), "--method", "zero-shot", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["train", *words]) == 0
    assert "tuned" not in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["test"] == metrics["zero_shot_test"] and metrics["steps"] == 0 and scored == [1]


def test_an_interrupted_evaluation_is_repeated(folder, finished, tmp_path, monkeypatch):
    """Steps before it are not lost, and history, curve and best weights are those of a run without a break."""
    evaluate, calls = Retrieval.evaluate, []

    def interrupted(self, dataset, **rest):
        calls.append(dataset.name)
        if calls.count("shapes/validation") == 3:  # of step 4; the first is the untuned model's
            raise KeyboardInterrupt
        return evaluate(self, dataset, **rest)

    monkeypatch.setattr(Retrieval, "evaluate", interrupted)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(None, settings(folder)), out, progress=False)
    assert len((out / "losses.jsonl").read_text().splitlines()) == 4
    monkeypatch.setattr(Retrieval, "evaluate", evaluate)
    train(load_recipe(out / "recipe.yaml"), out, resume=True, progress=False)
    assert (out / "losses.jsonl").read_text() == (finished / "losses.jsonl").read_text()
    rows = [json.loads((path / "history.json").read_text()) for path in (out, finished)]
    assert [row for row in rows[0] if "train_loss" not in row] == [row for row in rows[1] if "train_loss" not in row]
    ours, theirs = (load_file(path / "adapter/adapter_model.safetensors") for path in (out, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


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


def test_a_folder_takes_one_training_at_a_time(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    out = tmp_path / "run"
    out.mkdir()
    with files.lock(out):
        assert main(["train", *settings(folder), "--out", str(out), "--quiet"]) == 1
    assert "is being trained by another process" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_one_process_that_sees_several_gpus_trains_on_one(tmp_path, capsys):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4
    one_gpu(arguments)
    assert arguments.n_gpu == 1 and "torchrun --nproc_per_node 4" in capsys.readouterr().err


def test_figures_are_told_where_the_cache_cannot_be_written(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("features"))
    (run / "features").write_text("a file stands in the way")
    assert main(["evaluate", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "ITM rerank" in out and "cannot be written" in err and "Traceback" not in err


def test_overfits_its_training_pictures(folder, tmp_path):
    """Labels, pictures and losses line up: the training split becomes retrievable."""
    rates = ["train.learning_rate=1e-2", "train.head_learning_rate=1e-3"]
    fields = settings(folder, "train.max_steps=100", "train.evaluations=1", "train.augment=false", *rates)
    run = train(
        load_recipe(None, [*fields, "train.batch_size=12", "method_options.r=16"]), tmp_path / "run", progress=False
    )
    metrics = run.task.evaluate(load_dataset(folder).split("train")).metrics
    assert metrics["text_recall@1"] >= 90 and metrics["image_recall@1"] >= 90


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


def test_two_processes_train_one_run(folder, tmp_path):
    """Under torchrun: one run's folder, the losses of the joint batch, and the same scores from shared work."""
    recipe = load_recipe(None, [f"data={folder}", "task.queue_size=0", "train.batch_size=4", "train.max_steps=2"])
    recipe.train.evaluations, recipe.train.precision = 1, "fp32"
    recipe.save(tmp_path / "recipe.yaml")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "aurora_petl.cli", "train", "recipe.yaml", "--out", "run", "--quiet"]
    ranks = [
        subprocess.Popen(
            words,
            cwd=tmp_path,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert "weights trained" in outputs[0] and "weights trained" not in outputs[1]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["steps"] == 2
    recipe, backbone = load_run(tmp_path / "run")
    again = Retrieval(backbone, recipe.task).evaluate(load_dataset(folder).split("test")).metrics
    assert again == pytest.approx(metrics["test"], abs=1e-4)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
