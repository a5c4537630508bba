"""Vectors of a data set's pictures and captions in a file that other programs read: Parquet or NumPy.

Batches are written as they come, so that memory holds one batch, however many pictures there are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

from .backbones import DualEncoder
from .backbones.frames import encode_media
from .data.rows import ImageTextDataset, Item, load_media, need_frames
from .errors import AuroraError, install, short, whole_number
from .files import as_os_error, check_output, whole
from .model import Model
from .search.encoder import Encoder
from .tasks.base import TEXTS
from .tasks.settings import RetrievalSettings

SUFFIXES = (".parquet", ".npz")
BATCH = 32  # pictures that go through the model at once
GROUP = 1024  # items of a row group of Parquet, or as many more as fill a batch


@dataclass(frozen=True)
class Written:
    """How many vectors a file holds."""

    file: Path
    pictures: int
    captions: int
    shape: tuple[int, ...]  # of a picture's vectors


def check_suffix(out: Path) -> None:
    """Make sure that a file can be written in the format that its suffix names.

    Raises:
        AuroraError: if the suffix is another, or what writes Parquet is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise AuroraError(f"{out} ends in {short(out.suffix)}; name a {' or '.join(SUFFIXES)} file")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise AuroraError(f"{out}: Parquet needs pyarrow: {install('datasets')}; or name a .npz file") from error


def write_features(
    model: Model,
    dataset: ImageTextDataset,
    out: str | Path,
    *,
    frames: int = 0,
    batch_size: int = BATCH,
    progress: bool = False,
) -> Written:
    """Write the vectors of all pictures, or clips, and captions of a data set to ``out``, which appears whole or not at
    all.

    Parquet has a row for each picture: ``id``, ``path``, ``split``, ``image_embedding`` (P float32, or V lists of P
    where a picture has V vectors), ``captions`` and ``caption_embeddings`` (P each). NumPy has the arrays ``ids``,
    ``paths``, ``splits`` and ``image_embeddings`` (M, P) or (M, V, P) of M pictures, ``captions``,
    ``caption_embeddings`` (L, P) and ``caption_image`` (L), the place of each caption's picture among the M.

    Args:
        frames: of a clip; 0: as many as the run evaluates with.
        batch_size: pictures that go through the model at once.

    Raises:
        AuroraError: if the model is not one of retrieval, the data are not pictures with captions, a picture cannot be
            read, or the suffix of ``out`` is neither ``.parquet`` nor ``.npz``.
        OSError: if there is no room or no right to write.
    """
    out = Path(out)
    check_suffix(out)
    check_output(out)
    settings = model.recipe.task if model.recipe else RetrievalSettings()
    if model.task != "retrieval" or not isinstance(settings, RetrievalSettings):
        raise AuroraError(f"{model.name} answers questions, it gives no vectors; name a model or a run of retrieval")
    if not isinstance(dataset, ImageTextDataset):
        raise AuroraError(f"{dataset.name} holds {TEXTS[type(dataset)]}; vectors are of pictures with captions")
    batch_size = whole_number("batch_size", batch_size, 1)
    frames = frames or settings.evaluation_frames
    need_frames(dataset, frames)
    encoder = Encoder(cast(DualEncoder, model.backbone), settings.longest_text, device=model.device)
    source = _Source(encoder, dataset, frames, batch_size, progress)
    write = _write_parquet if out.suffix == ".parquet" else _write_npz
    with whole(out) as partial, as_os_error(out):
        captions = write(source, partial)
    return Written(out, len(dataset), captions, source.shape)


@dataclass(frozen=True)
class _Source:
    """A data set and what encodes it."""

    encoder: Encoder
    dataset: ImageTextDataset
    frames: int
    size: int
    progress: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.encoder.backbone.feature_shape)

    def spans(self, what: str = "") -> Iterator[range]:
        """The rows of the data set by batches, with a bar if it is said what they are."""
        starts = range(0, len(self.dataset), self.size)
        for first in tqdm(starts, what, leave=False, disable=not (what and self.progress)):
            yield range(first, min(first + self.size, len(self.dataset)))

    def items(self, rows: range) -> list[Item]:
        return [self.dataset[row] for row in rows]

    def path(self, item: Item) -> str:
        return f"{self.dataset.files.name}/{item.image}".encode("utf-8", "backslashreplace").decode()

    def pictures(self, rows: range) -> np.ndarray:
        """(B, P) or (B, V, P)"""

        def read(row: int) -> torch.Tensor:
            return load_media(self.dataset, row, self.encoder.transform, self.frames)

        with ThreadPoolExecutor() as pool:
            pixels = torch.stack(list(pool.map(read, rows)))
        with torch.inference_mode():
            media = encode_media(self.encoder.backbone, pixels.to(self.encoder.device))
        return media.feature.float().cpu().numpy()

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(L, P), so many at a time as pictures"""
        parts = [self.encoder.texts(texts[first : first + self.size]) for first in range(0, len(texts), self.size)]
        every = torch.cat(parts) if parts else torch.empty(0, self.shape[-1])
        return every.float().numpy()


def _write_parquet(source: _Source, path: Path) -> int:
    """Write all rows; returns how many captions there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(values: np.ndarray) -> Any:
        """An array (N, ..., P) as a column of N lists."""
        column = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
        for size in reversed(values.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        return column

    vector = pa.list_(pa.float32(), source.shape[-1])
    image = pa.list_(vector, source.shape[0]) if len(source.shape) == 2 else vector
    fields = [("id", pa.string()), ("path", pa.string()), ("split", pa.string()), ("image_embedding", image)]
    fields += [("captions", pa.list_(pa.string())), ("caption_embeddings", pa.list_(vector))]
    schema = pa.schema(fields)

    def batch(rows: range) -> Any:
        items = source.items(rows)
        captions = [list(item.captions) for item in items]
        ends = np.cumsum([0, *map(len, captions)], dtype=np.int32)
        columns = [
            pa.array([item.id for item in items]),
            pa.array([source.path(item) for item in items]),
            pa.array([item.split for item in items]),
            lists(source.pictures(rows)),
            pa.array(captions, pa.list_(pa.string())),
            pa.ListArray.from_arrays(pa.array(ends), lists(source.texts([text for own in captions for text in own]))),
        ]
        return pa.record_batch(columns, schema=schema)

    count, held = 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for rows in source.spans("pictures"):
            held.append(batch(rows))
            count += len(held[-1].column("captions").flatten())
            if rows.stop == len(source.dataset) or sum(part.num_rows for part in held) >= GROUP:
                writer.write_table(pa.Table.from_batches(held))
                held = []
    return count


def _write_npz(source: _Source, path: Path) -> int:
    """Write all arrays one after the other, each by batches; returns how many captions there are."""
    data, pictures = source.dataset, len(source.dataset)
    captions = sum(len(item.captions) for item in data)
    words: dict[str, Callable[[Item], list[str]]] = {
        "ids": lambda item: [item.id],
        "paths": lambda item: [source.path(item)],
        "splits": lambda item: [item.split],
        "captions": lambda item: list(item.captions),
    }

    def told(rows: range, of: Callable[[Item], list[str]]) -> list[str]:
        return [text for item in source.items(rows) for text in of(item)]

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, of in words.items():
            longest = max((len(text) for rows in source.spans() for text in told(rows, of)), default=1)
            kind, count = f"<U{max(1, longest)}", captions if name == "captions" else pictures
            _write_array(archive, name, kind, (count,), (np.array(told(rows, of)) for rows in source.spans()))
        images = (source.pictures(rows) for rows in source.spans("pictures"))
        _write_array(archive, "image_embeddings", "<f4", (pictures, *source.shape), images)
        texts = (source.texts(told(rows, words["captions"])) for rows in source.spans("texts"))
        _write_array(archive, "caption_embeddings", "<f4", (captions, source.shape[-1]), texts)
        places = (np.repeat(rows, [len(item.captions) for item in source.items(rows)]) for rows in source.spans())
        _write_array(archive, "caption_image", "<i8", (captions,), places)
    return captions


def _write_array(
    archive: zipfile.ZipFile, name: str, kind: str, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """Write an array of a type and a shape, whose rows come in parts, as ``numpy.savez`` would."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": kind, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, kind).tobytes())
