"""Groups of layers with factors of their own."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method

from .tiny import SPLIT, Net, aurora_config

TOWERS = {"target_modules": ["qkv", "query", "key", "value", "projection"], "r": 4, "init_weights": False}


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def blip_with(**fields):
    """blip-mini, whose layers that read the same are computed together, and whose fusion reads pictures as they are."""
    backbone = load_backbone("blip-mini", task="retrieval")
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {**TOWERS, **fields}, train_heads=False)
    return backbone


def loss_of(backbone):
    torch.manual_seed(1)
    backbone.module.train()
    picture = backbone.encode_image(torch.randn(2, 3, 96, 96))
    texts = backbone.texts(["a red heart", "two apples on a table"])
    text = backbone.encode_text(texts)
    scores = backbone.match(texts, picture.states, torch.arange(2))
    return scores.square().sum() + (picture.feature * text.feature).sum()


def test_a_group_has_factors_of_its_own(net):
    model = get_peft_model(net, aurora_config(factor_groups=["^up$|square", "qkv", "u"]))
    shapes = {
        name.rpartition(".")[2]: tuple(weight.shape) for name, weight in trained(model).items() if ".P" not in name
    }
    shapes = {name: shape for name, shape in shapes.items() if name[:2] in ("U_", "V_", "la")}
    assert shapes == {
        **{"U_12": (12, 4), "V_8": (8, 4)},  # down is in none
        **{"U_8_1": (8, 4), "V_12_1": (12, 4), "V_8_1": (8, 4)},
        **{"U_8_2": (8, 4), "V_8_2": (8, 4)},
        "lambda_": (4,),
    }


@pytest.mark.parametrize("split", [{}, SPLIT], ids=["plain", "split"])
@pytest.mark.parametrize("tokens", [(2, 2), (4, 20)])
def test_gradients_are_those_of_the_dense_updates(split, tokens):
    torch.manual_seed(0)
    model, x = get_peft_model(Net(), aurora_config(factor_groups=["down|square"], **split)), torch.randn(*tokens, 8)
    model(x).square().sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in trained(model).items()}
    model.zero_grad()
    dense, base = Net(), model.base_model.model
    weights = {}
    for name, layer in dense.named_children():
        own = getattr(base, name)
        if hasattr(own, "base_layer"):
            weights[f"{name}.weight"] = own.base_layer.weight + own.get_delta_weight("default")
            own = own.base_layer
        else:
            weights[f"{name}.weight"] = own.weight
        if layer.bias is not None:
            weights[f"{name}.bias"] = own.bias
    torch.func.functional_call(dense, weights, (x,)).square().sum().backward()
    for name, weight in trained(model).items():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_equal_factors_in_two_towers_are_shared_ones():
    """In BLIP, whose layers of one width are computed together and which crosses from one tower into the other."""
    shared, grouped = blip_with(), blip_with(factor_groups=["vision_model"])
    ours, theirs = trained(grouped.module), trained(shared.module)
    assert len(ours) > len(theirs)
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(theirs[name.replace("U_192_1", "U_192").replace("V_192_1", "V_192")])
    losses = [loss_of(backbone) for backbone in (shared, grouped)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    for name, weight in theirs.items():
        own = ours[name].grad
        if name.rpartition(".")[2] in ("U_192", "V_192"):
            own = own + ours[f"{name}_1"].grad
        torch.testing.assert_close(own, weight.grad, rtol=1e-4, atol=1e-6)


def test_groups_are_saved_and_loaded(net, tmp_path):
    model = get_peft_model(net, aurora_config(factor_groups=["down", "qkv"])).eval()
    x = torch.randn(2, 3, 8)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Net().eval(), tmp_path)
    assert torch.equal(loaded(x), model(x))
    assert torch.allclose(model.merge_and_unload()(x), loaded(x), atol=1e-6)


def test_adapters_with_other_groups_are_not_combined(net):
    model = get_peft_model(net, aurora_config(factor_groups=["down"]), adapter_name="one")
    model.add_adapter("two", aurora_config(factor_groups=["down"]))
    model.add_adapter("three", aurora_config())
    x = torch.randn(2, 3, 8)
    model.base_model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both")
    model.base_model.set_adapter(["one", "two"])
    expected = model(x)
    model.set_adapter("both")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="need the same `factor_groups`"):
        model.base_model.add_weighted_adapter(["one", "three"], [1.0, 1.0], "other")


def test_one_regex_is_a_group():
    assert aurora_config(factor_groups="down").group_of("layers.down") == 1
    assert aurora_config(factor_groups="down").group_of("layers.qkv") == 0


def test_what_is_no_regex_is_refused():
    with pytest.raises(ValueError, match=r"`factor_groups` holds '\(', which is no regex"):
        aurora_config(factor_groups=["("])
