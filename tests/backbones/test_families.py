"""The table of families against what is built, and a family that is added by one file and one row."""

import json
import sys

import pytest

from aurora_petl.backbones import is_matcher, load_backbone
from aurora_petl.backbones.families import FAMILIES, Family, offering
from aurora_petl.cli import main
from tests.helpers import toy_family
from tests.helpers.families import DUAL, MATCHERS, make

CAPABILITIES = {
    "retrieval": ("encode_image", "encode_text", "logits", "defaults"),
    "vqa": ("collate", "losses", "write", "defaults"),
}


def test_the_table_says_what_is_built(tmp_path):
    folders = {kind: make(kind, tmp_path / kind) for kind in (*DUAL, *MATCHERS)} | {"blip": "blip-mini"}
    for folder in folders.values():
        for task in ("retrieval", "vqa"):
            family = FAMILIES[load_backbone(folder, weights=False).model.config.model_type]
            if task not in family.tasks:
                continue
            backbone = load_backbone(folder, weights=False, task=task)
            for name in CAPABILITIES[task]:
                assert hasattr(backbone, name), (folder, name)
            if task == "retrieval":
                assert is_matcher(backbone) == family.matches


def test_the_table_lists_by_task():
    assert "blip" in offering("vqa") and "clip" not in offering("vqa") and offering("poetry") == []


def test_a_family_is_one_file_and_one_row(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "aurora_petl.backbones.toy", toy_family)
    monkeypatch.setitem(FAMILIES, "toy", Family("a toy", "toy", ("retrieval",), recipe="photos-dual"))
    toy_family.ToyModel(toy_family.ToyConfig()).save_pretrained(tmp_path / "toy")
    few = ["train.max_steps=4", "train.evaluations=1", "method_options.r=4", "method_options.target_modules=all-linear"]
    words = ["train", "--data", str(folder), "--model", str(tmp_path / "toy"), *few, "--out", str(tmp_path / "run")]
    assert main([*words, "--quiet"]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["weights"]["heads"] == 1 and metrics["weights"]["adapter"] > 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "ITM" not in capsys.readouterr().out


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_what_no_family_offers_is_told(task, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert main(["params", str(tmp_path), "--task", task]) == 1
    assert f"is of type 't5', which has no backbone here; choose one of type {', '.join(sorted(FAMILIES))}" in (
        capsys.readouterr().err
    )
