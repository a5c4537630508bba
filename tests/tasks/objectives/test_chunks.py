"""Gradient caching: a batch by chunks has the losses, gradients and side effects of the whole batch."""

import pytest
import torch

from aurora_petl.adapter import updates
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.tasks.objectives import by_chunks, chunks, matching
from tests.helpers.steps import make_task

KINDS = ("blip", "blip-2", "clip", "siglip", "naflex")


def step(kind, folder, size, *, times=2, autocast=False, before=None, **settings):
    """Losses and gradients of steps, and what they leave."""
    task, rows = make_task(kind, folder, chunk_size=size, **settings)
    if before is not None:
        before(task)
    task.warmup_steps = 1
    batch, losses = task.collate(rows), []
    torch.manual_seed(5)
    for _ in range(times):
        task.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            parts = task(**batch)
        parts["loss"].backward()
        losses.append({name: part.item() for name, part in parts.items()})
    gradients = {name: weight.grad for name, weight in task.trained() if weight.grad is not None}
    return losses, gradients, {name: value for name, value in task.training_state().items() if "model." not in name}


def compare(one, other, rel=1e-5):
    for own, theirs in zip(one[0], other[0], strict=True):
        assert own == pytest.approx(theirs, rel=rel)
    whole = torch.stack([gradient.norm() for gradient in other[1].values()]).norm()
    assert one[1].keys() == other[1].keys()
    for name, gradient in other[1].items():
        assert (one[1][name] - gradient).norm() <= rel * (gradient.norm() + 1e-2 * whole), name
    for name, value in other[2].items():
        assert torch.allclose(one[2][name].float(), value.float(), rtol=rel, atol=rel), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_gradients_are_those_of_the_whole_batch(kind, size, tmp_path):
    compare(step(kind, tmp_path, size), step(kind, tmp_path, 0))


@pytest.mark.parametrize("settings", [{"itm_weight": 0.0}, {"momentum": 0.0, "alpha": 0.0, "queue_size": 0}], ids=str)
def test_of_contrast_alone_and_without_a_teacher(settings, tmp_path):
    compare(step("blip", tmp_path, 2, **settings), step("blip", tmp_path, 0, **settings))


@pytest.mark.parametrize("kind", ["blip", "clip"])
def test_under_autocast_they_differ_by_rounding(kind, tmp_path):
    compare(step(kind, tmp_path, 2, autocast=True), step(kind, tmp_path, 0, autocast=True), rel=0.05)


@pytest.mark.parametrize("kind", ["blip", "clip"])
def test_dropout_is_the_same_when_a_chunk_is_computed_again(kind, tmp_path, monkeypatch):
    """As chunks whose graph is kept."""

    def before(task):
        for factors in task.backbone.adapter.base_model.aurora_factors.values():
            factors.dropout = 0.5

    dropped = step(kind, tmp_path, 2, before=before)
    for module in (chunks, matching):
        monkeypatch.setattr(module, "once_more", lambda function, *inputs: function(*inputs))
    compare(dropped, step(kind, tmp_path, 2, before=before))
    assert dropped[0][0] != pytest.approx(step(kind, tmp_path, 2)[0][0], rel=1e-3)


def test_of_each_chunk_nothing_but_its_features_is_kept():
    layer, kept = torch.nn.Linear(8, 8), []

    def encode(x):
        for _ in range(3):
            x = layer(x).tanh()
        return type("Features", (tuple,), {"__new__": lambda cls, *parts: tuple.__new__(cls, parts)})(x, None)

    for size in (0, 2):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            made = by_chunks(encode, size, torch.randn(6, 8))
        assert made[1] is None and made[0].shape == (6, 8)
        kept.append(sum(sizes))
    assert kept[1] <= 6 * 8 < kept[0]


def test_updates_are_formed_once_for_all_chunks_of_a_device(tmp_path, monkeypatch):
    """Once of the averages and once of the weights, where to ask whether values have changed is to wait for them."""
    formed, make = [], updates.Block.__init__
    monkeypatch.setattr(updates.Block, "__init__", lambda block, *rest: formed.append(1) or make(block, *rest))
    monkeypatch.setattr(updates.Stamp, "has_same_values", lambda stamp: not stamp.learns)
    task, rows = make_task("blip", tmp_path, chunk_size=2)
    batch = task.collate(rows)
    for _ in range(3):
        formed.clear()
        task(**batch)["loss"].backward()
        assert len(formed) == 2


def test_a_wrong_size_is_refused():
    with pytest.raises(AuroraError, match=r"task\.chunk_size is -1"):
        load_recipe(None, ["task.chunk_size=-1"])
    with pytest.raises(AuroraError, match=r"task\.chunk_size and train\.gradient_checkpointing both .*; leave one out"):
        load_recipe(None, ["task.chunk_size=8", "train.gradient_checkpointing=true"])
