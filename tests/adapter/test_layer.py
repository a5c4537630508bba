"""The adapted linear layer against the dense update, in values and gradients."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from aurora_petl.adapter.frozen import merge_pays

from .tiny import Net, aurora_config

CORES = ["diagonal", "full"]
FEW, MANY = (1, 2), (4, 20)  # batch and tokens below and above the point where the merged forward pays
# (in, out, slices by rows, slices by columns): one matrix, two widths, a fused qkv or fc1, and an fc2
KINDS = [(8, 8, 1, 1), (8, 12, 1, 1), (8, 24, 3, 1), (32, 8, 1, 4)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def dense_update(layer, factors, core, kind, scale):
    """dW by a loop over slices and one einsum each, from the definition."""
    in_features, out_features, rows, columns = kind
    U = getattr(factors, f"U_{in_features // columns}")
    V = getattr(factors, f"V_{out_features // rows}")
    blocks = []
    for row in layer.aurora_P["default"]:
        if core == "diagonal":
            blocks.append(torch.einsum("r,r,or,ir->oi", factors.lambda_, row, V, U))
        else:
            blocks.append(torch.einsum("abs,s,oa,ib->oi", factors.C, row, V, U))
    assert len(blocks) == rows * columns
    return scale * torch.cat(blocks, dim=1 if columns > 1 else 0)


def adapted_layer(core, kind=KINDS[0], dtype=torch.float32, **fields):
    in_features, out_features, rows, columns = kind
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(in_features, out_features, dtype=dtype))
    split = dict(fused_slices={"0": rows}, fused_columns={"0": columns})
    model = get_peft_model(net, aurora_config(target_modules=["0"], core=core, **split, **fields))
    return model, model.base_model.model[0], model.base_model.aurora_factors["default"]


@pytest.mark.parametrize("tokens", [FEW, MANY])
@each_kind
@pytest.mark.parametrize("core", CORES)
def test_equals_dense(core, kind, tokens):
    model, layer, factors = adapted_layer(core, kind, scale=0.7)
    x = torch.randn(*tokens, kind[0], requires_grad=True)
    probe = torch.randn(*tokens, kind[1])
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    assert {name.split("aurora_")[1] for name in names} == {
        f"factors.default.U_{kind[0] // kind[3]}",
        f"factors.default.V_{kind[1] // kind[2]}",
        f"factors.default.{'lambda_' if core == 'diagonal' else 'C'}",
        "P.default",
    }
    base = layer.base_layer

    update = dense_update(layer, factors, core, kind, 0.7)
    expected = F.linear(x, base.weight + update, base.bias)
    expected_grads = torch.autograd.grad((expected * probe).sum(), (x, *weights))
    y = model(x)
    grads = torch.autograd.grad((y * probe).sum(), (x, *weights))

    assert merge_pays(x, base.weight) == (tokens == MANY)
    assert torch.allclose(layer.get_delta_weight("default"), update, atol=1e-6)
    assert torch.allclose(y, expected, atol=1e-5)
    for name, got, want in zip(("x", *names), grads, expected_grads, strict=True):
        assert torch.allclose(got, want, atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("tokens", [FEW, MANY])
@each_kind
@pytest.mark.parametrize("core", CORES)
def test_gradcheck(core, kind, tokens):
    model, layer, _ = adapted_layer(core, kind, torch.float64)
    x = torch.randn(*tokens, kind[0], dtype=torch.float64, requires_grad=True)
    names, weights = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    assert len(weights) == 4 and merge_pays(x, layer.base_layer.weight) == (tokens == MANY)

    def apply(x, *weights):
        return functional_call(model, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(apply, (x, *weights), fast_mode=True)


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
    model, layer, _ = adapted_layer(core, (8, 24, 3, 1))
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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8)], ids=str)
def test_models_may_change_what_a_layer_returns_in_place(shape, dtype, dropout):
    """`nn.ReLU(inplace=True)` and ``x[mask] = 0`` after a linear layer are ordinary."""
    model, _, _ = adapted_layer("diagonal", dtype=dtype, dropout=dropout)
    x, grads = torch.randn(shape, dtype=dtype), []
    for change in (lambda y: F.relu(y, inplace=True), F.relu):
        model.zero_grad()
        torch.manual_seed(0)
        change(model(x)).sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
    assert all(grad.any() for grad in grads[0]) and all(map(torch.equal, *grads))


def test_a_compiled_model_may_too():
    torch.compiler.reset()
    model, _, _ = adapted_layer("diagonal")
    model.base_model.model.append(nn.ReLU(inplace=True))
    x, grads = torch.randn(2, 5, 8), []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        run(x).sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_rank_dropout_only_in_training(net):
    model = get_peft_model(net, aurora_config(dropout=0.5)).eval()
    x = torch.randn(*MANY, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("core", CORES)
def test_compiles_without_graph_breaks(core, tokens, autocast):
    kind = KINDS[2] if tokens == MANY else KINDS[3]
    model, layer, _ = adapted_layer(core, kind)
    torch.compiler.reset()
    x = torch.randn(*tokens, kind[0], requires_grad=True)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = run(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
    assert len(results[0]) == 5
    tolerance = 0.02 if autocast else 1e-6  # a compiled backward pass runs in the autocast of its forward pass
    assert all((a - b).norm() <= tolerance * a.norm() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("autocast_adapter_dtype", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_are_those_of_lora(dtype, autocast_adapter_dtype):
    """Of the adapter's weights, of what the layer returns, and of the merged weight."""
    results = []
    for config in (LoraConfig(r=4, target_modules=["0"], init_lora_weights=False), aurora_config(target_modules=["0"])):
        net = nn.Sequential(nn.Linear(8, 8, dtype=dtype))
        model = get_peft_model(net, config, autocast_adapter_dtype=autocast_adapter_dtype)
        dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
        y = model(torch.randn(2, 8, dtype=dtype))
        y.sum().backward()
        results.append((dtypes, y.dtype, model.merge_and_unload()[0].weight.dtype))
    assert results[0] == results[1] == ({torch.float32 if autocast_adapter_dtype else dtype}, dtype, dtype)


def test_layers_on_several_devices():
    """U, V and lambda live on one device and are used where each layer is."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta"))
    model = get_peft_model(net, aurora_config(target_modules=["0", "1"]))
    first, second, _ = model.base_model.model
    assert first.aurora_P["default"].device.type == "cpu" and second.aurora_P["default"].device.type == "meta"
    assert model.base_model.aurora_factors["default"].U_8.device.type == "cpu"
    for tokens in (FEW, MANY):
        y = first(torch.randn(*tokens, 8))
        assert y.device.type == "cpu" and second(y.to("meta")).device.type == "meta"
    assert second.get_delta_weight("default").device.type == "meta"


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


class Readers(nn.Module):
    """Two layers that read the same x, which a third one computes."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = (nn.Linear(8, 8, dtype=torch.bfloat16) for _ in range(3))
        self.between = lambda x: None

    def forward(self, states):
        x = self.first(states)
        a = self.a(x)
        self.between(x)
        return a, self.b(x), x


def readers():
    torch.manual_seed(0)
    return get_peft_model(Readers(), aurora_config(target_modules=["first", "a", "b"])).train()


def products_with_U(model, states):
    U = model.base_model.model.a.aurora_factors["default"].U_8
    counted = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation is torch.ops.aten.mm.default and args[1].shape == U.shape and len(args[0]) == 6:
                counted.append(args[0].shape)
            return operation(*args, **(kwargs or {}))

    with Products():
        model(states)
    return len(counted)


def test_layers_that_read_the_same_x_share_its_product_with_u():
    model, states = readers(), torch.randn(6, 8, dtype=torch.bfloat16)
    assert products_with_U(model, states) == 2  # of the states, and of x for both
    model.base_model.model.between = lambda x: x.data_ptr()  # a look changes nothing
    assert products_with_U(model, states) == 2


def test_x_that_changes_in_place_between_its_readers_is_taken_anew():
    model, states = readers(), torch.randn(6, 8, dtype=torch.bfloat16)

    def double(x):
        with torch.no_grad():
            x.mul_(2)

    model.base_model.model.between = double
    _, b, x = model(states)
    assert torch.equal(b, model.base_model.model.b(x.detach()))
    assert products_with_U(model, states) == 3


def test_what_is_shared_lives_no_longer_than_x():
    """x holds its note and the note must not hold x, or memory would wait for the garbage collector."""
    model = readers()
    gc.disable()
    try:
        for dtype in (torch.bfloat16, torch.float32):
            with torch.autocast("cpu", torch.bfloat16):
                a, b, x = model(torch.randn(6, 8, dtype=dtype))
            (a.float().sum() + b.float().sum()).backward()
            gone = weakref.ref(x)
            del a, b, x
            assert gone() is None
    finally:
        gc.enable()


def test_an_input_that_is_filled_anew_without_a_trace_is_read_anew():
    model, states = readers(), torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    layer, other = model.base_model.model.a, torch.randn(6, 8, dtype=torch.bfloat16)
    layer(states)
    states.data.copy_(other)
    assert torch.equal(layer(states), layer(other))
