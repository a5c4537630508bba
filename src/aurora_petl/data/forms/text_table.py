"""A CSV, TSV, JSON or JSONL with a column of files and one of texts, such as open_clip's ``filepath`` and ``title``, or
those of questions and answers. Several are the splits that their names tell: ``train.csv``, ``val.csv``. Lines of a
file's name and its caption need no names of columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ...errors import AuroraError
from ..reading import Raw, RowReader
from ..rows import brief
from ..source import Source
from .common import IMAGE_COLUMNS, Look, OwnDataset, Texts, column, fields_of, read_rows, splits_of, tables, texts_in
from .tabular import columns_of, rows_of

_SURE = (".csv", ".tsv", ".jsonl")
_OTHER = (".json", ".txt", ".token")  # which also hold other things, and are looked at where there are none of the sure
_MOST = 1000  # of them
_SHEETS = (".xlsx", ".xls", ".ods", ".numbers")


def look(source: Source) -> Look:
    """Whether there are such tables."""
    found, almost = _tables(source, tables(source, *_SURE))
    if not found:
        others = tables(source, *_OTHER)[:_MOST]
        found, almost_other = _tables(source, others)
        if len(others) == 1:  # of many none is meant: notes on pictures, as photo services leave them
            almost = almost or almost_other
    sheets = [name for name in source.visible if name.lower().endswith(_SHEETS)]
    if not found and not almost and sheets:
        almost = f"{sheets[0]} is a spreadsheet; save it as CSV UTF-8"
    return Look(list(found), almost, found)


def _tables(source: Source, names: list[str]) -> tuple[dict[str, tuple[str, Texts]], str]:
    """The tables among files, with their columns of files and of texts, and what the first that lacks one has."""
    found: dict[str, tuple[str, Texts]] = {}
    almost = ""
    for name in names:
        try:
            columns = columns_of(source, name)
        except AuroraError as error:
            if name.endswith(_SURE):
                raise
            almost = almost or str(error)
            continue
        image = column(source, "image_column", IMAGE_COLUMNS, columns, "")
        texts = texts_in(source, columns)
        if image and texts and image != texts.text:
            found[name] = image, texts
        elif columns and not name.endswith(_OTHER[1:]):
            lacking = [] if image else ["files.image_column=NAME"]
            lacking += [] if texts and texts.text != image else ["files.caption_column=NAME"]
            almost = almost or (
                f"{name} has the columns {brief(', '.join(columns))}; say which name the pictures and which hold the "
                f"captions, as in {' '.join(lacking)}"
            )
    return found, almost


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""
    names = look.shown_by
    splits = splits_of(source, names)
    if len(names) > 1 and "" in splits.values():
        raise AuroraError(
            f"{source.path} has several tables of captions ({brief(', '.join(names))}), whose names do not all "
            f"tell a split; name them, as in files.rows={names[0]} or files.train={names[0]} files.test={names[1]}"
        )
    where = source.where(names[0]) if len(names) == 1 else source.title
    questions = {look.more[name][1].answer is not None for name in names}
    if len(questions) > 1:
        raise AuroraError(
            f"{source.path} has tables of captions and of questions; name one, as in files.rows={names[0]}"
        )

    def rows(reader: RowReader) -> Iterator[Raw]:
        for name, split in splits.items():
            image, texts = look.more[name]
            for line, row in rows_of(source, name, reader, texts.columns(image)):
                fields = fields_of(source, row, row.get(image), texts.of(row), split)
                if texts.answer is not None and len(names) > 1:
                    fields.setdefault("id", f"{name}:{line}")
                yield Raw(source.where(name), line, fields, str(PurePosixPath(name).parent))

    return read_rows(source, where, rows, texts=look.more[names[0]][1], anywhere=True)
