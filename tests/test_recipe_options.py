"""Options of a recipe's method: refused when they are read, and before data where they do not fit the model."""

import dataclasses
import re
from typing import get_args, get_type_hints

import pytest
from peft import PeftConfig

from aurora_petl.adapter import BIASES, CONTEXTS, CORES, GATES, AuroraConfig
from aurora_petl.checks import check
from aurora_petl.errors import AuroraError
from aurora_petl.method_options import MOST_RANK, AuroraOptions
from aurora_petl.recipe import load_recipe
from tests.helpers.recipes import refusal

# Options of the method


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("method_options.r=1000000000", f"method_options.r is 1000000000; it must lie between 1 and {MOST_RANK}"),
        ("method_options.r=1e9", "method_options.r is '1e9'; it must be a whole number"),
        (
            "method_options.lora_dropout=-1 method=lora",
            "method_options.lora_dropout is -1; it must lie between 0 and 0.999",
        ),
        ("method_options.rr=5", "method aurora has no field method_options.rr; did you mean method_options.r?"),
        ("method_options.init_weights=maybe", "method_options.init_weights is 'maybe'; it must be true or false"),
        ("method_options.target_modules=(", "'(' is no regular expression"),
        ("method_options.target_modules=[1]", "it must be a list of texts or text or null"),
        ("method_options.factor_groups=(", "'(' is no regular expression"),
        ("method_options.fused_slices={'(': 3}", "'(' is no regular expression"),
        (
            "method_options.fused_slices={fc1: 0}",
            "method_options.fused_slices.fc1 is 0; it must be greater than or equal to 1",
        ),
        ("method_options.fused_slices={fc1: x}", "fused_slices.fc1 is 'x'; it must be a whole number"),
        (
            "method_options.layers_to_transform=[2,-1]",
            "layers_to_transform is -1; it must be greater than or equal to 0",
        ),
        (
            "method_options.layers_to_transform=x",
            "is 'x'; it must be a list of whole numbers or a whole number or null",
        ),
        ("method_options.dropout=1", "method_options.dropout is 1; it must lie between 0 and 0.999"),
        ("method_options.context=bach", "method_options.context is 'bach'; choose batch or released"),
        ("method_options.core=[x]", "method_options.core is a list of 1; choose diagonal or full"),
        ("method_options.task_type=x", "method aurora has no field method_options.task_type"),
        (
            "method=lora method_options.alpha=2",
            "method lora has no field method_options.alpha; did you mean method_options.lora_alpha?",
        ),
        ("method=lora method_options.bias=zz", "method_options.bias is 'zz'; choose none, all or lora_only"),
        ("method=heads method_options.r=8", "method heads takes no method_options, got r"),
        ("method=vera method_options.projection_prng_key=-1", "projection_prng_key is -1; it must lie between 0 and"),
        ("method=lora method_options.lora_dropout=.nan", "method_options.lora_dropout is nan; it must be a finite"),
        ("method=lora method_options.init_lora_weights=pissa_niter_x", "method_options.init_lora_weights is 'pissa_"),
        ("method=lorra", "no method 'lorra'; did you mean lora?"),
        ("method=zzz", "no method 'zzz'; choose one of aurora, lora"),
    ],
)
def test_options_are_refused_when_they_are_read(overrides, message):
    assert message in refusal(None, re.split(r" (?=[\w.]+=)", overrides))


CHOICES = {"core": {*CORES}, "bias": {*BIASES}, "context": {*CONTEXTS, type(None)}, "gate": {*GATES, type(None)}}


def leaves(hint) -> set:
    """What a hint allows, the choices of a Literal one by one."""
    return {leaf for part in get_args(hint) for leaf in leaves(part)} or {hint}


def test_options_of_aurora_are_the_fields_of_its_configuration():
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    own = [field for field in dataclasses.fields(AuroraConfig) if field.name not in common]
    assert [field.name for field in dataclasses.fields(AuroraOptions)] == [field.name for field in own]
    read, hints = get_type_hints(AuroraOptions), get_type_hints(AuroraConfig)
    for field in own:
        assert getattr(AuroraOptions(), field.name) == field.default
        if field.name in CHOICES:
            assert leaves(read[field.name]) == CHOICES[field.name]
        else:
            assert read[field.name] == hints[field.name]


# Against the model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("method_options.target_modules=[zz]", "matched no module"),
        ("method_options.modules_to_save=[nothing]", "blip-mini has no 'nothing'; there are itm_head, temperature"),
        ("method_options.modules_to_save=[itm_hed]", "blip-mini has no 'itm_hed'; did you mean itm_head?"),
        ("method=lora method_options.megatron_config={a: b}", "method lora refuses method_options: No module named"),
        ("method=vera method_options.bias=zz", "method vera refuses method_options"),
        ("task.max_tokens=400", "task.max_tokens is 400; blip-mini has places for 64 tokens"),
        ("task.name=vqa task.max_answer_tokens=65", "task.max_answer_tokens is 65; blip-mini has places for 64"),
        ("image_size=17", "image_size is 17, which patches of 12 pixels do not fill"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_data_are_read(overrides, message):
    words = re.split(r" (?=[\w.]+=)", overrides)
    with pytest.raises(AuroraError) as caught:
        check(load_recipe(None, ["data=nowhere", *words]))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "overrides",
    [
        "method=lora method_options.lora_alpha=1.5",
        "method=lora method_options.init_lora_weights=pissa_niter_4",
        "method=vera method_options.d_initial=1e-3",
        "method_options.modules_to_save=[proj]",
        "method_options.layers_to_transform=[1,2]",
        "method=full",
        "method=zero-shot",
        "task.max_tokens=64",
    ],
)
def test_what_fits_passes(overrides):
    check(load_recipe(None, ["data=nowhere", *re.split(r" (?=[\w.]+=)", overrides)]))
