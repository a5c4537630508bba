"""Every error of the configuration and of injection names the field, the value and the way out."""

import pytest
from peft import PeftConfig, get_peft_model
from peft.utils.peft_types import PeftType
from torch import nn

from aurora_petl.adapter import AuroraConfig, AuroraLinear

from .tiny import aurora_config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, ["`r`", "positive", "0"]),
        ({"r": 2.5}, ["`r`", "2.5"]),
        ({"core": "tucker"}, ["`core`", "'diagonal'", "'full'", "'tucker'"]),
        ({"dropout": 1.0}, ["`dropout`", "1.0"]),
        ({"scale": float("nan")}, ["`scale`", "nan"]),
        ({"fused_slices": {"fc1": 0}}, ["`fused_slices['fc1']`", "0"]),
        ({"layers_pattern": "layers"}, ["`layers_pattern`", "`layers_to_transform`"]),
        ({"target_modules": ".*qkv", "layers_to_transform": [0]}, ["`layers_to_transform`", "list"]),
    ],
)
def test_config_errors(fields, words):
    with pytest.raises(ValueError) as error:
        AuroraConfig(**fields)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": None}, ["`target_modules`", "'custom'", "blip", "clip"]),
        ({"target_modules": ["nothing"]}, ["`target_modules`", "'nothing'", "Net", "qkv, square, up"]),
        ({"target_modules": ["up"], "exclude_modules": ["up"]}, ["`exclude_modules`={'up'}"]),
        ({"target_modules": ["norm", "up"]}, ["norm", "LayerNorm", "torch.nn.Linear"]),
        ({"target_modules": r".*"}, ["norm", "LayerNorm"]),
        ({"fused_slices": {"up": 5}}, ["`fused_slices`", "5", "up", "12"]),
    ],
)
def test_injection_errors_leave_the_model_alone(net, fields, words):
    net.norm = nn.LayerNorm(8)
    with pytest.raises(ValueError) as error:
        get_peft_model(net, aurora_config(**fields))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not any(isinstance(module, AuroraLinear) for module in net.modules())


def test_adapted_twice(net):
    get_peft_model(net, aurora_config())
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="another AuroraModel.*unload"):
        get_peft_model(net, aurora_config())


def test_registered_beside_peft():
    assert PeftType("AURORA_PETL") == "AURORA_PETL" and "AURORA" not in PeftType.__members__
    assert AuroraConfig().peft_type is PeftType("AURORA_PETL")


def test_round_trip(tmp_path):
    config = aurora_config(core="full", fused_slices={"fc1": 4}, dropout=0.1, layers_to_transform=[0, 1])
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AuroraConfig)
    loaded.target_modules = set(loaded.target_modules)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.fused_slices == {"fc1": 4, "qkv": 3}


def test_slices_of():
    config = AuroraConfig(fused_slices={"fc1": 4, r".*layers\.\d\.mix": 2, "text.qkv": 1})
    names = ["a.fc1", "fc1", "x.layers.3.mix", "x.layers.y.mix", "text.qkv", "vision.qkv", "myqkv"]
    assert [config.slices_of(name) for name in names] == [4, 4, 2, 1, 1, 3, 1]
