"""Values of a recipe's fields: their ranges, and what is told of those of a wrong kind."""

import dataclasses
import re
from pathlib import Path

import pytest

from aurora_petl.fields import bounds, fields_of, shown
from aurora_petl.method_options import AuroraOptions
from aurora_petl.recipe import Recipe, TrainSettings, load_recipe
from aurora_petl.tasks.settings import RetrievalSettings, VQASettings
from tests.helpers.recipes import refusal, written

# Ranges

KINDS = {"": (Recipe,), "train.": (TrainSettings,), "task.": (VQASettings, RetrievalSettings)}
FIELDS = {
    f"{prefix}{field.name}": (kind, field)
    for prefix, kinds in KINDS.items()
    for kind in kinds
    for field in dataclasses.fields(kind)
}
RANGES = {name: ends for name, (kind, field) in FIELDS.items() if (ends := bounds(fields_of(kind)[field.name]))}
TASK = {name: [f"task.name={kind.name}"] if name.startswith("task.") else [] for name, (kind, _) in FIELDS.items()}


def test_every_number_has_a_range():
    numbers = {name for name, (_, field) in FIELDS.items() if field.type.removesuffix(" | None") in ("int", "float")}
    assert numbers == set(RANGES)
    assert all(bounds(field) for field in fields_of(AuroraOptions).values() if field.annotation in (int, float))


@pytest.mark.parametrize("name", RANGES)
def test_a_number_outside_its_range_is_refused_when_it_is_read(name):
    low, high = RANGES[name]
    for bound in (low, high):
        recipe = load_recipe(None, [*TASK[name], "train.max_steps=1", f"{name}={bound!r}"])
        section = {"": recipe, "train": recipe.train, "task": recipe.task}[name.rpartition(".")[0]]
        assert getattr(section, name.rpartition(".")[2]) == bound
    for outside in (low - 1, high + 1, 10**30):
        message = refusal(None, [*TASK[name], f"{name}={outside!r}"])
        assert message.startswith(f"recipe: {name} is ")
        assert message.endswith(f"; it must lie between {shown(low)} and {shown(high)}")


@pytest.mark.parametrize("value", [".nan", "nan", "NaN", ".inf", "-.inf", "Infinity", "1e999", "'-inf'"])
@pytest.mark.parametrize("name", ["train.learning_rate", "task.beta", "train.epochs"])
def test_numbers_are_finite_in_every_spelling(name, value):
    assert refusal(None, [f"{name}={value}"]).endswith("it must be a finite number")


def test_the_document_names_every_field_with_its_range():
    text = (Path(__file__).parents[1] / "docs/recipes.md").read_text("utf-8")
    rows = [
        line.split(" | ") for line in text.split("## Data")[0].splitlines() if line.startswith("| ") and "`" in line
    ]
    said = {name: cells for cells in rows for name in re.findall(r"`([\w.]+)`", cells[0])}
    assert set(FIELDS) - {"method", "train", "task"} <= set(said) | {"about", "needs", "train", "task"}
    for name, (low, high) in RANGES.items():
        place = re.findall(r"`([\w.]+)`", said[name][0]).index(name)
        spoken = said[name][2].split("; ")[place] if "; " in said[name][2] else said[name][2]
        assert spoken == f"{shown(low)} to {shown(high)}", name
    for name, field in fields_of(AuroraOptions).items():
        ends = bounds(field)
        assert name in said and (not ends or said[name][2] == f"{shown(ends[0])} to {shown(ends[1])}"), name


# Values of every other kind


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task={name: [1]}", "task.name: no task a list of 1; choose one of retrieval, vqa"),
        ("task={name: {a: 1}}", "task.name: no task a dict of 1"),
        ("task.name=null", "task.name: no task None"),
        ("task.name=retrival", "did you mean retrieval?"),
        ("files={foo: 3}", "files.foo is 3; it must be text or a list of texts or null"),
        ("files={1: x}", "files has the key 1; keys must be text"),
        ("method_options={1: x}", "method_options has the key 1; keys must be text"),
        ("method_options={2024-01-01: x}", "method_options has the key a date; keys must be text"),
        ("method_options.r=2024-01-01", "method_options.r is a date; write it as text, in quotes"),
        ("method_options.r=!!binary aGk=", "method_options.r is a bytes; write it as text"),
        ("method_options.r=!!set {a}", "method_options.r is a set of 1; write it as text"),
        ("method_options.scale=.nan", "method_options.scale is nan; it must be a finite number"),
        ("method_options.x=[[[[[[[[[[[[1]]]]]]]]]]]]", "method_options is nested too deeply"),
        ('about="\\ud83d"', "about holds what is no character"),
        ("data=2024-01-01", "data is a date; it must be text"),
        ("data={a: b}", "data is a dict of 1; it must be text"),
        ("train=null", "train is None; it must be a mapping of fields"),
        ("method_options=null", "method_options is None; it must be a mapping"),
        ("train.seed=" + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("train.seed=0x" + "f" * 5000, "train.seed is a number of 20,000 bits; it must lie between 0 and 4294967295"),
        (
            "train.learning_rate=0x" + "f" * 5000,
            "train.learning_rate is a number of 20,000 bits; it must lie between 1e-12 and 10",
        ),
        ("train.flip=1", "train.flip is 1; it must be true or false"),
        ("train.seed=yes", "train.seed is True; it must be a whole number"),
        ("data=[1", "the value of override 'data=[1' is not YAML"),
        ("data={a: 1, a: 2}", "the key 'a' stands twice"),
        ("task={name: vqa, k_test: 0}", "task.k_test is 0; it must lie between 1 and 1000000"),
        ("=x", "override '=x' is not of the form key=value"),
        ("a..b=1", "override 'a..b=1' is not of the form key=value"),
        ("train.=1", "override 'train.=1' is not of the form key=value"),
        (".a=1", "override '.a=1' is not of the form key=value"),
        ("", "override '' is not of the form key=value"),
        ("train.seed.x=1", "train.seed is a dict of 1; it must be a whole number"),
        ("a b=1", "there is no field a b; fields are"),
        (".".join("a" * 3000) + "=1", "there is no field a; fields are"),
        ("method_options." + ".".join("a" * 3000) + "=1", "is nested too deeply"),
        ("x" * 10**6 + "=1", "there is no field xxx"),
        ("about=[" + "x" * 10**6 + "]", "about is a list of 1; it must be text"),
    ],
)
def test_values_of_a_wrong_kind_are_one_short_line(override, message):
    said = refusal(None, [override])
    assert message in said and len(said) < 600


def test_a_key_with_blanks_around_it_and_a_hundred_overrides():
    recipe = load_recipe(None, [" train.seed = 3", *(f"train.max_steps={n}" for n in range(100))])
    assert (recipe.train.seed, recipe.train.max_steps) == (3, 99)


BOMB = "method_options:\n  a: &a [x, x, x, x, x]\n" + "".join(
    f"  {new}: &{new} [{', '.join([f'*{old}'] * 5)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: x\ndata: y\n", "the key 'data' stands twice, again in line 2; keep one"),
        ("train: {seed: 1, seed: 2}", "the key 'seed' stands twice"),
        (BOMB, "more than 10,000 values"),
        ("method_options: &a {x: *a}", "an alias stands inside of what it names"),
        ("[" * 5000, "nested too deeply"),
        ("about: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("2024-01-01: x", "there is no field a date"),
        ("? [a]\n: b", "is not YAML"),
        ("data: a\n---\ndata: b\n", "is not YAML"),
    ],
)
def test_files_of_a_wrong_kind_are_one_short_line(tmp_path, text, message):
    said = refusal(written(tmp_path / "mine.yaml", text))
    assert said.startswith(str(tmp_path / "mine.yaml")) and message in said and len(said) < 600


def test_aliases_that_unfold_to_little_are_read(tmp_path):
    text = "method_options:\n  fused_slices: &a {fc1: 4}\n  fused_columns: *a\n"
    assert load_recipe(written(tmp_path / "mine.yaml", text)).method_options["fused_columns"] == {"fc1": 4}


def test_fields_are_taken_as_they_are():
    recipe = load_recipe("emoji", ["method_options.r=5"], {"data": "a: [b 😀\udcff", "method": "lora"})
    assert (recipe.data, recipe.method, recipe.method_options) == ("a: [b 😀\udcff", "lora", {"r": 5})
