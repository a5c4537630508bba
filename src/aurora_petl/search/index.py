"""An index of a folder's pictures: features in shards of safetensors, and ``manifest.json``.

    my_photos.index/
      manifest.json                  model, its keys, and each picture's path, size, mtime and SHA-256
      pictures-00000.safetensors     features of the tuned and the untuned model, (rows, P) float16
      captions-00000.safetensors     the same of the captions, if the folder has any
      lock

Features belong to content: a shard's header names the SHA-256 of what each row was made from. So a file that moved is
not encoded again, and a run that was killed goes on behind its last whole shard, with the same batches and therefore
the same bits as one without a break. Rows that nothing refers to any more stay until their whole shard is such.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..data.folder import ROW_FILES, read_folder
from ..data.media import load_image
from ..data.rows import ImageTextDataset
from ..errors import AuroraError
from ..files import write_json, write_tensors
from .encoder import Encoder, load_encoder, views_of

MANIFEST = "manifest.json"
OURS = {"lock", f"{MANIFEST}.part"}  # what a run that was killed at once leaves
FORMAT = 1
SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
BATCH = 32  # pictures
TEXT_BATCH = 128
SHARD = 1024  # rows at least, but for the last of a run: about ten minutes of BLIP-base on a core


@dataclass(frozen=True)
class Picture:
    """A file as it was when it was encoded; ``path`` is relative to the indexed folder."""

    path: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Update:
    """What an update of an index came to."""

    pictures: int
    encoded: int
    removed: int
    texts: int
    skipped: dict[str, str]  # path -> why


def build_index(folder: Path, out: Path, model: str, *, progress: bool = True) -> Update:
    """Make ``out`` the index of the pictures under ``folder`` by ``model``, encoding only what it does not hold yet.

    Hidden files and folders are left out. A broken picture is skipped, named, and tried again at the next call.

    Raises:
        AuroraError: if there is no such folder, model or picture, ``out`` is of another model or folder or no index,
            or another process is at work on it.
    """
    if not folder.is_dir():
        raise AuroraError(f"no folder {folder}; name the one that holds your pictures")
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or {p.name for p in out.iterdir()} <= OURS)):
        raise AuroraError(f"{out} is no index; name another --out")
    files = dict(_walk(folder))
    if not files:
        raise AuroraError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    texts = _captions(folder)
    encoders = {view: load_encoder(model, view) for view in views_of(model)}
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        head = {
            "format": FORMAT,
            "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
            "keys": {view: encoder.key() for view, encoder in encoders.items()},
            "folder": os.path.relpath(folder.resolve(), out.resolve()),
        }
        if (out / MANIFEST).is_file():
            before = _previous(out, head, model)
        else:
            before = {}
            write_json(out / MANIFEST, head)  # marks the folder as this model's from the start
        picture_store, text_store = _Store(out, "pictures"), _Store(out, "captions")
        held = len(picture_store.rows)
        pictures, skipped = _add_pictures(picture_store, folder, files, before, encoders, progress)
        _add_texts(text_store, texts, encoders, progress)
        write_json(
            out / MANIFEST,
            {**head, "skipped": skipped, "texts": texts, "pictures": [asdict(picture) for picture in pictures]},
        )
        picture_store.prune({picture.sha256 for picture in pictures})
        text_store.prune({digest(text.encode()) for text in texts})
    encoded = len(picture_store.rows) - held
    return Update(len(pictures), encoded, len(before.keys() - files.keys()), len(texts), skipped)


def digest(data: bytes) -> str:
    """What features are stored under."""
    return hashlib.sha256(data).hexdigest()


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Pictures under ``folder`` in the order of their names."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat()


def _captions(folder: Path) -> list[str]:
    if not any((folder / name).is_file() for name in ROW_FILES):
        return []
    rows = read_folder(folder)
    if not isinstance(rows, ImageTextDataset):
        return []  # questions are no captions
    return list(dict.fromkeys(text for item in rows for text in item.captions))


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """The system lets go of the lock when its process ends, however it ends."""
    with open(out / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise AuroraError(f"{out} is being updated by process {file.read().strip()}; wait for it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _previous(out: Path, head: dict[str, Any], model: str) -> dict[str, Picture]:
    manifest = read_manifest(out)
    if manifest["keys"] != head["keys"]:
        raise AuroraError(
            f"{out} was made with another model than {model} is ({manifest['model']}); remove it or name another --out"
        )
    if manifest["folder"] != head["folder"]:
        raise AuroraError(
            f"{out} is the index of another folder ({out / manifest['folder']}); remove it or name another --out"
        )
    return {row["path"]: Picture(**row) for row in manifest.get("pictures", ())}


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of an index, finished (it then has ``pictures``) or not.

    Raises:
        AuroraError: if there is none, or it is broken or of another version.
    """
    if not (out / MANIFEST).is_file():
        raise AuroraError(f"{out} is no index: it has no {MANIFEST}; make one with aurora index FOLDER")
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise AuroraError(f"{out / MANIFEST} is broken; remove {out} and make it again with aurora index") from error
    if found != FORMAT:
        raise AuroraError(f"{out} has format {found}, not {FORMAT}; remove it and make it again with aurora index")
    return manifest


def _add_pictures(
    store: _Store,
    folder: Path,
    files: dict[str, os.stat_result],
    before: dict[str, Picture],
    encoders: dict[str, Encoder],
    progress: bool,
) -> tuple[list[Picture], dict[str, str]]:
    """Encode what ``store`` lacks; all pictures, and what was skipped and why."""
    transform = next(iter(encoders.values())).transform
    pictures: list[Picture] = []
    skipped: dict[str, str] = {}
    names: list[str] = []
    batch: list[Tensor] = []

    def read(path: str) -> tuple[Picture, Tensor | None] | str:
        """A picture, with its pixels if it may have to be encoded, or why it can't be."""
        size, mtime = files[path].st_size, files[path].st_mtime_ns
        known = before.get(path)
        if known and (known.size, known.mtime_ns) == (size, mtime) and known.sha256 in store.rows:
            return known, None
        try:
            path.encode()
            data = (folder / path).read_bytes()
            picture = Picture(path, size, mtime, digest(data))
            return picture, None if picture.sha256 in store.rows else transform(load_image(data, path))
        except UnicodeEncodeError:
            return f"{path!r}: the name is not UTF-8; rename it"
        except (AuroraError, OSError) as error:
            return str(error)

    def encode() -> None:
        pixels = torch.stack(batch)
        store.add(names, {view: encoder.pictures(pixels) for view, encoder in encoders.items()})
        names.clear()
        batch.clear()

    with ThreadPoolExecutor() as pool:
        found = _ahead(pool, read, files, 2 * BATCH)
        for path, outcome in tqdm(found, "pictures", len(files), leave=False, disable=not progress):
            if isinstance(outcome, str):
                skipped[path.encode(errors="backslashreplace").decode()] = outcome
                continue
            picture, pixels = outcome
            pictures.append(picture)
            if pixels is not None and picture.sha256 not in store.rows and picture.sha256 not in names:
                names.append(picture.sha256)
                batch.append(pixels)
                if len(batch) == BATCH:
                    encode()
        if batch:
            encode()
    store.flush()
    return pictures, skipped


def _add_texts(store: _Store, texts: list[str], encoders: dict[str, Encoder], progress: bool) -> None:
    lacking = [text for text in texts if digest(text.encode()) not in store.rows]
    for first in tqdm(range(0, len(lacking), TEXT_BATCH), "captions", leave=False, disable=not progress):
        part = lacking[first : first + TEXT_BATCH]
        store.add([digest(text.encode()) for text in part], {v: e.texts(part) for v, e in encoders.items()})
    store.flush()


def _ahead(pool: Executor, call: Callable[[str], Any], items: Iterable[str], most: int) -> Iterator[tuple[str, Any]]:
    """Items with what ``call`` makes of them, in order, at most ``most`` made before they are wanted."""
    waiting: deque = deque()
    for item in items:
        waiting.append((item, pool.submit(call, item)))
        if len(waiting) > most:
            item, future = waiting.popleft()
            yield item, future.result()
    for item, future in waiting:
        yield item, future.result()


class _Store:
    """The shards of one kind: features by the digest of what they were made from."""

    def __init__(self, out: Path, kind: str) -> None:
        self.out, self.kind = out, kind
        self.shards = {path: _names(path) for path in sorted(out.glob(f"{kind}-*.safetensors"))}
        self.rows = {name for names in self.shards.values() for name in names}
        self._names: list[str] = []
        self._parts: list[dict[str, Tensor]] = []

    def add(self, names: list[str], features: dict[str, Tensor]) -> None:
        """Rows of features by view; a shard is written whenever there are enough."""
        self._names += names
        self._parts.append(features)
        self.rows.update(names)
        if len(self._names) >= SHARD:
            self.flush()

    def flush(self) -> None:
        if not self._names:
            return
        last = max((int(path.stem.rpartition("-")[2]) for path in self.shards), default=-1)
        path = self.out / f"{self.kind}-{last + 1:05}.safetensors"
        tensors = {view: torch.cat([part[view] for part in self._parts]).half() for view in self._parts[0]}
        write_tensors(path, tensors, {"names": json.dumps(self._names)})
        self.shards[path] = self._names
        self._names, self._parts = [], []

    def prune(self, wanted: set[str]) -> None:
        """Remove shards of which nothing is wanted."""
        for path, names in self.shards.items():
            if wanted.isdisjoint(names):
                path.unlink()

    def load(self, names: list[str], view: str) -> Tensor:
        """The rows called ``names``, (len(names), P) float16.

        Raises:
            KeyError: of a name that no shard holds.
        """
        place = {name: row for row, name in enumerate(name for held in self.shards.values() for name in held)}
        wanted = [place[name] for name in names]
        parts = []
        for path in self.shards:
            with safe_open(path, "pt") as file:
                parts.append(file.get_tensor(view))
        return torch.cat(parts)[wanted]


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["names"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise AuroraError(f"{path} is broken; remove it and run aurora index again") from error


class Library:
    """A finished index, as it is read for search.

    Raises:
        AuroraError: if ``out`` holds none, or it is unfinished or broken.
    """

    def __init__(self, out: Path) -> None:
        manifest = read_manifest(out)
        if "pictures" not in manifest:
            raise AuroraError(f"{out} is unfinished; run aurora index again, it goes on where it stopped")
        self.out, self.model = out, manifest["model"]
        self.folder = Path(os.path.normpath(out.resolve() / manifest["folder"]))
        self.keys: dict[str, str] = manifest["keys"]
        self.pictures = [Picture(**row) for row in manifest["pictures"]]
        self.texts: list[str] = manifest["texts"]

    def encoder(self, view: str) -> Encoder:
        """The model of the index.

        Raises:
            AuroraError: if the model of that name has other weights by now.
        """
        encoder = load_encoder(self.model, view)
        if encoder.key() != self.keys[view]:
            raise AuroraError(
                f"{self.out} was made with other weights than {self.model} has now; remove it and make it again with "
                "aurora index"
            )
        return encoder

    def picture_features(self, view: str) -> Tensor:
        """(pictures, P) float16"""
        return self._load("pictures", [picture.sha256 for picture in self.pictures], view)

    def text_features(self, view: str) -> Tensor:
        """(texts, P) float16"""
        return self._load("captions", [digest(text.encode()) for text in self.texts], view)

    def path(self, row: int) -> Path:
        """The file of a picture, as long as it is the file that was indexed.

        Raises:
            AuroraError: if it is gone or has changed since.
        """
        picture = self.pictures[row]
        path = self.folder / picture.path
        try:
            found = path.stat()
        except OSError as error:
            raise AuroraError(f"{path} is gone since it was indexed; run aurora index again") from error
        if (found.st_size, found.st_mtime_ns) != (picture.size, picture.mtime_ns):
            raise AuroraError(f"{path} has changed since it was indexed; run aurora index again")
        return path

    def _load(self, kind: str, names: list[str], view: str) -> Tensor:
        if not names:
            raise AuroraError(f"{self.out} holds no {kind}; run aurora index when {self.folder} has some")
        try:
            return _Store(self.out, kind).load(names, view)
        except KeyError as error:
            raise AuroraError(f"{self.out} lacks shards; run aurora index again") from error
