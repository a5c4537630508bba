"""Recall against a brute-force ranking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_petl.evaluation.recall import ranks_of, recall_at_k, retrieval_metrics


def brute_force(scores, queries, items, k):
    """Share of queries with a right item in the first k places, wrong items first among equals."""
    found = 0
    for row, query in zip(scores.tolist(), queries, strict=True):
        order = sorted(range(len(items)), key=lambda i: (-row[i], items[i] == query))
        found += any(items[i] == query for i in order[:k])
    return 100 * found / len(queries)


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 5), st.booleans())
def test_against_brute_force(seed, pictures, most, ties):
    rng = np.random.default_rng(seed)
    image_ids = [f"picture {i}" for i in range(pictures)]
    text_ids = [name for name in image_ids for _ in range(rng.integers(1, most + 1))]
    scores = rng.normal(size=(len(image_ids), len(text_ids)))
    scores = scores.round() if ties else scores
    found = retrieval_metrics(scores, scores.T, image_ids, text_ids)
    for k in (1, 5, 10):
        assert found[f"text_recall@{k}"] == pytest.approx(brute_force(scores, image_ids, text_ids, k))
        assert found[f"image_recall@{k}"] == pytest.approx(brute_force(scores.T, text_ids, image_ids, k))
    assert found["mean_recall"] == pytest.approx(np.mean([v for n, v in found.items() if "_recall@" in n]))


def test_example_of_the_docstring():
    scores = np.array([[0.9, 0.2, 0.5, 0.1], [0.1, 0.2, 0.4, 0.3]])
    assert recall_at_k(scores, ["a", "b"], ["b", "a", "a", "b"], [1, 2]) == {1: 0.0, 2: 100.0}


def test_equal_scores_earn_nothing():
    assert recall_at_k(np.zeros((3, 3)), "abc", "abc", [1])[1] == 0


def test_refuses_what_cannot_be_scored():
    with pytest.raises(ValueError, match="shape"):
        recall_at_k(np.zeros((2, 3)), "ab", "ab")
    with pytest.raises(ValueError, match="NaN"):
        recall_at_k(np.full((1, 1), np.nan), "a", "a")
    with pytest.raises(ValueError, match="'b' has no right item"):
        recall_at_k(np.zeros((2, 1)), "ab", "a")


def test_ranks_by_hand():
    scores = np.array([[3.0, 1, 2, 0], [5, 4, 3, 9], [1, 1, 0, 1]])
    # first; third, behind a and c; first but level with the three others, of which one is worse
    assert ranks_of(scores, ["a", "b", "a"], ["a", "b", "b", "c"]).tolist() == [1, 3, 3]
