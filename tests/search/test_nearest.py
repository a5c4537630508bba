"""Candidates against a full sort, and how much of it the approximate kinds find."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aurora_petl.errors import AuroraError
from aurora_petl.search import nearest
from aurora_petl.search.nearest import Nearest, recall_against_exact, top_k


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def library():
    """4,000 vectors around 100 centres, and 50 queries near them."""
    centres = unit(100, 32)
    items = F.normalize(centres.repeat(40, 1) + 0.1 * torch.randn(4000, 32, generator=torch.Generator().manual_seed(1)))
    return items, F.normalize(centres[:50] + 0.1 * unit(50, 32, seed=2))


def sorted_rows(queries, items, k):
    return np.argsort(-(queries.numpy() @ items.float().numpy().T), axis=1)[:, :k]


@pytest.mark.parametrize("block", [7, 64, 1000])
@pytest.mark.parametrize("k", [1, 10, 300, 999])
def test_blocks_find_what_a_full_sort_finds(block, k, monkeypatch):
    monkeypatch.setattr(nearest, "QUERY_BLOCK", 3)
    items, queries = unit(300, 16), unit(8, 16, seed=1)
    scores, rows = top_k(queries, items, k, block=block)
    assert np.array_equal(rows.numpy(), sorted_rows(queries, items, k))
    assert torch.allclose(scores, (queries @ items.T).gather(1, rows), atol=1e-6)


def test_half_precision_items_and_no_queries():
    items = unit(50, 16).half()
    queries = unit(4, 16, seed=1)
    assert np.array_equal(top_k(queries, items, 5)[1].numpy(), sorted_rows(queries, items, 5))
    assert [tuple(found.shape) for found in top_k(queries[:0], items, 5)] == [(0, 5), (0, 5)]


def test_exact_is_exact(library):
    items, queries = library
    scores, rows = Nearest(items, "exact").search(queries, 10)
    expected, right = top_k(queries, items, 10)
    assert torch.equal(rows, right) and torch.allclose(scores, expected, atol=1e-6)


def scores_of_several(queries, items):
    """The largest product of a query's and an item's vectors, one pair after the other."""
    return np.array([[(np.atleast_2d(q) @ np.atleast_2d(i).T).max() for i in items.numpy()] for q in queries.numpy()])


@pytest.mark.parametrize("faiss", [True, False])
@pytest.mark.parametrize(("of_query", "of_item"), [((), (3,)), ((3,), ())])
def test_of_several_vectors_the_nearest_counts(of_query, of_item, faiss, monkeypatch):
    if not faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    items, queries = unit(60, *of_item, 8), unit(5, *of_query, 8, seed=1)
    expected = scores_of_several(queries, items)
    for k in (1, 7, 60, 99):
        scores, rows = Nearest(items).search(queries, k)
        assert np.array_equal(rows.numpy(), np.argsort(-expected, axis=1)[:, :k])
        assert np.allclose(scores.numpy(), np.take_along_axis(expected, rows.numpy(), 1), atol=1e-6)
        assert torch.equal(top_k(queries, items, k, block=7)[1], rows)


def test_several_vectors_an_item_are_always_scanned(monkeypatch):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 10)
    items = unit(60, 3, 8)
    assert Nearest(items).kind == "exact"
    with pytest.raises(AuroraError, match="search of kind hnsw is for one vector an item, and these have 3; take exac"):
        Nearest(items, "hnsw")
    assert torch.allclose(Nearest(items).search(items[:4], 1)[0], torch.ones(4, 1))  # a picture and itself


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_find_nearly_all(kind, library):
    items, queries = library
    nearest = Nearest(items, kind)
    recall = recall_against_exact(nearest, items, queries)
    scores, rows = nearest.search(queries, 10)
    right = sorted_rows(queries, items, 10)
    counted = np.mean([len(set(found) & set(best)) / 10 for found, best in zip(rows.numpy(), right, strict=True)])
    assert recall == pytest.approx(counted) and recall > 0.95
    assert torch.allclose(scores[:, 0], (queries * items[rows[:, 0]]).sum(1), atol=1e-5)


def test_recall_counts_what_is_missing(library):
    items, queries = library

    class Half:
        def search(self, queries, k):
            scores, rows = top_k(queries, items, k)
            rows[:, k // 2 :] = -1
            return scores, rows

    assert recall_against_exact(Half(), items, queries) == pytest.approx(0.5)


def test_the_kind_follows_the_size(library, monkeypatch):
    items, _ = library
    assert Nearest(items).kind == "exact"
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 3999)
    assert Nearest(items).kind == "hnsw"
    monkeypatch.setattr(nearest, "HNSW_UP_TO", 3999)
    assert Nearest(items).kind == "ivf"


def test_without_faiss_search_is_exact(library, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 10)
    items, queries = library
    index = Nearest(items)
    assert index.kind == "exact" and torch.equal(index.search(queries, 9)[1], top_k(queries, items, 9)[1])
    with pytest.raises(AuroraError, match=r"search of kind ivf needs faiss: in the checkout .* -e '\.\[search\]'"):
        Nearest(items, "ivf")
    with pytest.raises(AuroraError, match="no kind of search 'fast'; choose one of auto, exact, ivf, hnsw"):
        Nearest(items, "fast")


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw", None])
@pytest.mark.parametrize("scanned", [0, 20_000])
def test_among_some_rows(library, kind, scanned, monkeypatch):
    if kind is None:
        monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(nearest, "SCANNED", scanned)
    monkeypatch.setattr(nearest, "BLOCK", 300)
    items, queries = library
    among = torch.arange(3, 4000, 4)
    scores, rows = Nearest(items.half(), kind or "exact").search(queries, 10, among)
    expected, places = top_k(queries, items.half()[among], 10)
    shared = (rows[:, :, None] == among[places][:, None, :]).any(2).float().mean()
    exact = scanned or kind in ("exact", None)
    assert bool((rows % 4 == 3).all()) and (shared == 1 if exact else shared > 0.9)
    assert not exact or torch.allclose(scores, expected, atol=1e-5)
    for few in (among[:4], among[:0]):
        assert Nearest(items, kind or "exact").search(queries, 10, few)[1].shape == (50, len(few))
