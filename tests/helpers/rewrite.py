"""Changing published tables in tests of what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_petl.data import load_dataset
from aurora_petl.errors import AuroraError


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Apply ``change`` to a JSON file's value, or to the list of a JSONL file's rows; it may change in place."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = change(rows) or rows
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        value = json.loads(path.read_text())
        path.write_text(json.dumps(change(value) or value))


def refusal(name: str, root: Path, files: dict[str, Any] | None = None, **options: Any) -> str:
    """The one line that refuses a benchmark's folder."""
    with pytest.raises(AuroraError) as caught:
        load_dataset(name, root, files, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
