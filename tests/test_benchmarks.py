"""The six benchmarks from the command line, in miniature: pictures, clips, texts, labels and losses line up, for what
was trained on is learned by heart."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aurora_petl.cli import main
from aurora_petl.recipe import load_recipe
from tests.helpers import benchmarks

SMALL = [
    *("model=blip-mini", "image_size=96", "method_options.r=16", "train.augment=false", "train.workers=0"),
    *(
        "train.precision=fp32",
        "train.batch_size=16",
        "train.evaluations=1",
        "train.weight_decay=0",
        "train.learning_rate=1e-2",
    ),
]
RETRIEVAL = [*SMALL, "task.queue_size=0", "task.momentum=0", "task.momentum_init=copy", "task.alpha=0"]
RETRIEVAL += ["train.head_learning_rate=3e-3", "train.max_steps=60"]
CLIPS = ["task.frames=2", "task.test_frames=2"]
VQA = [*SMALL, "train.learning_rate=3e-2", "train.max_steps=60"]
CASES = {
    "coco": (benchmarks.coco, RETRIEVAL),
    "flickr30k": (benchmarks.flickr30k, RETRIEVAL),
    "msrvtt": (benchmarks.msrvtt, [*RETRIEVAL, *CLIPS]),
    "didemo": (benchmarks.didemo, [*RETRIEVAL, *CLIPS]),
    "vqav2": (benchmarks.vqav2, VQA),
    "msrvtt-qa": (benchmarks.msrvtt_qa, [*VQA, *CLIPS]),
}
BY_DEFAULT = ("msrvtt-qa",)  # clips and questions; test_training and test_vqa_runs learn pictures by heart


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_overfits(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build, fields = CASES[name]
    root = build(tmp_path / "data")
    words = ["--root", str(root), "--out", "run", "--quiet"]
    assert main(["train", name, *fields, *words]) == 0, capsys.readouterr().err
    assert main(["evaluate", "run", "--split", "train", "--json", "found.json"]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())["metrics"]
    if "accuracy" in found:
        assert found["accuracy"] >= 90
    else:
        assert min(found["text_recall@1"], found["image_recall@1"]) >= 90


@pytest.mark.parametrize("name", CASES)
def test_zero_shot_recipes_score(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build, fields = CASES[name]
    root = build(tmp_path / "data")
    frames = [field for field in fields if "frames" in field]
    words = ["model=blip-mini", "image_size=96", *frames, "--root", str(root), "--out", "run", "--quiet"]
    assert main(["train", f"{name}-zero-shot", *words]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["weights"]["trainable"] == 0 and metrics["test"] == metrics["zero_shot_test"]


@pytest.mark.parametrize(
    "name", [name if name in ("didemo", "vqav2") else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_recipes_of_the_released_code_train_what_they_say(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build, fields = CASES[name]
    root = build(tmp_path / "data")
    small = [field for field in fields if not field.startswith("method_options.r")] + ["train.max_steps=2"]
    words = ["method_options.r=4", "--root", str(root), "--out", "run", "--quiet"]
    assert main(["train", f"{name}-released", *small, *words]) == 0, capsys.readouterr().err
    weights = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    heads = {key.split(".")[-2] for key in weights if "vision_proj" in key or "text_proj" in key or "itm_head" in key}
    assert heads == (set() if "qa" in name else {"vision_proj", "itm_head"})
    assert any(key.endswith(".C") for key in weights) and not any("temperature" in key for key in weights)


@pytest.mark.parametrize("name", CASES)
def test_the_page_lists_every_difference_of_the_released_recipes(name):
    ours, released = (asdict(load_recipe(recipe)) for recipe in (name, f"{name}-released"))
    other = {key for key in ours if ours[key] != released[key]} - {"about"}
    assert other <= {"method_options", "train_heads", "train"}
    fields = {
        key if key == "train_heads" else f"{key}.{field}" for key in other for field in differing(ours, released, key)
    }
    page = (Path(__file__).parents[1] / "docs/benchmarks.md").read_text("utf-8")
    table = page[page.index("## Settings of the released code") :]
    assert fields and [field for field in fields if f"`{field}`" not in table] == []


def differing(ours, released, key):
    if not isinstance(ours[key], dict):
        return [key]
    names = {*ours[key], *released[key]}
    return [name for name in names if ours[key].get(name) != released[key].get(name)]
