"""Layers that read the same x computed together, against the same layers by themselves."""

import gc
import weakref

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter import together
from aurora_petl.adapter.norm import RecomputableLayerNorm
from aurora_petl.adapter.together import crossing, project

from .tiny import aurora_config

FEW, MANY = (1, 2), (4, 20)  # batch and tokens below and above the point where the merged forward pays


class Readers(nn.Module):
    """(..., 8) -> (..., 40): a norm, whose output three layers read, one of them fused."""

    def __init__(self):
        super().__init__()
        self.norm = RecomputableLayerNorm(8)
        self.query, self.key, self.qkv = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 24)
        self.between = lambda x: None

    def forward(self, h):
        x = self.norm(h)
        self.between(x)
        return torch.cat(project(x, self.query, self.key, self.qkv), -1)


def adapted(dtype=torch.float32, **fields):
    torch.manual_seed(0)
    config = aurora_config(target_modules=["query", "key", "qkv"], **fields)
    model = get_peft_model(Readers().to(dtype), config)
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
def alone(monkeypatch):
    """A switch: layers by themselves."""
    return lambda: monkeypatch.setattr(together, "_unit", lambda *_: ())


@pytest.fixture
def joined(monkeypatch):
    """The number of layers of each product for several."""
    seen, formed_for = [], together.formed_for

    def asked(layers, *args):
        found = formed_for(layers, *args)
        seen.extend([len(layers)] if found is not None else [])
        return found

    monkeypatch.setattr(together, "formed_for", asked)
    return seen


@pytest.mark.parametrize("core", ["diagonal", "full"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_equals_layers_on_their_own(joined, alone, core, tokens):
    model, _ = adapted(core=core, scale=0.7)
    h = torch.randn(*tokens, 8, requires_grad=True)
    mine = gradients(model, h)
    assert joined == [3]
    alone()
    for ours, theirs in zip(mine, gradients(model, h), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert joined == [3]


@pytest.mark.parametrize("autocast", [True, False])
def test_in_bfloat16(joined, alone, autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    model, _ = adapted(dtype)
    h = torch.randn(*MANY, 8).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        mine = gradients(model, h)
        alone()
        theirs = gradients(model, h)
    assert joined == [3] and mine[0].dtype == torch.bfloat16
    for ours, apart in zip(mine, theirs, strict=True):
        assert ours.dtype == apart.dtype and (ours - apart).norm() <= 0.02 * apart.norm()


@torch.no_grad()
def test_in_evaluation_each_is_the_pretrained_layer_to_the_bit(joined):
    model, block = adapted(init_weights=True)
    model.eval()
    x = torch.randn(*MANY, 8)
    bases = [layer.base_layer for layer in (block.query, block.key, block.qkv)]
    found = project(x, block.query, block.key, block.qkv)
    assert joined == [3] and all(torch.equal(y, base(x)) for y, base in zip(found, bases, strict=True))


def test_other_adapters_and_hooks_go_each_by_itself(joined):
    model, block = adapted()
    model.add_adapter("other", aurora_config(target_modules=["query"]))
    h = torch.randn(*MANY, 8, requires_grad=True)
    model.base_model.set_adapter(["default", "other"])  # query has both
    model(h)
    model.set_adapter("default")
    with model.disable_adapter():
        model(h)
    seen = []
    handle = block.key.register_forward_hook(lambda *_: seen.append(1))
    model(h)
    assert joined == [] and seen == [1]
    handle.remove()
    model(h)
    assert joined == [3]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_equals_none(reentrant):
    model, _ = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    plain = gradients(model, h)
    again = gradients(model, h, lambda h: checkpoint(model, h, use_reentrant=reentrant))
    for mine, theirs in zip(again, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_note_of_what_has_changed_since_is_not_used():
    model, block = adapted()
    x = torch.randn(*MANY, 8, requires_grad=True) * 1
    assert crossing(x, block.key, first=False) is None
    first = crossing(x, block.key, first=True)
    assert crossing(x, block.qkv, first=False).z is first.z
    with torch.no_grad():  # a step of an optimizer
        block.key.aurora_factors["default"].U_8.mul_(2)
    assert crossing(x, block.qkv, first=False) is None
    assert crossing(x, block.key, first=True).z is not first.z
    x.detach().add_(1)  # the version of x counts it
    assert crossing(x, block.qkv, first=False) is None


def test_what_is_not_used_is_freed():
    """Neither a note on x nor what was formed for the layers keeps x alive."""
    model, block = adapted()
    seen = []

    def between(x):
        crossing(x, block.key, first=True)
        seen.append(weakref.ref(x))

    block.between = between
    y = model(torch.randn(*MANY, 8, requires_grad=True))
    assert y.requires_grad
    del y
    gc.collect()
    assert seen[0]() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_reads_one_product_and_evaluation_one_a_layer(alone, monkeypatch, dtype):
    """Without gradient: in training, as a momentum encoder does, and in evaluation."""
    model, readers = adapted(dtype)
    h, calls, linear = torch.randn(*MANY, 8, dtype=dtype), [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *args: calls.append(1) or linear(*args))
    with torch.no_grad():
        model.train()
        joint, products = readers(h), len(calls)
        model.eval()
        apart = readers(h)
        assert (products, len(calls) - products) == (1, 3)
        alone()
        expected = readers(h)
    error = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(apart, expected, rtol=error, atol=error)
    assert torch.allclose(joint, expected, rtol=error, atol=error)
