"""What pretraining makes of pictures and words: views, scenes and steps that can be made again."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = str(Path(__file__).parents[1] / "pretraining")


@pytest.fixture(scope="module")
def script():
    """A module of ``pretraining/`` by its name."""
    sys.path.insert(0, FOLDER)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(FOLDER)


@pytest.mark.parametrize(
    "name, base",
    [
        ("door-open-outline", "door-open"),
        ("sharp-door-open", "door-open"),
        ("heart-02-24px", "heart"),
        ("outline", "outline"),
        ("round-round", "round"),
    ],
)
def test_an_icon_s_name_without_its_style(script, name, base):
    assert script("icons").base(name) == base


def test_things_of_a_scene_lie_where_they_are_said_to(script):
    compositions = script("compositions")
    drawings = torch.full((1, compositions.THINGS, 3, 112, 112), 255, dtype=torch.uint8)
    drawings[0, 0] = 0  # a black square
    place = torch.zeros(1, compositions.THINGS, 3)
    place[0, 0] = torch.tensor([0.75, 0.25, 0.25])
    tint = torch.zeros(1, compositions.THINGS, 3)
    tint[0, 0] = torch.tensor([1.0, 0.0, 0.0])
    scene = compositions.compose(drawings, place, tint, torch.tensor([[1.0, 1.0, 1.0]]))
    white, red = scene[0, :, 80, 10], scene[0, :, 24, 72]
    assert scene.shape == (1, 3, 96, 96)
    assert red[0] == white[0] and red[1] < white[1] and red[2] < white[2]  # red where black was, upper right
    seen = (scene[0, 1] < white[1] - 1).nonzero()
    assert seen.min(0).values.tolist() == [12, 60] and seen.max(0).values.tolist() == [35, 83]  # 24 px of 96


def test_a_text_to_be_written_is_learned_from_its_first_word_to_its_end(script):
    feed = script("feed")
    ids = torch.tensor([[101, 7, 102, 0, 0], [101, 8, 9, 102, 0]])
    made = feed.written(ids, torch.tensor([4, 5]))
    assert made.ids.shape == (2, 4)
    assert ids[:, 1:4].flatten()[made.places].tolist() == [7, 102, 8, 9, 102]


def test_the_stages_follow_each_other_and_rates_fall(script):
    pretrain = script("pretrain")
    options = SimpleNamespace(text=0.0001, alone=0.0002, all=0.0002, fusion=0.0001, batch=10, lr=1e-3, fusion_lr=2e-3)
    run = pretrain.Run(None, None, None, None, None, options)
    stages = [run.stage(step) for step in range(sum(run.lengths))]
    assert [name for name, _ in stages] == ["text"] * 10 + ["alone"] * 20 + ["all"] * 20 + ["fusion"] * 10
    rates = [rate for name, rate in stages if name in ("alone", "all")]
    assert max(rates) <= 1e-3 and rates[-1] < 0.02e-3 and rates[6:] == sorted(rates[6:], reverse=True)
