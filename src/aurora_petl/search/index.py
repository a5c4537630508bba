"""An index of a folder's pictures: features in shards of safetensors, and ``manifest.json``.

    my_photos.index/
      manifest.json                  model, its keys, and each picture's path, size, mtime and SHA-256
      pictures-00000.safetensors     features of the tuned and the untuned model, (rows, P) float16,
                                     or (rows, V, P) where the model gives a picture V vectors
      captions-00000.safetensors     the same of the captions, if the folder has any
      .lock

Features belong to content: a shard's header names the SHA-256 of what each row was made from. So a file that moved is
not encoded again, and a run that was killed goes on behind its last whole shard, with the same batches and therefore
the same bits as one without a break. Rows that nothing refers to any more stay until their whole shard is such.

Under ``torchrun`` every rank encodes its share of what is new, and the first one writes the manifest.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.base import View
from ..data import loading
from ..data.kinds import FORMATS, PICTURE_SUFFIXES, UNDECODED_SUFFIXES
from ..data.loading import made_ahead
from ..data.media import load_image
from ..distributed import from_first, objects, own_share, rank, start, together
from ..errors import AuroraError, one_line
from ..files import lock, read_bytes, walk
from .captions import read_captions
from .encoder import Encoder, load_encoder, model_folder, run_folder, views_of
from .manifest import MANIFEST, Manifest, Picture, Place, read_manifest
from .shards import Shards, digest

SUFFIXES = frozenset(PICTURE_SUFFIXES) - frozenset(UNDECODED_SUFFIXES)
OTHERS = frozenset(  # look like pictures, too
    (
        *(*UNDECODED_SUFFIXES, ".jxl", ".psd", ".svg", ".xcf"),
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2"),  # of cameras
    )
)
BATCH = 32  # pictures
TEXT_BATCH = 128
LARGEST = 2 * 1024**3  # bytes of a file; a picture of as many pixels as are decoded is smaller


@dataclass(frozen=True)
class Update:
    """What an update of an index came to."""

    pictures: int
    encoded: int
    removed: int
    texts: int
    skipped: dict[str, str]  # path -> why
    others: dict[str, int] = field(default_factory=dict)  # suffix -> files that look like pictures and are not indexed
    absent: list[str] = field(default_factory=list)  # pictures that have captions and are not there
    note: str = ""  # as what captions were read, or why they were not


@dataclass(frozen=True)
class _Content:
    """What the folder holds."""

    files: dict[str, os.stat_result]  # of pictures, in the order of their names
    skipped: dict[str, str]
    others: dict[str, int]
    texts: list[str]
    absent: list[str]
    note: str


def build_index(folder: Path, out: Path, model: str, *, progress: bool = True) -> Update:
    """Make ``out`` the index of the pictures under ``folder`` by ``model``, encoding only what it does not hold yet.

    Hidden files and folders are left out, linked ones are not. A broken picture is skipped, named, and tried again at
    the next call.

    Raises:
        AuroraError: if there is no such folder, model or picture, ``out`` is of another model or folder or no index,
            or another process is at work on it.
    """
    start()
    first = rank() == 0
    with together():
        content = _look(folder, out) if first else None
        model = str(run_folder(model) or model)
        encoders = {view: load_encoder(model, view) for view in views_of(model)}
        keys = {view: encoder.key() for view, encoder in encoders.items()}
        if first:
            out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as until_done:
        with together():
            known: dict[str, Picture] = {}
            wanted: tuple[list[str], list[str]] = ([], [])
            if content is not None:
                until_done.enter_context(lock(out, "being updated"))
                head, before = _begin(folder, out, model, keys)
                held = _verified(out, keys)
                known = _unchanged(content.files, before, held)
                wanted = ([path for path in content.files if path not in known], content.texts)
        paths, texts = from_first(wanted)
        with together():
            stores = Shards(out, "pictures", keys), Shards(out, "captions", keys)
        with together():
            bar = progress and first
            outcomes = _add_pictures(stores[0], folder, _share(paths), encoders, bar)
            _add_texts(stores[1], texts, encoders, bar)
        every = [outcome for part in objects(outcomes) for outcome in part]
        update = None
        if content is not None:
            found = known | {path: o for path, o in zip(paths, every, strict=True) if isinstance(o, Picture)}
            pictures = [found[path] for path in content.files if path in found]
            skipped = content.skipped | {
                one_line(path): one_line(o) for path, o in zip(paths, every, strict=True) if isinstance(o, str)
            }
            replace(head, pictures=pictures, texts=texts, skipped=skipped).write(out)
            after = Shards(out, "pictures", keys)
            update = Update(
                len(pictures),
                len(after.rows - held),
                len(before.keys() - content.files.keys()),
                len(texts),
                skipped,
                content.others,
                content.absent,
                content.note,
            )
            after.prune({picture.sha256 for picture in pictures})
            Shards(out, "captions", keys).prune({digest(text.encode()) for text in texts})
        return from_first(update)


def _look(folder: Path, out: Path) -> _Content:
    """What there is to index, before anything is loaded or written."""
    if not folder.is_dir():
        raise AuroraError(f"no folder {folder}; name the one that holds your pictures")
    for named in (folder, out):
        if not _is_utf8(os.path.realpath(named)):
            raise AuroraError(f"{named}: the name is not UTF-8; rename the folder")
    if out.exists() and not (out.is_dir() and _is_ours(out)):
        raise AuroraError(f"{out} is no index; name another --out")
    files: dict[str, os.stat_result] = {}
    skipped: dict[str, str] = {}
    others: Counter[str] = Counter()

    def problem(path: str, why: str) -> None:
        if _kind(path) in SUFFIXES or (folder / path).is_dir():
            skipped[one_line(path)] = f"{one_line(path)}: {why}"

    for path in walk(folder, hidden=False, problem=problem):
        if (kind := _kind(path)) in SUFFIXES:
            try:
                files[path] = (folder / path).stat()
            except OSError as error:  # gone since it was listed
                problem(path, error.strerror or str(error))
        elif kind in OTHERS:
            others[kind] += 1
    if not files:
        also = f"; {_counted(others)} are of kinds that are not read" if others else ""
        also += f"; {len(skipped)} cannot be read, such as {next(iter(skipped.values()))}" if skipped else ""
        kinds = ", ".join(suffixes[0] for suffixes in FORMATS.values())
        raise AuroraError(f"{folder} holds no pictures ({kinds}){also}")
    return _Content(files, skipped, dict(others), *read_captions(folder))


def _is_ours(out: Path) -> bool:
    """Whether ``out`` is an index, or a folder with nothing but what a run that was killed at once leaves in it."""
    return os.path.lexists(out / MANIFEST) or all(path.name.startswith(".") for path in out.iterdir())


def _kind(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _counted(others: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _begin(folder: Path, out: Path, model: str, keys: dict[str, str]) -> tuple[Manifest, dict[str, Picture]]:
    """What the manifest begins with, and the pictures that the index holds so far."""
    own = model_folder(model)
    head = Manifest(model if own is None else Place.of(own, out), Place.of(folder, out), keys)
    if not os.path.lexists(out / MANIFEST):
        head.write(out)  # marks the folder as this model's from the start
        return head, {}
    manifest = read_manifest(out)
    if manifest.keys != keys:
        raise AuroraError(
            f"{out} was made with another model than {model} is ({manifest.model_name}); remove it or name another "
            "--out"
        )
    here = manifest.folder.find(out)
    if here is not None and folder.resolve() not in [path.resolve() for path in manifest.folder.choices(out)]:
        raise AuroraError(f"{out} is the index of another folder ({here}); remove it or name another --out")
    return head, {picture.path: picture for picture in manifest.pictures or ()}


def _verified(out: Path, keys: dict[str, str]) -> set[str]:
    """Digests of the pictures that the index holds, every shard having been read."""
    Shards(out, "captions", keys).verify()
    pictures = Shards(out, "pictures", keys)
    pictures.verify()
    return pictures.rows


def _unchanged(files: dict[str, os.stat_result], before: dict[str, Picture], held: set[str]) -> dict[str, Picture]:
    """Pictures that need not be read again."""
    known = {}
    for path, status in files.items():
        picture = before.get(path)
        same = picture and (picture.size, picture.mtime_ns) == (status.st_size, status.st_mtime_ns)
        if picture and same and picture.sha256 in held:
            known[path] = picture
    return known


def _share(rows: Sequence[Any]) -> Sequence[Any]:
    """What this rank works on."""
    own = own_share(len(rows))
    return rows[own.start : own.stop]


@dataclass(frozen=True)
class _Read:
    """Reads a picture by its path: gives it, with its pixels if it may have to be encoded, or why it can't be."""

    folder: Path
    transform: View
    held: frozenset[str]  # digests of pictures that need not be encoded

    def __call__(self, path: str) -> tuple[Picture, Tensor | None] | str:
        if not _is_utf8(path):
            return f"{path}: the name is not UTF-8; rename it"
        try:
            status = (self.folder / path).stat()  # before it is read: a change in between is then seen the next time
            if status.st_size > LARGEST:
                return f"{path}: larger than {LARGEST // 1024**3} GB; scale it down"
            data = read_bytes(self.folder / path)
            picture = Picture(path, len(data), status.st_mtime_ns, digest(data))
            if picture.sha256 in self.held:
                return picture, None
            return picture, self.transform(load_image(data, path, self.transform.least))
        except AuroraError as error:
            return str(error)
        except OSError as error:  # gone, say, since it was listed
            return f"{path}: {error.strerror or error}"


def _add_pictures(
    store: Shards, folder: Path, paths: Sequence[str], encoders: dict[str, Encoder], progress: bool
) -> list[Picture | str]:
    """Encode what ``store`` lacks; each picture, or why it was skipped."""
    read = _Read(folder, next(iter(encoders.values())).transform, frozenset(store.rows))
    outcomes: list[Picture | str] = []
    names: list[str] = []
    batch: list[Tensor] = []

    def encode() -> None:
        features = {view: encoder.pictures(torch.stack(batch)) for view, encoder in encoders.items()}
        for view, rows in features.items():
            if not rows.isfinite().all():
                raise AuroraError(
                    f"the {view} model gives features that are no numbers; its weights are broken or its training "
                    "diverged, so take another --model"
                )
        store.add(names.copy(), features)
        names.clear()
        batch.clear()

    with ThreadPoolExecutor() as pool:
        made = made_ahead(read, paths) if loading.chosen() else _ahead(pool, read, paths, 2 * BATCH)
        for outcome in tqdm(made, "pictures", len(paths), leave=False, disable=not progress):
            if isinstance(outcome, str):
                outcomes.append(outcome)
                continue
            picture, pixels = outcome
            outcomes.append(picture)
            if pixels is not None and picture.sha256 not in store.rows and picture.sha256 not in names:
                names.append(picture.sha256)
                batch.append(pixels)
                if len(batch) == BATCH:
                    encode()
        if batch:
            encode()
    store.flush()
    return outcomes


def _add_texts(store: Shards, texts: list[str], encoders: dict[str, Encoder], progress: bool) -> None:
    lacking = _share([text for text in texts if digest(text.encode()) not in store.rows])
    for first in tqdm(range(0, len(lacking), TEXT_BATCH), "captions", leave=False, disable=not progress):
        part = lacking[first : first + TEXT_BATCH]
        store.add([digest(text.encode()) for text in part], {v: e.texts(part) for v, e in encoders.items()})
    store.flush()


def _ahead(pool: Executor, call: Callable[[str], Any], items: Iterable[str], most: int) -> Iterator[Any]:
    """What ``call`` makes of each item, in order, at most ``most`` made before they are wanted."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
