"""The sigmoid loss against transformers' own of SigLIP, and pair by pair."""

import math

import pytest
import torch

from aurora_petl.tasks.objectives import sigmoid_loss
from aurora_petl.tasks.retrieval import Retrieval
from tests.helpers.duals import dual_batch, tiny_dual


def test_loss_and_gradients_are_those_of_transformers_siglip():
    backbone, batch = tiny_dual("siglip"), dual_batch(5)
    gradients = []
    for loss in (
        Retrieval(backbone).train()(**batch, ids=torch.arange(5))["loss"],
        backbone.model(**batch, return_loss=True).loss,
    ):
        backbone.model.zero_grad()
        loss.backward()
        grads = {name: weight.grad.clone() for name, weight in backbone.model.named_parameters()}
        gradients.append((loss.item(), grads))
    (ours, found), (theirs, expected) = gradients
    assert ours == pytest.approx(theirs, rel=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name
    assert expected["logit_bias"].abs() > 1e-2 and expected["logit_scale"].abs() > 1e-2


def test_every_pair_is_a_question_of_its_own():
    """Pictures of a rank with the texts of all, of which some show the same picture."""
    torch.manual_seed(0)
    logits, images, texts = 3 * torch.randn(2, 4), [5, 7], [5, 6, 7, 5]
    expected = 0.0
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            likely = 1 / (1 + math.exp(-logits[row, column].item()))
            expected -= math.log(likely if image == text else 1 - likely) / len(images)
    found = sigmoid_loss(logits, torch.tensor(images), torch.tensor(texts))
    assert found.item() == pytest.approx(expected, rel=1e-5)
