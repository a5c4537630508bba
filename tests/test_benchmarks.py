"""The six benchmarks from the command line, in miniature: pictures, clips, texts, labels and losses line up, for what
was trained on is learned by heart."""

import json

import pytest

from aurora_petl.cli import main
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
