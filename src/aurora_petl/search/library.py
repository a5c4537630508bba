"""A finished index in a folder, as it is read for search."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor

from ..errors import AuroraError
from .filters import ALL, Filter
from .manifest import MANIFEST, Picture, read_manifest
from .nearest import Nearest
from .shards import Shards, digest
from .store import Contents, Store


class Library(Store):
    """A finished index.

    Raises:
        AuroraError: if ``out`` holds none, it is unfinished or broken, or the folder of its pictures is gone.
    """

    def __init__(self, out: Path) -> None:
        manifest = read_manifest(out)
        if manifest.pictures is None or manifest.texts is None:
            raise AuroraError(f"{out} is unfinished; run aurora index again, it goes on where it stopped")
        self.out, self.name, self.keys = out, str(out), manifest.keys
        self.pictures: list[Picture] = manifest.pictures
        self.texts, self.skipped = manifest.texts, manifest.skipped
        self.model_name, self._model = manifest.model_name, manifest.model
        self.anew = f"remove {out} and make it again with aurora index"
        self.place = f"--out {quote(str(out))}"
        folder = manifest.folder.find(out)
        if folder is None:
            places = " nor ".join(dict.fromkeys(map(str, manifest.folder.choices(out))))
            raise AuroraError(
                f"the pictures of {out} are not in {places}; put them back, or index them where they are now with "
                f"aurora index FOLDER --model {quote(self.model_name)} {self.place}"
            )
        self.folder = folder
        self.gone: set[str] = set()

    def stamp(self) -> tuple[int, int] | None:
        try:
            status = (self.out / MANIFEST).stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def find_model(self) -> str | None:
        if isinstance(self._model, str):
            return self._model
        place = self._model.find(self.out)
        return None if place is None else str(place)

    def picture_features(self, view: str) -> Tensor:
        """(pictures, P) or (pictures, V, P) float16"""
        return self._load("pictures", [picture.sha256 for picture in self.pictures], view)

    def text_features(self, view: str) -> Tensor:
        """(texts, P) float16"""
        return self._load("captions", [digest(text.encode()) for text in self.texts], view)

    def candidates(self, view: str, kind: str = "exact") -> Rows:
        return Rows(self.picture_features(view), kind, self)

    def captions(self, view: str, kind: str = "exact") -> Rows:
        return Rows(self.text_features(view), kind, self)

    def rows(self, among: Filter) -> Tensor | None:
        """The rows of the pictures that come into question, in their order; None for all."""
        if not among:
            return None
        rows = torch.arange(len(self.pictures))
        if among.under:
            paths, order = self._by_path
            first, last = (bisect_left(paths, bound) for bound in among.bounds())
            rows = order[first:last].sort().values
        if among.after is not None:
            rows = rows[self._dates[rows] >= _seconds(among.after)]
        if among.before is not None:
            rows = rows[self._dates[rows] < _seconds(among.before)]
        return rows

    def contents(self, view: str, among: Filter = ALL) -> Contents:
        digests = list(dict.fromkeys(picture.sha256 for picture in self._chosen(among)))
        return Contents(digests, self._load("pictures", digests, view))

    def of_contents(self, digests: Sequence[str], among: Filter = ALL) -> list[Picture]:
        wanted = set(digests)
        return [picture for picture in self._chosen(among) if picture.sha256 in wanted]

    def copies(self, among: Filter = ALL) -> list[str]:
        counts = Counter(picture.sha256 for picture in self._chosen(among))
        return [content for content, count in counts.items() if count > 1]

    def _chosen(self, among: Filter) -> list[Picture]:
        rows = self.rows(among)
        return self.pictures if rows is None else [self.pictures[row] for row in rows.tolist()]

    @cached_property
    def _by_path(self) -> tuple[list[str], Tensor]:
        """Paths by code points, and their rows."""
        order = sorted(range(len(self.pictures)), key=lambda row: self.pictures[row].path)
        return [self.pictures[row].path for row in order], torch.tensor(order)

    @cached_property
    def _dates(self) -> Tensor:
        """(pictures,) see `_seconds`"""
        return torch.tensor([_seconds(picture.date) for picture in self.pictures], dtype=torch.float64)

    def _load(self, kind: str, names: list[str], view: str) -> Tensor:
        if not names:
            raise AuroraError(f"{self.out} holds no {kind}; run aurora index when {self.folder} has some")
        try:
            return Shards(self.out, kind, self.keys).load(names, view)
        except KeyError as error:
            raise AuroraError(f"{self.out} lacks shards; run aurora index again") from error


def _seconds(date: datetime) -> float:
    """Seconds from 1970 on by the calendar alone: ``timestamp``, which asks for the time zone, fails in the year 1,
    that of cameras whose clock was never set."""
    return (date - datetime(1970, 1, 1)).total_seconds()


class Rows:
    """Pictures or captions of a library in memory, see `store.Candidates`."""

    def __init__(self, features: Tensor, kind: str, library: Library) -> None:
        self._count, self._library = len(features), library
        self._nearest = Nearest(features, kind)

    def __len__(self) -> int:
        return self._count

    def search(self, query: Tensor, k: int, among: Filter = ALL) -> list[tuple[int, float]]:
        scores, rows = self._nearest.search(query, k, self._library.rows(among))
        return [(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True) if row >= 0]
