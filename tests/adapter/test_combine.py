"""`add_weighted_adapter`: the update of the new adapter is the weighted sum of those of the others."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from aurora_petl.adapter import AuroraLinear

from .cases import CASES, Attended
from .tiny import SPLIT, Net, aurora_config

X = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(5))


def deltas(model: nn.Module, adapter: str) -> dict[str, torch.Tensor]:
    layers = {name: part for name, part in model.named_modules() if isinstance(part, AuroraLinear)}
    return {name: part.get_delta_weight(adapter) for name, part in layers.items() if adapter in part.aurora_P}


def summed(model: nn.Module, weights: dict[str, float]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    for adapter, weight in weights.items():
        for name, delta in deltas(model, adapter).items():
            sums[name] = sums.get(name, 0) + weight * delta
    return sums


@pytest.mark.parametrize(
    "cores", [("diagonal", "diagonal"), ("full", "full"), ("diagonal", "full"), ("full", "diagonal")]
)
@pytest.mark.parametrize("split", [{}, SPLIT], ids=["whole", "split"])
def test_the_sum_is_exact(tmp_path, net, cores, split):
    model = get_peft_model(net, aurora_config(core=cores[0], scale=0.5, **split), "first")
    model.add_adapter("second", aurora_config(r=3, core=cores[1], target_modules=["up", "down"], dropout=0.1, **split))
    weights = {"first": 0.7, "second": -1.5}
    before, active = model(X), model.active_adapter
    model.add_weighted_adapter(["first", "second"], [0.7, -1.5], "sum")
    assert torch.equal(model(X), before) and model.active_adapter == active
    assert not any("sum" in name for name, weight in model.named_parameters() if weight.requires_grad)
    expected, found = summed(model, weights), deltas(model, "sum")
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], delta, atol=1e-5) for name, delta in expected.items())
    assert model.peft_config["sum"].r == 7
    model.set_adapter("sum")
    y = model(X)
    y.sum().backward()  # it can be trained on
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Net().eval(), tmp_path / "sum")
    assert torch.allclose(loaded(X), y, atol=1e-6)


def test_of_scaled_layers_and_of_an_attention():
    case = CASES["attention"]
    model = get_peft_model(case.base(), case.config(), "first")
    model.add_adapter("second", case.config(r=2, target_modules=["mlp"]))
    model.base_model.model.mlp.set_scale("second", 0.25)
    model.add_weighted_adapter(["second", "first"], [1.0, 2.0], "sum")
    assert isinstance(model.base_model.model, Attended) and model.peft_config["sum"].target_modules == {"attn", "mlp"}
    expected, found = summed(model, {"first": 2.0, "second": 1.0}), deltas(model, "sum")
    assert expected.keys() == found.keys() and len(found) == 3
    assert all(torch.allclose(found[name], delta, atol=1e-5) for name, delta in expected.items())


def test_of_one_adapter(net):
    model = get_peft_model(net, aurora_config(), "first")
    model.add_weighted_adapter(["first"], [0.5], "part")
    assert all(torch.allclose(deltas(model, "part")[name], delta / 2) for name, delta in deltas(model, "first").items())


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "kind", "words"),
    [
        (["first", "third"], [1.0, 1.0], "sum", "cat", "'third' does not exist; the adapters are 'first', 'second'"),
        (["first", "second"], [1.0], "sum", "cat", r"number in `weights`.*\['first', 'second'\] and \[1.0\]"),
        (["first"], ["1"], "sum", "cat", r"one finite number.*\['first'\] and \['1'\]"),
        (["first"], 1.0, "sum", "cat", r"one finite number.*\['first'\] and 1.0"),
        (["first"], [float("nan")], "sum", "cat", r"one finite number.*\[nan\]"),
        (["first", "first"], [1.0, 1.0], "sum", "cat", "named once"),
        ([], [], "sum", "cat", "named once"),
        (["first"], [1.0], "second", "cat", "'second' exists already"),
        (["first"], [1.0], "sum", "ties", "`combination_type` should be 'cat'.*'ties'.*save_as_lora"),
        (["first", "second"], [1.0, 1.0], "sum", "cat", r"up has slices.*\{'first': \(1, 1\), 'second': \(3, 1\)\}"),
        (["second", "head"], [1.0, 1.0], "sum", "cat", "'head' has `modules_to_save`"),
        (["bias", "second"], [1.0, 1.0], "sum", "cat", "'bias' has `bias`"),
    ],
)
def test_what_cannot_be_combined_is_refused(net, adapters, weights, name, kind, words):
    model = get_peft_model(net, aurora_config(), "first")
    model.add_adapter("second", aurora_config(target_modules=["up"], **SPLIT))
    if "head" in adapters:
        model.add_adapter("head", aurora_config(modules_to_save=["head"]))
    if "bias" in adapters:
        model.add_adapter("bias", aurora_config(bias="all"))
    configs = set(model.peft_config)
    with pytest.raises(ValueError, match=words):
        model.add_weighted_adapter(adapters, weights, name, kind)
    assert set(model.peft_config) == configs
