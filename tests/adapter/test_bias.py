"""Biases of the base model that are trained beside an adapter, as LoRA's `bias` has them."""

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from transformers import BlipForImageTextRetrieval

from .tiny import Net, aurora_config, blip_config

X = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(5))
ADAPTED = {"qkv.base_layer.bias", "up.base_layer.bias", "square.base_layer.bias"}  # `down` has none
BIASES = {"none": set(), "aurora_only": ADAPTED, "all": ADAPTED | {"head.bias"}}


def trained(model) -> set[str]:
    names = {
        name.removeprefix("base_model.model.") for name, weight in model.named_parameters() if weight.requires_grad
    }
    return {name for name in names if "aurora_" not in name}


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("inject", [False, True])
def test_what_is_trained(net, kind, inject):
    model = (
        inject_adapter_in_model(aurora_config(bias=kind), net)
        if inject
        else get_peft_model(net, aurora_config(bias=kind))
    )
    assert trained(model) == BIASES[kind]
    model(X).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("kind", ["aurora_only", "all"])
@pytest.mark.parametrize("head", [None, ["head"]])
def test_saved_and_loaded(tmp_path, net, kind, head):
    model = get_peft_model(net, aurora_config(bias=kind, modules_to_save=head))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    start = model(X).detach()
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    expected = model.eval()(X)
    with torch.no_grad():
        assert torch.allclose(model(X), expected, atol=1e-6) and not torch.allclose(expected, start, atol=1e-3)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Net().eval(), tmp_path)
    assert torch.allclose(loaded(X), expected, atol=1e-6) and not trained(loaded)
    assert torch.allclose(loaded.merge_and_unload()(X), expected, atol=1e-5)


def test_missing_biases_are_told(tmp_path, net):
    get_peft_model(net, aurora_config(bias="none")).save_pretrained(tmp_path)
    model = get_peft_model(Net(), aurora_config(bias="aurora_only"))
    with pytest.raises(ValueError, match=r"qkv.base_layer.bias is missing, and so for 2 more"):
        model.load_adapter(tmp_path, "default")


def test_one_adapter_alone_may_have_them(net):
    model = get_peft_model(net, aurora_config(bias="all"))
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("second", aurora_config(bias="aurora_only"))
    with pytest.warns(UserWarning, match="does not produce the same output as the base model"), model.disable_adapter():
        pass


def test_beside_additions(pair):
    model = get_peft_model(
        BlipForImageTextRetrieval(blip_config()),
        aurora_config(target_modules=None, bias="aurora_only", gate="scale_shift"),
    )
    model(**pair).itm_score.sum().backward()
    assert any(name.endswith("base_layer.bias") for name in trained(model))
