"""An index of a folder's pictures as it is used from Python; `index` makes it, `query` asks it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.media import load_image, upright
from ..devices import using
from .index import build_index
from .library import Library
from .query import Searcher


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


class Index:
    """A finished index in memory, with its model; `build` and `open` give one. Threads may share it.

    Args:
        out: the index's folder.
        view: ``tuned`` or ``untuned``; None takes the tuned model if the index was made with a run.

    Raises:
        AuroraError: if ``out`` holds no finished index, or its model or pictures are gone.
    """

    def __init__(self, out: str | Path, view: str | None = None) -> None:
        self.library = Library(Path(out))
        self._searcher = Searcher(self.library, view)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        model: str | Path,
        out: str | Path | None = None,
        *,
        device: str | None = None,
        show_progress_bar: bool = False,
    ) -> Index:
        """Make the index of a folder's pictures, or bring it up to date: what it holds already is not encoded again.

        Args:
            folder: with the pictures, and ``captions.jsonl`` if captions are to be found.
            model: the folder of a finished run, or its name on the hub; ``blip-mini``, a model folder or a hub id.
            out: the index's folder; by default the name of ``folder`` and ``.index``, here.

        Raises:
            AuroraError: see `index.build_index`.
        """
        place = default_place(folder) if out is None else Path(out)
        with using(device):
            build_index(Path(folder), place, str(model), progress=show_progress_bar)
            return cls(place)

    @classmethod
    def open(cls, out: str | Path, *, view: str | None = None, device: str | None = None) -> Index:
        """The index in a folder, as ``aurora index`` left it there.

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

    def search(self, query: str | Path | Image.Image, k: int = 10, *, rerank: int = 0) -> list[FoundPicture]:
        """The ``k`` pictures that fit a query best, best first.

        Args:
            query: a text; or a picture, as `Path` or picture of PIL.
            rerank: see `query.Searcher.search`.

        Raises:
            AuroraError: if the query is empty, or the pictures are gone.
        """
        asked = query if isinstance(query, str) else _picture(query)
        found = self._searcher.search(asked, k, rerank=rerank)
        return [FoundPicture(self.library.folder / one.what, one.score) for one in found]

    def search_captions(self, image: str | Path | Image.Image, k: int = 10, *, rerank: int = 0) -> list[FoundCaption]:
        """The ``k`` captions of the folder that fit a picture best, best first.

        Raises:
            AuroraError: if the index holds no captions.
        """
        found = self._searcher.search(_picture(image), k, texts=True, rerank=rerank)
        return [FoundCaption(one.what, one.score) for one in found]


def default_place(folder: str | Path) -> Path:
    """Where the index of a folder goes if no place is named."""
    return Path(f"{os.path.basename(os.path.realpath(folder))}.index")


def _picture(picture: str | Path | Image.Image) -> Image.Image:
    return upright(picture) if isinstance(picture, Image.Image) else load_image(picture)
