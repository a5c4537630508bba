"""A finished index, as it is read for search."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import AuroraError
from ..files import read_bytes
from .encoder import Encoder, load_encoder
from .manifest import read_manifest
from .shards import Shards, digest


class Library:
    """A finished index.

    Raises:
        AuroraError: if ``out`` holds none, it is unfinished or broken, or the folder of its pictures is gone.
    """

    def __init__(self, out: Path) -> None:
        manifest = read_manifest(out)
        if manifest.pictures is None or manifest.texts is None:
            raise AuroraError(f"{out} is unfinished; run aurora index again, it goes on where it stopped")
        self.out, self.keys = out, manifest.keys
        self.pictures, self.texts = manifest.pictures, manifest.texts
        self.skipped = manifest.skipped
        self.model_name, self._model = manifest.model_name, manifest.model
        folder = manifest.folder.find(out)
        if folder is None:
            places = " nor ".join(dict.fromkeys(map(str, manifest.folder.choices(out))))
            raise AuroraError(
                f"the pictures of {out} are not in {places}; put them back, or index them where they are now with "
                f"aurora index FOLDER --out {out}"
            )
        self.folder = folder
        self.gone: set[str] = set()  # pictures that `has` missed

    def encoder(self, view: str) -> Encoder:
        """The model of the index.

        Raises:
            AuroraError: if the model is gone, or has other weights by now.
        """
        anew = f"remove {self.out} and make it again with aurora index"
        model = self._model if isinstance(self._model, str) else self._model.find(self.out)
        if model is None:
            raise AuroraError(f"{self.out} was made with {self.model_name}, which is gone; put it back, or {anew}")
        encoder = load_encoder(str(model), view)
        if encoder.key() != self.keys[view]:
            raise AuroraError(f"{self.out} was made with other weights than {model} has now; {anew}")
        return encoder

    def picture_features(self, view: str) -> Tensor:
        """(pictures, P) or (pictures, V, P) float16"""
        return self._load("pictures", [picture.sha256 for picture in self.pictures], view)

    def text_features(self, view: str) -> Tensor:
        """(texts, P) float16"""
        return self._load("captions", [digest(text.encode()) for text in self.texts], view)

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

    def _load(self, kind: str, names: list[str], view: str) -> Tensor:
        if not names:
            raise AuroraError(f"{self.out} holds no {kind}; run aurora index when {self.folder} has some")
        try:
            return Shards(self.out, kind, self.keys).load(names, view)
        except KeyError as error:
            raise AuroraError(f"{self.out} lacks shards; run aurora index again") from error
