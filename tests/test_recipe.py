"""Recipes: reading, overriding, refusing, saving."""

import pytest

from aurora_petl.errors import AuroraError
from aurora_petl.recipe import Recipe, load_recipe, load_saved, located, recipe_names
from tests.helpers.recipes import refusal, written


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


def test_a_path_that_is_not_utf8_is_saved(tmp_path):
    recipe = load_recipe(None, None, {"data": "a\udcffb"})
    recipe.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


# Refusals


def test_unknown_recipe_suggests_a_near_one():
    message = refusal("emojis")
    assert message.startswith(f"no recipe 'emojis': name one of {', '.join(recipe_names())} or a .yaml file")
    assert message.endswith("; did you mean emoji?")
    assert "did you mean" not in refusal("zzzz")


def test_data_in_the_place_of_a_recipe_are_known(tmp_path):
    for name in (str(tmp_path), "fluent-flat", "shards/{00..03}.tar"):
        assert refusal(name) == f"'{name}' is no recipe but data; give it with --data"
    assert refusal("x" * 5000).startswith("no recipe 'xxx")


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
