"""Gradients of cross-attention past its keys and values, against plain autograd through them."""

import pytest
import torch
from peft import get_peft_model
from transformers import BlipForImageTextRetrieval

from aurora_petl.backbones import Texts
from aurora_petl.backbones.blip import attention, crossing
from aurora_petl.backbones.blip.attention import Meeting
from aurora_petl.backbones.blip.model import BlipBackbone
from aurora_petl.backbones.sharing import share
from tests.helpers.blip_attention import ADAPTERS, WHICH, made, words

TOKENS = 3  # of two texts in four heads: 24 < 64, the width


@pytest.fixture
def crossings(monkeypatch):
    """Heads of every cross-attention that went past its keys and values."""
    seen, cross = [], attention.cross
    monkeypatch.setattr(attention, "cross", lambda *args: seen.append(args[2]) or cross(*args))
    return seen


def adapted(adapter="aurora", **text):
    model = made(BlipForImageTextRetrieval, **text)
    if ADAPTERS[adapter]:
        get_peft_model(model, ADAPTERS[adapter])
    return BlipBackbone(model.train(), None, "random")


def gradients(backbone, which, mask=None, frames=None, tokens=TOKENS):
    """The fused states, and the gradients of their weighted sum by the pictures and the trained weights."""
    torch.manual_seed(2)
    states = torch.randn(3, 17, 64, requires_grad=True)
    ids, padding = words(len(which), tokens, padded=False)
    learn = [states, *(weight for weight in backbone.parameters() if weight.requires_grad)]
    for weight in learn:
        weight.grad = None
    meeting = Meeting(share(torch.tensor(which), 3, 17, tokens), frames=frames)
    fused = backbone.model.text_encoder(
        input_ids=ids,
        attention_mask=padding,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        meeting=meeting,
    ).last_hidden_state
    (fused * torch.linspace(-1, 1, fused.numel()).view(fused.shape)).sum().backward()
    return fused, *(weight.grad for weight in learn if weight.grad is not None)


@pytest.mark.parametrize("which", [WHICH["equal"], [0, 1, 2, 2], [1, 1, 0, 1, 1]])  # full rows, and empty seats
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("absorbed", [False, True])
def test_equals_autograd_through_keys_and_values(crossings, monkeypatch, which, masked, absorbed):
    backbone = adapted()
    if not absorbed:
        monkeypatch.setattr(crossing, "_Absorbed", crossing._Crossing)
    else:
        monkeypatch.setattr(crossing, "_Crossing", crossing._Absorbed)
    mask = torch.ones(3, 17, dtype=torch.long) if masked else None
    if masked:
        mask[1, -5:] = 0
    mine = gradients(backbone, which, mask)
    assert crossings == [4, 4]
    monkeypatch.setattr(attention, "crossing_of", lambda *_: None)
    theirs = gradients(backbone, which, mask)
    assert crossings == [4, 4] and len(mine) == len(theirs) > 10
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_keys_and_values_are_formed_where_texts_are_many_enough(monkeypatch):
    taken = []
    for way in ("_Crossing", "_Absorbed"):
        kind = getattr(crossing, way)
        monkeypatch.setattr(kind, "apply", lambda *a, n=way, apply=kind.apply: taken.append(n) or apply(*a))
    gradients(adapted(), WHICH["equal"], tokens=3)  # 2 * 2 * 3 * 4 < 64, the width
    gradients(adapted(), WHICH["equal"], tokens=5)
    assert taken == ["_Absorbed"] * 2 + ["_Crossing"] * 2


def test_rank_dropout_is_drawn_once_for_both_ways(crossings, monkeypatch):
    backbone = adapted()
    for factors in backbone.model.text_encoder.encoder.layer[0].crossattention.self.key.aurora_factors.values():
        factors.dropout = 0.5
    torch.manual_seed(3)
    mine = gradients(backbone, WHICH["equal"])
    monkeypatch.setattr(attention, "crossing_of", lambda *_: None)
    torch.manual_seed(3)
    for ours, expected in zip(mine, gradients(backbone, WHICH["equal"]), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert len(crossings) == 2


def test_what_does_not_fit_goes_the_usual_way(crossings):
    usual = WHICH["equal"]
    gradients(adapted("lora"), usual)  # another adapter
    gradients(adapted("none"), usual)
    gradients(adapted(attention_probs_dropout_prob=0.5), usual)
    gradients(adapted(), usual, tokens=9)  # 72 queries in heads, more than the width
    gradients(adapted(), usual, frames=torch.ones(6, 1))
    hooked = adapted()
    for layer in hooked.model.text_encoder.encoder.layer:
        layer.crossattention.self.key.register_forward_hook(lambda *_: None)
    gradients(hooked, usual)
    with torch.no_grad():
        ids, mask = words(6, TOKENS, padded=False)
        adapted().match(Texts(ids, mask), torch.randn(3, 17, 64), torch.tensor(usual))
    assert crossings == []
