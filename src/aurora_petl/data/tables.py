"""Rows from the text of a CSV or JSONL file, and what is wrong with its lines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ..errors import AuroraError, first_line, short
from ..files import parse_json
from .rows import brief, refuse

_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


def json_lines(text: str, where: str, mend: str, problems: list[str]) -> Iterator[tuple[int, Any]]:
    """Values of JSONL with their lines, counted from 1; blank lines are left out, and what is wrong is noted.

    Args:
        mend: what messages say of a line that is no JSON.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, f"{where}, line {number}")
        except AuroraError as error:
            why = error.__cause__
            if isinstance(why, json.JSONDecodeError):
                problems.append(f"{where}, line {number}: not JSON ({why.msg} at column {why.colno}); {mend}")
            else:
                problems.append(str(error))
        else:
            yield number, value


def csv_rows(
    text: str, where: str, columns: Sequence[str], problems: list[str], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of CSV as mappings, with the lines that they begin in; blank rows are left out, and what is wrong is noted.

    Args:
        columns: those that there must be.
        delimiter: what stands between two fields.

    Raises:
        AuroraError: if the first line does not name these columns, each once.
    """
    quote = f"put the caption in double quotes if it has a {_DELIMITERS[delimiter]} or a line end in it"
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AuroraError(f"{where}, line {line}: holds NUL, so it is no text; save the file as UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = 0
    header: list[str] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            refuse([*problems, _not_csv(error, where, before + 1, quote)])  # where a row ends is not known from here
        line, before = before + 1, reader.line_num
        if fields is None:
            break
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = _header(fields, f"{where}, line {line}", columns)
        elif len(fields) == len(header):
            yield line, dict(zip(header, fields, strict=True))
        else:
            count = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
            problems.append(f"{where}, line {line}: {count}, where the first line names {len(header)} columns; {quote}")
    if header is None:
        raise AuroraError(f"{where} is empty; its first line must be {','.join(columns)}")


def csv_header(line: str) -> tuple[list[str], str]:
    """The columns that the first line of a CSV names, and the delimiter between them: the one that makes the most."""
    every = {}
    for delimiter in _DELIMITERS:
        with suppress(csv.Error):
            every[delimiter] = [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
    delimiter = max(every, key=lambda delimiter: len(every[delimiter]), default=",")
    return every.get(delimiter, []), delimiter


def _not_csv(error: csv.Error, where: str, line: int, quote: str) -> str:
    what = first_line(error)
    if what.startswith("unexpected end"):
        what = "a double quote is open to the end of the file"
    elif what.startswith("field larger"):
        what = f"a field of more than {csv.field_size_limit():,} characters, so a double quote may be open"
    return f"{where}, line {line}: not CSV ({what}); {quote}, and write a double quote inside twice"


def _header(fields: list[str], where: str, columns: Sequence[str]) -> list[str]:
    header = [field.strip() for field in fields]
    if lacking := [name for name in columns if name not in header]:
        named = brief(", ".join(header))
        raise AuroraError(
            f"{where}: no column {' and no column '.join(lacking)} among {named}; "
            f"the first line must be {','.join(columns)} (comma separated)"
        )
    if twice := [name for name, count in Counter(header).items() if count > 1 and name]:
        raise AuroraError(f"{where}: the column {short(twice[0])} stands twice; keep one")
    return header
