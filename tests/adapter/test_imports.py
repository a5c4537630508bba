"""The adapter stands alone: what its modules import, read from their text."""

import ast
from pathlib import Path

import pytest

import aurora_petl.adapter

FOLDER = Path(aurora_petl.adapter.__file__).parent
ALLOWED = ("aurora_petl.adapter", "aurora_petl.errors", "aurora_petl.files")
FILES = sorted(FOLDER.glob("**/*.py"))


def imported(path: Path, package: str = "aurora_petl.adapter") -> set[str]:
    """Full names of all modules, and of what is taken from them, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_names_are_read_from_every_kind_of_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\ndef f():\n    from ..c import d\n    from . import e\n    from .g.h import i\n    from j import k"
    )
    expected = {"a.b", "aurora_petl.c.d", "aurora_petl.adapter.e", "aurora_petl.adapter.g.h.i", "j.k"}
    assert imported(path) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_family_of_models_is_imported(path):
    names = imported(path)
    assert not [name for name in names if name.split(".")[0] == "transformers"]
    ours = [name for name in names if name.split(".")[0] == "aurora_petl"]
    assert not [name for name in ours if not name.startswith(ALLOWED)]


def test_the_table_of_targets_is_free_of_torch():
    standard = {"__future__", "collections", "typing"}
    assert {name.split(".")[0] for name in imported(FOLDER / "targets.py")} <= standard


def test_files_are_there():
    assert {"targets.py", "additions.py", "model.py"} <= {path.name for path in FILES}
