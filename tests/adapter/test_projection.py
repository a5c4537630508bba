"""x U formed once for layers that share x, against the same layers without the note."""

import gc
import weakref

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter.frozen import Projection
from aurora_petl.adapter.layer import AuroraLinear, project_once
from aurora_petl.adapter.norm import RecomputableLayerNorm

from .tiny import aurora_config

FEW, MANY = (1, 2), (4, 20)  # batch and tokens below and above the point where the merged forward pays


class Readers(nn.Module):
    """(..., 8) -> (..., 40): a norm, whose output three layers read, one of them fused."""

    def __init__(self):
        super().__init__()
        self.norm = RecomputableLayerNorm(8)
        self.query, self.key, self.qkv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24)
        self.once, self.between = True, lambda x: None

    def forward(self, h):
        x = self.norm(h)
        if self.once:
            project_once(self.key, x)
        self.between(x)
        return torch.cat([self.query(x), self.key(x), self.qkv(x)], -1)


def adapted(**fields):
    torch.manual_seed(0)
    model = get_peft_model(Readers(), aurora_config(target_modules=["query", "key", "qkv"], **fields))
    return model, model.base_model.model


def gradients(model, h, run=None):
    """The output, and the gradients of its weighted sum by the input and the trained weights."""
    learn = [h, *(weight for weight in model.parameters() if weight.requires_grad)]
    for weight in learn:
        weight.grad = None
    y = (run or model)(h)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return y, *(weight.grad for weight in learn)


@pytest.fixture
def projections(monkeypatch):
    """How often x U was formed for several layers, and how often a layer was given it."""
    found = {"formed": 0, "given": 0}
    project, projected = Projection.apply, AuroraLinear._projected

    def formed(*args):
        found["formed"] += 1
        return project(*args)

    def given(self, x, adapter):
        h = projected(self, x, adapter)
        found["given"] += h is not None
        return h

    monkeypatch.setattr(Projection, "apply", formed)
    monkeypatch.setattr(AuroraLinear, "_projected", given)
    return found


@pytest.mark.parametrize("core", ["diagonal", "full"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_equals_layers_on_their_own(projections, core, tokens):
    model, block = adapted(core=core)
    h = torch.randn(*tokens, 8, requires_grad=True)
    shared = gradients(model, h)
    assert projections == {"formed": 1, "given": 3}
    block.once = False
    for mine, theirs in zip(shared, gradients(model, h), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert projections == {"formed": 1, "given": 3}


def test_under_autocast(projections):
    model, block = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        shared = gradients(model, h)
        block.once = False
        alone = gradients(model, h)
    assert projections["given"] == 3 and shared[0].dtype == torch.bfloat16
    for mine, theirs in zip(shared, alone, strict=True):
        assert (mine - theirs).norm() <= 0.02 * theirs.norm()


def test_other_adapters_changes_in_place_and_no_gradient_go_without(projections):
    model, block = adapted()
    model.add_adapter("other", aurora_config(target_modules=["query"]))
    h = torch.randn(*MANY, 8, requires_grad=True)

    block.between = lambda x: model.set_adapter("other")  # query has both adapters, x the first one's note
    model(h)
    assert projections == {"formed": 1, "given": 0}

    model.set_adapter("default")
    block.between = lambda x: x.detach().add_(1)  # the version of x counts it
    model(h)
    with torch.no_grad():
        model(h)
    with model.disable_adapter():
        model(h)
    assert projections == {"formed": 2, "given": 0}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_equals_none(reentrant):
    model, _ = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    plain = gradients(model, h)
    again = gradients(model, h, lambda h: checkpoint(model, h, use_reentrant=reentrant))
    for mine, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_note_of_factors_that_have_changed_since_is_not_used(projections):
    model, block = adapted()
    x = torch.randn(*MANY, 8, requires_grad=True)
    project_once(block.key, x)
    block.query(x)
    with torch.no_grad():  # a step of an optimizer
        block.key.aurora_factors["default"].U_8.mul_(2)
    block.query(x)
    assert projections == {"formed": 1, "given": 1}


def test_what_is_not_used_is_freed():
    """The note must not keep its own tensor alive."""
    model, block = adapted()
    seen = []
    block.between = lambda x: seen.append(weakref.ref(x))
    y = model(torch.randn(*MANY, 8, requires_grad=True))
    assert y.requires_grad
    del y
    gc.collect()
    assert seen[0]() is None
