"""A CSV, TSV or JSONL with a column of files and one of texts, such as open_clip's ``filepath`` and ``title``. Several
are the splits that their names tell: ``train.csv``, ``val.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import AuroraError
from ..reading import Raw, RowReader
from ..rows import ImageTextDataset, brief
from ..source import Source
from .common import CAPTION_COLUMNS, IMAGE_COLUMNS, Look, fields_of, read_rows, splits_of, tables
from .tabular import columns_of, rows_of


def look(source: Source) -> Look:
    """Whether there are such tables."""
    found: list[str] = []
    columns: dict[str, list[str]] = {}
    almost = ""
    for name in tables(source, ".csv", ".tsv", ".jsonl"):
        held = columns_of(source, name)
        image = _first(source.option("image_column"), IMAGE_COLUMNS, held)
        caption = _first(source.option("caption_column"), CAPTION_COLUMNS, held)
        if image and caption and image != caption:
            found.append(name)
            columns[name] = [image, caption]
        else:
            lacking = [] if image else ["files.image_column=NAME"]
            lacking += [] if caption and caption != image else ["files.caption_column=NAME"]
            almost = almost or (
                f"{name} has the columns {brief(', '.join(held))}; say which name the pictures and which hold the "
                f"captions, as in {' '.join(lacking)}"
            )
    return Look(found, almost, columns)


def _first(named: str, known: Sequence[str], held: Sequence[str]) -> str:
    return next((name for name in ([named] if named else known) if name in held), "")


def read(source: Source, look: Look) -> ImageTextDataset:
    """The dataset."""
    names = look.shown_by
    splits = splits_of(source, names)
    if len(names) > 1 and "" in splits.values():
        raise AuroraError(
            f"{source.path} has several tables of captions ({brief(', '.join(names))}), whose names do not all "
            f"tell a split; name them, as in files.rows={names[0]} or files.train={names[0]} files.test={names[1]}"
        )
    where = source.where(names[0]) if len(names) == 1 else source.title

    def rows(reader: RowReader) -> Iterator[Raw]:
        for name, split in splits.items():
            image, caption = look.more[name]
            for line, row in rows_of(source, name, reader, look.more[name]):
                fields = fields_of(source, row, row.get(image), row.get(caption), split)
                yield Raw(source.where(name), line, fields, name.rpartition("/")[0])

    return read_rows(source, where, rows, text=look.more[names[0]][1])
