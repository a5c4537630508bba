"""Contrast against its formula, with and without a teacher and a queue."""

import pytest
import torch
import torch.nn.functional as F

from aurora_petl.backbones import Texts
from aurora_petl.tasks.objectives.contrast import Contrast, Teacher, fit_queue


@torch.no_grad()
def features(task, batch):
    texts = Texts(batch["input_ids"], batch["attention_mask"])
    return task.backbone.encode_image(batch["pixel_values"]).feature, task.backbone.encode_text(texts).feature


def test_first_step_is_the_contrast_with_targets_shared_by_id(retrieval, batch):
    """Before any step the teacher is the student, the queue is empty and alpha is 0."""
    retrieval.train()
    image, text = features(retrieval, batch)
    logits = image @ text.T / retrieval.backbone.model.temperature()
    same = (batch["ids"][:, None] == batch["ids"]).float()
    target = same / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert retrieval(**batch)["itc"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_softens_targets_and_the_queue_gives_negatives(retrieval, batch):
    retrieval.train()
    retrieval(**batch)
    retrieval.eval()
    retrieval.warmup_steps = 1
    image, text = features(retrieval, batch)
    temperature, queue = retrieval.backbone.model.temperature(), retrieval._contrast
    keys = {"text": torch.cat([text, queue.text[:6]]), "image": torch.cat([image, queue.image[:6]])}
    same = (batch["ids"][:, None] == torch.cat([batch["ids"], batch["ids"]])).float()
    expected = 0.0
    for student, key in ((image, "text"), (text, "image")):
        logits = student @ keys[key].T / temperature
        target = 0.4 * logits.softmax(1) + 0.6 * same / same.sum(1, keepdim=True)
        expected += F.cross_entropy(logits, target).item() / 2
    assert retrieval(**batch)["itc"].item() == pytest.approx(expected, rel=1e-5)


def test_queue_keeps_the_newest(retrieval, batch):
    retrieval.train()
    retrieval(**batch)
    queue = retrieval._contrast
    assert queue.ids.tolist() == [0, 1, 2, 3, 0, 4, -1, -1]
    retrieval(**{**batch, "ids": batch["ids"] + 10})
    assert queue.ids.tolist() == [12, 13, 10, 14, 0, 4, 10, 11]
    assert torch.allclose(queue.image.norm(dim=1), torch.ones(8), atol=1e-5)


def test_a_queue_of_features_of_other_pairs_takes_what_fits():
    image, text = torch.randn(5, 4), torch.randn(5, 4)
    for size, rows, following in ((8, 5, 5), (5, 5, 0), (3, 3, 0), (0, 0, 0)):
        contrast = Contrast(size, (4,), (4,), 0.0, torch.device("cpu"))
        contrast.fill(image, text, -100)
        assert contrast.next_row == following
        assert torch.equal(contrast.image[:rows], image[:rows]) and torch.equal(contrast.text[:rows], text[:rows])
        assert contrast.ids.tolist() == [-100] * rows + [-1] * (size - rows)


def test_without_teacher_gradients_reach_both_sides_as_in_clip():
    """CLIP's loss: the cross-entropy of rows and of columns of one matrix of logits."""
    torch.manual_seed(0)
    contrast, ids = Contrast(0, (8,), (8,), 0.0, torch.device("cpu")), torch.arange(5)
    image, text = (F.normalize(torch.randn(5, 8), dim=1).requires_grad_() for _ in range(2))
    loss = contrast(image, text, ids, Teacher(image, text, ids), lambda similarities: similarities * 14)
    logits = 14 * image @ text.T
    expected = (F.cross_entropy(logits, ids) + F.cross_entropy(logits.T, ids)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(*(torch.autograd.grad(each, (image, text)) for each in (loss, expected)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and theirs.abs().max() > 0.01


def test_of_items_with_several_vectors_the_nearest_counts():
    torch.manual_seed(0)
    contrast, ids = Contrast(4, (3, 8), (8,), 0.0, torch.device("cpu")), torch.arange(4)
    image, text = F.normalize(torch.randn(4, 3, 8), dim=2), F.normalize(torch.randn(4, 8), dim=1)
    contrast.enqueue(Teacher(image, text, ids + 10))
    found = contrast(image, text, ids, Teacher(image, text, ids), lambda similarities: similarities / 0.1)
    logits = torch.tensor([[max(float(vector @ t) for vector in vectors) for t in text] for vectors in image]) / 0.1
    expected = sum(F.cross_entropy(torch.cat([each, each], 1), ids) for each in (logits, logits.T)) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("size", "batch", "rows", "fitted"), [(57_600, 16, 500_000, 57_600), (57_600, 96, 994, 768)])
def test_queue_fits_the_data(size, batch, rows, fitted):
    assert fit_queue(size, batch, rows) == fitted
    assert fit_queue(100, 96, 100) == 0
