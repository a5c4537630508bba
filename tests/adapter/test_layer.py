"""The adapted linear layer against the dense update, in values and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter import layer as layer_module

from .tiny import Net, aurora_config

CORES = ["diagonal", "full"]
FEW, MANY = (1, 2), (4, 9)  # batch and tokens below and above the point where the merged forward pays


def dense_update(layer, factors, core, scale):
    """dW by a loop over slices and one einsum each, from the definition."""
    P = layer.aurora_P["default"]
    U = factors.get_parameter(f"U_{layer.in_features}")
    V = factors.get_parameter(f"V_{layer.out_features // len(P)}")
    blocks = []
    for row in P:
        if core == "diagonal":
            blocks.append(torch.einsum("r,r,or,ir->oi", factors.lambda_, row, V, U))
        else:
            blocks.append(torch.einsum("abs,s,oa,ib->oi", factors.C, row, V, U))
    return scale * torch.cat(blocks)


def adapted_layer(core, slices, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8 * slices, dtype=dtype))
    config = aurora_config(target_modules=["0"], fused_slices={"0": slices}, core=core, **fields)
    model = get_peft_model(net, config)
    return model, model.base_model.model[0], model.base_model.aurora_factors["default"]


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("core", CORES)
def test_equals_dense(core, slices, tokens):
    model, layer, factors = adapted_layer(core, slices, scale=0.7)
    x = torch.randn(*tokens, 8, requires_grad=True)
    probe = torch.randn(*tokens, 8 * slices)
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    base = layer.base_layer

    update = dense_update(layer, factors, core, 0.7)
    expected = F.linear(x, base.weight + update, base.bias)
    expected_grads = torch.autograd.grad((expected * probe).sum(), (x, *weights))
    y = model(x)
    grads = torch.autograd.grad((y * probe).sum(), (x, *weights))

    assert layer_module._merge_pays(x, base.weight) == (tokens == MANY)
    assert torch.allclose(layer.get_delta_weight("default"), update, atol=1e-6)
    assert torch.allclose(y, expected, atol=1e-5)
    for name, got, want in zip(("x", *names), grads, expected_grads, strict=True):
        assert torch.allclose(got, want, atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("core", CORES)
def test_gradcheck(core, slices, tokens):
    _, layer, factors = adapted_layer(core, slices, torch.float64)
    base, x = layer.base_layer, torch.randn(*tokens, 8, dtype=torch.float64, requires_grad=True)
    U, V, mode = (t.detach().requires_grad_() for t in layer._terms("default"))

    def apply(x, U, V, mode):
        merge = layer_module._merge_pays(x, base.weight)
        return layer_module._FrozenLinear.apply(x, base.weight, base.bias, U, V, mode, merge)

    assert torch.autograd.gradcheck(apply, (x, U, V, mode), fast_mode=True)


def test_only_wanted_gradients(net):
    model = get_peft_model(net, aurora_config())
    factors = model.base_model.aurora_factors["default"]
    factors.U_8.requires_grad_(False)
    model(torch.randn(*MANY, 8)).sum().backward()
    assert factors.U_8.grad is None and factors.V_8.grad is not None
    assert all(p.grad is None for n, p in model.named_parameters() if "base_layer" in n or "head" in n)


def test_trainable_base_falls_back_to_plain_autograd(net):
    model = get_peft_model(net, aurora_config())
    x = torch.randn(*MANY, 8)
    expected = model(x)
    weight = model.base_model.model.up.base_layer.weight.requires_grad_(True)
    y = model(x)
    y.sum().backward()
    assert torch.allclose(y, expected, atol=1e-5) and weight.grad is not None


def test_hooks_of_the_base_layer_run(net):
    model = get_peft_model(net, aurora_config())
    calls = []
    model.base_model.model.up.base_layer.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(*MANY, 8))
    assert calls == [1]


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("core", CORES)
def test_keeps_x_alone(core, tokens):
    """Of the tensors saved for the backward pass, only x has a token dimension."""
    model, layer, _ = adapted_layer(core, 3)
    count, saved = tokens[0] * tokens[1], []
    x = torch.randn(count, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x)
    with_tokens = [t for t in saved if t.shape[0] == count and t.dim() == 2 and t.data_ptr() != 0]
    assert {t.data_ptr() for t in with_tokens} <= {x.data_ptr(), layer.base_layer.weight.data_ptr()}
    assert any(t.data_ptr() == x.data_ptr() for t in with_tokens)
    merged_size = layer.base_layer.weight.numel()
    others = [t for t in saved if t.data_ptr() not in (x.data_ptr(), layer.base_layer.weight.data_ptr())]
    assert all(t.numel() < merged_size for t in others)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("core", CORES)
def test_bf16(core, autocast, tokens):
    """A bf16 base with float32 factors, or a float32 base under autocast, near the float32 result."""
    torch.manual_seed(0)
    net = Net().eval()
    reference = get_peft_model(copy.deepcopy(net), aurora_config(core=core))
    model = get_peft_model(net if autocast else net.bfloat16(), aurora_config(core=core))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "aurora_" in name:
                assert parameter.dtype == torch.float32
                parameter.copy_(reference.get_parameter(name))
    x = torch.randn(*tokens, 8)
    expected = reference(x)
    expected.square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x if autocast else x.bfloat16())
        hidden = model.base_model.model.up(x if autocast else x.bfloat16())
    assert y.dtype == hidden.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert (y - expected).norm() < 0.02 * expected.norm()
    for name, parameter in model.named_parameters():
        if "aurora_" in name:
            want = reference.get_parameter(name).grad
            assert parameter.grad.dtype == torch.float32
            assert (parameter.grad - want).norm() < 0.08 * want.norm(), name


def test_small_updates_reach_a_bf16_base():
    """An update below half a unit in the last place of W still acts (it would vanish if added to W)."""
    net = nn.Sequential(nn.Linear(8, 8, bias=False)).bfloat16()
    nn.init.ones_(net[0].weight)
    model = get_peft_model(net, aurora_config(target_modules=["0"], scale=1e-3))
    x = torch.ones(64, 8, dtype=torch.bfloat16)
    x[:, 4:] *= -1  # the base output is 0
    delta = model.base_model.model[0].get_delta_weight("default")
    assert torch.allclose(model(x).float(), x.float() @ delta.T, rtol=0.05, atol=1e-5) and delta.any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_equals_none(net, reentrant):
    model = get_peft_model(net, aurora_config(dropout=0.3)).train()
    x = torch.randn(*MANY, 8, requires_grad=True)
    grads = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        model.zero_grad()
        run(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_rank_dropout_only_in_training(net):
    model = get_peft_model(net, aurora_config(dropout=0.5)).eval()
    x = torch.randn(*MANY, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("core", CORES)
def test_compile(net, core):
    model = get_peft_model(net, aurora_config(core=core))
    x = torch.randn(*MANY, 8)
    results = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        y = run(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def test_odd_shapes(net):
    model = get_peft_model(net, aurora_config())
    up = model.base_model.model.up
    x = torch.randn(5, 8)
    assert torch.allclose(up(x[0]), up(x)[0], atol=1e-6)
    assert up(x[:0]).shape == (0, 12)
    up(x[:0]).sum().backward()
    up(x[0]).sum().backward()
    strided = torch.randn(8, 40).t()
    assert torch.allclose(up(strided), up(strided.contiguous()), atol=1e-6)
