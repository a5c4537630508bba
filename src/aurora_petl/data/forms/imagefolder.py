"""Hugging Face's imagefolder (and videofolder): ``metadata.jsonl``, ``.csv`` or ``.parquet`` with ``file_name``, which
is relative to its own folder, and a column of captions, or those of questions and answers; in the folder itself, or one
in each of ``train``, ``validation`` and ``test``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ...errors import AuroraError
from ..reading import Raw, RowReader
from ..rows import brief
from ..source import Source
from ..splits import named_split
from .common import Look, OwnDataset, Texts, column, fields_of, need_texts, read_rows, splits_of, tables
from .tabular import columns_of, rows_of

_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def look(source: Source) -> Look:
    """Whether there are such files."""
    return Look([name for name in tables(source, *_NAMES) if PurePosixPath(name).name in _NAMES])


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""
    folders: dict[str, str] = {}
    columns: dict[str, tuple[str, Texts]] = {}
    for name in look.shown_by:
        folder = name.rpartition("/")[0]
        if other := folders.get(folder):
            raise AuroraError(f"{source.path} has both {other} and {name}; name one of them, as in files.rows={name}")
        folders[folder] = name
        columns[name] = _columns(source, name)
    (_, texts), *_ = columns.values()
    if len({own.answer is None for _, own in columns.values()}) > 1:
        raise AuroraError(
            f"{source.path} has captions in one metadata file and questions in another; name one of them, "
            f"as in files.rows={look.shown_by[0]}"
        )
    where = source.where(look.shown_by[0]) if len(look.shown_by) == 1 else source.title

    def rows(reader: RowReader) -> Iterator[Raw]:
        found: list[tuple[Raw, str]] = []
        for folder, name in folders.items():
            image, own = columns[name]
            for line, row in rows_of(source, name, reader, own.columns(image)):
                fields = fields_of(source, row, row.get(image), own.of(row))
                if own.answer is not None and len(columns) > 1:
                    fields.setdefault("id", f"{name}:{line}")
                raw = Raw(source.where(name), line, fields, folder)
                inside = f"{folder}/{row.get(image)}".lstrip("/").rpartition("/")[0]
                found.append((raw, folder if named_split(folder) else inside))
        splits = splits_of(source, dict.fromkeys(place for _, place in found))
        for raw, place in found:
            if place in splits:
                yield raw._replace(fields={**raw.fields, "split": raw.fields["split"] or splits[place]})

    return read_rows(source, where, rows, texts=texts)


def _columns(source: Source, name: str) -> tuple[str, Texts]:
    """The columns of files and of texts."""
    columns, where = columns_of(source, name), source.where(name)
    image = column(source, "image_column", ("file_name",), columns, where)
    image = image or next((name for name in columns if name.endswith("_file_name")), "")
    if not image:
        held = brief(", ".join(columns))
        raise AuroraError(f"{where}: no column file_name, which names the pictures, among {held}; rename theirs")
    return image, need_texts(source, columns, where)
