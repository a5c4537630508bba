"""BLIP's retrieval objective against its formulas."""

import pytest
import torch
import torch.nn.functional as F

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation.features import tokenize
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings, fit_queue

WORDS = ["a red apple", "a dog", "the sun: sky, star", "two keys", "a red apple again", "rain"]


@pytest.fixture
def task(backbone):
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 4})
    return Retrieval(backbone, RetrievalSettings(queue_size=8, alpha=0.4, momentum=0.9))


@pytest.fixture
def batch(task):
    torch.manual_seed(1)
    size = task.backbone.image_size
    return {
        "pixel_values": torch.randn(6, 3, size, size),
        "ids": torch.tensor([0, 1, 2, 3, 0, 4]),
        **tokenize(task.backbone, WORDS, 35),
    }


@torch.no_grad()
def features(task, batch):
    image = task.backbone.project_image(task.backbone.encode_image(batch["pixel_values"]))
    text = task.backbone.project_text(task.backbone.encode_text(batch["input_ids"], batch["attention_mask"]))
    return image, text


def test_first_step_is_the_contrast_with_targets_shared_by_id(task, batch):
    """Before any step the teacher is the student, the queue is empty and alpha is 0."""
    task.train()
    image, text = features(task, batch)
    logits = image @ text.T / task.backbone.temperature()
    same = (batch["ids"][:, None] == batch["ids"]).float()
    target = same / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert task(**batch)["itc"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_softens_targets_and_the_queue_gives_negatives(task, batch):
    task.train()
    task(**batch)
    task.eval()
    task.warmup_steps = 1
    image, text = features(task, batch)
    temperature = task.backbone.temperature()
    keys = {"text": torch.cat([text, task.queue_text[:6]]), "image": torch.cat([image, task.queue_image[:6]])}
    same = (batch["ids"][:, None] == torch.cat([batch["ids"], batch["ids"]])).float()
    expected = 0.0
    for student, key in ((image, "text"), (text, "image")):
        logits = student @ keys[key].T / temperature
        target = 0.4 * logits.softmax(1) + 0.6 * same / same.sum(1, keepdim=True)
        expected += F.cross_entropy(logits, target).item() / 2
    assert task(**batch)["itc"].item() == pytest.approx(expected, rel=1e-5)


def test_queue_keeps_the_newest(task, batch):
    task.train()
    task(**batch)
    assert task.queue_ids.tolist() == [0, 1, 2, 3, 0, 4, -1, -1]
    task(**{**batch, "ids": batch["ids"] + 10})
    assert task.queue_ids.tolist() == [12, 13, 10, 14, 0, 4, 10, 11]
    assert torch.allclose(task.queue_image.norm(dim=1), torch.ones(8), atol=1e-5)


def test_negatives_never_show_the_same_picture(task, batch, monkeypatch):
    seen = []
    match = task.backbone.match

    def spy(input_ids, attention_mask, image_states, which, **more):
        seen.append((input_ids, which.tolist()))
        return match(input_ids, attention_mask, image_states, which, **more)

    monkeypatch.setattr(task.backbone, "match", spy)
    ids = batch["ids"]
    words = batch["input_ids"]
    task.eval()
    for _ in range(8):
        seen.clear()
        task(**batch)
        texts, of_image = seen[0]
        assert len(texts) == 18
        padded = F.pad(texts, (0, words.shape[1] - texts.shape[1]))
        of_text = [next(i for i in range(6) if torch.equal(words[i, 1:], row[1:])) for row in padded]
        assert of_text[:6] == of_image[:6] == list(range(6))
        assert all(ids[t] != ids[i] for t, i in zip(of_text[6:], of_image[6:], strict=True))


def test_a_batch_of_one_picture_has_no_negatives_and_a_loss(task, batch):
    task.train()
    losses = task(**{**batch, "ids": torch.zeros(6, dtype=torch.long)})
    assert torch.isfinite(losses["loss"])


def test_averages_follow_every_trained_weight(task, batch):
    task.train()
    start = {name: weight.detach().clone() for name, weight in task.trained()}
    assert any("itm_head" in name for name in start) and any("temperature" in name for name in start)
    with torch.no_grad():
        for _, weight in task.trained():
            weight.add_(1.0)
    task(**batch)
    with task.momentum_weights():
        for name, weight in task.trained():
            assert torch.allclose(weight, start[name] + 0.1, atol=1e-6), name
    for name, weight in task.trained():
        assert torch.allclose(weight, start[name] + 1.0)


def test_every_trained_weight_gets_a_gradient(task, batch):
    task.train()
    task(**batch)["loss"].backward()
    without = [n for n, w in task.trained() if w.grad is None or not w.grad.abs().any()]
    # at the start V is zero, and with it the gradients of all that multiplies V
    assert all(".aurora_P" in n or ".U_" in n or "lambda_" in n for n in without), without


def test_only_one_copy_of_the_frozen_weights(task):
    frozen = sum(w.numel() for w in task.model.parameters() if not w.requires_grad)
    held = sum(value.numel() for value in task.training_state().values())
    trained = sum(w.numel() for _, w in task.trained())
    queue = sum(getattr(task, name).numel() for name in ("queue_image", "queue_text", "queue_ids"))
    assert held == 2 * trained + queue + 3 < frozen


def test_training_state_round_trip_and_refusal(task, batch, backbone):
    task.train()
    task(**batch)
    state = {name: value.clone() for name, value in task.training_state().items()}
    with torch.no_grad():
        for _, weight in task.trained():
            weight.add_(1.0)
    task(**batch)
    task.load_training_state(state)
    assert all(torch.equal(value, state[name]) for name, value in task.training_state().items())
    with pytest.raises(AuroraError, match="another method"):
        task.load_training_state({name: state[name] for name in list(state)[1:]})


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
        texts = backbone.encode_text(batch["input_ids"], batch["attention_mask"])[:, 0]
    assert len(seen[0]) == 18
    weights = (seen[0] @ texts.T / texts.shape[1] ** 0.5).softmax(1)
    assert torch.allclose(seen[1], seen[0] + 0.5 * weights @ texts, atol=1e-4)
    assert context.aurora_bank["default"].any(1).sum() == 12
    task.eval()(**batch)
    assert torch.allclose(seen[2][:6], seen[1][:6], atol=1e-4)  # every text is in the bank twice
    with torch.no_grad():
        states = backbone.encode_image(batch["pixel_values"])
        together = backbone.match(batch["input_ids"], batch["attention_mask"], states)
        for i in range(6):
            row = slice(i, i + 1)
            alone = backbone.match(batch["input_ids"][row], batch["attention_mask"][row], states[row])
            assert torch.allclose(alone, together[row], atol=1e-5)


def test_settings_say_what_is_wrong():
    with pytest.raises(AuroraError, match=r"task\.momentum is 2"):
        RetrievalSettings(momentum=2)


@pytest.mark.parametrize(("size", "batch", "rows", "fitted"), [(57_600, 16, 500_000, 57_600), (57_600, 96, 994, 768)])
def test_queue_fits_the_data(size, batch, rows, fitted):
    assert fit_queue(size, batch, rows) == fitted
    assert fit_queue(100, 96, 100) == 0


def test_without_momentum_the_averaged_model_is_the_model(backbone):
    """No second pass, and the losses and gradients of one that averages nothing away."""
    words = tokenize(backbone, ["a circle", "a square", "a star"], 35)
    batch = torch.randn(3, 3, 96, 96), words["input_ids"], words["attention_mask"], torch.arange(3)
    found = []
    for momentum in (0.0, 1e-12):
        task = Retrieval(backbone, RetrievalSettings(queue_size=3, momentum=momentum)).train()
        encoded = []
        handle = backbone.model.vision_model.register_forward_hook(lambda *_, seen=encoded: seen.append(1))
        torch.manual_seed(0)
        backbone.model.zero_grad()
        task(*batch)
        task(*batch)["loss"].backward()
        handle.remove()
        weight = backbone.model.vision_proj.weight.grad.clone()
        found.append((len(encoded), weight, task.queue_image.clone()))
    (once, gradient, queue), (twice, expected, expected_queue) = found
    assert (once, twice) == (2, 4)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6) and expected.abs().max() > 1e-3
    assert torch.allclose(queue, expected_queue, atol=1e-6) and queue.any()
