"""Checkpoints in BLIP's original layout, the model folders that they convert to, and inputs of a tiny BLIP."""

from pathlib import Path

import pytest
import torch

from aurora_petl.backbones.blip.convert import convert
from tests.adapter.tiny import pair_of_blip
from tests.helpers.checkpoints import MAKERS


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> dict[str, Path]:
    """A .pth of each kind, with what training writes beside the weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind, make in MAKERS.items():
        torch.save({"model": make(), "config": {"vit": "base"}, "epoch": 3}, root / f"{kind}.pth")
    return {kind: root / f"{kind}.pth" for kind in MAKERS}


@pytest.fixture(scope="session")
def conversions(originals, tmp_path_factory):
    """The reports of converting them; `folder` is in each."""
    root = tmp_path_factory.mktemp("models") / "deep"
    return {kind: convert(path, root / kind) for kind, path in originals.items()}


@pytest.fixture(scope="session")
def states(originals):
    return {kind: torch.load(path, weights_only=True)["model"] for kind, path in originals.items()}


@pytest.fixture
def pair() -> dict[str, torch.Tensor]:
    return pair_of_blip()
