"""BLIP's attention through SDPA against transformers' eager one, and shared pictures against repeated ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    DynamicCache,
)
from transformers.models.blip.modeling_blip_text import BlipTextLayer

from aurora_petl.adapter import AuroraConfig
from aurora_petl.backbones import Texts, checkpoint_layers
from aurora_petl.backbones.blip.attention import (
    KNOWN,
    REPLACED,
    Meeting,
    TextEmbeddings,
    _is_known,
    use_sdpa,
)
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.backbones.sharing import attend, share
from aurora_petl.tasks.retrieval import Retrieval

TOKENS = 9
ADAPTERS = {
    "none": None,
    "aurora": AuroraConfig(r=4, target_modules=["qkv", "query", "key", "value"], init_weights=False),
    "lora": LoraConfig(r=4, target_modules=["qkv", "query", "key", "value"], init_lora_weights=False),
}
WHICH = {
    "equal": [0, 1, 2, 0, 1, 2],
    "unequal": [2, 0, 1, 2, 2, 1],
    "one for all": [1] * 6,
    "two rows": [2, 2, 2, 2, 0, 2],  # of several pictures one row each, of the third more
}


def config(**text) -> BlipConfig:
    """Weights as alive as 0.02 makes them at width 768; the vision tower's default of 1e-10 would compare zeros."""
    text = dict(hidden_size=64, encoder_hidden_size=64, num_attention_heads=4, intermediate_size=96) | text
    text |= dict(num_hidden_layers=2, max_position_embeddings=16, pad_token_id=0, bos_token_id=1, sep_token_id=2)
    text |= dict(vocab_size=ENC + 1, initializer_range=0.07, projection_dim=24, label_smoothing=0.1)
    vision = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    vision |= dict(image_size=32, patch_size=8, initializer_range=0.07)
    return BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=24, projection_dim=24, initializer_range=0.07
    )


def made(kind, **text):
    """A model in evaluation mode with every weight, biases and norms too, off its start."""
    torch.manual_seed(0)
    model = kind(config(**text)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn_like(weight))
    return model


def both(kind, **text):
    """transformers' model and its copy with our attention."""
    theirs = made(kind, **text)
    ours = copy.deepcopy(theirs)
    assert use_sdpa(ours)
    return theirs, ours


def words(rows, width=TOKENS, padded=True):
    """Token ids and mask (rows, width), every other row shorter if ``padded``."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, ENC, (rows, width)), torch.ones(rows, width, dtype=torch.long)
    if padded:
        mask[1::2, -3:] = 0
    return ids * mask, mask


def pictures(count):
    torch.manual_seed(2)
    return torch.randn(count, 3, 32, 32)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours, theirs, tolerance=1e-5):
    """Each tensor within ``tolerance`` of the largest number among those it is compared with."""
    assert ours.keys() == theirs.keys()
    scale = max(float(value.abs().max()) for value in theirs.values())
    assert scale > 1e-3
    for name, value in theirs.items():
        assert float((ours[name] - value).abs().max()) <= tolerance * scale, name


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


# Shared pictures


def adapted(adapter):
    """A backbone with our attention, transformers' model with the same weights, and both with the same adapter."""
    theirs, ours = made(BlipForImageTextRetrieval), made(BlipForImageTextRetrieval)
    backbone = BlipBackbone(ours, None, "tiny")
    if ADAPTERS[adapter]:
        for model in (theirs, ours):
            torch.manual_seed(3)
            get_peft_model(model, ADAPTERS[adapter])
    return theirs, backbone


def repeated(model, ids, mask, states, which):
    """transformers' logits, every text with its own copy of the picture."""
    ids = torch.cat([torch.full_like(ids[:, :1], ENC), ids[:, 1:]], 1)
    return model.itm_head(
        model.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states[which]).last_hidden_state[
            :, 0
        ]
    )


def step(model, forward, states):
    """Logits, and gradients of the loss by the trained weights and the picture states."""
    states = states.clone().requires_grad_()
    logits = forward(states)
    F.cross_entropy(logits, torch.tensor([1, 0] * 3)).backward()
    found = {"states": states.grad, **gradients(model)}
    model.zero_grad()
    return {"logits": logits.detach()}, {name: value.clone() for name, value in found.items()}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
def test_shared_pictures_equal_repeated_ones(adapter, which):
    theirs, backbone = adapted(adapter)
    ids, mask = words(6)
    which, states = torch.tensor(which), torch.randn(3, 17, 64)
    expected, their_gradients = step(theirs, lambda states: repeated(theirs, ids, mask, states, which), states)
    found, our_gradients = step(backbone.model, lambda states: backbone.match(Texts(ids, mask), states, which), states)
    assert_same(found, expected)
    assert_same(our_gradients, their_gradients)


def test_the_only_picture_and_a_picture_each_need_no_which():
    theirs, backbone = adapted("none")
    ids, mask = words(6)
    for states, which in ((torch.randn(1, 17, 64), [0] * 6), (torch.randn(6, 17, 64), list(range(6)))):
        expected, their_gradients = step(theirs, lambda s, w=which: repeated(theirs, ids, mask, s, w), states)
        found, our_gradients = step(backbone.model, lambda s: backbone.match(Texts(ids, mask), s), states)
        assert_same(found, expected)
        assert_same(our_gradients, their_gradients)
    with pytest.raises(ValueError, match="6 texts cannot meet 3 pictures"):
        backbone.match(Texts(ids, mask), torch.randn(3, 17, 64))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(adapter, reentrant):
    _, backbone = adapted(adapter)
    model = backbone.model.train()
    texts = Texts(*words(6))
    which = torch.tensor(WHICH["two rows"])

    def run():
        model.zero_grad()
        image = backbone.encode_image(pictures(3))
        logits = backbone.match(texts, image.states, which)
        text = backbone.encode_text(texts).feature @ image.feature.T
        (F.cross_entropy(logits, torch.tensor([1, 0] * 3)) + F.cross_entropy(text, which)).backward()
        return {"logits": logits.detach()}, {name: value.clone() for name, value in gradients(model).items()}

    plain = run()
    checkpoint_layers(model, reentrant)
    model.enable_input_require_grads()  # as `Trainer` and peft do for frozen models
    for found, expected in zip(run(), plain, strict=True):
        assert_same(found, expected, 1e-6)


def test_embeddings_leave_what_they_are_given():
    theirs, ours = both(BlipForImageTextRetrieval)
    given = torch.randn(2, 5, 64)
    found, kept = ours.text_encoder.embeddings(inputs_embeds=given), given.clone()
    assert torch.equal(found, theirs.text_encoder.embeddings(inputs_embeds=given.clone()))
    assert torch.equal(given, kept)


@pytest.mark.parametrize("tower", ["vision", "fusion"])
def test_the_adapter_keeps_nothing_of_the_size_of_its_input(tower):
    """Bytes kept for the backward pass, weights aside, by the frozen model and with its queries, keys, values tuned."""
    states, texts = (torch.randn(3, tokens, 64, requires_grad=True) for tokens in (17, TOKENS))
    found = []
    for adapter in (None, "aurora"):
        model = made(BlipForImageTextRetrieval, hidden_dropout_prob=0.0).requires_grad_(False)
        use_sdpa(model)
        tuned = get_peft_model(model, ADAPTERS[adapter]) if adapter else model
        weights = {weight.untyped_storage().data_ptr() for weight in tuned.parameters()}
        kept = {}

        def pack(tensor, kept=kept, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if tower == "vision":
                model.vision_model.encoder(states)
            else:
                model.text_encoder(inputs_embeds=texts, encoder_hidden_states=states)
        found.append(sum(storage.nbytes() for storage in kept.values()))
    frozen, tuned = found
    # the picture states, once for all layers; the embeddings, whose norm is followed by dropout
    once = 4 * (states.numel() + texts.numel()) if tower == "fusion" else 0
    assert frozen > 100_000 and tuned - once <= 1.01 * frozen


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_autocast(adapter):
    theirs, backbone = adapted(adapter)
    ids, mask = words(6)
    which, states = torch.tensor(WHICH["unequal"]), torch.randn(3, 17, 64)
    exact, exact_gradients = step(theirs, lambda states: repeated(theirs, ids, mask, states, which), states)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_gradients = step(
            backbone.model, lambda states: backbone.match(Texts(ids, mask), states, which), states
        )
        assert backbone.match(Texts(ids, mask), states, which).dtype == torch.float32
    assert_same(found, exact, 0.03)
    assert_same(found_gradients, exact_gradients, 0.06)


@torch.no_grad()
def test_company_changes_no_score():
    _, backbone = adapted("aurora")
    ids, mask = words(6)
    states = torch.randn(3, 17, 64)
    for which in WHICH.values():
        together = backbone.match(Texts(ids, mask), states, torch.tensor(which))
        alone = [
            backbone.match(Texts(ids[i : i + 1, :n], mask[i : i + 1, :n]), states[p : p + 1])
            for i, (p, n) in enumerate(zip(which, mask.sum(1).tolist(), strict=True))
        ]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@torch.no_grad()
def test_masked_states_are_shared_with_their_mask():
    """As when answers share a question; attentions asked for are those of every text."""
    _, backbone = adapted("none")
    ids, mask = words(6)
    states, padding = torch.randn(3, 17, 64), torch.ones(3, 17)
    padding[1, 5:] = padding[2, 11:] = 0
    for which in map(torch.tensor, WHICH.values()):
        for kwargs in ({}, {"output_attentions": True}):
            found = backbone.model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=states,
                encoder_attention_mask=padding,
                meeting=Meeting(share(which, 3, 17, TOKENS)),
                **kwargs,
            ).last_hidden_state
            alone = backbone.model.text_encoder(
                input_ids=ids,
                attention_mask=mask,
                encoder_hidden_states=states[which],
                encoder_attention_mask=padding[which],
            ).last_hidden_state
            assert torch.allclose(found, alone, atol=1e-5)


def test_the_loss_of_a_batch_is_that_of_repeated_pictures(monkeypatch):
    _, backbone = adapted("aurora")
    task = Retrieval(backbone).eval()
    ids, mask = words(6)
    batch = dict(pixel_values=pictures(6), input_ids=ids, attention_mask=mask, ids=torch.tensor([0, 1, 2, 3, 0, 4]))
    match, found = backbone.match, []
    for each in (match, lambda texts, states, which, **_: match(texts, states[which])):
        monkeypatch.setattr(backbone, "match", each)
        torch.manual_seed(4)
        loss = task(**batch)["loss"]
        loss.backward()
        found.append(({"loss": loss.detach()}, {name: value.clone() for name, value in gradients(task).items()}))
        task.zero_grad()
    assert_same(found[0][0], found[1][0])
    assert_same(found[0][1], found[1][1])


@pytest.mark.parametrize("seed", range(5))
def test_seats_are_one_a_text_in_a_row_of_its_picture(seed):
    torch.manual_seed(seed)
    which = torch.randint(0, 8, (40,)) if seed else torch.cat([torch.arange(96), torch.zeros(200, dtype=torch.long)])
    M = int(which.max()) + 1
    sharing = share(which, M, 577, 16)
    rows = torch.arange(M) if sharing.rows is None else sharing.rows
    assert torch.equal(rows[sharing.seats // sharing.size], which)
    assert len(set(sharing.seats.tolist())) == len(which)
    assert set(rows.tolist()) == set(range(M))
    # never more tokens than texts with a copy of their picture each, nor than every row as long as the longest
    tokens = len(rows) * (577 + sharing.size * 16)
    assert tokens <= min(len(which) * (577 + 16), M * (577 + int(which.bincount().max()) * 16))
