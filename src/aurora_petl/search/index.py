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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from ..data import loading
from ..data.loading import made_ahead
from ..distributed import from_first, objects, own_share, rank, start, together
from ..errors import AuroraError, one_line
from ..locks import lock
from .encoder import Encoder, load_encoder, model_folder, run_folder, views_of
from .lines import Update
from .manifest import MANIFEST, Manifest, Picture, Place, read_manifest
from .reading import BATCH, TEXT_BATCH, ahead, encode_pictures, read_picture
from .scan import check_name, look
from .shards import Shards, digest


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
        content = None
        if first:
            _check_place(folder, out)
            content = look(folder)
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


def _check_place(folder: Path, out: Path) -> None:
    """AuroraError says so if ``out`` can't be the place of an index."""
    if folder.is_dir():
        check_name(folder)
    check_name(out)
    if out.exists() and not (out.is_dir() and _is_ours(out)):
        raise AuroraError(f"{out} is no index; name another --out")


def _is_ours(out: Path) -> bool:
    """Whether ``out`` is an index, or a folder with nothing but what a run that was killed at once leaves in it."""
    return os.path.lexists(out / MANIFEST) or all(path.name.startswith(".") for path in out.iterdir())


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


def _add_pictures(
    store: Shards, folder: Path, paths: Sequence[str], encoders: dict[str, Encoder], progress: bool
) -> list[Picture | str]:
    """Encode what ``store`` lacks; each picture, or why it was skipped."""
    transform = next(iter(encoders.values())).transform
    read = partial(read_picture, folder, held=frozenset(store.rows), transform=transform)
    outcomes: list[Picture | str] = []
    names: list[str] = []
    batch: list[Tensor] = []

    def encode() -> None:
        store.add(names.copy(), encode_pictures(encoders, batch))
        names.clear()
        batch.clear()

    with ThreadPoolExecutor() as pool:
        made = made_ahead(read, paths) if loading.chosen() else ahead(pool, read, paths, 2 * BATCH)
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
