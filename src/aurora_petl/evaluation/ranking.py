"""The order of candidates, by ITC alone or by ITM and a weight of ITC beside it, that a split likes best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .features import Features
from .recall import MEAN
from .scores import Scores

BETAS = (50.0, 20.0, 5.0, 1.0, 0.0)  # tried weights of the similarity beside the match logit


def choose(scores: Scores, features: Features) -> Scores:
    """Scores by the order with the highest mean recall on this very split, which their ``choice`` names.

    ITC similarity alone is preferred to ITM that is no better, and a higher weight of the similarity to a lower one:
    the order that costs less, or departs less from it.

    Args:
        scores: of `rerank.rerank` with ``beta`` 0, so that every pair is scored once for all orders.
    """
    alone = scores.by_similarity()
    orders = {beta: weighted(scores, beta) for beta in BETAS}
    # rounded, for recalls that are level may differ in their last bit
    recalls = {beta: round(order.metrics(features)[MEAN], 9) for beta, order in orders.items()}
    beta = max(BETAS, key=recalls.__getitem__)  # the first of several that are level
    if recalls[beta] > round(alone.metrics(features)[MEAN], 9):
        return replace(orders[beta], choice={"ranking": "itm", "beta": beta})
    return replace(alone, choice={"ranking": "itc", "beta": beta})


def weighted(scores: Scores, beta: float) -> Scores:
    """Scores whose rescored pairs have ``beta`` * similarity more."""
    own = scores.candidates
    if own is None:
        return scores
    return Scores(scores.near, replace(own, score=own.score + np.float32(beta) * own.near))
