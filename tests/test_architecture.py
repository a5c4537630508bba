"""The order of the rooms: no import leads up, none goes round, and no file is longer than a reader holds in mind."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "aurora_petl"
LONGEST = 400  # lines
LEVELS = [  # from the ground up; a room imports what stands before it, and its own level
    {"errors", "files", "locks", "interrupts", "kept", "notes", "yaml_files", "stopping", "fields"},
    {"distributed", "devices", "checkpoints"},
    {"adapter"},
    {"data"},
    {"backbones"},
    {"methods", "method_options", "baselines"},
    {"evaluation"},
    {"tasks"},
    {"recipe", "warm_start", "checks", "selection"},
    {"report"},
    {"examples", "train_arguments", "trainer", "trainer_callbacks", "measuring", "plan", "run_folder"},
    {"run_model"},
    {"training", "scoring"},
    {"search"},
    {"model", "api", "export", "features", "sentences", "sharing"},
    {"rate_search", "compare", "demo", "terminal", "search_arguments", "arguments", "commands", "cli"},
]


def modules():
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imports(name, path, known):
    """The modules of the package that a module imports, those included that only types need."""
    tree = ast.parse(path.read_text("utf-8"))
    here = name.split(".") if name else []
    if path.name != "__init__.py":
        here = here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*start, alias.name])
                yield whole if whole in known else ".".join(start)


@pytest.fixture(scope="module")
def edges():
    known = dict(modules())
    return {name: set(imports(name, path, known)) - {name} for name, path in known.items()}


def test_no_import_leads_up(edges):
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    rooms = {name.partition(".")[0] for name in edges if name}
    assert rooms == set(level)
    up = [
        (name, other)
        for name, others in edges.items()
        for other in others
        if name and other and level[other.partition(".")[0]] > level[name.partition(".")[0]]
    ]
    assert up == []


def test_no_import_goes_round(edges):
    def reached(start):
        seen, waiting = set(), [start]
        while waiting:
            for other in edges.get(waiting.pop(), ()):
                if other and other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    assert [name for name in edges if name and name in reached(name)] == []


def test_no_file_is_too_long():
    long = {name: lines for name, path in modules() if (lines := len(path.read_text("utf-8").splitlines())) > LONGEST}
    assert long == {}
