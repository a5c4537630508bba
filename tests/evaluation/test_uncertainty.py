"""Intervals and the paired test against plain Python, and against what they promise."""

import random
from itertools import product
from statistics import mean, median

import numpy as np
import pytest

from aurora_petl.evaluation import uncertainty
from aurora_petl.evaluation.recall import Ranks, rank_metrics
from aurora_petl.evaluation.uncertainty import Sample, differences, intervals, wilson

CLUSTERS = np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 6, 6, 7])  # captions by picture


def sample(seed: int, clusters=CLUSTERS) -> Sample:
    """Texts found by a picture, pictures found by a text, and the average of the two; the ranks behind them."""
    rng = np.random.default_rng(seed)
    pictures = np.unique(clusters)
    ease = rng.normal(size=len(pictures))
    texts, images = (np.exp(ease[at] + rng.normal(size=len(at)) + 1).astype(int) + 1 for at in (pictures, clusters))
    means = {"texts": (100.0 * (texts <= 3), pictures), "images": (100.0 * (images <= 3), clusters)}
    return Sample(len(pictures), means, {"rank": (images, clusters)}, {"both": ("texts", "images")})


def plainly(own: Sample, counts: list[int]) -> dict[str, float]:
    """The metrics where every cluster and all its queries are there so many times."""

    def repeated(name):
        values, at = (own.means | own.medians)[name]
        return [value for value, cluster in zip(values, at, strict=True) for _ in range(counts[cluster])]

    found = {"texts": mean(repeated("texts")), "images": mean(repeated("images")), "rank": median(repeated("rank"))}
    return found | {"both": (found["texts"] + found["images"]) / 2}


def test_metrics_of_resamples_are_those_of_repeated_queries():
    own, draw = sample(0), random.Random(0)
    for _ in range(50):
        drawn = draw.choices(range(own.clusters), k=own.clusters)
        counts = [drawn.count(cluster) for cluster in range(own.clusters)]
        found = own.over(np.array([counts]))
        assert {name: value[0] for name, value in found.items()} == pytest.approx(plainly(own, counts))


def test_intervals_are_those_of_a_plain_bootstrap():
    own = sample(1, np.repeat(np.arange(60), 3))
    draw, plain = random.Random(1), []
    for _ in range(1500):
        drawn = draw.choices(range(60), k=60)
        plain.append(plainly(own, [drawn.count(cluster) for cluster in range(60)]))
    tail = uncertainty._tail(60)
    assert tail == pytest.approx(0.0219, abs=2e-4)  # Student's t of 59 degrees, 2.0010, times sqrt(60 / 59)
    found = intervals(own)
    for name in plain[0]:
        expected = np.quantile([row[name] for row in plain], [tail, 1 - tail])
        assert found[name] == pytest.approx(expected, abs=3.0 if name != "rank" else 1.0), name
    assert intervals(own) == found and intervals(own, seed=1) != found


def test_captions_of_one_picture_are_not_evidence_five_times():
    """Where they all agree, five captions a picture give the interval of one, which single captions would halve."""
    values = 100.0 * (np.random.default_rng(0).random(100) < 0.5)
    one, five = (
        intervals(Sample(100, {"x": (np.repeat(values, n), np.repeat(np.arange(100), n))}))["x"] for n in (1, 5)
    )
    apart = intervals(Sample(500, {"x": (np.repeat(values, 5), np.arange(500))}))["x"]
    assert one == pytest.approx(five) and one.high - one.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize("count", [12, 60])
def test_intervals_cover_the_truth(count):
    """Clustered queries with a recall of 60%, and two models of which the second is 10 points better."""
    rng, covered = np.random.default_rng(count), []
    at = np.repeat(np.arange(count), 3)
    for _ in range(250):
        ease, own = rng.normal(size=count)[at], rng.normal(size=(2, len(at)))
        shares = [(ease + noise) / 2**0.5 < limit for noise, limit in zip(own, (0.2533, 0.5244), strict=True)]
        first, second = (Sample(count, {"x": (100.0 * hit, at)}) for hit in shares)
        low, high = intervals(first)["x"]
        gain = differences(first, second)["x"]
        covered.append((low <= 60 <= high, gain.low <= 10 <= gain.high))
    shares = np.mean(covered, axis=0)
    assert ((shares >= 0.91) & (shares <= 0.985)).all(), shares


def test_p_of_few_pictures_is_that_of_all_swaps():
    first, second = sample(2), sample(3)
    found = differences(first, second)
    pooled = first.beside(second)
    for name in ("texts", "both", "rank"):
        seen = abs(found[name].value) - 1e-9
        swaps = [[*keep, *(1 - k for k in keep)] for keep in product((0, 1), repeat=8)]
        apart = [plainly(pooled, swap[8:] + swap[:8])[name] - plainly(pooled, swap)[name] for swap in swaps]
        assert found[name].p == pytest.approx(np.mean([abs(gain) >= seen for gain in apart])), name


def test_p_under_the_null_is_seldom_small_and_of_a_gain_always():
    rng, null, gained = np.random.default_rng(0), [], []
    at = np.repeat(np.arange(30), 2)
    for _ in range(150):
        hits = rng.random((2, 60)) < rng.random(30)[at]
        first, second = (Sample(30, {"x": (100.0 * hit, at)}) for hit in hits)
        null.append(differences(first, second)["x"].p)
        best = Sample(30, {"x": (100.0 * (hits[0] | (rng.random(60) < 0.6)), at)})
        gained.append(differences(first, best)["x"].p)
    assert 0.01 <= np.mean(np.array(null) <= 0.05) <= 0.09 and 0.4 < np.mean(null) < 0.7
    assert np.mean(np.array(gained) <= 0.05) > 0.95


def test_what_no_query_showed_is_not_ruled_out():
    low, high = wilson(2 / 3, 6)  # as published tables have it: 0.300 to 0.903
    assert (round(low, 3), round(high, 3)) == (0.300, 0.903)
    every, none = (Sample(6, {"x": (np.full(6, value), np.arange(6))}) for value in (100.0, 0.0))
    unseen = 100 * wilson(0, 6)[1]
    assert intervals(every)["x"] == pytest.approx((100 - unseen, 100)) and unseen == pytest.approx(39.0, abs=0.1)
    assert intervals(none)["x"] == pytest.approx((0, unseen))
    same = differences(every, every)["x"]
    assert (same.value, same.low, same.high, same.p) == pytest.approx((0, -unseen, unseen, 1))
    assert same.by_chance and differences(none, every)["x"].p == 2 / 2**6


def test_kinds_that_few_clusters_hold():
    """A kind of question that most resamples lack, and a single picture."""
    own = Sample(9, {"all": (np.full(9, 50.0), np.arange(9)), "rare": (np.array([0.0, 100.0]), np.array([3, 4]))})
    low, high = intervals(own)["rare"]
    assert (low, high) == (0, 100) and own.support("rare") == 2
    assert intervals(Sample(1, {"x": (np.array([100.0]), np.zeros(1, int))}))["x"].low < 25


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="not of the same queries"):
        differences(sample(0), sample(0, CLUSTERS[:-1]))


def test_rank_metrics_by_hand():
    found = rank_metrics(Ranks(np.array([1, 4, 20]), np.array([1, 2, 4, 10])))
    assert (found["text_recall@5"], found["image_recall@1"]) == (pytest.approx(200 / 3), 25)
    assert found["text_mrr"] == pytest.approx(100 * (1 + 1 / 4 + 1 / 20) / 3)
    assert (found["text_median_rank"], found["image_median_rank"]) == (4, 3)
