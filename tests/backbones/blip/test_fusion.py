"""Gated query transformation and informative context enhancement against their equations."""

import pytest
import torch
from peft import get_peft_model
from transformers import BlipForQuestionAnswering

from aurora_petl.adapter import AuroraConfig
from aurora_petl.adapter.additions import additions
from aurora_petl.backbones import checkpoint_layers
from aurora_petl.backbones.blip.attention import use_sdpa
from aurora_petl.backbones.blip.fusion import BANK, PASS, AuroraContext, AuroraGate
from tests.adapter.tiny import Net, aurora_config, blip_config
from tests.helpers.blip_fusion import BOTH, IDS, STATES, TEXTS, adapted, expected_context, fused, same_blip, shaken


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
