"""The two-stage evaluation against scoring each pair by itself."""

import numpy as np
import pytest
import torch

from aurora_petl.evaluation.features import extract, tokenize
from aurora_petl.evaluation.rerank import BELOW, rerank


@pytest.fixture
def few(pictures):
    return pictures.split("validation")


@torch.no_grad()
def pair_by_pair(backbone, dataset, features):
    """(images, texts) ITM match logits, one unpadded text and one picture at a time."""
    scores = np.zeros((len(features.image_ids), len(features.text_ids)))
    for image in range(scores.shape[0]):
        states = features.states(image, image + 1)
        for text, words in enumerate(features.texts):
            tokens = tokenize(backbone, [words], 35)
            scores[image, text] = backbone.match(tokens["input_ids"], tokens["attention_mask"], states)[0, 1]
    return scores


def test_scores_equal_pairs_alone(backbone, few):
    backbone.model.eval()
    features = extract(backbone, few, batch_size=4)
    scores = rerank(backbone, features, k_test=1000, beta=0.5)
    expected = pair_by_pair(backbone, few, features) + 0.5 * scores.similarity
    assert np.abs(scores.image_to_text - expected).max() < 1e-4
    assert np.array_equal(scores.text_to_image, scores.image_to_text.T)


def test_only_candidates_are_rescored_and_stand_above_the_rest(backbone, few):
    backbone.model.eval()
    features = extract(backbone, few)
    scores = rerank(backbone, features, k_test=2)
    for matrix, similarity in ((scores.image_to_text, scores.similarity), (scores.text_to_image, scores.similarity.T)):
        for row, itc in zip(matrix, similarity, strict=True):
            best = set(np.argsort(-itc)[:2])
            assert set(np.flatnonzero(row > -BELOW / 2)) == best
            rest = [i for i in range(len(row)) if i not in best]
            assert np.allclose(row[rest], itc[rest] - BELOW, atol=1e-3)


def test_without_candidates_the_itc_order_stands(backbone, few):
    backbone.model.eval()
    features = extract(backbone, few)
    scores = rerank(backbone, features, k_test=0)
    assert scores.metrics(features) == scores.itc_metrics(features)


def test_states_formed_again_equal_those_kept(backbone, few, monkeypatch):
    backbone.model.eval()
    kept = extract(backbone, few)
    monkeypatch.setattr("aurora_petl.evaluation.features.STATES_BUDGET", 0)
    formed = extract(backbone, few)
    assert torch.allclose(kept.states(1, 3), formed.states(1, 3), atol=1e-5)
