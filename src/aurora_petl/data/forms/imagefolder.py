"""Hugging Face's imagefolder (and videofolder): ``metadata.jsonl``, ``.csv`` or ``.parquet`` with ``file_name``, which
is relative to its own folder, and a column of captions; in the folder itself, or one in each of ``train``,
``validation`` and ``test``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ...errors import AuroraError
from ..reading import Raw, RowReader
from ..rows import ImageTextDataset, brief
from ..source import Source
from ..splits import named_split
from .common import Look, caption_column, column, fields_of, read_rows, splits_of, tables
from .tabular import columns_of, rows_of

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def look(source: Source) -> Look:
    """Whether there are such files."""
    return Look([name for name in tables(source, *_NAMES) if PurePosixPath(name).name in _NAMES])


def read(source: Source, look: Look) -> ImageTextDataset:
    """The dataset."""
    folders: dict[str, str] = {}
    texts: dict[str, tuple[str, str]] = {}
    for name in look.shown_by:
        folder = name.rpartition("/")[0]
        if other := folders.get(folder):
            raise AuroraError(f"{source.path} has both {other} and {name}; name one of them, as in files.rows={name}")
        folders[folder] = name
        texts[name] = _columns(source, name)
    (_, text), *_ = texts.values()
    where = source.where(look.shown_by[0]) if len(look.shown_by) == 1 else source.title

    def rows(reader: RowReader) -> Iterator[Raw]:
        found: list[tuple[Raw, str]] = []
        for folder, name in folders.items():
            image, caption = texts[name]
            for line, row in rows_of(source, name, reader, [image, caption]):
                raw = Raw(source.where(name), line, fields_of(source, row, row.get(image), row.get(caption)), folder)
                inside = f"{folder}/{row.get(image)}".lstrip("/").rpartition("/")[0]
                found.append((raw, folder if named_split(folder) else inside))
        splits = splits_of(source, dict.fromkeys(place for _, place in found))
        for raw, place in found:
            if place in splits:
                yield raw._replace(fields={**raw.fields, "split": raw.fields["split"] or splits[place]})

    return read_rows(source, where, rows, text=text)


def _columns(source: Source, name: str) -> tuple[str, str]:
    """The columns of files and of captions."""
    columns, where = columns_of(source, name), source.where(name)
    image = column(source, "image_column", ("file_name",), columns, where)
    image = image or next((name for name in columns if name.endswith("_file_name")), "")
    if not image:
        held = brief(", ".join(columns))
        raise AuroraError(f"{where}: no column file_name, which names the pictures, among {held}; rename theirs")
    return image, caption_column(source, columns, where)
