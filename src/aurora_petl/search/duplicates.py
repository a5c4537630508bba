"""Pictures of a library that are alike: files of the same content, and files whose features are near.

Every content is compared with every other in blocks, in memory of two bytes an entry of a feature and one block of
similarities. The time grows with the square of the number of pictures.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..devices import choose
from ..errors import AuroraError
from .filters import ALL, Filter
from .manifest import Picture
from .store import Store

THRESHOLD = 0.97  # cosine
BLOCK = 2048  # contents that are compared with as many others at once
_ROUNDING = 1e-5  # of the product of a unit vector with itself


@dataclass(frozen=True)
class Duplicate:
    """A picture of a group."""

    picture: Picture
    similarity: float  # with the first of the group, of the features
    same: bool  # whether it has the content of the first


def find_duplicates(
    store: Store,
    threshold: float = THRESHOLD,
    view: str | None = None,
    among: Filter = ALL,
    *,
    progress: bool = False,
) -> list[list[Duplicate]]:
    """Groups of pictures that are alike, each by path, in the order of their first ones.

    Two pictures are in a group if their features have a cosine of at least ``threshold``, or if a chain of such pairs
    leads from one to the other.

    Args:
        view: of the model, ``tuned`` or ``untuned``; None takes the first that the library has.
        among: the pictures that come into question.

    Raises:
        AuroraError: if the threshold is not above 0, up to 1.
    """
    if not 0 < threshold <= 1:
        raise AuroraError(f"threshold is {threshold:g}; it must lie above 0, up to 1")
    contents = store.contents(view or next(iter(store.keys)), among)
    rows = {content: row for row, content in enumerate(contents.digests)}
    group_of: dict[str, object] = {}
    for number, members in enumerate(near_groups(contents.features, threshold, progress)):
        group_of.update((contents.digests[row], number) for row in members)
    for content in store.copies(among):
        group_of.setdefault(content, content)  # a group of its own
    pictures: dict[object, list[Picture]] = defaultdict(list)
    for picture in store.of_contents(list(group_of), among):
        pictures[group_of[picture.sha256]].append(picture)
    groups = []
    for alike in pictures.values():
        alike.sort(key=lambda picture: picture.path)
        first = _unit(contents.features[rows[alike[0].sha256]][None])
        near = _unit(contents.features[[rows[picture.sha256] for picture in alike]]) @ first[0]
        groups.append(
            [
                Duplicate(picture, min(1.0, float(score)), picture.sha256 == alike[0].sha256)
                for picture, score in zip(alike, near, strict=True)
            ]
        )
    return sorted(groups, key=lambda group: group[0].picture.path)


@torch.no_grad()
def near_groups(features: Tensor, threshold: float, progress: bool = False) -> list[list[int]]:
    """Rows that chains of near pairs join, of groups with more than one.

    Args:
        features: (N, P), or (N, V, P), whose similarity is that of `backbones.base.similarity`.
        threshold: the smallest similarity of a near pair.
    """
    device, least = choose(), min(threshold, 1 - _ROUNDING)
    parents = np.arange(len(features))
    blocks = -(-len(features) // BLOCK)
    bar = tqdm(total=blocks * (blocks + 1) // 2, desc="comparing", unit="block", leave=False, disable=not progress)
    for first in range(0, len(features), BLOCK):
        left = _unit(features[first : first + BLOCK].to(device))
        for second in range(first, len(features), BLOCK):
            right = left if second == first else _unit(features[second : second + BLOCK].to(device))
            near = left @ right.T >= least
            if second == first:
                near.fill_diagonal_(False)
            if near.any():
                _join(parents, near.cpu().numpy(), first, second)
            bar.update()
    bar.close()
    roots = _roots(parents, np.arange(len(parents)))
    order = np.argsort(roots, kind="stable")
    bounds = np.flatnonzero(np.diff(roots[order])) + 1
    return [part.tolist() for part in np.split(order, bounds) if len(part) > 1]


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.flatten(1).float(), dim=1)


def _join(parents: np.ndarray, near: np.ndarray, first: int, second: int) -> None:
    """Join the rows of pairs that are ``near`` in a block, at most one pair a row and round: in a heap of pictures that
    all are alike, the other pairs join nothing any more."""
    rows, columns = np.arange(first, first + near.shape[0]), np.arange(second, second + near.shape[1])
    while True:
        apart = near & (_roots(parents, rows)[:, None] != _roots(parents, columns)[None])
        for row in np.flatnonzero(apart.any(1)):
            one, other = _roots(parents, np.array([rows[row], columns[apart[row].argmax()]]))
            parents[max(one, other)] = min(one, other)
        if not apart.any():
            return


def _roots(parents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    while True:
        above = parents[rows]
        if np.array_equal(above, rows):
            return rows
        rows = above
