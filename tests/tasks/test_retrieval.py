"""Retrieval: what it trains and keeps, and what it takes from the model."""

import pytest
import torch

from aurora_petl.backbones import Texts, load_backbone
from aurora_petl.baselines import apply_method
from aurora_petl.errors import AuroraError
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings
from tests.helpers.duals import dual_batch, tiny_dual


def test_every_trained_weight_gets_a_gradient(retrieval, batch):
    retrieval.train()
    retrieval(**batch)["loss"].backward()
    without = [n for n, w in retrieval.trained() if w.grad is None or not w.grad.abs().any()]
    # at the start V is zero, and with it the gradients of all that multiplies V
    assert all(".aurora_P" in n or ".U_" in n or "lambda_" in n for n in without), without


def test_training_state_round_trip_and_refusal(retrieval, batch, backbone):
    retrieval.train()
    retrieval(**batch)
    state = {name: value.clone() for name, value in retrieval.training_state().items()}
    with torch.no_grad():
        for _, weight in retrieval.trained():
            weight.add_(1.0)
    retrieval(**batch)
    retrieval.load_training_state(state)
    assert all(torch.equal(value, state[name]) for name, value in retrieval.training_state().items())
    with pytest.raises(AuroraError, match="another method"):
        retrieval.load_training_state({name: state[name] for name in list(state)[1:]})


def test_context_is_the_batchs_texts_for_every_pair(batch):
    """Matching and mismatched pairs alike; in evaluation the bank of the same texts, whoever shares the batch."""
    backbone = load_backbone("blip-mini")
    apply_method(backbone, "aurora", {"r": 4, "context": "batch"})
    task = Retrieval(backbone, RetrievalSettings(queue_size=0))
    context, seen = backbone.model.text_encoder.encoder.context, []
    backbone.model.itm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for eta in (0.0, 0.5):
        context.aurora_eta["default"].data.fill_(eta)
        torch.manual_seed(2)  # the same negatives
        task.train()(**batch)
    with torch.no_grad():
        texts = backbone.text_states(Texts(batch["input_ids"], batch["attention_mask"]))[:, 0]
    assert len(seen[0]) == 18
    weights = (seen[0] @ texts.T / texts.shape[1] ** 0.5).softmax(1)
    assert torch.allclose(seen[1], seen[0] + 0.5 * weights @ texts, atol=1e-4)
    assert context.aurora_bank["default"].any(1).sum() == 12
    task.eval()(**batch)
    assert torch.allclose(seen[2][:6], seen[1][:6], atol=1e-4)  # every text is in the bank twice
    with torch.no_grad():
        states = backbone.image_states(batch["pixel_values"])
        words = Texts(batch["input_ids"], batch["attention_mask"])
        together = backbone.match(words, states)
        for i in range(6):
            row = slice(i, i + 1)
            assert torch.allclose(backbone.match(words.rows(row), states[row]), together[row], atol=1e-5)


def test_settings_say_what_is_wrong():
    with pytest.raises(AuroraError, match=r"task\.momentum is 2"):
        RetrievalSettings(momentum=2)
    with pytest.raises(AuroraError, match=r"task\.max_tokens is 1; it must lie between 2 and 512"):
        RetrievalSettings(max_tokens=1)


def test_settings_that_are_left_out_are_the_models_own(backbone):
    """BLIP's, and those of a model without queue, momentum encoder and second stage."""
    blip = Retrieval(backbone, RetrievalSettings(beta=2.0, queue_size=12)).settings
    assert (blip.queue_size, blip.momentum, blip.alpha, blip.max_tokens) == (12, 0.995, 0.4, 35)
    assert (blip.ranking, blip.k_test, blip.beta, blip.itm_weight) == ("itm", 128, 2.0, 1.0)
    clip = Retrieval(tiny_dual("clip"), given := RetrievalSettings()).settings
    assert (clip.queue_size, clip.momentum, clip.alpha, clip.max_tokens) == (0, 0.0, 0.0, 8)
    assert (clip.ranking, clip.k_test, clip.itm_weight) == ("itc", 0, 0.0)
    assert given == RetrievalSettings()  # what is handed in stays as it is


def test_a_queue_is_fitted_to_the_data(backbone):
    settings = RetrievalSettings()
    assert Retrieval.fitted(settings, backbone, 96, 994).queue_size == 768
    assert Retrieval.fitted(settings, backbone).queue_size == 57_600
    assert settings.queue_size is None


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("clip", {"ranking": "itm"}, "task.ranking is itm, but tiny clip has no second stage to rank with; leave it"),
        ("clip", {"momentum_init": "checkpoint"}, "tiny clip has no momentum encoder; set task.momentum_init=copy"),
        ("siglip", {"queue_size": 8}, "tiny siglip is trained with the sigmoid loss, which has no queue"),
        ("siglip", {"momentum": 0.9}, "tiny siglip is trained with the sigmoid loss, which has no queue"),
    ],
)
def test_what_a_model_lacks_is_refused(kind, fields, message):
    with pytest.raises(AuroraError, match=message):
        Retrieval(tiny_dual(kind), RetrievalSettings(**fields))


def test_a_dual_encoder_trains_by_contrast_alone():
    """The loss and gradients of transformers' own CLIP."""
    backbone, batch = tiny_dual("clip"), dual_batch(5)
    task = Retrieval(backbone).train()
    parts = task(**batch, ids=torch.arange(5))
    assert list(parts) == ["loss"] and task.objective == "ITC" and task.protocol == "ITC"
    gradients = []
    for loss in (parts["loss"], backbone.model(**batch, return_loss=True).loss):
        backbone.model.zero_grad()
        loss.backward()
        grads = {name: weight.grad.clone() for name, weight in backbone.model.named_parameters()}
        gradients.append((loss.item(), grads))
    (ours, found), (theirs, expected) = gradients
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    assert expected["logit_scale"].abs() > 1e-3
