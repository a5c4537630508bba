"""functional_call, torch.func, forward-mode AD and second derivatives."""

import pytest
import torch
from peft import get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from tests.helpers.blip_fusion import adapted, fused

from .tiny import SPLIT, Net, aurora_config

FEW, MANY = (2, 2), (4, 20)  # below and above the point where the merged forward pays
CORES = ["diagonal", "full"]


def model_of(core="diagonal", dtype=torch.float32, **fields):
    torch.manual_seed(0)
    return get_peft_model(Net().to(dtype), aurora_config(core=core, **fields), autocast_adapter_dtype=False).eval()


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def plain(model, x):
    """The same through plain operations, from the dense updates."""
    net = Net().to(x.dtype)
    base = model.base_model.model
    swapped = {}
    for name, module in net.named_children():
        source = getattr(base, name)
        frozen = getattr(source, "base_layer", source)
        swapped[f"{name}.weight"] = frozen.weight + (0 if frozen is source else source.get_delta_weight("default"))
        if module.bias is not None:
            swapped[f"{name}.bias"] = frozen.bias
    return functional_call(net, swapped, (x,))


@pytest.mark.parametrize("split", [{}, SPLIT], ids=["plain", "split"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("core", CORES)
def test_functional_call(core, tokens, split):
    """With tensors that are no parameters in the place of all weights: the values and gradients of the model itself."""
    model, x = model_of(core, **split), torch.randn(*tokens, 8)
    expected = model(x)
    expected.square().sum().backward()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for name in trained(model):
        weights[name] = (2 * weights[name]).requires_grad_() / 2  # a result, not a leaf
        weights[name].retain_grad()
    y = functional_call(model, weights, (x,))
    assert not any(isinstance(weight, nn.Parameter) for weight in weights.values())
    assert torch.equal(y, expected)
    y.square().sum().backward()
    for name, weight in trained(model).items():
        assert torch.equal(weights[name].grad, weight.grad), name


class Fused(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return fused(self.model)


def test_functional_call_of_gates_and_context():
    model = adapted(init_weights=False)
    expected = fused(model)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in trained(model).items()}
    states = functional_call(Fused(model), {f"model.{name}": weight for name, weight in weights.items()}, ())
    assert torch.equal(states, expected)
    states.square().sum().backward()
    expected.square().sum().backward()
    for name, weight in trained(model).items():
        if weight.grad is not None:
            assert torch.allclose(weights[name].grad, weight.grad, atol=1e-6), name


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("core", CORES)
def test_transforms_of_torch_func(core, tokens):
    model, x = model_of(core), torch.randn(*tokens, 8)
    weights = {name: weight.detach() for name, weight in trained(model).items()}

    def loss(weights, x):
        return functional_call(model, weights, (x,)).square().mean()

    model(x).square().mean().backward()
    for name, gradient in grad(loss)(weights, x).items():
        assert torch.allclose(gradient, model.get_parameter(name).grad, atol=1e-6), name
    each = vmap(grad(loss), (None, 0))(weights, x)  # of every item of the batch
    assert all(torch.allclose(each[name].mean(0), model.get_parameter(name).grad, atol=1e-6) for name in weights)
    assert torch.allclose(vmap(model)(x), model(x), atol=1e-6)


def test_forward_mode_and_jacobians():
    model, x = model_of(dtype=torch.float64), torch.randn(1, 2, 8, dtype=torch.float64)
    direction = torch.randn_like(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: plain(model, x), x)
    expected = torch.einsum("abcdef,def->abc", jacobian, direction)
    assert torch.allclose(jvp(model, (x,), (direction,))[1], expected)
    assert torch.allclose(jacrev(model)(x), jacobian)
    with forward_ad.dual_level():
        assert torch.allclose(forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent, expected)
    assert torch.allclose(
        hessian(lambda x: model(x).square().sum())(x),
        torch.autograd.functional.hessian(lambda x: plain(model, x).square().sum(), x),
    )


@pytest.mark.parametrize("layer", ["square", "qkv"])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_second_derivatives_raise(layer, tokens):
    """A penalty on gradients of one adapted layer: these hang on its factors, but autograd would see constants."""
    model = model_of()
    x = torch.randn(*tokens, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no second derivatives.*create_graph=True.*torch\.func"):
        torch.autograd.grad(getattr(model.base_model.model, layer)(x).sum(), x, create_graph=True)


def test_second_derivatives_raise_where_layers_share_a_projection():
    from .test_projection import adapted as readers

    model, _ = readers()
    h = torch.randn(*MANY, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(model(h).sum(), h, create_graph=True)


def test_a_penalty_on_gradients_by_torch_func():
    """The way that the message names: its values and gradients are those of plain operations."""
    model, x = model_of(dtype=torch.float64), torch.randn(2, 2, 8, dtype=torch.float64)
    weights = {name: weight.detach() for name, weight in trained(model).items()}

    def penalty(weights):
        return grad(lambda x: functional_call(model, weights, (x,)).sum())(x).square().sum()

    gradients = grad(penalty)(weights)
    inner = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(plain(model, inner).sum(), inner, create_graph=True)
    expected = torch.autograd.grad(dx.square().sum(), list(trained(model).values()))
    for (name, gradient), reference in zip(gradients.items(), expected, strict=True):
        assert torch.allclose(gradient, reference) and gradient.any(), name


def test_what_is_not_there_says_so(tmp_path):
    model = model_of()
    assert not hasattr(model, "no_such_thing")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="[Hh]otswapping only supports LORA but AURORA_PETL"):
        hotswap_adapter(model, str(tmp_path), adapter_name="default")
