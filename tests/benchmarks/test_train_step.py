"""The benchmark of a training step at toy size: what it counts is deterministic, what it times is there."""

import json
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from aurora_petl.backbones import sharing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        sizes = ["--width", "64", "--layers", "2", "--batch", "1", "--repeats", "1"]
        patch.setattr(sys, "argv", ["x", *sizes, "--json", f"{folder}/a.json", "--picture", f"{folder}/a.png"])
        import_module("train_step").main()
    with Image.open(folder / "a.png") as picture:
        assert picture.width > 500
    return json.loads((folder / "a.json").read_text())


def test_every_variant_of_every_part_is_measured(result):
    assert list(result["parts"]) == ["vision-224", "vision-384", "fusion"]
    for part, rows in result["parts"].items():
        assert {"floor", "floor, stock", "Aurora", "LoRA r=64", "LoRA r=64, stock", "full, stock"} <= rows.keys()
        assert ("Aurora, ICE, GQT" in rows) == (part == "fusion")
        assert all(row["seconds"] > 0 and len(row["all_seconds"]) == 1 for row in rows.values())
        assert rows["floor"]["saved_ratio"] == 1


def test_counts(result):
    """Trainable weights by formula; in the vision tower, Aurora keeps what the frozen tower keeps and x U, R numbers a
    token and layer: little beside the width of real models."""
    for part, tokens in (("vision-224", 14 * 14 + 1), ("vision-384", 24 * 24 + 1)):
        rows = result["parts"][part]
        assert rows["Aurora"]["trainable"] == 64 * (2 * 64 + 2 * 3 + 1)  # U, V; rows of P, lambda
        assert rows["LoRA r=64"]["trainable"] == 2 * 64 * (64 + 3 * 64)
        assert rows["Aurora"]["saved_bytes"] - rows["floor"]["saved_bytes"] == 2 * tokens * 64 * 4  # layers, R, float32
        assert rows["Aurora"]["saved_ratio"] < rows["LoRA r=64"]["saved_ratio"]
        assert rows["LoRA r=64"]["saved_ratio"] < rows["LoRA r=64, stock"]["saved_ratio"]
    fusion = result["parts"]["fusion"]
    assert fusion["Aurora, ICE, GQT"]["trainable"] == fusion["Aurora"]["trainable"] + 2 * (4 * 64 + 2) + 1


@pytest.mark.parametrize("is_fast", [False, True])
def test_in_bfloat16_the_vision_tower_keeps_what_the_frozen_one_keeps_and_x_u(is_fast, monkeypatch):
    """Whichever way attention takes on a CPU: neither of them keeps queries, keys and values as they came."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sharing, "CPU_IS_FAST", is_fast)
    bench, part = import_module("train_step"), "vision-224"
    options = Namespace(width=128, layers=2, batch=2, device="cpu", dtype="bf16")
    inputs, variants = bench.made_inputs(part, options), bench.adapters(part)

    def saved(name):
        model = bench.made(part, variants[name], True, options)
        return bench.saved_bytes(bench.forward(part, model, True, inputs, False), model)

    assert saved("Aurora") - saved("floor") == 2 * 2 * (14 * 14 + 1) * 64 * 2  # layers, pictures, tokens, R, bfloat16
