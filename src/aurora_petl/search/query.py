"""Queries against an index: candidates by ITC similarity, the best of them rescored by ITM if asked."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import AuroraError, short
from .filters import ALL, Filter
from .store import Candidates, Store

MATCH_BATCH = 32


@dataclass(frozen=True)
class Found:
    """A picture (``row`` of the index, and its path) or a caption (``row`` among the captions, and its words)."""

    row: int
    score: float  # what `Searcher.scored_by` says
    what: str


class Searcher:
    """One view of an index in memory, with its model. Threads may share it.

    Args:
        view: ``tuned`` or ``untuned``; None takes the first that the index has.
        kind: of `nearest.Nearest`. A single query is answered sooner by a scan than an approximate
            index is built.
    """

    def __init__(self, library: Store, view: str | None = None, kind: str = "exact") -> None:
        self.library, self.kind = library, kind
        if view is not None and view not in library.keys:
            raise AuroraError(f"the index has no view {view!r}; it has {' and '.join(library.keys)}")
        self.view = view or next(iter(library.keys))
        self.encoder = library.encoder(self.view)
        self._pictures = library.candidates(self.view, kind)
        self._lock = threading.Lock()  # a tokenizer changes while it is used

    def scored_by(self, k: int, rerank: int) -> str:
        """What the scores of a search are, in words."""
        if not rerank:
            return "ITC similarity" if self.encoder.matches else "cosine similarity"
        more = f" + {self.encoder.beta:g} * ITC similarity" if self.encoder.beta else ""
        return f"ITM match logit{more} of the {max(rerank, k)} best by ITC"

    def search(
        self,
        query: str | Image.Image,
        k: int = 10,
        *,
        texts: bool = False,
        rerank: int = 0,
        among: Filter = ALL,
    ) -> list[Found]:
        """The ``k`` best pictures, or captions if ``texts``, for words or a picture, best first. Pictures whose files
        are gone are left out and noted in the library's ``gone``.

        Args:
            rerank: this many candidates, at least ``k``, are ordered as evaluation orders them: by ITM match logit +
                beta * similarity, beta of the model's recipe; 0 leaves them to ITC.
            among: the pictures that come into question.

        Raises:
            AuroraError: if the query is empty or no UTF-8, ``k`` or ``rerank`` wrong, two pictures or two texts would
                have to be matched, or none of the pictures is there any more.
        """
        if k < 1:
            raise AuroraError(f"k is {k}; it must be at least 1")
        if rerank < 0:
            raise AuroraError(f"rerank is {rerank}; it must be at least 0")
        if isinstance(query, str) and not query.strip():
            raise AuroraError("the query is empty; say what to look for, or give a picture")
        if isinstance(query, str):
            try:
                query.encode()
            except UnicodeEncodeError as error:
                raise AuroraError(f"the query {short(query)} is not UTF-8; write it anew") from error
        if isinstance(query, str) and texts:
            raise AuroraError("captions are found by a picture; give one, not words")
        if texts and among:
            raise AuroraError("captions have neither folder nor date; leave out under, after and before")
        if rerank and not self.encoder.matches:
            raise AuroraError(
                f"{self.library.model_name} has no second stage to rerank with, it encodes pictures and texts apart; "
                "leave out rerank"
            )
        if rerank and not isinstance(query, str) and not texts:
            raise AuroraError("ITM scores a picture with a text, not two pictures; leave out rerank")
        with self._lock:
            nearest = self._texts if texts else self._pictures
            if isinstance(query, str):
                feature = self.encoder.texts([query])
            else:
                feature = self.encoder.pictures(self.encoder.transform(query)[None])
            pairs = self._best(nearest, feature, max(k, rerank) if rerank else k, texts, among)
            if rerank:
                pairs = self._rerank(query, pairs)
        if texts:
            return [Found(row, score, self.library.texts[row]) for row, score in pairs[:k]]
        return [Found(row, score, self.library.pictures[row].path) for row, score in pairs[:k]]

    def _best(
        self, nearest: Candidates, feature: Tensor, want: int, texts: bool, among: Filter
    ) -> list[tuple[int, float]]:
        """Rows and scores of the best captions, or of the best pictures that are still there."""
        total, count = len(nearest), want
        while True:
            pairs = nearest.search(feature, min(count, total), among)
            there = pairs if texts else [pair for pair in pairs if self.library.has(pair[0])]
            if len(there) >= want or count >= total or (among and len(pairs) < count):
                break
            count *= 4
        if not pairs and among:
            raise AuroraError(f"{self.library.folder.name} holds no picture {among}")
        if not there and pairs:
            raise AuroraError(f"{self.library.folder.name} holds none of the pictures any more; put them back")
        return there[:want]

    @cached_property
    def _texts(self) -> Candidates:
        return self.library.captions(self.view, self.kind)

    def _rerank(self, query: str | Image.Image, pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
        logits: list[float] = []
        for first in range(0, len(pairs), MATCH_BATCH):
            part = [row for row, _ in pairs[first : first + MATCH_BATCH]]
            if isinstance(query, str):
                pixels = torch.stack([self.encoder.transform(self.picture(row)) for row in part])
                logits += self.encoder.match(pixels, [query]).tolist()
            else:
                pixels = self.encoder.transform(query)[None]
                logits += self.encoder.match(pixels, [self.library.texts[row] for row in part]).tolist()
        scored = [
            (row, logit + self.encoder.beta * similarity)
            for (row, similarity), logit in zip(pairs, logits, strict=True)
        ]
        return sorted(scored, key=lambda pair: -pair[1])

    def picture(self, row: int) -> Image.Image:
        """See `Store.picture`."""
        return self.library.picture(row)


def find_index(named: Path | None) -> Path:
    """The index that was named, or the only one in the working folder.

    Raises:
        AuroraError: if none was named and there is none here, or more than one.
    """
    if named is not None:
        return named
    here = sorted(path for path in Path().glob("*.index") if path.is_dir())
    if not here:
        raise AuroraError("no index here; make one with aurora index FOLDER --model MODEL, or name one with --index")
    if len(here) > 1:
        raise AuroraError(f"{len(here)} indexes here; name one with --index: {', '.join(map(str, here))}")
    return here[0]
