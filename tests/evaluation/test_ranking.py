"""The choice among orders of candidates, against orders sorted query by query."""

import numpy as np
import pytest
import torch

from aurora_petl.backbones import Texts
from aurora_petl.evaluation import ranking
from aurora_petl.evaluation.features import Features, extract
from aurora_petl.evaluation.rerank import rerank
from aurora_petl.evaluation.scores import BELOW

from ..helpers.scores import all_rescored

ORDERS = [("itc", None), *(("itm", beta) for beta in (50, 20, 5, 1, 0))]  # what is level goes to the first


def features(count: int) -> Features:
    names, nothing = [f"{n}" for n in range(count)], torch.zeros(0)
    return Features(nothing, nothing, Texts(nothing, nothing), names, names, names, nothing, range(count))


def mean_recall(similarity, logits, order):
    """Of one caption a picture, each query's candidates sorted by themselves; ties go against the right one."""
    recalls = []
    for sides in ((similarity, logits), (similarity.T, logits.T)):
        places = []
        for query, (near, match) in enumerate(zip(*sides, strict=True)):
            value = near if order[0] == "itc" else match + np.float32(order[1]) * near
            places.append(sorted(range(len(value)), key=lambda n: (-value[n], n == query)).index(query))
        recalls += [100 * sum(place < k for place in places) / len(places) for k in (1, 5, 10)]
    return round(sum(recalls) / 6, 9)


@pytest.mark.parametrize("seed", range(12))
def test_the_order_with_the_highest_recall_is_chosen(seed):
    random = np.random.default_rng(seed)
    right = np.eye(30, dtype=np.float32)
    # seeds differ in which of the two knows more
    similarity = (random.normal(size=(30, 30)) * 0.05 + right * 0.03 * (seed % 4)).astype(np.float32)
    logits = (random.normal(size=(30, 30)) * 2 + right * (3 - seed % 4)).astype(np.float32)
    expected = max(ORDERS, key=lambda order: mean_recall(similarity, logits, order))
    found = ranking.choose(all_rescored(logits, similarity), features(30))
    assert found.choice["ranking"] == expected[0] and found.reranked == (expected[0] == "itm")
    best = max(ORDERS[1:], key=lambda order: mean_recall(similarity, logits, order))
    assert found.choice["beta"] == best[1]
    assert found.metrics(features(30))["mean_recall"] == pytest.approx(mean_recall(similarity, logits, expected))


@pytest.mark.parametrize(("known", "chosen"), [("logits", "itm"), ("similarity", "itc")])
def test_the_score_that_knows_the_answers_is_chosen(known, chosen):
    right, noise = np.eye(30, dtype=np.float32), np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
    logits, similarity = (noise + 9 * right, noise * 0.01) if known == "logits" else (-noise, noise * 0.01 + right)
    found = ranking.choose(all_rescored(logits, similarity), features(30))
    assert found.choice["ranking"] == chosen


def test_level_orders_go_to_the_cheapest():
    same = np.eye(8, dtype=np.float32)
    assert ranking.choose(all_rescored(same, same), features(8)).choice == {"ranking": "itc", "beta": 50.0}


def test_a_weight_added_later_is_as_good_as_one_from_the_start(backbone, pictures):
    backbone.model.eval()
    found = extract(backbone, pictures.split("validation"))
    later = ranking.weighted(rerank(backbone, found, k_test=3), 20.0)
    expected = rerank(backbone, found, k_test=3, beta=20.0)
    for ours, theirs in (
        (later.image_to_text, expected.image_to_text),
        (later.text_to_image, expected.text_to_image),
    ):
        assert np.array_equal(ours > -BELOW / 2, theirs > -BELOW / 2) and np.allclose(ours, theirs, atol=1e-4)
