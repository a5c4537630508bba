"""The adapter stands alone: what its modules import, read from their text."""

import ast
from pathlib import Path

import aurora_petl

ROOT = Path(aurora_petl.__file__).parent
FOLDER = ROOT / "adapter"
FILES = sorted(FOLDER.glob("**/*.py"))
NEIGHBOURS = {"errors.py", "files.py"}


def imported(path: Path, package: str) -> set[str]:
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


def own_imports(path: Path) -> set[str]:
    """The same of a file of this package."""
    return imported(path, ".".join(["aurora_petl", *path.relative_to(ROOT).parent.parts]))


def file_of(name: str) -> Path | None:
    """The file of this package that a name is or lies in."""
    parts = name.split(".")
    if parts[0] != "aurora_petl":
        return None
    while len(parts) > 1:
        path = ROOT.joinpath(*parts[1:])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
        parts.pop()
    return ROOT / "__init__.py"


def reached() -> set[Path]:
    """All files of this package that the adapter's imports lead to."""
    seen, waiting = set(), list(FILES)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += [file for name in own_imports(path) if (file := file_of(name)) is not None]
    return seen


def test_names_are_read_from_every_kind_of_import(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\ndef f():\n    from ..c import d\n    from . import e\n    from .g.h import i\n    from j import k"
    )
    expected = {"a.b", "aurora_petl.c.d", "aurora_petl.adapter.e", "aurora_petl.adapter.g.h.i", "j.k"}
    assert imported(path, "aurora_petl.adapter") == expected
    assert file_of("aurora_petl.adapter.model.AuroraModel") == FOLDER / "model.py"
    assert file_of("aurora_petl.adapter.AuroraModel") == FOLDER / "__init__.py"


def test_what_the_adapter_leads_to():
    assert reached() - set(FILES) == {ROOT / name for name in NEIGHBOURS}


def test_no_family_of_models_is_imported():
    names = {name for path in reached() for name in own_imports(path)}
    assert "torch.nn" in names  # names are there at all
    layers = "transformers.pytorch_utils."  # of no family
    assert not [n for n in names if (n.startswith("transformers") and not n.startswith(layers)) or "backbones" in n]


def test_the_table_of_targets_is_free_of_torch():
    standard = {"__future__", "collections", "typing"}
    assert {name.split(".")[0] for name in own_imports(FOLDER / "targets.py")} <= standard
