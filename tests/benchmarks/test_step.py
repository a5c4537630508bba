"""The benchmark of the whole step at toy size: both sides compute the same, and its file is taken up again."""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--width=64", "--layers=1", "--queue=8", "--size=32", "--batch=2", "--repeats=1", "--no-peak"]


@pytest.fixture
def step(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("step")


@pytest.mark.parametrize("model, method", [("blip", "Aurora"), ("blip", "full"), ("clip", "LoRA r=16")])
def test_the_usual_code_trains_as_ours_does(step, monkeypatch, model, method):
    """Of two pairs, which leave no choice of negatives: losses of four steps, the averages and the queue among them."""
    variants = import_module("step_variants")
    monkeypatch.setattr(variants, "RATE", 1e-3)
    options = argparse.Namespace(width=64, layers=2, queue=8, device="cpu")

    def losses(side: str) -> list[float]:
        variant = variants.Variant(model, 32, "float32", method, side, 2)
        taken = variants.Step(variant, variants.fresh_model(variant, options), options)
        return [float(taken()) for _ in range(4)]

    ours = losses("ours")
    assert losses("usual") == pytest.approx(ours, rel=1e-5) and len(set(ours)) == 4


def test_a_file_is_taken_up_again(step, monkeypatch, tmp_path, capsys):
    def rows(*words: str) -> dict[str, dict]:
        monkeypatch.setattr(sys, "argv", ["step", *SMALL, "--out", str(tmp_path / "step.json"), *words])
        step.main()
        return {row["key"]: row for row in json.loads((tmp_path / "step.json").read_text())["rows"]}

    words = ["--model", "clip", "--precision", "float32", "--method", "Aurora"]
    first = rows(*words, "--side", "ours")
    assert [(row["method"], row["side"]) for row in first.values()] == [("LoRA r=64", "usual"), ("Aurora", "ours")]
    assert all(row["error"] is None and row["seconds"] > 0 and row["kernels"] > 100 for row in first.values())
    second = rows(*words)
    aurora = "clip 32, float32, 2 pairs: Aurora, ours"
    assert len(second) == 3 and second[aurora] == first[aurora]
    assert "| Aurora, usual |" in (tmp_path / "step.md").read_text()
    with pytest.raises(SystemExit, match="other settings or versions; give another --out"):
        rows(*words, "--layers", "2")


def test_a_variant_that_fails_has_a_row_and_the_others_go_on(step, monkeypatch, tmp_path):
    bench = import_module("step_bench")
    made = bench.Step

    def fails(variant, *rest):
        if variant.side == "ours":
            raise RuntimeError("no room")
        return made(variant, *rest)

    monkeypatch.setattr(bench, "Step", fails)
    out = tmp_path / "step.json"
    words = ["--model", "clip", "--precision", "float32", "--method", "heads", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["step", *SMALL, *words])
    step.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["error"] for row in rows] == [None, "RuntimeError: no room", None]
    assert "| heads, ours | RuntimeError: no room |" in out.with_suffix(".md").read_text()


@pytest.mark.slow
def test_a_capture_has_a_process_of_its_own(step, monkeypatch, tmp_path):
    """Here one without CUDA, where it fails: the row says so, and beside it is what it was to be compared with."""
    monkeypatch.setattr(sys, "argv", ["step", *SMALL, "--out", str(tmp_path / "step.json")])
    options = step.parsed()
    bench = step.Bench(options, step.Result(options), step.BEGUN)
    variant = step.Variant("clip", 32, "float32", "heads", "ours", 2, graph=True)
    bench._elsewhere(variant)
    reference, captured = (bench.result.rows[one.key] for one in (variant.reference(), variant))
    assert reference["error"] is None and reference["seconds"] > 0
    assert captured["error"] and not captured["all_seconds"]


def test_the_preset_begins_with_what_tells_most(step):
    groups = step.preset(16)
    assert [groups[0][0].key, groups[1][0].key] == [
        "blip 224, bf16, 16 pairs: Aurora, ours",
        "blip 384, bf16, 16 pairs: Aurora, ours",
    ]
    every = [variant.key for group in groups for variant in group]
    assert "blip 224, bf16, 16 pairs: Aurora, ours, CUDA graph" in every
    assert {key.split(": ")[1].split(",")[0] for key in every} == {name.split(",")[0] for name in step.METHODS}
