"""A layer norm's output formed again in the backward pass, against plain autograd with the dense update."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter import frozen
from aurora_petl.adapter.norm import RecomputableLayerNorm, norm_inputs

from .tiny import aurora_config

FEW, MANY = (1, 2), (4, 20)  # batch and tokens below and above the point where the merged forward pays


class Block(nn.Module):
    """(..., 8) -> (..., 24): a norm, what the test puts between, and a fused layer of three slices."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.norm = RecomputableLayerNorm(8, eps=0.1, dtype=dtype)
        self.qkv = nn.Linear(8, 24, dtype=dtype)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        self.between = lambda x: x
        self.noted = None

    def forward(self, h):
        x = self.between(self.norm(h))
        self.noted = norm_inputs(x) is not None
        return self.qkv(x)


def adapted(dtype=torch.float32, **fields):
    torch.manual_seed(0)
    model = get_peft_model(Block(dtype), aurora_config(target_modules=["qkv"], **fields))
    return model, model.base_model.model


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def gradients(model, h, run=None):
    """Of the output's weighted sum, by the input and the trained weights."""
    y = (run or model)(h)
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad((y * probe).sum(), (h, *trained(model).values()))


def plain(block):
    """The block with the adapted layer from its definition, which keeps x as autograd does."""
    layer, factors = block.qkv, block.qkv.aurora_factors["default"]

    def run(h):
        blocks = [factors.V_8 @ torch.diag(factors.lambda_ * row) @ factors.U_8.T for row in layer.aurora_P["default"]]
        x = block.between(block.norm(h))
        return F.linear(x, layer.base_layer.weight + torch.cat(blocks), layer.base_layer.bias)

    return run


def assert_close(found, expected, tolerance=1e-5):
    for got, want in zip(found, expected, strict=True):
        assert (got - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_gradients_equal_plain_autograd(tokens):
    model, block = adapted()
    h = torch.randn(*tokens, 8, requires_grad=True)
    assert_close(gradients(model, h), gradients(model, h, plain(block)))
    assert block.noted


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("core", ["diagonal", "full"])
def test_the_same_to_the_bit_as_with_x_kept(core, tokens):
    model, block = adapted(core=core)
    other = copy.deepcopy(model)
    other.base_model.model.norm.__class__ = nn.LayerNorm
    h = torch.randn(*tokens, 8, requires_grad=True)
    assert torch.equal(model(h), other(h)) and block.noted and not other.base_model.model.noted
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, h), gradients(other, h), strict=True))


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_gradcheck(tokens):
    model, block = adapted(torch.float64)
    h = torch.randn(*tokens, 8, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*trained(model).items(), strict=True)

    def apply(h, *weights):
        return functional_call(model, dict(zip(names, weights, strict=True)), (h,))

    assert torch.autograd.gradcheck(apply, (h, *weights), fast_mode=True) and block.noted


@pytest.mark.parametrize("autocast", [False, True])
def test_in_half_precision_on_a_gpu_x_is_kept_as_it_is_computed_with(autocast, monkeypatch):
    """Which gives the same gradients as x formed again, with fewer kernels."""
    model, block = adapted(torch.bfloat16)
    h = torch.randn(*MANY, 8, dtype=torch.bfloat16, requires_grad=True)

    def taken():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = gradients(model, h)
            saved = kept(lambda: model(h), model)
        return found, saved

    again, few = taken()
    monkeypatch.setattr(frozen, "is_bfloat16_on_cpu", lambda x: False)
    once, more = taken()
    assert block.noted
    assert all(torch.equal(a, b) for a, b in zip(again, once, strict=True))
    assert sum(more.values()) > sum(few.values())


def kept(run, model):
    """Storages that the forward pass keeps for the backward pass, weights aside: address -> bytes."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return {address: storage.nbytes() for address, storage in found.items()}


def test_what_is_kept_is_what_the_frozen_block_keeps():
    model, block = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    held = kept(lambda: model(h), model)
    with model.disable_adapter():
        frozen = kept(lambda: model(h), model)
    row = block.qkv.aurora_P["default"].numel() * 4
    assert h.untyped_storage().data_ptr() in held
    assert sum(held.values()) <= sum(frozen.values()) + 3 * row  # the row's products with lambda and scale


def doubled(module, args, output):
    return output * 2


def doubled_in_place(module, args, output):
    output.mul_(2)


WAYS = {
    "hook with another result": lambda block: block.norm.register_forward_hook(doubled),
    "hook in place": lambda block: block.norm.register_forward_hook(doubled_in_place),
    "backward hook": lambda block: block.norm.register_full_backward_hook(lambda *_: None),
    "a step between": lambda block: setattr(block, "between", lambda x: x + 1),
    "another view": lambda block: setattr(block, "between", lambda x: x.flip(-1)),
    "norm that learns": lambda block: block.norm.requires_grad_(True),
    "wrapped forward": lambda block: setattr(block.norm, "forward", lambda h: nn.LayerNorm.forward(block.norm, h) * 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_x_is_kept_where_it_is_not_the_bare_output_of_a_frozen_norm(way):
    model, block = adapted()
    WAYS[way](block)
    h = torch.randn(*MANY, 8, requires_grad=True)
    assert_close(gradients(model, h), gradients(model, h, plain(block)))
    assert block.noted is False


def test_without_gradients_there_is_no_note():
    model, block = adapted()
    with torch.no_grad():
        model(torch.randn(*MANY, 8, requires_grad=True))
    assert not block.noted
    with torch.inference_mode():
        model(torch.randn(*MANY, 8))
    assert not block.noted
    model(torch.randn(*MANY, 8)).sum().backward()  # the frozen block would keep nothing
    assert not block.noted


def test_a_changed_input_is_an_error_as_for_the_norm_alone():
    model, _ = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True) * 1
    y = model(h)
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("low", [False, True])
def test_autocast(low):
    """x is rounded on its way into the layer, and formed again as it was; low-precision states leave x kept."""
    model, block = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    exact = gradients(model, h)

    def run(h):
        with torch.autocast("cpu", torch.bfloat16):
            return model(h.bfloat16() if low else h).float()

    found = gradients(model, h, run)
    assert block.noted is not low
    for got, want in zip(found, exact, strict=True):
        assert (got - want).norm() <= 0.03 * want.norm()
    block.norm.__class__ = nn.LayerNorm
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(model, h, run), strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model, _ = adapted(dropout=0.3)
    model.train()
    h = torch.randn(*MANY, 8, requires_grad=True)
    found = []
    for run in (model, lambda h: checkpoint(model, h, use_reentrant=reentrant)):
        torch.manual_seed(3)
        model.zero_grad()
        h.grad = None
        run(h).square().sum().backward()
        found.append([h.grad, *(weight.grad for weight in trained(model).values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiles_without_graph_breaks():
    model, block = adapted()
    torch.compiler.reset()
    h = torch.randn(*MANY, 8, requires_grad=True)
    run = torch.compile(lambda h: block.qkv(block.norm(h)), fullgraph=True, backend="aot_eager")
    assert_close(gradients(model, h, run), gradients(model, h))


def test_several_adapters_merging_and_disabling():
    model, block = adapted()
    h = torch.randn(*MANY, 8, requires_grad=True)
    one = model(h)
    with model.disable_adapter():
        assert torch.allclose(model(h), block.qkv.base_layer(block.norm(h)))
    model.add_adapter("other", aurora_config(target_modules=["qkv"]))
    model.base_model.set_adapter(["default", "other"])
    base = block.qkv.base_layer(block.norm(h))
    delta = block.qkv.get_delta_weight("default") + block.qkv.get_delta_weight("other")
    assert torch.allclose(model(h), base + block.norm(h) @ delta.T, atol=1e-5)
    model.set_adapter("default")
    model.merge_adapter()
    assert torch.allclose(model(h), one, atol=1e-5)
