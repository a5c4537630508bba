"""Scores of all pictures with all texts, of which never more than a block of pictures is held.

    every pair        similarity of its features          formed a block at a time, each time anew
    candidates        + logit of the matching head        held: picture, text, similarity and score of each

A split of 5,000 pictures and 25,000 texts has 125 million pairs, half a gigabyte for each matrix of their scores; its
candidates are a twentieth of these. What asks for all scores, as ranks do, goes through the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapter.factors import no_autocast
from ..backbones.base import similarity
from .features import Features
from .recall import Ranks, rank_metrics

BELOW = 1e4  # puts what was not rescored under all that was, in ITC order
BLOCK = 2**23  # scores in one block, 32 MiB in float32; what works on a block holds a few of this size


class Similarity:
    """ITC similarity of M pictures with L texts.

    Args:
        image: features (M, P) or (M, V, P).
        text: features (L, P).
    """

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.text = image, text

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.image), len(self.text)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The first picture of each block, and the similarity (rows, L) of its pictures; the same bits each time."""
        pictures, texts = self.shape
        rows = max(1, BLOCK // max(1, texts))
        text = self.text.float()
        for first in range(0, pictures, rows):
            with no_autocast(self.device):
                near = similarity(self.image[first : first + rows].float(), text)
            yield first, near

    def has_nan(self) -> bool:
        """Whether some are not numbers."""
        return bool((self.image.isnan().any() | self.text.isnan().any()).cpu())


@dataclass(frozen=True)
class Candidates:
    """The pairs that either direction asks for, in the order of pictures and then of texts; all are (n,)."""

    image: np.ndarray  # number of the picture
    text: np.ndarray
    near: np.ndarray  # similarity
    of_image: np.ndarray  # whether it is a candidate of its picture
    of_text: np.ndarray  # whether it is one of its text
    score: np.ndarray

    def within(self, first: int, last: int) -> slice:
        """Those of pictures ``first`` to ``last``, which is not one of them."""
        low, high = np.searchsorted(self.image, [first, last])
        return slice(int(low), int(high))


@dataclass
class Scores:
    """Scores of both directions: of candidates their own, of every other pair similarity - `BELOW`; without candidates,
    similarity."""

    near: Similarity
    candidates: Candidates | None = None
    choice: dict[str, Any] = field(default_factory=dict)  # what `ranking.choose` settled, by the task's setting

    @property
    def reranked(self) -> bool:
        """Whether ITM orders the best of them."""
        return self.candidates is not None

    def by_similarity(self) -> Scores:
        """Scores of the order by ITC similarity alone."""
        return Scores(self.near)

    def has_nan(self) -> bool:
        """Whether some are not numbers."""
        return self.near.has_nan() or (self.candidates is not None and bool(np.isnan(self.candidates.score).any()))

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The first picture of each block, and its pictures' scores (rows, texts) as pictures and as texts ask for
        them."""
        for first, near in self.near.blocks():
            if self.candidates is None:
                yield first, near, near
                continue
            own, asked = self.candidates, self.candidates.within(first, first + len(near))
            rows, texts = own.image[asked].astype(np.int64) - first, own.text[asked].astype(np.int64)
            below = near - BELOW
            del near
            by_picture = _put(below.clone(), rows, texts, own.score[asked], own.of_image[asked])
            yield first, by_picture, _put(below, rows, texts, own.score[asked], own.of_text[asked])

    def ranks(self, features: Features) -> Ranks:
        """The rank of the best right item of every query, as `recall.ranks_of` has it.

        Raises:
            ValueError: if a score is not a number, or a query has no right item.
        """
        numbers: dict[str, int] = {}
        image_ids = _numbered(features.image_ids, numbers).to(self.near.device)
        text_ids = _numbered(features.text_ids, numbers).to(self.near.device)
        for queries, items in ((features.image_ids, features.text_ids), (features.text_ids, features.image_ids)):
            if alone := set(queries) - set(items):
                raise ValueError(f"query {min(alone)!r} has no right item")
        if self.has_nan():
            raise ValueError("scores hold NaN")
        of_pictures, best = [], torch.full((len(text_ids),), -torch.inf, device=self.near.device)
        for first, by_picture, by_text in self.blocks():
            right = image_ids[first : first + len(by_picture), None] == text_ids
            best = torch.maximum(best, by_text.masked_fill(~right, -torch.inf).amax(0))
            own = by_picture.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
            of_pictures.append((by_picture >= own).logical_and_(~right).sum(1))
        of_texts = torch.zeros_like(text_ids)
        for first, _, by_text in self.blocks():
            right = image_ids[first : first + len(by_text), None] == text_ids
            of_texts += (by_text >= best).logical_and_(~right).sum(0)
        return Ranks(1 + torch.cat(of_pictures).cpu().numpy(), 1 + of_texts.cpu().numpy())

    def metrics(self, features: Features) -> dict[str, float]:
        """Metrics of the scores, see `recall.rank_metrics`."""
        return rank_metrics(self.ranks(features))

    def first(self) -> tuple[np.ndarray, np.ndarray]:
        """The text that stands first for every picture, and the picture that does for every text; of equals the
        first."""
        texts, pictures = [], torch.zeros(self.near.shape[1], dtype=torch.long, device=self.near.device)
        best = torch.full(pictures.shape, -torch.inf, device=pictures.device)
        for first, by_picture, by_text in self.blocks():
            texts.append(by_picture.argmax(1))
            values, rows = by_text.max(0)
            pictures = torch.where(values > best, first + rows, pictures)
            best = torch.maximum(best, values)
        return torch.cat(texts).cpu().numpy(), pictures.cpu().numpy()

    def rows(self, pictures: Sequence[int], texts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """All scores of some queries: of pictures (queries, texts), and of texts (queries, pictures)."""
        of_pictures = np.empty((len(pictures), self.near.shape[1]), np.float32)
        of_texts = np.empty((len(texts), self.near.shape[0]), np.float32)
        wanted = torch.tensor([*texts], dtype=torch.long, device=self.near.device)
        for first, by_picture, by_text in self.blocks():
            last = first + len(by_picture)
            of_texts[:, first:last] = by_text.index_select(1, wanted).T.cpu().numpy()
            for place, picture in enumerate(pictures):
                if first <= picture < last:
                    of_pictures[place] = by_picture[picture - first].cpu().numpy()
        return of_pictures, of_texts

    @property
    def image_to_text(self) -> np.ndarray:
        """All scores for picture queries, (images, texts): for splits that are small."""
        return torch.cat([by_picture for _, by_picture, _ in self.blocks()]).cpu().numpy()

    @property
    def text_to_image(self) -> np.ndarray:
        """All scores for text queries, (texts, images): for splits that are small."""
        return torch.cat([by_text for *_, by_text in self.blocks()]).T.cpu().numpy()

    @property
    def similarity(self) -> np.ndarray:
        """All similarities, (images, texts): for splits that are small."""
        return torch.cat([near for _, near in self.near.blocks()]).cpu().numpy()


def candidates(near: Similarity, k: int) -> Candidates:
    """The ``k`` best texts of every picture and the ``k`` best pictures of every text, by similarity, which stands for
    the score as well; of equals the first."""
    images, texts = near.shape
    bound, room = _bounds(near, k) if k < images else (None, None)
    parts: list[list[np.ndarray]] = []
    ties = torch.zeros(texts, dtype=torch.int32, device=near.device)
    for first, block in near.blocks():
        of_image = _best(block, k)
        if bound is None or room is None:
            of_text = torch.ones_like(of_image)
        else:
            tied = block == bound
            of_text = (block > bound) | (tied & (tied.cumsum(0, dtype=torch.int32) + ties <= room))
            ties += tied.sum(0, dtype=torch.int32)
        taken = (of_image | of_text).cpu()
        rows, columns = taken.nonzero(as_tuple=True)
        at = rows.to(near.device), columns.to(near.device)
        values = torch.stack([part[at].float() for part in (block, of_image, of_text)]).cpu().numpy()
        numbers = ((rows + first).numpy().astype(np.int32), columns.numpy().astype(np.int32))
        parts.append([*numbers, values[0], values[1] > 0, values[2] > 0])
    image, text, similarities, *asked = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Candidates(image, text, similarities, asked[0], asked[1], score=similarities)


def best_of(own: Candidates, k: int) -> np.ndarray:
    """Whether each candidate is one of the ``k`` best by score of its picture or of its text, (n,); of equals the
    first."""
    chosen = np.zeros(len(own.score), bool)
    for queries, asked in ((own.image, own.of_image), (own.text, own.of_text)):
        at = np.flatnonzero(asked)
        at = at[np.lexsort((-own.score[at], queries[at]))]
        starts = np.flatnonzero(np.diff(queries[at], prepend=-1))
        place = np.arange(len(at)) - np.repeat(starts, np.diff(starts, append=len(at)))
        chosen[at[place < k]] = True
    return chosen


def scored(own: Candidates, logits: np.ndarray, beta: float, which: Any = slice(None)) -> Candidates:
    """Candidates of whom those that ``which`` indexes have the score logit + ``beta`` * similarity."""
    score = own.score.copy()
    score[which] = logits + np.float32(beta) * own.near[which]
    return replace(own, score=score)


def _bounds(near: Similarity, k: int) -> tuple[Tensor, Tensor]:
    """The similarity of every text's ``k``-th best picture, (L,), and how many that are as near as it are taken."""
    best: Tensor | None = None
    for _, block in near.blocks():
        columns = block.T if best is None else torch.cat([best, block.T], 1)
        best = columns.contiguous().topk(min(k, columns.shape[1]), 1).values
    assert best is not None
    bound = best[:, -1]
    return bound, k - (best > bound[:, None]).sum(1)


def _best(rows: Tensor, k: int) -> Tensor:
    """Mask of the k best of every row, of equals the first."""
    if k >= rows.shape[1]:
        return torch.ones_like(rows, dtype=torch.bool)
    best = rows.topk(k, 1).values
    bound = best[:, -1:]
    room = k - (best > bound).sum(1, keepdim=True)
    tied = rows == bound
    return (rows > bound) | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))


def _put(block: Tensor, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, which: np.ndarray) -> Tensor:
    """The block with some values put into it, in place."""
    at = tuple(torch.from_numpy(part[which]).to(block.device) for part in (rows, columns))
    block[at] = torch.from_numpy(values[which]).to(block.device, block.dtype)
    return block


def _numbered(ids: Sequence[str], numbers: dict[str, int]) -> Tensor:
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in ids])
