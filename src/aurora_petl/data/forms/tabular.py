"""Rows of a table of any kind: JSONL, JSON, CSV however its fields are parted and with or without a line that names its
columns, parquet."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import AuroraError, first_line, install
from ...files import encoding_of, parse_json
from ..kinds import is_media
from ..reading import Raw, RowReader
from ..source import Source
from ..tables import csv_header, csv_rows, json_lines

FILE, CAPTION = "file_name", "caption"  # what the columns are called of a table that does not name them
_HEAD = 1 << 16  # bytes that hold the first line
_PARTED = "\t,;|"  # what stands between a file's name and its caption where no line names the columns
_NUMBERED = re.compile(r"#\d+$")  # Flickr's name of a caption: 1000092795.jpg#0


@dataclass(frozen=True)
class Head:
    """How a table begins: its columns, what parts its fields, and whether its first line is a row already."""

    columns: Sequence[str] = ()
    delimiter: str = ","
    bare: bool = False


def columns_of(source: Source, name: str) -> list[str]:
    """The columns of a table; of JSONL and JSON the keys of the first object.

    Raises:
        AuroraError: if it cannot be read.
    """
    if name.endswith(".parquet"):
        return list(_parquet(source, name).schema_arrow.names)
    if name.endswith(".json"):
        first = _first_object(source, name)
    elif name.endswith(".jsonl"):
        try:
            first = parse_json(_first_line(source, name), source.where(name))
        except AuroraError:  # which reading tells
            return []
    else:
        return list(_head(source, name).columns)
    return list(first) if isinstance(first, dict) else []


def rows_of(
    source: Source, name: str, reader: RowReader, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their lines, of parquet and JSON with their numbers; what is no row is noted.

    Args:
        columns: those that are wanted.

    Raises:
        AuroraError: if it cannot be read.
    """
    where = source.where(name)
    if name.endswith(".parquet"):
        wanted = {*columns, source.option("split_column", "split"), source.option("id_column")}
        table = _parquet(source, name)
        held = [column for column in table.schema_arrow.names if column in wanted]
        yield from enumerate(table.read(held).to_pylist(), 1)
    elif name.endswith((".jsonl", ".json")):
        mend = f'a line looks like {{"{columns[0]}": "cat.jpg", "{columns[1]}": "a cat"}}'
        lines = name.endswith(".jsonl")
        rows = (
            json_lines(source.text(name), where, mend, reader.problems)
            if lines
            else enumerate(_objects(source, name), 1)
        )
        for line, row in rows:
            if isinstance(row, dict):
                yield line, row
            else:
                reader.problem(Raw(where, line, {}), f"a {type(row).__name__}, not an object")
    elif (head := _head(source, name)).bare:
        yield from _bare_rows(source.text(name), where, head.delimiter, reader)
    else:
        yield from csv_rows(source.text(name), where, columns, reader.problems, head.delimiter)


def _head(source: Source, name: str) -> Head:
    line = _first_line(source, name)
    for delimiter in _PARTED:
        file, parted, text = line.partition(delimiter)
        if parted and text.strip() and is_media(_NUMBERED.sub("", file.strip())):
            return Head((FILE, CAPTION), delimiter, bare=True)
    return Head(*csv_header(line))


def _bare_rows(text: str, where: str, delimiter: str, reader: RowReader) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file's name and its caption, which is all that follows the first delimiter."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        file, _, caption = line.strip().partition(delimiter)
        file, caption = _NUMBERED.sub("", file.strip()), caption.strip()
        if not is_media(file):
            reader.problem(Raw(where, number, {}), "it does not begin with a picture's name, as the first line does")
        elif len(caption) > 1 and caption[0] == caption[-1] == '"':
            yield number, {FILE: file, CAPTION: caption[1:-1].replace('""', '"')}
        else:
            yield number, {FILE: file, CAPTION: caption}


def _objects(source: Source, name: str) -> list[Any]:
    """The rows of JSON: a list, the only list of objects in an object, or captions by the names of files."""
    value = parse_json(source.text(name), source.where(name))
    if isinstance(value, list) or not isinstance(value, dict):
        return value if isinstance(value, list) else []
    if value and all(map(is_media, value)):
        return [{FILE: file, **(row if isinstance(row, dict) else {CAPTION: row})} for file, row in value.items()]
    lists = [part for part in value.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
    return lists[0] if len(lists) == 1 else []


def _first_object(source: Source, name: str) -> Any:
    """The first row of JSON, for which a long list is not read to its end."""
    data = source.data(name, _HEAD)
    text = data.decode(encoding_of(data), "replace").lstrip()
    if text.startswith("["):
        with suppress(ValueError, RecursionError):  # which reading the whole tells
            return json.JSONDecoder().raw_decode(text, text.index("{"))[0]
    return next(iter(_objects(source, name)), None)


def _first_line(source: Source, name: str) -> str:
    """The first line that is not blank, as far as it is looked at."""
    data = source.data(name, _HEAD)
    text = data.decode(encoding_of(data), "replace")
    return next((line for line in text.splitlines() if line.strip()), "")


def _parquet(source: Source, name: str) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise AuroraError(f"{source.where(name)}: parquet needs pyarrow: {install('datasets')}") from error
    try:
        return ParquetFile(io.BytesIO(source.data(name)))
    except (ArrowException, ValueError) as error:
        raise AuroraError(f"{source.where(name)}: not parquet ({first_line(error)}); write it anew") from error
