"""Rows of a table of any kind: JSONL, CSV however its fields are parted, parquet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from ...errors import AuroraError, first_line, install
from ...files import parse_json
from ..reading import Raw, RowReader
from ..source import Source
from ..tables import csv_header, csv_rows, json_lines

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_HEAD = 1 << 16  # bytes that hold the first line


def columns_of(source: Source, name: str) -> list[str]:
    """The columns of a table; of JSONL the keys of its first object.

    Raises:
        AuroraError: if it cannot be read.
    """
    if name.endswith(".parquet"):
        return list(_parquet(source, name).schema_arrow.names)
    line = _first_line(source, name)
    if not name.endswith(".jsonl"):
        return csv_header(line)[0]
    try:
        value = parse_json(line, source.where(name))
    except AuroraError:  # which reading tells
        return []
    return list(value) if isinstance(value, dict) else []


def rows_of(source: Source, name: str, reader: RowReader, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table with their lines, of parquet with their numbers; what is no row is noted.

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
    elif name.endswith(".jsonl"):
        mend = f'a line looks like {{"{columns[0]}": "cat.jpg", "{columns[1]}": "a cat"}}'
        for line, row in json_lines(source.text(name), where, mend, reader.problems):
            if isinstance(row, dict):
                yield line, row
            else:
                reader.problem(Raw(where, line, {}), f"a {type(row).__name__}, not an object")
    else:
        delimiter = csv_header(_first_line(source, name))[1]
        yield from csv_rows(source.text(name), where, columns, reader.problems, delimiter)


def _first_line(source: Source, name: str) -> str:
    """The first line that is not blank, as far as it is looked at."""
    text = source.data(name, _HEAD).decode("utf-8-sig", "replace")
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
