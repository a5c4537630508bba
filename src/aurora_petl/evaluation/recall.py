"""Recall at K and other metrics of ranks from a score matrix; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KS = (1, 5, 10)
MEAN = "mean_recall"


@dataclass(frozen=True)
class Ranks:
    """The rank of every query's best right item in both directions, 1 for the first place."""

    texts: np.ndarray  # (images,), of the texts that a picture finds
    images: np.ndarray  # (texts,), of the pictures that a text finds

    def both(self) -> dict[str, np.ndarray]:
        """The directions by the names that metrics begin with: ``text_recall`` is of texts found by a picture,
        ``image_recall`` of pictures found by a text."""
        return {"text": self.texts, "image": self.images}


def ranks_of(scores: np.ndarray, queries: Sequence[str], items: Sequence[str]) -> np.ndarray:
    """The rank of every query's best right item, (queries,), 1 for the first place.

    Args:
        scores: (queries, items), higher is better.
        queries: id of each row. An item is right for a query of the same id.
        items: id of each column.

    An item that ties with the best right one counts as better, so that equal scores earn nothing.

    Raises:
        ValueError: if the shape does not fit the ids, a score is not a number, or a query has no right item.
    """
    scores = np.asarray(scores)
    if scores.shape != (len(queries), len(items)):
        raise ValueError(f"scores have shape {scores.shape} for {len(queries)} queries and {len(items)} items")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    numbers: dict[str, int] = {}
    row_ids = np.array([numbers.setdefault(name, len(numbers)) for name in queries])
    column_ids = np.array([numbers.setdefault(name, len(numbers)) for name in items])
    ranks = np.empty(len(queries), dtype=int)
    for row, own in enumerate(row_ids):
        right = column_ids == own
        if not right.any():
            raise ValueError(f"query {queries[row]!r} has no right item")
        ranks[row] = 1 + (scores[row, ~right] >= scores[row, right].max()).sum()
    return ranks


def recall_at_k(
    scores: np.ndarray, queries: Sequence[str], items: Sequence[str], ks: Sequence[int] = KS
) -> dict[int, float]:
    """Share of queries, in percent, with a right item among the K best.

    Args:
        ks: values of K; the others as in `ranks_of`.

    Two pictures (rows) and four texts, two of each picture, a wrong text second for the first picture:

        >>> recall_at_k(np.array([[.9, .2, .5, .1], [.1, .2, .4, .3]]), ["a", "b"], ["b", "a", "a", "b"], [1, 2])
        {1: 0.0, 2: 100.0}

    Raises:
        ValueError: see `ranks_of`.
    """
    ranks = ranks_of(scores, queries, items)
    return {k: 100.0 * float((ranks <= k).mean()) for k in ks}


def values_of(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """What every query adds to the metrics that are means over queries, in percent: whether it has a right item among
    the K best (``recall@K``), and the reciprocal of its rank (``mrr``, the mean reciprocal rank).

    Args:
        ranks: (queries,)
    """
    return {**{f"recall@{k}": 100.0 * (ranks <= k) for k in KS}, "mrr": 100.0 / ranks}


def rank_metrics(ranks: Ranks) -> dict[str, float]:
    """The field's table: R@1/5/10 both ways and ``mean_recall``, the mean of these six, in percent; beside them the
    mean reciprocal rank, in percent, and the median rank of each direction."""
    means = {
        f"{side}_{name}": float(values.mean())
        for side, own in ranks.both().items()
        for name, values in values_of(own).items()
    }
    recalls = {name: value for name, value in means.items() if "_recall@" in name}
    medians = {f"{side}_median_rank": float(np.median(own)) for side, own in ranks.both().items()}
    return recalls | {MEAN: sum(recalls.values()) / len(recalls)} | means | medians


def retrieval_metrics(
    image_to_text: np.ndarray, text_to_image: np.ndarray, image_ids: Sequence[str], text_ids: Sequence[str]
) -> dict[str, float]:
    """`rank_metrics` of score matrices.

    Args:
        image_to_text: (images, texts) scores for picture queries.
        text_to_image: (texts, images) scores for text queries.
    """
    return rank_metrics(
        Ranks(ranks_of(image_to_text, image_ids, text_ids), ranks_of(text_to_image, text_ids, image_ids))
    )
