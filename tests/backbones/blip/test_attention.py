"""BLIP's attention through SDPA against transformers' eager one."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    DynamicCache,
)
from transformers.models.blip.modeling_blip_text import BlipTextLayer

from aurora_petl.backbones import Texts, checkpoint_layers
from aurora_petl.backbones.blip.attention import (
    KNOWN,
    REPLACED,
    TextEmbeddings,
    _is_known,
    use_sdpa,
)
from aurora_petl.backbones.blip.model import BlipBackbone
from aurora_petl.backbones.sharing import attend
from tests.helpers.blip_attention import assert_same, both, gradients, made, pictures, words

# Parity with transformers


def retrieval(model):
    ids, mask = words(3)
    score = model(input_ids=ids, pixel_values=pictures(3), attention_mask=mask).itm_score
    return score, F.cross_entropy(score, torch.tensor([0, 1, 1]))


def answering(model, padded=False):
    (ids, mask), (answers, answers_mask) = words(3, padded=padded), words(3, 5)
    loss = model(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=pictures(3),
        decoder_input_ids=answers,
        decoder_attention_mask=answers_mask,
        labels=answers.masked_fill(answers_mask == 0, -100),
    ).loss.mean()
    return loss, loss


def captioning(model):
    ids, mask = words(3)
    labels = ids.masked_fill(mask == 0, -100)
    out = model(input_ids=ids, attention_mask=mask, pixel_values=pictures(3), labels=labels)
    return out.logits[mask == 1], out.loss


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (BlipForImageTextRetrieval, retrieval),
        (BlipForQuestionAnswering, answering),
        (BlipForConditionalGeneration, captioning),
    ],
)
def test_forward_and_gradients_equal_transformers(kind, run):
    found = []
    for model in both(kind):
        out, loss = run(model)
        loss.backward()
        found.append(({"out": out.detach()}, gradients(model)))
    (theirs, their_gradients), (ours, our_gradients) = found
    assert_same(ours, theirs)
    assert_same(our_gradients, their_gradients)


def test_every_attention_is_replaced_and_names_stay():
    theirs, ours = both(BlipForQuestionAnswering)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    kinds = [type(module) for module in ours.modules()]
    assert not set(kinds) & set(REPLACED)
    # 2 layers each of the vision tower, the text encoder and the decoder; embeddings of the last two
    assert [kinds.count(kind) for kind in REPLACED.values()] == [2, 8, 4, 2]
    assert use_sdpa(ours)  # once more changes nothing


@torch.no_grad()
def test_padding_of_a_question_changes_nothing():
    _, model = both(BlipForQuestionAnswering)
    (ids, mask), (answers, answers_mask) = words(2, padded=False), words(2, 5)
    rest = dict(pixel_values=pictures(2), decoder_input_ids=answers, decoder_attention_mask=answers_mask)
    losses = [
        model(
            input_ids=F.pad(ids, (0, pads)), attention_mask=F.pad(mask, (0, pads)), labels=answers, **rest, **kwargs
        ).loss.item()
        for pads in (0, 5)
        for kwargs in ({}, {"output_attentions": True})  # ours, and transformers' attention with its mask mended
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_a_text_of_padding_alone_is_finite():
    query = torch.randn(1, 3, 8)
    mask = torch.full((1, 1, 3, 3), torch.finfo(torch.float32).min)
    mean = query.mean(1, keepdim=True).expand(1, 3, 8)
    assert torch.allclose(attend(query, query, query, 2, mask), mean, atol=1e-6)
    half = query.bfloat16()
    assert torch.isfinite(attend(half, half, half, 2, mask)).all()


def test_attention_dropout_is_honoured_in_training_only():
    _, model = both(BlipForImageTextRetrieval, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    ids, mask = words(1)
    for kwargs in ({}, {"encoder_hidden_states": torch.randn(1, 17, 64)}):

        def draw(model, kwargs=kwargs):
            return model.text_encoder(input_ids=ids, attention_mask=mask, **kwargs).last_hidden_state

        assert torch.equal(draw(model.eval()), draw(model))
        assert not torch.equal(draw(model.train()), draw(model))
    vision = model.vision_model.encoder.layers[0].self_attn.train()
    x, still = torch.randn(1, 400, 64), vision(torch.ones(1, 400, 64))[0]
    assert torch.equal(vision(torch.ones(1, 400, 64))[0], still)  # its rate is 0
    vision.dropout.p = 0.5
    assert not torch.equal(vision(x)[0], vision(x)[0])


def test_embeddings_leave_what_they_are_given():
    theirs, ours = both(BlipForImageTextRetrieval)
    given = torch.randn(2, 5, 64)
    found, kept = ours.text_encoder.embeddings(inputs_embeds=given), given.clone()
    assert torch.equal(found, theirs.text_encoder.embeddings(inputs_embeds=given.clone()))
    assert torch.equal(given, kept)


# What goes to transformers' own attention


@torch.no_grad()
def test_attentions_are_returned_when_asked_for():
    theirs, ours = both(BlipForImageTextRetrieval)
    ids, mask = words(2)
    states = torch.randn(2, 17, 64)
    for tower, inputs in (
        ("text_encoder", dict(input_ids=ids, attention_mask=mask, encoder_hidden_states=states)),
        ("vision_model", dict(pixel_values=pictures(2))),
    ):
        expected = getattr(theirs, tower)(**inputs, output_attentions=True)
        by_argument = getattr(ours, tower)(**inputs, output_attentions=True)
        getattr(ours, tower).config.output_attentions = True
        by_configuration = getattr(ours, tower)(**inputs)
        for found in (by_argument, by_configuration):
            assert len(found.attentions) == 2 and torch.allclose(found.attentions[1], expected.attentions[1], atol=1e-5)
            if tower == "text_encoder":
                assert torch.allclose(found.cross_attentions[1], expected.cross_attentions[1], atol=1e-5)


@torch.no_grad()
def test_generation_with_a_cache_equals_transformers():
    for kind, ids in ((BlipForConditionalGeneration, words(2, 4, padded=False)[0]), (BlipForQuestionAnswering, None)):
        inputs = {"pixel_values": pictures(2), "input_ids": words(2, padded=False)[0] if ids is None else ids}
        theirs, ours = (model.generate(**inputs, max_new_tokens=6, num_beams=2) for model in both(kind))
        assert torch.equal(theirs, ours)


@torch.no_grad()
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_a_cache_is_taken_by_its_old_name_and_its_new_one(name):
    theirs, ours = both(BlipForConditionalGeneration)
    part, states, caches = "text_decoder.bert.encoder.layer.0", torch.randn(2, 3, 64), [DynamicCache(), DynamicCache()]
    for _ in range(2):  # the second time, three tokens more are read from the cache
        expected = theirs.get_submodule(f"{part}.attention")(states, None, None, caches[0])[0]
        found = ours.get_submodule(f"{part}.attention")(states, **{name: caches[1]})[0]
        assert torch.allclose(found, expected, atol=1e-5)
    ours.get_submodule(part)(states, **{name: caches[1]})
    assert [cache.get_seq_length() for cache in caches] == [6, 9]


@pytest.mark.parametrize("theirs", KNOWN, ids=lambda theirs: theirs.__name__)
def test_the_installed_transformers_is_called_as_known(theirs):
    """Where this fails, users of that release would get a warning and the slow attention: adapt `attention`."""
    assert _is_known(theirs)


def test_unknown_classes_are_left_alone_and_pictures_repeated(monkeypatch):
    reference = BlipBackbone(made(BlipForImageTextRetrieval), None, "tiny")
    monkeypatch.setitem(KNOWN, BlipTextLayer, ["hidden_states", "something_new"])
    with pytest.warns(UserWarning, match="BlipTextLayer of transformers .* is not as known here"):
        backbone = BlipBackbone(made(BlipForImageTextRetrieval), None, "tiny")
    kinds = {type(module) for module in backbone.model.modules()}
    assert not backbone.shares and kinds & set(REPLACED.values()) == {TextEmbeddings}
    which, states = torch.tensor([1, 0, 1]), torch.randn(2, 17, 64)
    with torch.no_grad():
        found, expected = (one.match(Texts(*words(3)), states, which) for one in (backbone, reference))
    assert torch.allclose(found, expected, atol=1e-5)
    checkpoint_layers(backbone.model.train())
    backbone.model.enable_input_require_grads()
    backbone.match(Texts(*words(3)), states, which).sum().backward()
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="BlipAttention"):
        assert not use_sdpa(torch.nn.Linear(1, 1))


def test_an_order_of_parameters_that_is_not_known_is_noticed(monkeypatch):
    """As up to transformers 5.3, whose layers are called by place with the mask first."""
    order = ["hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "cache"]
    monkeypatch.setitem(KNOWN, BlipTextLayer, order)
    assert not _is_known(BlipTextLayer)
