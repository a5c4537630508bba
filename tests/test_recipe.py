"""Recipes: reading, overriding, refusing, saving."""

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from peft import PeftConfig

from aurora_petl.adapter import BIASES, CONTEXTS, CORES, GATES, AuroraConfig
from aurora_petl.checks import check
from aurora_petl.errors import AuroraError
from aurora_petl.fields import bounds, fields_of, shown
from aurora_petl.method_options import MOST_RANK, AuroraOptions
from aurora_petl.recipe import Recipe, TrainSettings, load_recipe, load_saved, located, recipe_names
from aurora_petl.tasks.settings import RetrievalSettings, VQASettings


def refusal(*arguments) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        load_recipe(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.about and recipe.model
    assert recipe.method == ("zero-shot" if name.endswith("-zero-shot") else "aurora")


def test_recipe_by_name():
    recipe = load_recipe("emoji")
    assert (recipe.model, recipe.data) == ("blip-mini", "fluent-contrast")
    assert recipe.method_options == {
        "r": 64,
        "target_modules": ["qkv", "query", "key", "value", "projection", "fc1", "fc2"],
        "fused_slices": {"fc1": 4},
        "fused_columns": {"fc2": 4},
        "context": "batch",
        "gate": "scale_shift",
    }
    assert (recipe.task.beta, recipe.train.head_learning_rate, recipe.train.augment) == (20.0, 1e-3, False)
    assert recipe.task.itm_weight == 1.0  # what the file leaves out keeps its default


def test_nothing_is_the_defaults():
    assert load_recipe() == Recipe()


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_recipe_from_a_file(tmp_path, suffix):
    path = written(tmp_path / f"mine{suffix}", "data: here\ntrain: {learning_rate: 1e-3, epochs: 2}\n")
    recipe = load_recipe(path)
    assert recipe.data == "here"
    assert recipe.train.learning_rate == 1e-3 and isinstance(recipe.train.epochs, float)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n"])
def test_an_empty_file_is_not_the_defaults(tmp_path, text):
    path = written(tmp_path / "empty.yaml", text)
    assert refusal(path).startswith(f"{path} is empty; ")


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3),
        ("train.learning_rate=2", "train", "learning_rate", 2.0),
        ("train.epochs=0.5", "train", "epochs", 0.5),
        ("train.batch_size=8", "train", "batch_size", 8),
        ("train.batch_size=8.0", "train", "batch_size", 8),
        ("train.flip=false", "train", "flip", False),
        ("train.augment=no", "train", "augment", False),
        ("train.precision=bf16", "train", "precision", "bf16"),
        ("task.queue_size=0", "task", "queue_size", 0),
        ("task.beta=1", "task", "beta", 1.0),
    ],
)
def test_an_override_takes_the_type_of_its_field(override, section, field, value):
    found = getattr(getattr(load_recipe("emoji", [override]), section), field)
    assert found == value and type(found) is type(value)


def test_overrides_of_the_top_and_of_options():
    recipe = load_recipe(
        "emoji", ["data=a=b", "method=lora", "train_heads=false", "method_options.r=5", "method_options.lora_alpha=2"]
    )
    assert (recipe.data, recipe.method, recipe.train_heads) == ("a=b", "lora", False)
    assert recipe.method_options == {"r": 5, "lora_alpha": 2.0}


def test_the_last_override_of_a_field_wins_and_the_package_is_unchanged():
    assert load_recipe("emoji", ["train.seed=1", "train.seed=2"]).train.seed == 2
    assert load_recipe("emoji").train.seed == 0


def test_saved_and_loaded_is_the_same(tmp_path):
    recipe = load_recipe(
        "emoji",
        ["about='Größe: 猫 #1'", "train.learning_rate=1e-5", "data='007'", "method_options.layers_to_transform=[1]"],
    )
    path = tmp_path / "recipe.yaml"
    recipe.save(path)
    assert load_recipe(path) == recipe
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
    assert "猫" in path.read_text("utf-8")


# Refusals


def test_unknown_recipe_suggests_a_near_one():
    message = refusal("emojis")
    assert message.startswith(f"no recipe 'emojis': name one of {', '.join(recipe_names())} or a .yaml file")
    assert message.endswith("; did you mean emoji?")
    assert "did you mean" not in refusal("zzzz")


def test_a_recipe_file_that_is_not_there(tmp_path):
    assert f"no recipe '{tmp_path / 'gone.yaml'}'" in refusal(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.learning_rat=1",
            "recipe emoji: there is no field train.learning_rat; did you mean train.learning_rate?",
        ),
        ("max_steps=3", "recipe emoji: there is no field max_steps; did you mean train.max_steps?"),
        ("modle=x", "recipe emoji: there is no field modle; did you mean model?"),
        ("task.k_tst=1", "recipe emoji: there is no field task.k_tst; did you mean task.k_test?"),
        ("train.learning_rate=fast", "recipe emoji: train.learning_rate is 'fast'; it must be a number"),
        ("train.learning_rate=true", "recipe emoji: train.learning_rate is True; it must be a number"),
        ("train.learning_rate=.nan", "recipe emoji: train.learning_rate is nan; it must be a finite number"),
        ("train.epochs=inf", "recipe emoji: train.epochs is inf; it must be a finite number"),
        ("train.batch_size=2.5", "recipe emoji: train.batch_size is 2.5; it must be a whole number"),
        ("train.batch_size=true", "recipe emoji: train.batch_size is True; it must be a whole number"),
        ("train.flip=1", "recipe emoji: train.flip is 1; it must be true or false"),
        ("data=7", "recipe emoji: data is 7; it must be text"),
        ("data=", "recipe emoji: data is None; it must be text"),
        ("method_options=5", "recipe emoji: method_options is 5; it must be a mapping"),
        ("train=5", "recipe emoji: train is 5; it must be a mapping of fields"),
        ("train.batch_size=0", "recipe emoji: train.batch_size is 0; it must lie between 2 and 65536"),
        ("train.batch_size=1", "recipe emoji: train.batch_size is 1; it must lie between 2 and 65536"),
        ("train.evaluations=0", "recipe emoji: train.evaluations is 0; it must lie between 1 and 10000"),
        ("train.learning_rate=-1", "recipe emoji: train.learning_rate is -1; it must lie between 1e-12 and 10"),
        ("train.precision=int8", "recipe emoji: train.precision is 'int8'; choose auto, fp32, bf16 or fp16"),
        ("task.momentum=1.5", "recipe emoji: task.momentum is 1.5; it must lie between 0 and 1"),
        ("task.k_test=-1", "recipe emoji: task.k_test is -1; it must lie between 0 and 1000000"),
        ("data", "override 'data' is not of the form key=value, like train.learning_rate=1e-3"),
        ("data.x=1", "override 'data.x=1': data holds a value, not fields"),
    ],
)
def test_a_wrong_override_says_what_is_wrong(override, message):
    assert refusal("emoji", [override]) == message


def test_an_unknown_field_with_nothing_near_lists_the_fields():
    message = refusal("emoji", ["zzzz=1"])
    assert message.startswith(
        "recipe emoji: there is no field zzzz; fields are model, image_size, data, method, method_options"
    )


def test_neither_epochs_nor_steps():
    assert (
        refusal(None, ["train.epochs=0"]) == "recipe: train.epochs and train.max_steps are both zero; give one of them"
    )
    assert load_recipe(None, ["train.epochs=0", "train.max_steps=5"]).train.max_steps == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model: [1", "is not YAML: "),
        ("model: 'x\ndata: y", "is not YAML: "),
        ("- model", "is a list of 1; it must be a mapping of fields"),
        ("words", "is 'words'; it must be a mapping of fields"),
        ("trian: {}", "there is no field trian; did you mean train?"),
        ("train:", "train is None; it must be a mapping of fields"),
        ("1: x", "there is no field 1; fields are"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, found):
    path = written(tmp_path / "mine.yaml", text)
    message = refusal(path)
    assert message.startswith(str(path)) and found in message


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("about: Größe".encode("latin-1"))
    assert refusal(path) == f"{path}, line 1: not UTF-8; save the file as UTF-8"


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


def test_a_path_that_is_not_utf8_is_saved(tmp_path):
    recipe = load_recipe(None, None, {"data": "a\udcffb"})
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


# Options of the method


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("method_options.r=1000000000", f"method_options.r is 1000000000; it must lie between 1 and {MOST_RANK}"),
        ("method_options.r=1e9", "method_options.r is '1e9'; it must be a whole number"),
        (
            "method_options.lora_dropout=-1 method=lora",
            "method_options.lora_dropout is -1; it must lie between 0 and 0.999",
        ),
        ("method_options.rr=5", "method aurora has no field method_options.rr; did you mean method_options.r?"),
        ("method_options.init_weights=maybe", "method_options.init_weights is 'maybe'; it must be true or false"),
        ("method_options.target_modules=(", "'(' is no regular expression"),
        ("method_options.target_modules=[1]", "it must be a list of texts or text or null"),
        ("method_options.fused_slices={'(': 3}", "'(' is no regular expression"),
        (
            "method_options.fused_slices={fc1: 0}",
            "method_options.fused_slices.fc1 is 0; it must be greater than or equal to 1",
        ),
        ("method_options.fused_slices={fc1: x}", "fused_slices.fc1 is 'x'; it must be a whole number"),
        (
            "method_options.layers_to_transform=[2,-1]",
            "layers_to_transform is -1; it must be greater than or equal to 0",
        ),
        (
            "method_options.layers_to_transform=x",
            "is 'x'; it must be a list of whole numbers or a whole number or null",
        ),
        ("method_options.dropout=1", "method_options.dropout is 1; it must lie between 0 and 0.999"),
        ("method_options.context=bach", "method_options.context is 'bach'; choose batch or released"),
        ("method_options.core=[x]", "method_options.core is a list of 1; choose diagonal or full"),
        ("method_options.task_type=x", "method aurora has no field method_options.task_type"),
        (
            "method=lora method_options.alpha=2",
            "method lora has no field method_options.alpha; did you mean method_options.lora_alpha?",
        ),
        ("method=lora method_options.bias=zz", "method_options.bias is 'zz'; choose none, all or lora_only"),
        ("method=heads method_options.r=8", "method heads takes no method_options, got r"),
        ("method=vera method_options.projection_prng_key=-1", "projection_prng_key is -1; it must lie between 0 and"),
        ("method=lora method_options.lora_dropout=.nan", "method_options.lora_dropout is nan; it must be a finite"),
        ("method=lora method_options.init_lora_weights=pissa_niter_x", "method_options.init_lora_weights is 'pissa_"),
        ("method=lorra", "no method 'lorra'; did you mean lora?"),
        ("method=zzz", "no method 'zzz'; choose one of aurora, lora"),
    ],
)
def test_options_are_refused_when_they_are_read(overrides, message):
    assert message in refusal(None, re.split(r" (?=[\w.]+=)", overrides))


CHOICES = {"core": {*CORES}, "bias": {*BIASES}, "context": {*CONTEXTS, type(None)}, "gate": {*GATES, type(None)}}


def leaves(hint) -> set:
    """What a hint allows, the choices of a Literal one by one."""
    return {leaf for part in get_args(hint) for leaf in leaves(part)} or {hint}


def test_options_of_aurora_are_the_fields_of_its_configuration():
    common = {field.name for field in dataclasses.fields(PeftConfig)}
    own = [field for field in dataclasses.fields(AuroraConfig) if field.name not in common]
    assert [field.name for field in dataclasses.fields(AuroraOptions)] == [field.name for field in own]
    read, hints = get_type_hints(AuroraOptions), get_type_hints(AuroraConfig)
    for field in own:
        assert getattr(AuroraOptions(), field.name) == field.default
        if field.name in CHOICES:
            assert leaves(read[field.name]) == CHOICES[field.name]
        else:
            assert read[field.name] == hints[field.name]


# Against the model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("method_options.target_modules=[zz]", "matched no module"),
        ("method_options.modules_to_save=[nothing]", "blip-mini has no 'nothing'; there are itm_head, temperature"),
        ("method_options.modules_to_save=[itm_hed]", "blip-mini has no 'itm_hed'; did you mean itm_head?"),
        ("method=lora method_options.megatron_config={a: b}", "method lora refuses method_options: No module named"),
        ("method=vera method_options.bias=zz", "method vera refuses method_options"),
        ("task.max_tokens=400", "task.max_tokens is 400; blip-mini has places for 64 tokens"),
        ("task.name=vqa task.max_answer_tokens=65", "task.max_answer_tokens is 65; blip-mini has places for 64"),
        ("image_size=17", "image_size is 17, which patches of 12 pixels do not fill"),
        ("files={foo: x}", "files has no key 'foo'"),
    ],
)
def test_what_does_not_fit_the_model_is_told_before_data_are_read(overrides, message):
    words = re.split(r" (?=[\w.]+=)", overrides)
    with pytest.raises(AuroraError) as caught:
        check(load_recipe(None, ["data=nowhere", *words]))
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "overrides",
    [
        "method=lora method_options.lora_alpha=1.5",
        "method=lora method_options.init_lora_weights=pissa_niter_4",
        "method=vera method_options.d_initial=1e-3",
        "method_options.modules_to_save=[proj]",
        "method_options.layers_to_transform=[1,2]",
        "method=full",
        "method=zero-shot",
        "task.max_tokens=64",
    ],
)
def test_what_fits_passes(overrides):
    check(load_recipe(None, ["data=nowhere", *re.split(r" (?=[\w.]+=)", overrides)]))


# Places


def test_local_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "model", "bench", "coco", "fluent-flat"):
        (tmp_path / name).mkdir()
    own = located(load_recipe(None, None, {"data": "photos", "model": "./model"}))
    assert (own.data, own.model, own.root) == (str(tmp_path / "photos"), str(tmp_path / "model"), "")
    bench = located(load_recipe(None, None, {"data": "coco", "root": "bench", "model": "Salesforce/x"}))
    assert (bench.data, bench.root, bench.model) == ("coco", str(tmp_path / "bench"), "Salesforce/x")
    assert located(load_recipe(None)).data == "fluent-flat"  # also a folder here, but the name comes first
    assert located(load_recipe(None, None, {"data": "gone"})).data == "gone"
    assert located(load_recipe("photos")).data == ""


def test_a_runs_recipe_is_whole(tmp_path):
    load_recipe("emoji").save(tmp_path / "recipe.yaml")
    assert load_saved(tmp_path / "recipe.yaml") == load_recipe("emoji")
    text = (tmp_path / "recipe.yaml").read_text("utf-8")
    (tmp_path / "recipe.yaml").write_text(text[: text.index("train:")], "utf-8")
    with pytest.raises(AuroraError, match=r"recipe.yaml is not whole: it has no train; copy the run's folder again"):
        load_saved(tmp_path / "recipe.yaml")
