"""Gated query transformation and informative context enhancement against their equations, and under peft's calls."""

import copy
import math
import pickle

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipForQuestionAnswering

from aurora_petl.adapter import AuroraConfig, adapter_size
from aurora_petl.adapter.additions import additions
from aurora_petl.backbones import checkpoint_layers
from aurora_petl.backbones.blip.attention import use_sdpa
from aurora_petl.backbones.blip.fusion import BANK, PASS, AuroraContext, AuroraGate, fusion_size
from tests.adapter.tiny import Net, aurora_config, blip_config, pair_of_blip
from tests.helpers.blip_fusion import BOTH, IDS, STATES, TEXTS, adapted, fused, same_blip, shaken


@pytest.fixture
def pair() -> dict[str, torch.Tensor]:
    return pair_of_blip()


def text_only(model) -> torch.Tensor:
    return model.text_encoder(input_ids=IDS).last_hidden_state


# Equations


def expected_gates(a, b, g) -> torch.Tensor:
    """The text encoder by hand, on a model that nothing adapts: a, b (layers, 2, width), g (layers, 2)."""
    base = same_blip().text_encoder
    h = base.embeddings(IDS)
    for n, layer in enumerate(base.encoder.layer):
        s = layer.attention(h)[0]
        m = layer.crossattention(s, encoder_hidden_states=STATES)[0]
        h = layer.output(layer.intermediate(m), m)
        h = h + g[n, 0] * (s * a[n, 0] + b[n, 0]) + g[n, 1] * (m * a[n, 1] + b[n, 1])
    return h


def expected_context(f, texts, eta) -> torch.Tensor:
    rows = []
    for f_i in f:
        weights = torch.stack([(f_i * t).sum() / math.sqrt(16) for t in texts]).exp()
        rows.append(f_i + eta * sum(w * t for w, t in zip(weights / weights.sum(), texts, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("sdpa", [False, True], ids=["stock", "sdpa"])
@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("gate", ["scale_shift", "released"])
def test_gates(gate, chunk, sdpa):
    base = same_blip()
    assert not sdpa or use_sdpa(base)
    model = adapted(base, gate=gate, context=None)
    layers = model.text_encoder.encoder.layer
    for layer in layers:
        layer.chunk_size_feed_forward = chunk
    parts = {}
    for part in ("aurora_a", "aurora_b", "aurora_gamma"):
        weights = [getattr(layer.gate, part)["default"] for layer in layers if len(getattr(layer.gate, part))]
        parts[part] = torch.stack(weights).detach().requires_grad_() if weights else None
    gamma = parts.pop("aurora_gamma")
    assert (gamma is None) == (gate == "released")
    g = torch.full((2, 2), 0.1) if gamma is None else gamma.tanh()
    expected = expected_gates(*parts.values(), g)
    found = fused(model)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for part, reference in [*parts.items(), *([] if gamma is None else [("aurora_gamma", gamma)])]:
        gradient = torch.stack([getattr(layer.gate, part)["default"].grad for layer in layers])
        assert torch.allclose(gradient, reference.grad, rtol=1e-4, atol=1e-5), part
    assert all(gradient.any() for gradient in (parts["aurora_a"].grad, parts["aurora_b"].grad))


def test_released_gates_start_small():
    model = get_peft_model(same_blip(), AuroraConfig(r=4, gate="released"))
    for layer in model.text_encoder.encoder.layer:
        drawn = torch.cat([layer.gate.aurora_a["default"], layer.gate.aurora_b["default"]])
        assert 1e-4 < drawn.std() < 4e-4 and abs(drawn.mean()) < 1e-4


def test_context_in_training():
    model = adapted(gate=None).train()
    context = model.text_encoder.encoder.context
    texts, ours = TEXTS.clone().requires_grad_(), TEXTS.clone().requires_grad_()
    eta = context.aurora_eta["default"].detach().clone().requires_grad_()
    before = fused(same_blip()).detach()
    expected = expected_context(before[:, 0], texts, eta)
    found = fused(model, context=ours)
    assert torch.allclose(found[:, 0], expected, atol=1e-5) and torch.equal(found[:, 1:], before[:, 1:])
    found[:, 0].square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(ours.grad, texts.grad, atol=1e-5) and ours.grad.any()
    assert torch.allclose(context.aurora_eta["default"].grad, eta.grad, rtol=1e-4)
    assert torch.equal(context.aurora_bank["default"][-3:], TEXTS)


def test_context_in_evaluation_is_the_bank():
    model = adapted(gate=None)
    context = model.text_encoder.encoder.context
    bank, eta = context.aurora_bank["default"].clone(), context.aurora_eta["default"]
    expected = expected_context(fused(same_blip())[:, 0], bank, eta)
    assert bank.shape == (BANK, 16)
    assert torch.allclose(fused(model)[:, 0], expected, atol=1e-5)
    assert torch.equal(fused(model, context=TEXTS), fused(model))
    assert torch.equal(context.aurora_bank["default"], bank)


@torch.no_grad()
def test_bank_keeps_the_last_texts():
    model = get_peft_model(same_blip(), AuroraConfig(r=4, init_weights=False, context="batch"))
    for name, weight in model.named_parameters():
        if ".V_" in name:
            weight.zero_()
    context = model.text_encoder.encoder.context
    assert torch.equal(fused(model.eval()), fused(same_blip()))  # nothing in it yet
    seen = torch.randn(BANK + 10, 16)
    for part in seen[:20].split(8):
        fused(model.train(), context=part)
    expected = expected_context(fused(same_blip())[:, 0], seen[:20], context.aurora_eta["default"])
    assert torch.allclose(fused(model.eval())[:, 0], expected, atol=1e-5)
    for part in seen[20:].split(50):
        fused(model.train(), context=part)
    assert torch.equal(context.aurora_bank["default"], seen[-BANK:])
    fused(model, context=torch.cat([seen, seen.flip(0)]))  # a batch larger than the bank
    assert torch.equal(context.aurora_bank["default"], seen.flip(0)[-BANK:])


def test_released_context():
    """0.1 times the batch's mean on matching pairs, in training alone; nothing to train, nothing to keep."""
    model = adapted(gate=None, context="released").train()
    before = fused(same_blip())
    positive = torch.tensor([True, False, True, False])
    found = fused(model, context=TEXTS, positive=positive)
    assert torch.allclose(found[positive, 0], before[positive, 0] + 0.1 * TEXTS.mean(0), atol=1e-6)
    assert torch.equal(found[~positive], before[~positive]) and torch.equal(found[:, 1:], before[:, 1:])
    assert torch.equal(fused(model.eval(), context=TEXTS, positive=positive), before)
    context = model.text_encoder.encoder.context
    assert not [*context.parameters(), *context.buffers()]


# What stays as it was


@pytest.mark.parametrize("sdpa", [False, True], ids=["stock", "sdpa"])
def test_start_equals_the_base_to_the_bit(pair, sdpa):
    base = same_blip()
    assert not sdpa or use_sdpa(base)
    expected, score = fused(base), base(**pair).itm_score
    model = get_peft_model(base, AuroraConfig(r=4, **BOTH)).eval()
    assert torch.equal(model(**pair).itm_score, score)
    assert torch.equal(fused(model.train(), context=TEXTS), expected)
    assert torch.equal(fused(model.eval()), expected)


def test_passes_of_texts_alone_are_untouched():
    model = adapted()
    expected = text_only(same_blip())
    assert torch.equal(text_only(model), expected)
    assert not torch.allclose(fused(model), fused(same_blip()), atol=1e-2)
    assert torch.equal(text_only(model), expected)


def test_a_pass_that_broke_off_leaves_nothing_behind():
    model = adapted()
    expected = text_only(model)
    layer = model.text_encoder.encoder.layer[0]
    handle = layer.intermediate.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fused(model)
    handle.remove()
    assert torch.equal(text_only(model), expected)


def test_a_score_does_not_depend_on_the_batch(pair):
    model = adapted()
    together = model(**pair).itm_score
    for i in range(2):
        alone = model(**{name: value[i : i + 1] for name, value in pair.items()}).itm_score
        assert torch.allclose(alone, together[i : i + 1], atol=1e-5)
    assert not torch.allclose(together, same_blip()(**pair).itm_score, atol=1e-3)


def test_gradient_checkpointing():
    """A layer that is computed again does not carry states of its fused pass into its pass of texts alone."""
    model = adapted().train()
    grads = []
    for on in (False, True):
        if on:
            checkpoint_layers(model.base_model.model)
            model.base_model.model.disable_input_require_grads()
            assert model.text_encoder.encoder.layer[0].gradient_checkpointing
        model.zero_grad()
        with torch.no_grad():
            model.text_encoder.encoder.context.aurora_bank["default"].zero_()
        texts = text_only(model)
        (texts.square().mean() + fused(model, context=texts[:, 0])[:, 0].pow(3).sum()).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and sum(".gate." in name for name in grads[0]) == 6
    assert all(torch.allclose(grads[0][n], grads[1][n], rtol=1e-4, atol=1e-6) for n in grads[0])
    assert PASS.gate is None and not PASS.states


def test_lower_precision():
    model = get_peft_model(same_blip().bfloat16(), AuroraConfig(r=4, **BOTH)).eval()
    weights = [*(p for _, _, addition in additions(model) for p in [*addition.parameters(), *addition.buffers()])]
    assert {weight.dtype for weight in weights} == {torch.float32}
    states = fused(shaken(model, "default"), states=STATES.bfloat16())
    assert states.dtype == torch.bfloat16 and states.isfinite().all()


# peft's calls


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


# Models


def test_question_encoder_of_vqa(pair):
    torch.manual_seed(0)
    base = BlipForQuestionAnswering(blip_config()).eval()
    batch = dict(**pair, labels=torch.randint(3, 50, (2, 3)))
    expected = base(**batch).loss
    model = get_peft_model(base, AuroraConfig(r=4, **BOTH)).eval()
    assert torch.equal(model(**batch).loss, expected)
    names = {name for name, module in base.named_modules() if isinstance(module, (AuroraGate, AuroraContext))}
    assert names == {f"text_encoder.encoder.{part}" for part in ("layer.0.gate", "layer.1.gate", "context")}
    shaken(model, "default")(**batch).loss.backward()
    assert all(w.grad.any() for _, _, addition in additions(model) for w in addition.parameters())
    assert not torch.equal(model(**batch).loss, expected)


@pytest.mark.parametrize("fields", [{"context": "batch"}, {"gate": "released"}])
def test_models_without_a_text_encoder_for_it(fields):
    net = Net()
    with pytest.raises(ValueError, match="text encoder of BLIP.*Net has none"):
        get_peft_model(net, aurora_config(**fields))
    assert not any("aurora_" in name for name in net.state_dict())
