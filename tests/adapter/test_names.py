"""Names that this package takes from the insides of its libraries: a release that moves one fails here, by name."""

import inspect
from importlib import import_module

import pytest
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

IMPORTED = [
    ("peft.tuners._buffer_dict", "BufferDict"),
    ("peft.tuners.tuners_utils", "_maybe_include_all_linear_layers"),
    ("peft.tuners.tuners_utils", "check_adapters_to_merge"),
    ("peft.utils.constants", "DUMMY_TARGET_MODULES"),
    ("peft.utils.constants", "INCLUDE_LINEAR_LAYERS_SHORTHAND"),
    ("peft.utils.other", "AuxiliaryTrainingWrapper"),
    ("peft.mapping", "PEFT_TYPE_TO_CONFIG_MAPPING"),
    ("peft.mapping", "PEFT_TYPE_TO_TUNER_MAPPING"),
    ("peft.utils.integrations", "dequantize_bnb_weight"),
    ("torch._C", "_are_functorch_transforms_active"),
    ("torch.autograd.forward_ad", "_current_level"),
    ("torch.nn.modules.linear", "NonDynamicallyQuantizableLinear"),
]

# methods of peft that ours stand in for, with the arguments that peft gives
REPLACED = [
    (BaseTuner, "__init__", ["model", "peft_config", "adapter_name"]),
    (BaseTuner, "_mark_only_adapters_as_trainable", ["model"]),
    (BaseTuner, "_replace_module", ["parent", "child_name", "new_module", "child"]),
    (BaseTuner, "_prepare_adapter_config", ["peft_config", "model_config"]),
    (BaseTuner, "_prepare_model", ["peft_config", "model"]),
    (BaseTuner, "_create_and_replace", ["peft_config", "adapter_name", "target", "target_name", "parent"]),
    (BaseTuner, "_check_merge_allowed", []),
    (BaseTuner, "_unload_and_optionally_merge", ["merge", "progressbar", "safe_merge", "adapter_names"]),
    (BaseTuner, "_get_adapter_state_dict", ["config", "adapter_name", "state_dict", "unwanted_adapter_names"]),
    (BaseTuner, "_remap_adapter_state_dict_for_load", ["config", "adapter_name", "state_dict"]),
    (BaseTuner, "_cast_adapter_dtype", ["adapter_name", "autocast_adapter_dtype"]),
    (BaseTunerLayer, "_move_adapter_to_device_of_base_layer", ["adapter_name", "device"]),
    (BaseTunerLayer, "_get_available_adapters", []),
    (BaseTunerLayer, "supports_lora_conversion", ["adapter_name"]),
]
CALLED = [
    (BaseTuner, "_check_target_module_exists"),
    (BaseTuner, "_get_learnable_bias_state_dict"),
    (BaseTuner, "_remove_adapter_name_from_key"),
    (nn.Conv2d, "_conv_forward"),
    (PeftModel, "_enable_peft_forward_hooks"),
]


@pytest.mark.parametrize(("module", "name"), IMPORTED)
def test_imported(module, name):
    assert hasattr(import_module(module), name), f"{module}.{name} has moved"


@pytest.mark.parametrize(("owner", "name", "arguments"), REPLACED)
def test_replaced(owner, name, arguments):
    assert hasattr(owner, name), f"peft's {owner.__name__}.{name} has moved: ours is not called any more"
    given = [*inspect.signature(getattr(owner, name)).parameters][1:]
    assert given[: len(arguments)] == arguments, f"peft's {owner.__name__}.{name} takes other arguments"


@pytest.mark.parametrize(("owner", "name"), CALLED)
def test_called(owner, name):
    assert hasattr(owner, name), f"peft's {owner.__name__}.{name} has moved"
