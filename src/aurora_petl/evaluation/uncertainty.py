"""What a split's scores are worth: bootstrap intervals, and the paired test of two models on the same queries.

Queries are seen as a sample of those that could be asked; what is searched, the gallery, is taken as it is. Queries of
one picture are not independent: five captions of an easy picture all find it, and all questions about a picture that
the model does not see well are answered wrongly. Resampling captions one by one would count them as five pieces of
evidence and give intervals that are too narrow. Pictures are therefore resampled, each with all its queries in both
directions (the cluster bootstrap; Field and Welsh, 2007, doi 10.1111/j.1467-9868.2007.00593.x). Pictures of one id
are one cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
TAIL = 0.025  # on each side of a 95% interval
WEIGHTS = 2**21  # of queries in one block of resamples, which bounds memory
EQUAL = 1e-9  # differences up to here are rounding


class Interval(NamedTuple):
    """Where a metric may lie, in its own unit."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much higher a metric of one model is than another's, with its 95% interval, and how probable a difference of
    this size would be (``p``) if the models were equally good."""

    value: float
    low: float
    high: float
    p: float

    @property
    def by_chance(self) -> bool:
        """Whether the queries cannot tell the models apart."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Sample:
    """The queries of a split: what each adds to the metrics, and which belong together.

    Args:
        clusters: how many there are.
        means: by metric, a value in [0, 100] of each of its queries and the number of each query's cluster, both
            (queries,); the metric is the values' mean.
        medians: the same of metrics that are medians, of any values.
        averages: metrics that are the average of others, which they name.
    """

    clusters: int
    means: Mapping[str, tuple[np.ndarray, np.ndarray]]
    medians: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    averages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def _sums(self) -> np.ndarray:
        """(clusters, 2 * means): the sum of the values and the number of queries, for every mean."""
        counted = [np.bincount(cluster, minlength=self.clusters) for _, cluster in self.means.values()]
        sums = [np.bincount(cluster, value, self.clusters) for value, cluster in self.means.values()]
        return np.stack([*sums, *counted], axis=1).astype(float)

    def over(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every metric, (resamples,), where each cluster counts as often as ``weights`` (resamples, clusters) say; NaN
        where none of its queries does."""
        with np.errstate(invalid="ignore"):
            sums, counts = np.split(weights.astype(float) @ self._sums, 2, axis=1)
            means = sums / counts
        found = dict(zip(self.means, means.T, strict=True))
        found |= {name: _medians(weights, *queries) for name, queries in self.medians.items()}
        return found | {name: np.mean([found[p] for p in parts], axis=0) for name, parts in self.averages.items()}

    def metrics(self) -> dict[str, float]:
        """Every metric of the sample itself."""
        return {name: float(value[0]) for name, value in self.over(np.ones((1, self.clusters), int)).items()}

    def beside(self, other: Sample) -> Sample:
        """This sample and another of as many clusters as one, the other's clusters behind these."""

        def joined(own: Mapping, others: Mapping) -> dict[str, tuple[np.ndarray, np.ndarray]]:
            return {
                name: (np.concatenate([values, others[name][0]]), np.concatenate([at, others[name][1] + self.clusters]))
                for name, (values, at) in own.items()
            }

        return Sample(
            2 * self.clusters, joined(self.means, other.means), joined(self.medians, other.medians), self.averages
        )

    def support(self, name: str) -> int:
        """How many clusters hold a query of a metric; of an average, of the part that has fewest."""
        if name in self.averages:
            return min(self.support(part) for part in self.averages[name])
        _, cluster = (self.means | self.medians)[name]  # type: ignore[operator]
        return len(np.unique(cluster))


def intervals(sample: Sample, *, seed: int = 0) -> dict[str, Interval]:
    """The 95% interval of every metric: percentiles of `RESAMPLES` resamples of the clusters.

    Few clusters make percentiles too narrow, so that they are taken further out, as Student's t would have it
    (Hesterberg, 2015, arXiv 1411.5279, section 5.1, the expanded percentile interval). Where every query has the same
    value resampling has no spread at all; what none of n clusters showed is then given the share of Wilson's interval.
    """
    drawn = _stacked(sample.over, _resamples(sample.clusters, sample, seed))
    own = sample.metrics()
    return {name: _interval(sample, name, own[name], values, 0.0) for name, values in drawn.items()}


def differences(before: Sample, after: Sample, *, seed: int = 0) -> dict[str, Difference]:
    """How much every metric is higher after than before, on the same queries.

    The interval is that of `intervals`, with both models scored on the same resamples. ``p`` is the two-sided p-value
    of the paired sign-flip test: if the models are equally good, it does not matter which of its two results a cluster
    has from which model, and the difference that was seen is one of those that swaps of the models in every cluster
    give. Of at most 10 clusters all swaps are tried, else `RESAMPLES`.

    Raises:
        ValueError: if the two are not of the same queries.
    """
    kinds = ((before.means, after.means), (before.medians, after.medians))
    if before.clusters != after.clusters or any(
        own.keys() != other.keys() or any(not np.array_equal(own[name][1], other[name][1]) for name in own)
        for own, other in kinds
    ):
        raise ValueError("the samples are not of the same queries")

    def gained(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, second = before.over(weights), after.over(weights)
        return {name: second[name] - first[name] for name in first}

    pair = before.beside(after)

    def swapped(stays: np.ndarray) -> dict[str, np.ndarray]:
        first, second = pair.over(np.hstack([stays, ~stays])), pair.over(np.hstack([~stays, stays]))
        return {name: second[name] - first[name] for name in first}

    seen = {name: float(value[0]) for name, value in gained(np.ones((1, before.clusters), int)).items()}
    drawn = _stacked(gained, _resamples(before.clusters, before, seed))
    exact = 2**before.clusters <= RESAMPLES + 24  # 1,024 of 10 clusters
    swaps = _stacked(swapped, _every_swap(before.clusters) if exact else _swaps(before.clusters, before, seed))
    found = {}
    for name, value in seen.items():
        low, high = _interval(before, name, value, drawn[name], -100.0)
        as_large = int((np.abs(swaps[name]) >= abs(value) - EQUAL).sum())
        p = as_large / len(swaps[name]) if exact else (as_large + 1) / (len(swaps[name]) + 1)
        found[name] = Difference(value, low, high, p)
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share that was seen in ``count`` trials."""
    z = NormalDist().inv_cdf(1 - TAIL)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _interval(sample: Sample, name: str, value: float, drawn: np.ndarray, least: float) -> Interval:
    """The interval of a value that lies between ``least`` and 100, from those of the resamples."""
    drawn, count = drawn[~np.isnan(drawn)], sample.support(name)
    if name not in sample.medians and np.ptp(drawn) < EQUAL:
        _, unseen = wilson(0.0, count)
        return Interval(value - unseen * (value - least), value + unseen * (100.0 - value))
    tail = _tail(count)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _tail(count: int) -> float:
    """The share of resamples that the expanded percentile interval leaves out on each side.

    Student's quantile is expanded in that of the normal distribution (Abramowitz and Stegun, 26.7.5).
    """
    if count < 2:
        return 0.0
    normal, free = NormalDist(), count - 1
    z = normal.inv_cdf(1 - TAIL)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return normal.cdf(-t * math.sqrt(count / free))


def _medians(weights: np.ndarray, values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Medians (resamples,) of values (queries,) that count as often as their clusters do."""
    order = np.argsort(values, kind="stable")
    values, upto = values[order], np.cumsum(weights[:, clusters[order]], axis=1, dtype=np.int32)
    count = upto[:, -1]
    lower, upper = (
        values[(upto > place[:, None]).argmax(axis=1)].astype(float) for place in ((count - 1) // 2, count // 2)
    )
    return np.where(count > 0, (lower + upper) / 2, np.nan)


def _block(clusters: int, sample: Sample) -> int:
    """Resamples in a block."""
    queries = max(len(values) for values, _ in [*sample.means.values(), *sample.medians.values()])
    return max(1, WEIGHTS // max(clusters, queries))


def _resamples(clusters: int, sample: Sample, seed: int) -> Iterator[np.ndarray]:
    """Blocks (resamples, clusters) of how often each cluster is drawn, of as many draws with replacement as there are
    clusters."""
    random, block = np.random.default_rng(seed), _block(clusters, sample)
    for first in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - first)
        places = random.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(places.ravel(), minlength=rows * clusters).reshape(rows, clusters)


def _swaps(clusters: int, sample: Sample, seed: int) -> Iterator[np.ndarray]:
    """Blocks (tries, clusters) of whether a cluster keeps its results."""
    random, block = np.random.default_rng(seed), _block(clusters, sample)
    for first in range(0, RESAMPLES, block):
        yield random.random((min(block, RESAMPLES - first), clusters)) < 0.5


def _every_swap(clusters: int) -> Iterator[np.ndarray]:
    yield (np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1).astype(bool)


def _stacked(
    function: Callable[[np.ndarray], dict[str, np.ndarray]], blocks: Iterator[np.ndarray]
) -> dict[str, np.ndarray]:
    """What a function gives for every block, put together."""
    parts = [function(block) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
