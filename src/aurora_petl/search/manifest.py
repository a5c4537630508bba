"""``manifest.json`` of an index: of which folder and model it is, and which files it holds, checked field by field."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import AuroraError, short
from ..files import read_json, write_json
from .encoder import TUNED, UNTUNED

MANIFEST = "manifest.json"
FORMAT = 2
_DIGEST = re.compile("[0-9a-f]{64}")
_BAD = re.compile(r"^/|(^|/)\.\.(/|$)|\0|^$")  # of a path that must lie in the indexed folder


@dataclass(frozen=True)
class Picture:
    """A file as it was when it was encoded; ``path`` is relative to the indexed folder."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    taken: str | None = None  # when, by its EXIF data: an ISO date and time of no zone

    @property
    def date(self) -> datetime:
        """When it was taken or, if it does not say so, last written, in the time of this machine."""
        if self.taken:
            return datetime.fromisoformat(self.taken)
        try:
            return datetime.fromtimestamp(self.mtime_ns / 1e9)
        except (ValueError, OverflowError, OSError):  # a file system may hold years that no date has
            return datetime.max if self.mtime_ns > 0 else datetime.min


@dataclass(frozen=True)
class Place:
    """A folder that an index needs: as seen from the index, so that both may move together, and from the root, so that
    the index may move alone."""

    relative: str
    absolute: str

    @classmethod
    def of(cls, folder: Path, out: Path) -> Place:
        return cls(os.path.relpath(folder.resolve(), out.resolve()), str(folder.resolve()))

    def choices(self, out: Path) -> list[Path]:
        return [Path(os.path.normpath(out.resolve() / self.relative)), Path(self.absolute)]

    def find(self, out: Path) -> Path | None:
        """The folder, if it is at one of both places."""
        return next((path for path in self.choices(out) if path.is_dir()), None)


@dataclass(frozen=True)
class Manifest:
    """What an index is of and, once it is finished, what it holds."""

    model: str | Place  # the name of an embedded model or of one of the hub, or a folder
    folder: Place
    keys: dict[str, str]  # view -> `Encoder.key`
    pictures: list[Picture] | None = None  # None: not finished yet
    texts: list[str] | None = None
    skipped: dict[str, str] | None = None  # path -> why

    @property
    def model_name(self) -> str:
        """As messages name the model."""
        return self.model if isinstance(self.model, str) else self.model.absolute

    def write(self, out: Path) -> None:
        write_json(out / MANIFEST, {"format": FORMAT, **asdict(self, dict_factory=_known)})


def _known(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}


def read_manifest(out: Path) -> Manifest:
    """The manifest of an index, finished or not.

    Raises:
        AuroraError: if there is none, it is a link, or it is broken or of another version.
    """
    path = out / MANIFEST
    anew = f"remove {out} and make it again with aurora index"
    if path.is_symlink():
        raise AuroraError(f"{path} is a link, which an index has not; {anew}")
    if not path.is_file():
        raise AuroraError(f"{out} is no index: it has no {MANIFEST}; make one with aurora index FOLDER --model MODEL")
    try:
        values = read_json(path)
    except AuroraError as error:
        raise AuroraError(f"{path} is broken ({str(error).removeprefix(f'{path}: ')}); {anew}") from error
    version = values.get("format") if isinstance(values, dict) else None
    if type(version) is int and version != FORMAT:
        raise AuroraError(f"{out} has format {short(version)}, not {FORMAT}; {anew}")
    try:
        return _manifest(values)
    except (ValueError, KeyError, TypeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise AuroraError(f"{path} is broken ({why}); {anew}") from error


def _manifest(values: Any) -> Manifest:
    """ValueError, KeyError or TypeError say what is wrong."""
    _is(values, dict, "it")
    if values["format"] != FORMAT:
        raise ValueError(f"format is {short(values['format'])}")
    keys = _is(values["keys"], dict, "keys")
    if list(keys) not in ([TUNED, UNTUNED], [UNTUNED]) or not all(_is_digest(key) for key in keys.values()):
        raise ValueError("keys are not those of a model")
    model = values["model"]
    if model == "":
        raise ValueError("model has no name")
    head = (model if isinstance(model, str) else _place(model, "model"), _place(values["folder"], "folder"), keys)
    if "pictures" not in values:
        return Manifest(*head)
    pictures = [_picture(row, n) for n, row in enumerate(_is(values["pictures"], list, "pictures"), 1)]
    if len({picture.path for picture in pictures}) < len(pictures):
        raise ValueError("a picture stands in it twice")
    texts = [_is(text, str, "a caption") for text in _is(values["texts"], list, "texts")]
    skipped = {name: _is(why, str, "skipped") for name, why in _is(values["skipped"], dict, "skipped").items()}
    return Manifest(*head, pictures, texts, skipped)


def _place(value: Any, name: str) -> Place:
    _is(value, dict, name)
    place = Place(_is(value["relative"], str, name), _is(value["absolute"], str, name))
    if os.path.isabs(place.relative) or not os.path.isabs(place.absolute) or "\0" in place.relative + place.absolute:
        raise ValueError(f"{name} is not a place: {short(place.relative)} from the index, {short(place.absolute)}")
    return place


def _picture(row: Any, number: int) -> Picture:
    where = f"picture {number}"
    _is(row, dict, where)
    picture = Picture(row["path"], row["size"], row["mtime_ns"], row["sha256"], row.get("taken"))
    if not is_inside(_is(picture.path, str, f"path of {where}")):
        raise ValueError(f"{where}: {short(picture.path)} is no path inside the folder")
    if type(picture.size) is not int or picture.size < 0 or type(picture.mtime_ns) is not int:
        raise ValueError(f"{where}: size is {short(picture.size)} and mtime_ns {short(picture.mtime_ns)}")
    if not _is_digest(picture.sha256):
        raise ValueError(f"{where}: sha256 is {short(picture.sha256)}")
    if picture.taken is not None and datetime.fromisoformat(_is(picture.taken, str, f"taken of {where}")).tzinfo:
        raise ValueError(f"taken of {where} names a time zone: {short(picture.taken)}")
    return picture


def is_inside(path: str) -> bool:
    """Whether a relative path stays in its folder."""
    return not _BAD.search(path)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {short(value)}, not a {kind.__name__}")
    return value
