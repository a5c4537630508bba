"""Pictures in tables of the library ``datasets``: what parquet files, saved folders and the hub have in common. Tables
are mapped into memory, not read; each picture is taken when it is wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import AuroraError, first_line, install
from ...files import read_bytes
from ..folder_rows import item_row, question_row
from ..items import PackedItems
from ..reading import MOST_PROBLEMS
from ..rows import brief, listed, place, refuse
from ..source import Source
from .common import OwnDataset, Texts, column, fields_of, need_texts, with_captions, with_questions
from .turns import TURNS, Turns

_IMAGES = ("image", "images", "img", "picture", "jpg", "png", "webp")
_ROWS = 1000  # texts that are read at a time


class Tables:
    """Pictures in columns of tables, called by table and row: ``train/00000017``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tables: dict[str, tuple[Any, str]] = {}  # each with its column of pictures, which are not decoded

    def names(self) -> set[str]:
        return {f"{name}/{row:08}" for name, (table, _) in self.tables.items() for row in range(len(table))}

    def read(self, name: str, most: int = -1) -> bytes:
        key, _, row = name.rpartition("/")
        table, column = self.tables.get(key, ((), ""))
        if not row.isdecimal() or int(row) >= len(table):
            raise FileNotFoundError(name)
        value = table[int(row)][column]
        if isinstance(value, list):
            value = next(filter(None, value), None)
        if isinstance(value, Mapping):
            if value.get("bytes") is None and value.get("path"):
                return read_bytes(Path(value["path"]), most)
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise FileNotFoundError(name)
        return value if most < 0 else value[:most]

    def frames(self, name: str) -> list[str]:
        return []

    def why(self, name: str) -> str | None:
        return None


def library(what: str) -> ModuleType:
    """The library ``datasets``.

    Raises:
        AuroraError: if it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise AuroraError(f"{what} needs the library datasets: {install('datasets')}") from error
    if sys.stderr is None or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def read_tables(source: Source, where: str, tables: Mapping[str, tuple[Any, str]], files: Tables) -> OwnDataset:
    """The dataset of tables of ``datasets`` by name, each with its split.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    problems: list[str] = []
    questions = {_texts(source, table, source.where(name)).answer is not None for name, (table, _) in tables.items()}
    if len(questions) > 1:
        raise AuroraError(
            f"{where} has captions in one table and questions in another; name one, as in files.train=NAME"
        )
    without: list[str] = []  # conversations
    rows = (
        row
        for name, (table, split) in tables.items()
        for row in _rows(source, name, table, split, files, problems, without)
    )
    made = list(rows) if questions == {True} else PackedItems.pack(rows)
    if source.broken == "stop" or not made:
        refuse(problems)
    if not made:
        raise AuroraError(f"{where} holds no rows")
    if isinstance(made, PackedItems):
        dataset: OwnDataset = with_captions(source, where, made, files)
    else:
        dataset = with_questions(source, where, made, files)
    if problems:
        dataset.note += f"; {len(problems):,} rows left out: {listed(problems)}"
    if without:
        dataset.note += f"; {len(without):,} rows without a picture left out"
    return dataset


def _texts(source: Source, table: Any, where: str) -> Texts:
    """The columns of texts: turns, where no option names others; the Cauldron calls its turns ``texts``.

    Raises:
        AuroraError: if there are none.
    """
    kinds, named = table.features, ("caption_column", "question_column")
    turns = [name for name in TURNS if name in kinds and not _is_text(kinds[name])]
    turns += ["texts"] if {"user", "assistant"} <= set(_part(kinds.get("texts")) or ()) else []
    if turns and not any(map(source.options_of, named)):
        return Turns(turns[0], turns[0])
    return need_texts(source, list(table.column_names), where)


def _part(kind: Any) -> Any:
    """The type of the parts of a column of lists; None of another column. Structures are dictionaries."""
    return kind[0] if isinstance(kind, list) else getattr(kind, "feature", None)


def _rows(
    source: Source, name: str, table: Any, split: str, files: Tables, problems: list[str], without: list[str]
) -> Iterator[Any]:
    """The captions of a table as items, or its questions; rows of turns without a picture are added to ``without``."""
    datasets = library(title := source.where(name))
    columns = list(table.column_names)
    image = column(source, "image_column", _image_columns(datasets, table), columns, title)
    if not image:
        raise AuroraError(
            f"{title}: no column of pictures among {brief(', '.join(columns))}; name it, as in files.image_column=NAME"
        )
    words, kind = _texts(source, table, title), datasets.Image(decode=False)
    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, kind)
    elif isinstance(_part(table.features[image]), datasets.Image):
        table = table.cast_column(image, datasets.List(kind))
    table = table.with_format(None)
    files.tables[name] = table.select_columns([image]), image
    wanted = [*words.columns(""), source.option("split_column", "split"), source.option("id_column")]
    texts = table.select_columns([name for name in dict.fromkeys(wanted) if name in columns])
    pictures = _counts(table, image)
    for row, fields in enumerate(_each(texts)):
        number, media = row + 1, next(pictures)
        try:
            if not media and isinstance(words, Turns):
                without.append(name)
                continue
            if media != 1:
                raise ValueError(f"{media} pictures; Aurora takes one a row" if media else "it has no picture")
            for place_in_row, said in enumerate(words.each(fields)):
                label = fields_of(source, fields, f"{name}/{row:08}", said, split)
                own = f"{name}/{number}:{place_in_row}" if isinstance(words, Turns) else f"{name}/{number}"
                if words.answer is None:
                    yield replace(item_row(label, number, column=words.text), source=title)
                else:
                    yield replace(question_row({"id": own} | label, number), source=title)
        except ValueError as error:
            problems.append(f"{place(title, number)}: {error}")
            if len(problems) >= MOST_PROBLEMS:
                refuse(problems)


def _each(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table, read in parts."""
    for part in table.iter(batch_size=_ROWS):
        for values in zip(*part.values(), strict=True):
            yield dict(zip(part, values, strict=True))


def _counts(table: Any, image: str) -> Iterator[int]:
    """How many pictures each row has. Their bytes are not read."""
    import pyarrow.compute as of_arrow  # datasets needs it

    for part in table.select_columns([image]).with_format("arrow").iter(batch_size=_ROWS):
        values = part[image]
        if _part(table.features[image]) is not None:
            yield from (count or 0 for count in of_arrow.list_value_length(values).to_pylist())
        else:
            yield from map(int, of_arrow.is_valid(values).to_pylist())


def _image_columns(datasets: ModuleType, table: Any) -> list[str]:
    """The columns of pictures, or of lists of them: those of that type, then those of bytes that are called so."""
    kinds = table.features
    typed = [name for name, kind in kinds.items() if isinstance(kind, datasets.Image)]
    typed += [name for name, kind in kinds.items() if isinstance(_part(kind), datasets.Image)]
    return typed + [name for name in _IMAGES if name in kinds and not _is_text(_part(kinds[name]) or kinds[name])]


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def failed(what: str, error: Exception) -> AuroraError:
    """One line on what ``datasets`` raised."""
    return AuroraError(f"{what} cannot be read by datasets: {first_line(error)}")
