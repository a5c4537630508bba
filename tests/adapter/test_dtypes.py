"""What an adapted layer does with inputs of every dtype: what peft's LoRA layer and a plain one do."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_petl.adapter.together import project

from .tiny import aurora_config

WEIGHTS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INPUTS = [*WEIGHTS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
FEW, MANY = (1, 2, 8), (4, 20, 8)
LORA = LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)


def outcome(layer: nn.Module, x: torch.Tensor, autocast: bool) -> torch.dtype | str:
    """The dtype of the output, or that the layer refuses x."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        try:
            return layer(x).dtype
        except RuntimeError as error:
            assert "dtype" in str(error) or "scalar type" in str(error), error
            return "refused"


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_of_every_pair(weight, autocast):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8, dtype=weight))
    lora = get_peft_model(copy.deepcopy(plain), LORA)
    configs = [aurora_config(target_modules=["0"], core=core) for core in ("diagonal", "full")]
    models = [get_peft_model(copy.deepcopy(plain), config) for config in configs]
    results = set()
    for dtype in INPUTS:
        for shape in (FEW, MANY):
            x = torch.ones(shape).to(dtype)
            expected = outcome(plain, x, autocast)
            assert outcome(lora, x, autocast) == expected, dtype
            for model in models:
                for grad in (True, False):
                    with torch.set_grad_enabled(grad):
                        assert outcome(model, x, autocast) == expected, dtype
            results.add(expected)
    assert "refused" in results and len(results) >= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("state", ["two", "mixed", "merged", "disabled", "together"])
def test_refusal_in_every_state(state, dtype):
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), aurora_config(target_modules=["0"])).eval()
    model.add_adapter("other", aurora_config(target_modules=["0"]))
    x, more = torch.ones(MANY).to(dtype), {}
    if state == "two":
        model.base_model.set_adapter(["default", "other"])
    elif state == "mixed":
        more = {"adapter_names": ["default"] * 2 + ["other"] * 2}
    elif state == "merged":
        model.merge_adapter()
    elif state == "together":
        with pytest.raises(RuntimeError, match="dtype|scalar type"):
            project(x, model.base_model.model[0])
        return
    elif state == "disabled":
        with model.disable_adapter(), pytest.raises(RuntimeError, match="dtype|scalar type"):
            model(x)
        return
    with pytest.raises(RuntimeError, match="dtype|scalar type"):
        model(x, **more)


@pytest.mark.parametrize(
    "x", [torch.ones(4, 20, 7), torch.ones(1, 7), torch.tensor(1.0)], ids=["many", "few", "scalar"]
)
def test_other_widths_are_refused_as_by_a_plain_layer(x):
    plain = nn.Linear(8, 8)
    model = get_peft_model(nn.Sequential(copy.deepcopy(plain)), aurora_config(target_modules=["0"]))
    with pytest.raises(RuntimeError):
        plain(x)
    with pytest.raises(RuntimeError):
        model(x)


def test_values_under_autocast():
    """float16 and float32 inputs are rounded to bfloat16 first, as F.linear does."""
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), aurora_config(target_modules=["0"]))
    layer = model.base_model.model[0]
    dense = nn.Linear(8, 8)
    dense.load_state_dict(
        {"weight": layer.get_base_layer().weight + layer.get_delta_weight("default"), "bias": layer.base_layer.bias}
    )
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        x = torch.randn(MANY).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model(x), dense(x))
