"""Tables that benchmarks write into pages of the documentation."""

from __future__ import annotations

from pathlib import Path

from aurora_petl.files import read_text, write_text


def insert(text: str, tables: str, marks: tuple[str, str]) -> str:
    """``text`` with the tables between two marks that stand in it."""
    before, first, rest = text.partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not (first and last):
        raise SystemExit(f"the page lacks the marks {marks[0]} and {marks[1]}")
    return f"{before}{first}\n\n{tables}\n\n{last}{after}"


def write_between(page: Path, tables: str, marks: tuple[str, str]) -> None:
    """Write the tables between the marks of a page."""
    write_text(page, insert(read_text(page), tables, marks))
