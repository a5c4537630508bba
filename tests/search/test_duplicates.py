"""Pictures that are alike, against every pair looked at."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aurora_petl.errors import AuroraError
from aurora_petl.search import duplicates as module
from aurora_petl.search.duplicates import near_groups
from aurora_petl.search.index import build_index
from aurora_petl.search.picture_index import Index
from tests.helpers.pictures import draw


def groups_of_pairs(features, threshold):
    """Connected parts of the graph of near pairs, by walking it."""
    unit = F.normalize(features.flatten(1).double(), dim=1)
    near = (unit @ unit.T >= threshold).numpy()
    left, groups = set(range(len(features))), []
    while left:
        waiting, group = [left.pop()], []
        while waiting:
            row = waiting.pop()
            group.append(row)
            for other in np.flatnonzero(near[row]):
                if other in left:
                    left.remove(other)
                    waiting.append(int(other))
        groups.append(sorted(group))
    return sorted(group for group in groups if len(group) > 1)


@pytest.mark.parametrize("block", [3, 16, 1000])
@pytest.mark.parametrize("shape", [(60, 8), (60, 3, 8)])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 0.9, 0.99])
def test_groups_are_those_of_all_pairs(block, shape, threshold, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    features[40:] = features[20:40] + 0.1 * features[:20]
    assert sorted(near_groups(features, threshold)) == groups_of_pairs(features, threshold)


def test_a_heap_of_equal_ones_and_none(monkeypatch, capsys):
    monkeypatch.setattr(module, "BLOCK", 64)
    assert near_groups(torch.ones(500, 4).half(), 1) == [list(range(500))]
    assert "comparing" not in capsys.readouterr().err
    assert near_groups(torch.ones(500, 4), 1, progress=True) == [list(range(500))]
    assert "comparing" in capsys.readouterr().err
    assert near_groups(torch.empty(0, 4), 0.9) == near_groups(torch.eye(4), 0.9) == []


@pytest.fixture
def photos(tmp_path):
    """A picture with a copy, saved anew and scaled down, and others."""
    folder = tmp_path / "photos"
    (folder / "again").mkdir(parents=True)
    for colour in ("red", "blue", "green"):
        for shape in ("circle", "cross"):
            draw(shape, colour).save(folder / f"{shape} {colour}.png")
    shutil.copy(folder / "circle red.png", folder / "again/copy.png")
    draw("circle", "red").save(folder / "again/saved.jpg", quality=95)
    shutil.copy(folder / "cross blue.png", folder / "again/blue.png")
    build_index(folder, tmp_path / "photos.index", "blip-mini", progress=False)
    return folder


def test_copies_and_pictures_saved_anew(photos):
    groups = Index(photos.with_suffix(".index")).duplicates(0.99)
    found = [[(one.path.relative_to(photos).as_posix(), one.same) for one in group] for group in groups]
    assert found == [
        [("again/blue.png", True), ("cross blue.png", True)],
        [("again/copy.png", True), ("again/saved.jpg", False), ("circle red.png", True)],
    ]
    assert [one.similarity for one in groups[0]] == pytest.approx([1, 1], abs=1e-5)
    assert 0.99 <= groups[1][1].similarity < 1
    only = Index(photos.with_suffix(".index")).duplicates(0.99, under="again")
    assert [[one.path.name for one in group] for group in only] == [["copy.png", "saved.jpg"]]


def test_copies_have_a_group_at_any_threshold(photos):
    assert [len(group) for group in Index(photos.with_suffix(".index")).duplicates(1)] == [2, 2]
    for wrong in (0, -1, 1.01, float("nan")):
        with pytest.raises(AuroraError, match="threshold is .*; it must lie above 0, up to 1"):
            Index(photos.with_suffix(".index")).duplicates(wrong)
