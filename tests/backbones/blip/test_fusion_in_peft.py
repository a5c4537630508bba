"""Gated query transformation and informative context enhancement under peft's calls: saving, switching, merging."""

import copy
import pickle

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BlipConfig, BlipForImageTextRetrieval

from aurora_petl.adapter import AuroraConfig, adapter_size
from aurora_petl.adapter.additions import additions
from aurora_petl.backbones.blip.fusion import fusion_size
from tests.helpers.blip_fusion import BOTH, adapted, expected_context, fused, same_blip, shaken


def test_weights_and_their_number():
    plain = adapter_size([(16, 48, 3)] * 2 + [(16, 16, 1)] * 12, r=4)
    model = get_peft_model(same_blip(), AuroraConfig(r=4, **BOTH))
    assert model.get_nb_trainable_parameters()[0] == plain + fusion_size(2, 16, **BOTH) == plain + 2 * (4 * 16 + 2) + 1
    assert get_peft_model(same_blip(), AuroraConfig(r=4)).get_nb_trainable_parameters()[0] == plain


def test_number_of_weights_of_blip_base():
    with torch.device("meta"):
        base = BlipForImageTextRetrieval(BlipConfig(text_config={"num_attention_heads": 12}))
    model = get_peft_model(base, AuroraConfig(**BOTH))
    assert model.get_nb_trainable_parameters()[0] == 105_280 + 36_864 + 24 + 1
    assert fusion_size(12, 768, gate="scale_shift") == 36_888
    assert fusion_size(12, 768, context="released", gate="released") == 36_864


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load(tmp_path, pair, low_cpu_mem_usage):
    base = same_blip()
    base.save_pretrained(tmp_path / "base")
    model = adapted(BlipForImageTextRetrieval.from_pretrained(tmp_path / "base"))
    expected = model(**pair).itm_score
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    inside = "base_model.model.text_encoder.encoder."
    names = {f"{inside}layer.{n}.gate.aurora_{part}" for n in range(2) for part in ("a", "b", "gamma")}
    names |= {f"{inside}context.aurora_{part}" for part in ("eta", "bank")}
    assert {name for name in saved if ".gate." in name or ".context." in name} == names
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(**pair).itm_score, expected)
    assert (loaded.peft_config["default"].context, loaded.peft_config["default"].gate) == ("batch", "scale_shift")
    other = get_peft_model(same_blip(), AuroraConfig(r=2), adapter_name="other")
    result = other.load_adapter(tmp_path / "adapter", "loaded", low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.missing_keys and not result.unexpected_keys
    other.set_adapter("loaded")
    assert torch.equal(other.eval()(**pair).itm_score, expected)


def test_copies_are_whole_and_apart(pair):
    model = adapted()
    expected = model(**pair).itm_score
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(**pair).itm_score, expected)
        with torch.no_grad():
            for _, _, addition in additions(clone):
                for weight in addition.parameters():
                    weight.zero_()
        assert torch.equal(clone(**pair).itm_score, same_blip()(**pair).itm_score)
        assert torch.equal(model(**pair).itm_score, expected)


@pytest.fixture
def three() -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """`default` with both parts, `b` plain, `c` with the released gates, and what each computes."""
    model = adapted()
    model.add_adapter("b", AuroraConfig(r=4, init_weights=False))
    model.add_adapter("c", AuroraConfig(r=2, gate="released"))
    shaken(model, "c")
    expected = {}
    for name in ("default", "b", "c"):
        model.set_adapter(name)
        expected[name] = fused(model)
    model.set_adapter("default")
    with model.disable_adapter():
        expected["__base__"] = fused(model)
    return model, expected


def test_switching_and_disabling(three):
    model, expected = three
    assert torch.equal(expected["__base__"], fused(same_blip()))
    assert torch.equal(expected["default"], fused(adapted()))
    different = list(expected.values())
    assert all(not torch.allclose(x, y, atol=1e-3) for n, x in enumerate(different) for y in different[:n])
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(name.endswith(".default") or ".default." in name for name in trainable)
    model.set_adapter("c")
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert sum(".gate." in name for name in trainable) == 4 and not any(".context." in name for name in trainable)


def test_deleting(three):
    model, expected = three
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("default")
    assert model.active_adapters == ["b"] and torch.equal(fused(model), expected["b"])
    assert not any("default" in name for name in model.state_dict())
    model.set_adapter("c")
    assert torch.equal(fused(model), expected["c"])
    model.delete_adapter("b")
    model.delete_adapter("c")
    assert torch.equal(fused(model.base_model.model), expected["__base__"])
    assert not any("aurora_" in name for name in model.state_dict())


def test_one_batch_of_several_adapters(three, pair):
    model, _ = three
    expected = {}
    for name in ("default", "b", "c"):
        model.set_adapter(name)
        expected[name] = model(**pair).itm_score
    model.set_adapter("default")
    with model.disable_adapter():
        expected["__base__"] = model(**pair).itm_score
    for names in (["b", "default"], ["c", "__base__"], ["default", "c"]):
        score = model(**pair, adapter_names=names).itm_score
        for item, name in enumerate(names):
            assert torch.allclose(score[item], expected[name][item], atol=1e-5), name
    assert torch.equal(model(**pair).itm_score, expected["default"])


def test_two_active_adapters_add_up():
    model = adapted(context=None)
    model.add_adapter("c", AuroraConfig(r=2, context="batch"))
    shaken(model, "c")
    model.base_model.set_adapter(["default", "c"])
    context = model.text_encoder.encoder.context
    alone = fused(adapted(context=None))[:, 0]
    expected = expected_context(alone, context.aurora_bank["c"], context.aurora_eta["c"])
    assert torch.allclose(fused(model)[:, 0], expected, atol=1e-5)


def test_merging_keeps_what_cannot_be_folded(pair):
    model = shaken(get_peft_model(same_blip(), AuroraConfig(r=4, init_weights=False, **BOTH)).eval(), "default")
    expected, base = model(**pair).itm_score, same_blip()(**pair).itm_score
    with pytest.warns(UserWarning, match=r"`context`.*`gate`.*cannot be folded into weights"):
        model.merge_adapter()
    assert torch.allclose(model(**pair).itm_score, expected, atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(model(**pair).itm_score, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="cannot be folded"):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.allclose(model(**pair).itm_score, base, atol=1e-5)
    assert torch.allclose(model(**pair).itm_score, expected, atol=1e-5)
    with pytest.warns(UserWarning, match="cannot be folded"):
        merged = model.merge_and_unload()
    assert type(merged) is BlipForImageTextRetrieval
    for clone in (merged, copy.deepcopy(merged)):
        assert torch.allclose(clone(**pair).itm_score, expected, atol=1e-5)
    assert not any(weight.requires_grad for _, _, part in additions(merged) for weight in part.parameters())
    with pytest.raises(ValueError, match=r"context is of an adapter that was merged .* freshly loaded model"):
        get_peft_model(merged, AuroraConfig(r=4))


def test_merging_one_adapter_of_several(three):
    model, expected = three
    with pytest.warns(UserWarning, match="cannot be folded"):
        merged = model.merge_and_unload(adapter_names=["c"])
    assert torch.allclose(fused(merged), expected["c"], atol=1e-5)
    assert {part for _, _, part in additions(merged)} == {layer.gate for layer in merged.text_encoder.encoder.layer}


def test_unloading_leaves_the_base(pair):
    model = adapted()
    base = model.unload()
    assert torch.equal(base(**pair).itm_score, same_blip()(**pair).itm_score)
    assert set(base.state_dict()) == set(same_blip().state_dict())
    assert not any(module._forward_hooks for module in base.modules())
    assert torch.equal(adapted(base)(**pair).itm_score, adapted()(**pair).itm_score)


def test_no_lora_can_hold_it():
    assert not adapted().supports_lora_conversion()
    assert get_peft_model(same_blip(), AuroraConfig(r=4)).supports_lora_conversion()
