"""Matching: which pairs it shows, and what it costs them."""

import pytest
import torch
import torch.nn.functional as F

from aurora_petl.backbones import Texts
from aurora_petl.tasks.objectives.matching import draw


def spied(task, monkeypatch):
    """What a task's model is asked to match, as (texts, places of pictures, logits)."""
    seen, match = [], task.backbone.match

    def spy(texts, image_states, which, **more):
        logits = match(texts, image_states, which, **more)
        seen.append((texts, which.tolist(), image_states, logits))
        return logits

    monkeypatch.setattr(task.backbone, "match", spy)
    return seen


def test_negatives_never_show_the_same_picture(retrieval, batch, monkeypatch):
    seen = spied(retrieval, monkeypatch)
    ids = batch["ids"]
    words = batch["input_ids"]
    retrieval.eval()
    for _ in range(8):
        seen.clear()
        retrieval(**batch)
        texts, of_image, *_ = seen[0]
        assert len(texts) == 18
        padded = F.pad(texts.ids, (0, words.shape[1] - texts.ids.shape[1]))
        of_text = [next(i for i in range(6) if torch.equal(words[i, 1:], row[1:])) for row in padded]
        assert of_text[:6] == of_image[:6] == list(range(6))
        assert all(ids[t] != ids[i] for t, i in zip(of_text[6:], of_image[6:], strict=True))


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_each_pair_alone(retrieval, batch, monkeypatch):
    seen = spied(retrieval, monkeypatch)
    retrieval.eval()
    found = retrieval(**batch)["itm"]
    monkeypatch.undo()
    texts, of_image, *_ = seen[0]
    states = retrieval.backbone.image_states(batch["pixel_values"])
    losses = []
    for row, (picture, length) in enumerate(zip(of_image, texts.mask.sum(1).tolist(), strict=True)):
        alone = Texts(texts.ids[row : row + 1, :length], texts.mask[row : row + 1, :length])
        logits = retrieval.backbone.match(alone, states[picture : picture + 1])[0]
        losses.append(-logits.log_softmax(0)[1 if row < 6 else 0].item())
    assert found.item() == pytest.approx(sum(losses) / 18, rel=1e-4)


def test_a_batch_of_one_picture_has_no_negatives_and_a_loss(retrieval, batch):
    retrieval.train()
    losses = retrieval(**{**batch, "ids": torch.zeros(6, dtype=torch.long)})
    assert torch.isfinite(losses["loss"])


def test_draws_are_those_of_multinomial():
    weights = torch.rand(50, 7) * (torch.rand(50, 7) > 0.3) + 1e-9
    torch.manual_seed(0)
    expected = torch.multinomial(weights, 1)[:, 0]
    torch.manual_seed(0)
    assert torch.equal(draw(weights), expected)
    many = draw(torch.tensor([[0.0, 1.0, 3.0]]).expand(20_000, 3)).bincount(minlength=3) / 20_000
    assert torch.allclose(many, torch.tensor([0.0, 0.25, 0.75]), atol=0.02)
