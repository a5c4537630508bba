"""Candidates by inner product: exactly in blocks for a test set, through faiss for a library that is asked often.

faiss (Johnson et al., arXiv 1702.08734) is optional, the package's part ``search``. Without it every search is
exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.base import similarity
from ..errors import AuroraError, install

KINDS = ("auto", "exact", "ivf", "hnsw")
EXACT_UP_TO = 200_000  # rows; up to here a scan of 256 wide takes about 10 ms on one core, and nothing is built
HNSW_UP_TO = 1_000_000  # rows; beyond, the graph takes many minutes to build on one core, the lists a few
QUERY_BLOCK = 1024
SCANNED = 20_000  # rows that a filter leaves; of more, faiss passes over the others
BLOCK = 65_536  # items


@torch.no_grad()
def top_k(queries: Tensor, items: Tensor, k: int, *, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The ``k`` items of largest `similarity` with each query, in memory of ``QUERY_BLOCK * block`` floats.

    Args:
        queries: (Q, P), or (Q, V, P) where a query has V vectors.
        items: (N, P) or (N, V, P), of any precision; products are formed in float32.
        k: at most N are returned.

    Returns:
        Scores (Q, min(k, N)), best first, and their rows. Equal scores come in no promised order.
    """
    k = min(k, len(items))
    found = [_top_k_of_block(part.float(), items, k, block) for part in queries.split(QUERY_BLOCK)]
    if not found:
        return queries.new_empty(0, k, dtype=torch.float32), queries.new_empty(0, k, dtype=torch.long)
    return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])


def _top_k_among(queries: Tensor, items: Tensor, k: int, among: Tensor) -> tuple[Tensor, Tensor]:
    """`top_k` of some rows, which are gathered by blocks; what it returns are places in ``among``."""
    k = min(k, len(among))
    scores, places = queries.new_empty(len(queries), 0, dtype=torch.float32), among.new_empty(len(queries), 0)
    for first in range(0, len(among), BLOCK):
        best, where = top_k(queries, items[among[first : first + BLOCK]], k)
        scores, places = torch.cat([scores, best], 1), torch.cat([places, where + first], 1)
        scores, order = scores.topk(min(k, scores.shape[1]), dim=1)
        places = places.gather(1, order)
    return scores, places


def _top_k_of_block(queries: Tensor, items: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    block = max(1, block // items.shape[1]) if items.dim() == 3 else block
    for first in range(0, len(items), block):
        part = items[first : first + block].float()
        best, where = similarity(queries, part).topk(min(k, len(part)), dim=1)
        scores, rows = torch.cat([scores, best], 1), torch.cat([rows, where + first], 1)
        scores, kept = scores.topk(min(k, scores.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    return scores, rows


class Nearest:
    """Items that are searched many times.

    Args:
        items: (N, P) unit vectors of any precision, or (N, V, P) of V vectors an item, which are always scanned in
            PyTorch. They are kept as they are.
        kind: ``exact`` scans all items. ``ivf`` scans the lists of the nearest of about 4 sqrt(N) centroids. ``hnsw``
            walks a graph of 32 links an item (Malkov and Yashunin, arXiv 1603.09320). ``auto`` chooses by N.

    Raises:
        AuroraError: if the kind is unknown, needs faiss and there is none, or is for one vector an item and there are
            several.
    """

    def __init__(self, items: Tensor, kind: str = "auto") -> None:
        if kind not in KINDS:
            raise AuroraError(f"no kind of search {kind!r}; choose one of {', '.join(KINDS)}")
        several = items.dim() == 3
        if several and kind not in ("auto", "exact"):
            raise AuroraError(
                f"search of kind {kind} is for one vector an item, and these have {items.shape[1]}; take exact"
            )
        faiss = None if several else _faiss()
        if kind == "auto":
            big = "hnsw" if len(items) <= HNSW_UP_TO else "ivf"
            kind = "exact" if faiss is None or len(items) <= EXACT_UP_TO else big
        if faiss is None and kind != "exact":
            raise AuroraError(f"search of kind {kind} needs faiss: {install('search')}")
        self.kind = kind
        self._items = items
        self._index: Any = None if faiss is None else _build(faiss, kind, items)

    def search(self, queries: Tensor, k: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `top_k`; approximate kinds may return fewer rows of a query, then its last ones are -1.

        Args:
            among: (M,) the rows that come into question; None for all. Few are scanned.
        """
        if among is not None and (self._index is None or queries.dim() == 3 or len(among) <= SCANNED):
            scores, places = _top_k_among(queries, self._items, k, among)
            return scores, among[places]
        if self._index is None:
            return top_k(queries, self._items, k)
        k = min(k, self._index.ntotal if among is None else len(among))
        if queries.dim() == 3:
            return self._of_several(queries, k)
        faiss = _faiss()
        effort = _effort(faiss, self.kind, self._index, k, among)
        scores, rows = self._index.search(_array(queries), k, params=effort)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def _of_several(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`search` for queries (Q, V, P): what is near to one of a query's vectors, by the nearest of them."""
        scores, rows = (part.view(len(queries), -1) for part in self.search(queries.flatten(0, 1), k))
        best = scores.new_full((len(queries), self._index.ntotal), -torch.inf)
        best.scatter_reduce_(1, rows.clamp(min=0), scores.masked_fill(rows < 0, -torch.inf), "amax")
        scores, rows = best.topk(k, dim=1)
        return scores, rows.masked_fill(scores == -torch.inf, -1)


def recall_against_exact(nearest: Nearest, items: Tensor, queries: Tensor, k: int = 10) -> float:
    """Share of the exact ``k`` best that ``nearest`` returns, mean over ``queries`` (Q, P); 1 is all of them."""
    _, right = top_k(queries, items, k)
    _, found = nearest.search(queries, k)
    return float((right[:, :, None] == found[:, None, :]).any(2).float().mean())


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.float().numpy())


def _build(faiss: Any, kind: str, items: Tensor) -> Any:
    count, width = items.shape
    flat = faiss.IndexFlatIP(width)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    elif kind == "ivf":
        lists = max(1, min(round(4 * math.sqrt(count)), count // 39))  # k-means wants 39 items a centroid
        index = faiss.IndexIVFFlat(flat, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid = 10, 64  # of k-means, for a tenth of the default's time
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: 64 * lists]  # as many as it takes
        index.train(_array(items[drawn]))
    else:
        index = flat
    for part in items.split(BLOCK):  # so that no second copy of all is made
        index.add(_array(part))
    return index


def _effort(faiss: Any, kind: str, index: Any, k: int, among: Tensor | None) -> Any:
    """How far an approximate search looks: a 16th of the lists, or 64 open ends of the graph, more where k asks it, and
    more by as much as a filter leaves fewer rows."""
    count = index.ntotal if among is None else max(1, len(among))
    more = index.ntotal / count
    only = {} if among is None else {"sel": _selector(faiss, among, index.ntotal)}
    if kind == "ivf":
        lists = max(8, round(index.nlist // 16 * more), -(-4 * k * index.nlist // count))
        return faiss.SearchParametersIVF(nprobe=min(index.nlist, lists), **only)
    if kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=round(max(64, 2 * k) * more), **only)
    return faiss.SearchParameters(**only) if only else None


def _selector(faiss: Any, rows: Tensor, count: int) -> Any:
    """What lets faiss look at some rows alone."""
    chosen = np.zeros(count, dtype=bool)
    chosen[rows.numpy()] = True
    return faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
