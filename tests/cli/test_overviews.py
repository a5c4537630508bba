"""What the `aurora` command prints of itself, of recipes, and of the weights of an adapter."""

import re

import pytest
from transformers import BlipConfig

from aurora_petl.adapter import adapter_size
from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method, save_adapter
from aurora_petl.recipe import load_recipe, recipe_names
from tests.helpers.commands import BLIP_MINI, row


def test_no_command_prints_help(printed):
    assert printed().startswith("usage: aurora")


def test_recipes_are_listed_with_what_they_are_for(printed):
    expected = []
    for name in recipe_names():
        recipe = load_recipe(name)
        expected += [[name, recipe.about]] + ([["needs", recipe.needs]] if recipe.needs else [])
    assert [line.split(maxsplit=1) for line in printed("recipes").splitlines()] == expected


@pytest.mark.parametrize("options", [{}, {"r": 8}, {"r": 8, "core": "full"}])
def test_params_of_blip_mini(options, printed):
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    found = row(printed("params", "blip-mini", *words), "adapter")
    assert found[0] == f"{adapter_size(BLIP_MINI, **{'r': 64} | options):,}"


def test_params_with_context_and_gates(printed):
    plain = adapter_size(BLIP_MINI, r=64)
    added = 4 * (4 * 192 + 2) + 1
    out = printed("params", "blip-mini", "--context", "batch", "--gate", "scale_shift")
    assert out.startswith("Aurora, r=64, core=diagonal, context=batch, gate=scale_shift, on blip-mini\n")
    assert row(out, "adapter")[0] == f"{plain + added:,}"
    assert row(out, "  its factors")[0] == f"{plain:,}"
    assert row(out, "  context and gates")[0] == f"{added:,}"
    assert "context and gates" not in printed("params", "blip-mini")


@pytest.mark.parametrize("words", [[], ["--context", "batch", "--gate", "scale_shift"]])
def test_params_tell_the_size_of_the_file(words, printed, tmp_path):
    out = printed("params", "blip-mini", *words)
    backbone = load_backbone("blip-mini")
    apply_method(backbone, "aurora", dict(zip([word[2:] for word in words[::2]], words[1::2], strict=True)))
    save_adapter(backbone, tmp_path / "adapter")
    size = (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    told = float(re.search(r"the saved file: (\d+) KB", out)[1]) * 1e3
    assert 0 <= size - told < 16_000  # the file's head names every tensor


def test_params_of_a_configuration_without_weights(printed, tmp_path):
    BlipConfig(text_config={"num_attention_heads": 12}).save_pretrained(tmp_path / "base")
    out = printed("params", tmp_path / "base")
    assert row(out, "adapter")[0] == "105,280"
    assert row(out, "model")[1] == "100.000%"
    assert [file.name for file in (tmp_path / "base").iterdir()] == ["config.json"]
