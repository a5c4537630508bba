"""Tensors that are kept come back to the bit, or not at all."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aurora_petl.kept import keep, recall

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(2).bfloat16(),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(1),
}


def test_what_is_kept_comes_back_under_its_key_alone(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    assert keep(path, TENSORS, {"key": "k", "done": "3"})
    tensors, told = recall(path, "k")
    assert told == {"key": "k", "done": "3"} and tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items()
    )
    assert recall(path, "other") is None and recall(tmp_path / "gone", "k") is None


CHANGES = {
    "a number": lambda tensors, told: tensors["a"].add_(1e-3),
    "NaN": lambda tensors, told: tensors["a"].mul_(float("nan")),
    "a dtype": lambda tensors, told: tensors.update(b=tensors["b"].half()),
    "a shape": lambda tensors, told: tensors.update(a=tensors["a"].reshape(-1)),
    "a name": lambda tensors, told: tensors.update(z=tensors.pop("a")),
    "one less": lambda tensors, told: tensors.pop("c"),
    "what is told": lambda tensors, told: told.update(done="4"),
    "no digest": lambda tensors, told: told.pop("digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_taken(change, tmp_path):
    path = tmp_path / "x.safetensors"
    keep(path, TENSORS, {"key": "k", "done": "3"})
    with safe_open(path, "pt") as file:
        told = dict(file.metadata())
    tensors = load_file(path)
    CHANGES[change](tensors, told)
    save_file(tensors, path, told)
    assert recall(path, "k") is None


def test_what_cannot_be_written_is_told_once(tmp_path, capfd):
    (tmp_path / "file").touch()
    assert not keep(tmp_path / "file" / "x.safetensors", TENSORS, {"key": "k"})
    assert capfd.readouterr().err.count("\n") == 1
