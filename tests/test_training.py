"""Whole runs through the command line: overfitting, killing, resuming, reloading, merging."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from aurora_petl import locks
from aurora_petl.cli import main
from aurora_petl.data import load_dataset
from aurora_petl.methods import METHODS
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.train_arguments import one_gpu
from aurora_petl.training import load_run, train
from tests.helpers.short_runs import Break, free_port, settings


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "aurora_petl.cli", *map(str, words)]


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


def test_a_folder_takes_one_training_at_a_time(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    out = tmp_path / "run"
    out.mkdir()
    with locks.lock(out):
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
