"""Every error of the configuration and of injection names the field, the value and the way out."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftConfig, get_peft_config, get_peft_model
from peft.utils.peft_types import PeftType
from torch import nn

from aurora_petl.adapter import AuroraConfig, AuroraLinear
from aurora_petl.errors import AuroraWarning

from .tiny import Net, aurora_config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": 0}, ["`r`", "positive", "0"]),
        ({"r": 2.5}, ["`r`", "2.5"]),
        ({"core": "tucker"}, ["`core`", "'diagonal'", "'full'", "'tucker'"]),
        ({"bias": "lora_only"}, ["`bias`", "'none', 'all', 'aurora_only'", "'lora_only'"]),
        ({"context": "bank"}, ["`context`", "'batch' or 'released'", "'bank'"]),
        ({"gate": True}, ["`gate`", "None", "'scale_shift'", "True"]),
        ({"dropout": 1.0}, ["`dropout`", "1.0"]),
        ({"dropout": "0.1"}, ["`dropout`", "'0.1'"]),
        ({"scale": float("nan")}, ["`scale`", "nan"]),
        ({"scale": "2"}, ["`scale`", "'2'"]),
        ({"init_weights": "gaussian"}, ["`init_weights`", "True or False", "'gaussian'"]),
        ({"target_modules": r".*(q|v"}, ["`target_modules`", "'.*(q|v'", "no regex"]),
        ({"exclude_modules": "("}, ["`exclude_modules`", "'('", "no regex"]),
        ({"fused_slices": {"(": 2}}, ["`fused_slices`", "'('", "no regex"]),
        ({"fused_slices": {"fc1": 0}}, ["`fused_slices['fc1']`", "0"]),
        ({"fused_columns": {"fc2": 1.5}}, ["`fused_columns['fc2']`", "1.5"]),
        ({"rank_pattern": {"qkv": 8}}, ["`rank_pattern`", "{'qkv': 8}", "same factors", "second adapter"]),
        ({"alpha_pattern": {"qkv": 8}}, ["`alpha_pattern`", "`scale`"]),
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
        ({"target_modules": None}, ["`target_modules`", "'custom'", "docs/adapter.md", "may be ['qkv']"]),
        ({"target_modules": ["nothing"]}, ["`target_modules`", "'nothing'", "Net", "qkv, square, up"]),
        ({"target_modules": ["up"], "exclude_modules": ["up"]}, ["`exclude_modules`={'up'}"]),
        ({"target_modules": ["norm", "up"]}, ["norm", "LayerNorm", "torch.nn.Linear"]),
        ({"target_modules": r".*"}, ["norm", "LayerNorm"]),
        ({"fused_slices": {"up": 5}}, ["`fused_slices`", "5", "up", "12 rows"]),
        ({"fused_columns": {"down": 5}}, ["`fused_columns`", "5", "down", "12 columns"]),
        ({"fused_slices": {"up": 3}, "fused_columns": {"up": 2}}, ["up", "`fused_slices` (3)", "`fused_columns` (2)"]),
        ({"target_modules": ["up", "embedding"]}, ["embedding", "Embedding", "torch.nn.Linear"]),
        ({"target_modules": ["up", "conv"]}, ["conv", "Conv2d of 2 groups", "`exclude_modules`"]),
        ({"target_modules": ["up", "turned"]}, ["turned", "ConvTranspose2d", "torch.nn.Linear"]),
        ({"target_modules": ["up", "out_proj"]}, ["attention.out_proj", "MultiheadAttention", "`exclude_modules`"]),
        ({"target_modules": ["up", "apart"]}, ["apart", "MultiheadAttention", "a width of their own"]),
    ],
)
def test_injection_errors_leave_the_model_alone(net, fields, words):
    net.norm, net.embedding, net.conv = nn.LayerNorm(8), nn.Embedding(3, 8), nn.Conv2d(8, 8, 1, groups=2)
    net.attention, net.apart = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4)
    net.turned = nn.ConvTranspose2d(8, 8, 1)
    with pytest.raises(ValueError) as error:
        get_peft_model(net, aurora_config(**fields))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not any(isinstance(module, AuroraLinear) for module in net.modules())


def test_modules_to_save_are_modules(net):
    with pytest.warns(AuroraWarning, match="`modules_to_save` names 'haed'.*no module of Net.*perhaps 'head'"):
        get_peft_model(copy.deepcopy(net), aurora_config(modules_to_save=["haed"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(net, aurora_config(modules_to_save="head"))  # a name, not its letters
        get_peft_model(Net(), aurora_config(modules_to_save=["classifier", "head"]))
    assert {name.split(".")[2] for name, _ in model.named_parameters() if "modules_to_save" in name} == {"head"}


def bits_and_bytes(dtype: torch.dtype) -> nn.Linear:
    """As a layer of a new kind of bitsandbytes looks from outside."""
    kind = type("Linear2bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    layer = kind(8, 8)
    layer.weight = nn.Parameter(torch.zeros(32, 1).to(dtype), requires_grad=False)
    return layer


def torchao(dtype: torch.dtype) -> nn.Linear:
    """An nn.Linear whose weight is a tensor subclass of a floating point dtype."""
    layer = nn.Linear(8, 8)
    weight = torch.zeros(8, 8, dtype=dtype).as_subclass(type("Int4Tensor", (torch.Tensor,), {"__module__": "torchao"}))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def plain(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=dtype), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (bits_and_bytes, torch.uint8),
        (bits_and_bytes, torch.bfloat16),
        (torchao, torch.bfloat16),
        (plain, torch.int8),
        (plain, torch.float8_e4m3fn),
    ],
)
def test_quantised_layers_are_refused(net, make, dtype):
    net.square = make(dtype)
    weights = "Int4Tensor" if make is torchao else dtype
    with pytest.raises(ValueError, match=f"square is quantised .*{weights}.*without quantisation"):
        get_peft_model(net, aurora_config())
    assert not any(isinstance(module, AuroraLinear) for module in net.modules())
    get_peft_model(net, aurora_config(exclude_modules=["square"]))


def test_adapted_twice(net):
    get_peft_model(net, aurora_config())
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="another AuroraModel.*unload"):
        get_peft_model(net, aurora_config())


def test_registered_beside_peft():
    assert PeftType("AURORA_PETL") == "AURORA_PETL" and "AURORA" not in PeftType.__members__
    assert AuroraConfig().peft_type is PeftType("AURORA_PETL")


def test_round_trip(tmp_path):
    config = aurora_config(core="full", fused_slices={"fc1": 4}, fused_columns={"fc2": 4}, layers_to_transform=[0, 1])
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AuroraConfig)
    loaded.target_modules = set(loaded.target_modules)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.fused_slices == {"fc1": 4, "qkv": 3} and loaded.fused_columns == {"fc2": 4}
    assert "rank_pattern" not in config.to_dict()


def test_in_a_file_the_type_says_what_it_needs(tmp_path):
    aurora_config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"].startswith("AURORA_PETL: ") and "pip install aurora-petl" in content["peft_type"]
    for kind in (content["peft_type"], "AURORA_PETL"):
        config = get_peft_config({**content, "peft_type": kind})
        assert config.peft_type is PeftType("AURORA_PETL") and config.r == 4


def test_split_of():
    config = AuroraConfig(fused_slices={"fc1": 4, r".*layers\.\d\.mix": 2, "text.qkv": 1}, fused_columns={"fc2": 3})
    names = ["a.fc1", "fc1", "x.layers.3.mix", "x.layers.y.mix", "text.qkv", "vision.qkv", "myqkv", "a.fc2"]
    splits = [(4, 1), (4, 1), (2, 1), (1, 1), (1, 1), (3, 1), (1, 1), (1, 3)]
    assert [config.split_of(name) for name in names] == splits
