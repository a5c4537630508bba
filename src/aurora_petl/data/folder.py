"""A user's own pictures: a folder (or a .tar of one) with ``captions.jsonl`` or ``captions.csv``.

A line of JSONL is one picture::

    {"image": "cats/1.jpg", "caption": ["a cat", "a kitten"], "split": "train", "id": "cat-1"}

``caption`` is text or a list of texts. ``split`` (train, validation, test) and ``id`` may be left out: without any
split, one is made by hashing ids; pictures of the same id count as right answers for each other. A CSV has the
columns image, caption and, if wanted, split and id, one caption a row.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from ..errors import AuroraError
from .media import load_image

SPLITS = ("train", "validation", "test")
CAPTION_FILES = ("captions.jsonl", "captions.csv")
_SHOWN = 5  # problems that a message lists


class Files(Protocol):
    """Where a dataset's files are read from."""

    name: str

    def names(self) -> set[str]: ...

    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def names(self) -> set[str]:
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()}

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _Tar:
    """Members of a tar, read in place; nothing is unpacked."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._lock = threading.Lock()
        try:
            with tarfile.open(path, "r:") as archive:
                self._places = {m.name: (m.offset_data, m.size) for m in archive if m.isfile()}
        except (tarfile.TarError, OSError) as error:
            raise AuroraError(f"{path} is not a plain tar ({error}); pack the folder with tar -cf") from error

    def names(self) -> set[str]:
        return set(self._places)

    def read(self, name: str) -> bytes:
        if name not in self._places:
            raise FileNotFoundError(name)
        offset, size = self._places[name]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def __getstate__(self) -> dict[str, Any]:  # loader workers get a copy, which needs no lock
        return {key: value for key, value in vars(self).items() if key != "_lock"}


@dataclass(frozen=True)
class Item:
    """One picture with its captions. ``line`` is its row in the caption file, counted from 1."""

    image: str
    captions: tuple[str, ...]
    id: str
    split: str
    line: int


@dataclass
class ImageTextDataset(Sequence[Item]):
    """Pictures with captions; one split of them, or all."""

    name: str
    items: list[Item]
    files: Files = field(repr=False)
    captions_file: str = "captions.jsonl"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        return self.items[index]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def image(self, index: int) -> Image.Image:
        """Picture ``index`` as upright RGB.

        Raises:
            AuroraError: naming file and line, if it is missing or broken.
        """
        item = self.items[index]
        where = f"{self.captions_file}, line {item.line}: {item.image}"
        try:
            data = self.files.read(item.image)
        except OSError as error:
            raise AuroraError(f"{where}: no such picture in {self.files.name}") from error
        return load_image(data, where)

    def split(self, name: str) -> ImageTextDataset:
        """The rows of one split.

        Raises:
            AuroraError: if it has none.
        """
        chosen = [item for item in self.items if item.split == name]
        if not chosen:
            counts = {split: sum(item.split == split for item in self.items) for split in SPLITS}
            held = ", ".join(f"{split} {count}" for split, count in counts.items() if count)
            raise AuroraError(
                f'{self.name}: no rows of split {name!r} (it has {held}); name it in the rows\' "split", or leave '
                "split out of every row and have at least 3 pictures, then one is made"
            )
        return replace(self, name=f"{self.name}/{name}", items=chosen)

    def check(self, progress: bool = False) -> None:
        """Decode every picture to its end.

        Raises:
            AuroraError: with the first few problems and how many there are.
        """
        problems = []
        for index in tqdm(range(len(self)), "checking pictures", leave=False, disable=None if progress else True):
            try:
                self.image(index)
            except AuroraError as error:
                problems.append(str(error))
        _refuse(self.name, problems)


def read_folder(path: str | Path, captions_file: str | None = None) -> ImageTextDataset:
    """Read and check the caption file of a folder or tar; pictures are looked up but not decoded.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    path = Path(path)
    if path.is_file() and path.suffix != ".tar":
        raise AuroraError(f"{path} is a file; give the folder that holds {' or '.join(CAPTION_FILES)}, or a .tar of it")
    files: Files = _Tar(path) if path.is_file() else _Folder(path)
    held = files.names()
    chosen = captions_file or next((name for name in CAPTION_FILES if name in held), None)
    if chosen is None or chosen not in held:
        near = difflib.get_close_matches(chosen or CAPTION_FILES[0], held, 1) or sorted(
            name for name in held if name.endswith((".jsonl", ".csv", ".json"))
        )
        raise AuroraError(
            f"{path} has no {chosen or ' or '.join(CAPTION_FILES)}; it holds {len(held)} files"
            + (f", of which {near[0]} may be meant: rename it" if near else "")
        )
    where = f"{path.name}/{chosen}"
    try:
        text = files.read(chosen).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = files.read(chosen)[: error.start].count(b"\n") + 1
        raise AuroraError(f"{where}, line {line}: not UTF-8; save the file as UTF-8") from error
    problems: list[str] = []
    parse = _csv_rows if chosen.endswith(".csv") else _json_rows
    items: dict[str, Item] = {}
    lower = {name.lower(): name for name in held}
    for line, row in parse(text, where, problems):
        try:
            item = _item(row, line)
        except ValueError as error:
            problems.append(f"{where}, line {line}: {error}")
            continue
        if item.image not in held:
            near_name = lower.get(item.image.lower()) or next(
                iter(difflib.get_close_matches(item.image, held, 1, 0.8)), None
            )
            hint = f"; did you mean {near_name}?" if near_name else ""
            problems.append(f"{where}, line {line}: picture {item.image} is missing from {path}{hint}")
            continue
        known = items.get(item.image)
        if known and (known.split, known.id) != (item.split, item.id):
            problems.append(
                f"{where}, line {line}: {item.image} stands in line {known.line} with another split or id; keep one"
            )
            continue
        items[item.image] = replace(known, captions=known.captions + item.captions) if known else item
    _refuse(where, problems)
    if not items:
        raise AuroraError(f"{where} holds no rows")
    return ImageTextDataset(path.stem, _with_splits(list(items.values()), where), files, where)


def _json_rows(text: str, where: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(
                f"{where}, line {number}: not JSON ({error.msg} at column {error.colno}); "
                'a line looks like {"image": "cat.jpg", "caption": "a cat"}'
            )
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.append(f"{where}, line {number}: a {type(row).__name__}, not an object with image and caption")


def _csv_rows(text: str, where: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = reader.fieldnames or []
    if lacking := [name for name in ("image", "caption") if name not in columns]:
        raise AuroraError(
            f"{where}, line 1: no column {' and no column '.join(lacking)} among {', '.join(columns) or 'none'}; "
            "the first line must be image,caption (comma separated)"
        )
    try:
        for row in reader:
            yield reader.line_num, {key: value for key, value in row.items() if key and value is not None}
    except csv.Error as error:
        problems.append(f"{where}, line {reader.line_num}: not CSV ({error})")


def _item(row: dict[str, Any], line: int) -> Item:
    """A checked row; ValueError says what is wrong with it."""
    image, captions, split = row.get("image"), row.get("caption"), row.get("split") or ""
    if not isinstance(image, str) or not image.strip():
        raise ValueError('no "image"; name the picture\'s file, relative to the folder')
    image = PurePosixPath(image.strip()).as_posix()
    if image.startswith("/") or ".." in PurePosixPath(image).parts:
        raise ValueError(f"picture {image} lies outside the folder; copy it inside and give its relative path")
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError('"caption" must be text or a list of texts')
    if not captions or not all(text.strip() for text in captions):
        raise ValueError(f"empty caption for {image}; write one or remove the row")
    if split and split not in SPLITS:
        near = {"val": "validation", "dev": "validation", "valid": "validation"}.get(str(split).lower())
        raise ValueError(
            f"split {split!r} is none of {', '.join(SPLITS)}" + (f"; did you mean {near}?" if near else "")
        )
    name = row.get("id", image)
    if not isinstance(name, (str, int)) or not str(name).strip():
        raise ValueError(f'"id" is {name!r}; it must be text or a number')
    return Item(image, tuple(text.strip() for text in captions), str(name), split, line)


def _with_splits(items: list[Item], where: str) -> list[Item]:
    """Rows with a split each: their own, or 80/10/10 by the hash of their ids if none names one."""
    if any(item.split for item in items):
        if bare := [item for item in items if not item.split]:
            raise AuroraError(
                f"{where}, line {bare[0].line}: no split, though other rows name one; name it in all "
                f"{len(bare)} rows without, or in none"
            )
        return items
    ids = sorted({item.id for item in items}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    tenth = max(1, round(len(ids) / 10)) if len(ids) >= 3 else 0
    split = {name: "test" if n < tenth else "validation" if n < 2 * tenth else "train" for n, name in enumerate(ids)}
    return [replace(item, split=split[item.id]) for item in items]


def _refuse(where: str, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise AuroraError("; ".join(problems[:_SHOWN]) + more if len(problems) > 1 else problems[0])
