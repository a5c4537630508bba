"""What search needs of a library of pictures, wherever it lies: `library.Library` keeps it in a folder,
`postgres.library.PostgresLibrary` in a database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Protocol

from PIL import Image
from torch import Tensor

from ..data.media import load_image, pixels
from ..errors import AuroraError
from ..files import read_bytes
from .budget import Budget
from .encoder import Encoder, load_encoder
from .filters import ALL, Filter
from .manifest import Picture
from .shards import digest

_BUDGET = Budget()


class Candidates(Protocol):
    """Pictures, or captions, of which those near to a query are asked for."""

    def __len__(self) -> int: ...

    def search(self, query: Tensor, k: int, among: Filter = ALL) -> list[tuple[int, float]]:
        """Rows and scores of the ``k`` that are nearest, best first; approximate search may give fewer.

        Args:
            query: (1, P), or (1, V, P) of a picture that has several vectors.
            among: of pictures, those that come into question.
        """


@dataclass(frozen=True)
class Contents:
    """What the pictures of a library show, each content once however many files have it."""

    digests: list[str]  # SHA-256
    features: Tensor  # (contents, P) or (contents, V, P) float16


class Store(ABC):
    """A library of pictures that can be searched.

    A row is a picture's number for as long as the store is open; `pictures` has it under that number.
    """

    name: str  # as messages call it
    keys: dict[str, str]  # view -> `Encoder.key`
    model_name: str
    folder: Path
    pictures: Sequence[Picture]  # raises IndexError of a row that is none
    texts: Sequence[str]
    skipped: dict[str, str] | None
    gone: set[str]  # pictures that `has` missed
    anew: str  # how to make it again
    place: str  # the words by which ``aurora index`` finds it

    @abstractmethod
    def candidates(self, view: str, kind: str = "exact") -> Candidates:
        """The pictures; ``kind`` is one of `nearest.KINDS`, as far as a store leaves the choice."""

    @abstractmethod
    def captions(self, view: str, kind: str = "exact") -> Candidates:
        """The captions."""

    @abstractmethod
    def contents(self, view: str, among: Filter = ALL) -> Contents:
        """Every content with its features."""

    @abstractmethod
    def of_contents(self, digests: Sequence[str], among: Filter = ALL) -> list[Picture]:
        """The pictures of these contents, by path."""

    @abstractmethod
    def copies(self, among: Filter = ALL) -> list[str]:
        """The contents that several files have."""

    @abstractmethod
    def find_model(self) -> str | None:
        """The model's name, or its folder if it is there."""

    def stamp(self) -> object:
        """What tells one state of the store from another, as far as that can be seen without reading it."""
        return None

    def encoder(self, view: str) -> Encoder:
        """The model of the library.

        Raises:
            AuroraError: if the model is gone, or has other weights by now.
        """
        model = self.find_model()
        if model is None:
            raise AuroraError(
                f"{self.name} was made with {self.model_name}, which is gone; put it back or, if it has moved, name "
                f"where it is now, which encodes nothing again: aurora index {quote(str(self.folder))} --model MODEL "
                f"{self.place}"
            )
        encoder = load_encoder(model, view)
        if encoder.key() != self.keys[view]:
            raise AuroraError(f"{self.name} was made with other weights than {model} has now; {self.anew}")
        return encoder

    def path(self, row: int) -> Path:
        return self.folder / self.pictures[row].path

    def has(self, row: int) -> bool:
        """Whether there still is a file of that name."""
        if self.path(row).is_file():
            return True
        self.gone.add(self.pictures[row].path)
        return False

    def content(self, row: int) -> bytes:
        """The bytes of a picture, which are those that were indexed, wherever a link may lead by now.

        Raises:
            AuroraError: if the file is gone or has changed since.
        """
        picture = self.pictures[row]
        if not self.has(row):
            raise AuroraError(f"{picture.path} is gone since it was indexed; run aurora index again")
        data = None
        try:
            if self.path(row).stat().st_size == picture.size:
                data = read_bytes(self.path(row))
        except OSError as error:
            raise AuroraError(f"{picture.path} cannot be read: {error.strerror}") from error
        if data is None or digest(data) != picture.sha256:
            raise AuroraError(f"{picture.path} has changed since it was indexed; run aurora index again")
        return data

    def picture(self, row: int, side: int | None = None) -> Image.Image:
        """A picture, decoded; threads that decode at once share a `budget.Budget` of pixels.

        Args:
            side: scale it down to at most so many pixels a side, which takes less time and memory.

        Raises:
            AuroraError: if it is not the file that was indexed.
        """
        data, name = self.content(row), self.pictures[row].path
        with _BUDGET.hold(pixels(data, name, side or 0, exact=False)):
            image = load_image(data, name, side or 0, exact=False)
            if side is not None:
                image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        return image
