"""A family of models says where an addition goes; here a toy one, whose gate scales the output of `Net.square`."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter import additions as room
from aurora_petl.adapter.additions import Adder, AuroraAddition, additions, on_items, register
from aurora_petl.backbones.blip.fusion import PLACE

from .tiny import Net, aurora_config

X = torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(5))


class Scale(AuroraAddition):
    """y + g y"""

    field = "gate"
    about = "the scale of the square (`gate`)"
    adapter_layer_names: tuple[str, ...] = ("aurora_g",)

    def __init__(self, square: nn.Module, factors: nn.ModuleDict) -> None:
        super().__init__(factors)
        self.aurora_g = nn.ParameterDict()
        self.handles = [square.register_forward_hook(self._scale)]

    def add_adapter(self, name: str, config: AuroraConfig, like: torch.Tensor) -> None:
        self.aurora_form[name] = str(config.gate)
        self.aurora_g[name] = nn.Parameter(like.new_zeros(1))

    def _scale(self, square: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        for name, items in self.applied(len(output), output.device):
            output = output + on_items(items, self.aurora_g[name] * output)
        return output


def nets(model: nn.Module) -> list[Net]:
    return [part for part in model.modules() if isinstance(part, Net)]


def add_scale(net: Net, name: str, config: AuroraConfig, factors: nn.ModuleDict) -> None:
    if not hasattr(net, "scale"):
        net.scale = Scale(net.square, factors)
    net.scale.add_adapter(name, config, net.head.weight.detach())


@pytest.fixture
def family(monkeypatch):
    monkeypatch.setattr(room, "ADDERS", copy.deepcopy(room.ADDERS))
    register("gate", "net", Adder("a Net", nets, add_scale))


def same_net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def net_and_model() -> tuple[Net, PeftModel]:
    net = same_net()
    return net, get_peft_model(net, aurora_config(gate="scale_shift", init_weights=True)).eval()


@torch.no_grad()
def by_hand(g: float) -> torch.Tensor:
    net = same_net()
    q, k, v = net.qkv(X).chunk(3, dim=-1)
    x = X + torch.softmax(q @ k.mT, -1) @ v
    return net.head(x + (1 + g) * net.square(torch.tanh(net.down(torch.tanh(net.up(x))))))


@torch.no_grad()
def test_a_family_brings_its_own(family, tmp_path):
    net, model = net_and_model()
    assert torch.allclose(model(X), by_hand(0.0), atol=1e-6)
    assert [(parent, name, type(part)) for parent, name, part in additions(model)] == [(net, "scale", Scale)]
    net.scale.aurora_g["default"].fill_(0.5)
    expected = by_hand(0.5)
    assert torch.allclose(model(X), expected, atol=1e-6)
    with model.disable_adapter():
        assert torch.allclose(model(X), by_hand(0.0), atol=1e-6)
    some = model(X, adapter_names=["default", "__base__", "default", "__base__"])
    assert torch.allclose(some[::2], expected[::2], atol=1e-6)
    assert torch.allclose(some[1::2], by_hand(0.0)[1::2], atol=1e-6)
    model.save_pretrained(tmp_path)
    assert torch.allclose(PeftModel.from_pretrained(same_net(), tmp_path)(X), expected, atol=1e-6)


def test_it_trains(family):
    net, model = net_and_model()
    model(X).square().sum().backward()
    assert net.scale.aurora_g["default"].grad.any()
    assert all(part.requires_grad == name.startswith("aurora_g") for name, part in net.scale.named_parameters())


def test_merging_warns_and_unloading_takes_it_away(family):
    net, model = net_and_model()
    with pytest.warns(UserWarning, match="the scale of the square .* cannot be folded"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert model.unload() is net and not additions(net) and not net.square._forward_hooks


def test_models_without_a_place_are_told_of_every_family(family):
    with pytest.raises(ValueError, match=f"`gate`='released' belongs into {PLACE} or a Net, but Sequential has none"):
        get_peft_model(nn.Sequential(nn.Linear(8, 8)), AuroraConfig(target_modules=["0"], gate="released"))


def test_without_any_family(monkeypatch):
    monkeypatch.setattr(room, "ADDERS", {"context": {}, "gate": {}})
    with pytest.raises(ValueError, match="`context`='batch', but no family of models is known.*`import aurora_petl`"):
        get_peft_model(Net(), aurora_config(context="batch"))


def test_registering_again_takes_the_place_of_what_was_there(family):
    register("gate", "net", Adder("another Net", nets, add_scale))
    assert [adder.place for adder in room.ADDERS["gate"].values()] == [PLACE, "another Net"]


def test_only_fields_of_the_configuration_can_be_registered():
    with pytest.raises(KeyError, match="colour"):
        register("colour", "net", Adder("a Net", nets, add_scale))
    assert set(room.ADDERS) <= set(AuroraConfig().to_dict())


def test_items_of_a_batch():
    added = torch.ones(3, 2, 2)
    assert on_items(None, added) is added
    assert on_items(torch.tensor([True, False, True]), added).sum((1, 2)).tolist() == [4, 0, 4]
