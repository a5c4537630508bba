"""Pictures shared by several texts of BLIP against pictures repeated for each text."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from transformers import (
    BlipForImageTextRetrieval,
)

from aurora_petl.backbones import Texts, checkpoint_layers
from aurora_petl.backbones.blip.attention import (
    Meeting,
    use_sdpa,
)
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.backbones.sharing import share
from aurora_petl.tasks.retrieval import Retrieval
from tests.helpers.blip_attention import ADAPTERS, TOKENS, WHICH, assert_same, gradients, made, pictures, words


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
