"""An index of a folder's pictures as it is used from Python; `index` makes it, `query` asks it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from ..data.given import given_picture
from ..devices import using
from ..errors import check_name, whole_number
from .duplicates import THRESHOLD, find_duplicates
from .filters import make_filter
from .query import Searcher
from .stores import build_store, open_store


@dataclass(frozen=True)
class FoundPicture:
    """A picture that a query found: its file and its score."""

    path: Path
    score: float


@dataclass(frozen=True)
class FoundCaption:
    """A caption that a picture found, and its score."""

    caption: str
    score: float


@dataclass(frozen=True)
class DuplicatePicture:
    """A picture of a group of duplicates."""

    path: Path
    similarity: float  # with the first of the group
    same: bool  # whether it has the content of the first


class Index:
    """A finished index with its model; `build` and `open` give one. Threads may share it.

    Args:
        out: the index's folder, or the address of a library in PostgreSQL, ``postgresql://user@host/db?library=name``.
        view: ``tuned`` or ``untuned``; None takes the tuned model if the index was made with a run.

    Raises:
        AuroraError: if ``out`` holds no finished index, or its model or pictures are gone.
    """

    def __init__(self, out: str | Path, view: str | None = None) -> None:
        check_name("out", out)
        self.library = open_store(out)
        self._searcher = Searcher(self.library, view)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model: str | Path,
        out: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        show_progress_bar: bool = False,
    ) -> Index:
        """Make the index of a folder's pictures, or bring it up to date: what it holds already is not encoded again.

        Args:
            folder: with the pictures, and ``captions.jsonl`` if captions are to be found.
            model: the folder of a finished run, or its name on the hub; ``blip-mini``, a model folder or a hub id.
            out: the index's folder, or the address of a library in PostgreSQL; by default the folder is called as
                ``folder`` is and ``.index``, here.

        Raises:
            AuroraError: see `stores.build_store`.
        """
        check_name("folder", folder)
        check_name("model", model)
        place = default_place(folder) if out is None else out
        with using(device):
            build_store(Path(folder), place, str(model), progress=show_progress_bar)
            return cls(place)

    @classmethod
    def open(cls, out: str | Path, *, view: str | None = None, device: str | torch.device | None = None) -> Index:
        """The index in a folder or at an address, as ``aurora index`` left it there.

        Args:
            view: ``tuned`` or ``untuned``; by default the tuned model if the index was made with a run.

        Raises:
            AuroraError: see `Index`.
        """
        with using(device):
            return cls(out, view)

    def __len__(self) -> int:
        """How many pictures it holds."""
        return len(self.library.pictures)

    @property
    def skipped(self) -> dict[str, str]:
        """The pictures that could not be read when it was made, and why."""
        return dict(self.library.skipped or {})

    def search(
        self,
        query: str | Path | Image.Image,
        k: int = 10,
        *,
        rerank: int = 0,
        under: str | Path | None = None,
        after: str | date | None = None,
        before: str | date | None = None,
    ) -> list[FoundPicture]:
        """The ``k`` pictures that fit a query best, best first.

        Args:
            query: a text; or a picture, as `Path` or picture of PIL.
            rerank: see `query.Searcher.search`.
            under: a folder inside the indexed one, whose pictures alone come into question.
            after: a date of Python, or one such as ``2024``, ``2024-05`` or ``2024-05-31``, from whose beginning on
                pictures come into question; theirs is that of their EXIF data or, if they have none, that of the file.
            before: a date, before whose beginning they do.

        Raises:
            AuroraError: if the query is empty, a folder or date wrong, or the pictures are gone.
        """
        asked = query if isinstance(query, str) else given_picture(query)
        among = make_filter(self.library.folder, under, after, before)
        k, rerank = whole_number("k", k, 1), whole_number("rerank", rerank, 0)
        found = self._searcher.search(asked, k, rerank=rerank, among=among)
        return [FoundPicture(self.library.folder / one.what, one.score) for one in found]

    def search_captions(self, image: str | Path | Image.Image, k: int = 10, *, rerank: int = 0) -> list[FoundCaption]:
        """The ``k`` captions of the folder that fit a picture best, best first.

        Raises:
            AuroraError: if the index holds no captions.
        """
        k, rerank = whole_number("k", k, 1), whole_number("rerank", rerank, 0)
        found = self._searcher.search(given_picture(image), k, texts=True, rerank=rerank)
        return [FoundCaption(one.what, one.score) for one in found]

    def duplicates(
        self,
        threshold: float = THRESHOLD,
        *,
        under: str | Path | None = None,
        after: str | date | None = None,
        before: str | date | None = None,
        show_progress_bar: bool = False,
    ) -> list[list[DuplicatePicture]]:
        """Groups of pictures that are alike: of the same content, or with features whose cosine is at least
        ``threshold``.

        Args:
            under: see `search`, as for the two that follow.
            after: a date.
            before: a date.
            show_progress_bar: on stderr.

        Raises:
            AuroraError: if the threshold is not above 0, up to 1.
        """
        among = make_filter(self.library.folder, under, after, before)
        groups = find_duplicates(self.library, threshold, self._searcher.view, among, progress=show_progress_bar)
        folder = self.library.folder
        return [[DuplicatePicture(folder / o.picture.path, o.similarity, o.same) for o in group] for group in groups]


def default_place(folder: str | Path) -> Path:
    """Where the index of a folder goes if no place is named."""
    return Path(f"{os.path.basename(os.path.realpath(folder))}.index")
