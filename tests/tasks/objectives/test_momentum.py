"""The momentum encoder: averages of trained weights, with which a model computes while they are swapped in."""

import pytest
import torch

from aurora_petl.tasks.objectives import Averages
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings


def test_averages_follow_every_trained_weight(retrieval, batch):
    retrieval.train()
    start = {name: weight.detach().clone() for name, weight in retrieval.trained()}
    assert any("itm_head" in name for name in start) and any("temperature" in name for name in start)
    with torch.no_grad():
        for _, weight in retrieval.trained():
            weight.add_(1.0)
    retrieval(**batch)
    with retrieval._averages.swapped_in(dict(retrieval.trained())):
        for name, weight in retrieval.trained():
            assert torch.allclose(weight, start[name] + 0.1, atol=1e-6), name
    for name, weight in retrieval.trained():
        assert torch.allclose(weight, start[name] + 1.0)


def test_weights_come_back_after_an_error():
    weights = {"a.weight": torch.nn.Parameter(torch.ones(3))}
    averages = Averages(weights, 0.5)
    averages.put("a.weight", torch.zeros(3))
    with pytest.raises(KeyError), averages.swapped_in(weights):
        assert torch.equal(weights["a.weight"], torch.zeros(3))
        raise KeyError
    assert torch.equal(weights["a.weight"], torch.ones(3))


def test_without_momentum_there_are_no_averages(backbone):
    task = Retrieval(backbone, RetrievalSettings(queue_size=0, momentum=0.0))
    assert not len(task._averages)
    assert not any("_averages" in name for name in task.training_state())


def test_only_one_copy_of_the_frozen_weights(retrieval):
    frozen = sum(w.numel() for w in retrieval.model.parameters() if not w.requires_grad)
    held = sum(value.numel() for value in retrieval.training_state().values())
    trained = sum(w.numel() for _, w in retrieval.trained())
    queue = sum(getattr(retrieval._contrast, name).numel() for name in ("image", "text", "ids"))
    assert held == 2 * trained + queue + 2 < frozen


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_without_momentum_the_averaged_model_is_the_model(backbone, alpha):
    """No second pass, and the losses and gradients of one that averages nothing away."""
    words = backbone.texts(["a circle", "a square", "a star"], 35)
    batch = torch.randn(3, 3, 96, 96), words.ids, words.mask, torch.arange(3)
    found = []
    for momentum in (0.0, 1e-12):
        task = Retrieval(backbone, RetrievalSettings(queue_size=3, momentum=momentum, alpha=alpha)).train()
        encoded = []
        handle = backbone.model.vision_model.register_forward_hook(lambda *_, seen=encoded: seen.append(1))
        torch.manual_seed(0)
        backbone.model.zero_grad()
        task(*batch)
        task(*batch)["loss"].backward()
        handle.remove()
        weight = backbone.model.vision_proj.weight.grad.clone()
        found.append((len(encoded), weight, task._contrast.image.clone()))
    (once, gradient, queue), (twice, expected, expected_queue) = found
    assert (once, twice) == (2, 4)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6) and expected.abs().max() > 1e-3
    assert torch.allclose(queue, expected_queue, atol=1e-6) and queue.any()
