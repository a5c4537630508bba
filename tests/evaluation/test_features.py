"""Features on disk: taken when nothing changed, made again when anything did."""

import shutil

import pytest
import torch

from aurora_petl.baselines import apply_method
from aurora_petl.data import load_dataset
from aurora_petl.evaluation.features import extract
from tests.helpers import benchmarks


@pytest.fixture
def counted(backbone, monkeypatch):
    """A backbone with an adapter that counts the pictures it encodes."""
    apply_method(backbone, "aurora", {"r": 4, "init_weights": False})
    backbone.module.eval()
    encode, backbone.seen = backbone.encode_image, 0

    def count(pixels):
        backbone.seen += len(pixels)
        return encode(pixels)

    monkeypatch.setattr(backbone, "encode_image", count)
    return backbone


def encoded(backbone, dataset, cache, **rest):
    """Pictures that a call of `extract` encodes, and what it gives."""
    before = backbone.seen
    features = extract(backbone, dataset, cache=cache, **rest)
    return backbone.seen - before, features


def test_a_second_extraction_reads_the_first(counted, pictures, tmp_path):
    few = pictures.split("validation")
    count, first = encoded(counted, few, tmp_path)
    again, second = encoded(counted, few, tmp_path)
    assert (count, again) == (len(few), 0)
    for one, other in (
        (first.image, second.image),
        (first.text, second.text),
        (first.states(1, 3), second.states(1, 3)),
    ):
        assert torch.equal(one, other)


def test_whatever_changes_is_noticed(counted, folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    few, cache = load_dataset(copied).split("validation"), tmp_path / "cache"
    encoded(counted, few, cache)
    with counted.adapter.disable_adapter():
        assert encoded(counted, few, cache)[0] == len(few)
    assert encoded(counted, few, cache)[0] == len(few)
    with torch.no_grad():
        next(w for n, w in counted.module.named_parameters() if "aurora" in n and w.requires_grad).add_(1e-6)
    assert encoded(counted, few, cache)[0] == len(few)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoded(counted, few, cache)[0] == len(few)
        assert encoded(counted, few, cache)[0] == 0
    shutil.copy(copied / few[0].image, copied / few[1].image)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoded(counted, few, cache)[0] == len(few)
        assert encoded(counted, few, cache, max_tokens=4)[0] == len(few)


def test_a_broken_file_is_made_again(counted, pictures, tmp_path):
    few = pictures.split("validation")
    encoded(counted, few, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert [encoded(counted, few, tmp_path)[0] for _ in range(2)] == [len(few), 0]


def test_states_formed_again_equal_those_kept(backbone, pictures, tmp_path, monkeypatch):
    few = pictures.split("validation")
    backbone.model.eval()
    kept = extract(backbone, few)
    monkeypatch.setattr("aurora_petl.evaluation.features.STATES_BUDGET", 0)
    for formed in (extract(backbone, few, cache=tmp_path), extract(backbone, few, cache=tmp_path)):
        assert torch.allclose(kept.states(1, 3), formed.states(1, 3), atol=1e-5)
        assert torch.equal(kept.image, formed.image)


def test_clips_that_are_folders_of_frames_are_kept_too(counted, tmp_path):
    root = benchmarks.msrvtt(tmp_path / "data", frames=True)
    few = load_dataset("msrvtt", root).split("test")
    cache = tmp_path / "cache"
    assert [encoded(counted, few, cache, frames=2)[0] for _ in range(2)] == [2 * len(few), 0]
    frames = few.files.frames(few[0].image)
    assert len(frames) > 1
    shutil.copy(root / frames[0], root / frames[-1])
    assert encoded(counted, few, cache, frames=2)[0] == 2 * len(few)
