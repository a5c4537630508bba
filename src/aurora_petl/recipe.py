"""A recipe: settings that say what to train on what, read from YAML and overridden by ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from .errors import AuroraError, short
from .fields import CONFIG, Place, Plain, Settings, number
from .files import read_text, write_text
from .method_options import typed_options
from .tasks.settings import RetrievalSettings, TaskSettings, find_task
from .yaml_files import parse_yaml

RECIPES = Path(__file__).parent / "recipes"


@dataclass(config=CONFIG)
class TrainSettings(Settings):
    """How to optimise. A run takes ``epochs`` passes over the training pairs, but at least ``min_steps`` steps; or
    ``max_steps`` steps, if that is positive."""

    prefix: ClassVar[str] = "train."
    learning_rate: float = number(1e-4, 1e-12, 10)
    head_learning_rate: float = number(0.0, 0, 10)  # of projections, ITM head and temperature; 0: the same
    batch_size: int = number(16, 2, 65_536)  # pairs a device, all of them if there are fewer; contrast needs two
    gradient_accumulation: int = number(1, 1, 65_536)
    gradient_checkpointing: bool = False  # keep each layer's input alone, compute the layer again going back
    compile: bool = False  # by torch.compile, the loss of each shape of batch as one graph: minutes at the first steps
    max_train_samples: int = number(0, 0, 10**9)  # rows of the training split that the seed draws; 0: all of them
    epochs: float = number(4.0, 0, 10**6)
    max_steps: int = number(0, 0, 10**9)
    min_steps: int = number(1, 1, 10**9)
    warmup: float = number(0.0, 0, 1)  # share of the steps
    weight_decay: float = number(0.05, 0, 100)
    max_grad_norm: float = number(1.0, 0, 10**6)  # 0: gradients are not clipped
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto is bf16 where the hardware computes in it
    seed: int = number(0, 0, 2**32 - 1)
    evaluations: int = number(4, 1, 10_000)  # on the validation split, evenly spread
    patience: int = number(0, 0, 10_000)  # evaluations without a better one that end the training early; 0: none do
    # best: the weights of the best evaluation | last: those of the last step | strength: the last weights, drawn back
    # towards those that training began with as far as the validation split likes, all the way if it likes these best
    keep: Literal["best", "last", "strength"] = "best"
    # checkpoints that a finished run keeps: none, of the best evaluation, the last, all of them, or so many newest
    checkpoints: Literal["none", "best", "last", "all"] | Annotated[int, Field(ge=1, le=10_000)] = "none"
    # a finished run, or an adapter's folder or hub id, whose weights are the first ones; empty: the pretrained model's
    init_from: Place = ""
    save_minutes: float = number(10.0, 0, 10**6)  # between two checkpoints at most; one is also written at evaluations
    workers: int | None = number(None, 0, 256)  # processes that read pictures; None: see `data.loading.automatic`
    report_to: list[str] = field(default_factory=list)  # trackers, as transformers' Trainer has them: wandb, ...
    augment: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.max_steps and not self.epochs:
            raise AuroraError("train.epochs and train.max_steps are both zero; give one of them")


@dataclass(config=CONFIG)
class Recipe(Settings):
    """Model, data, method and settings of one run."""

    model: Place = "blip-mini"
    image_size: int = number(0, 0, 2048)  # pixels a side; 0: the model's own
    data: Place = "fluent-flat"
    method: str = "aurora"
    method_options: dict[str, Plain] = field(default_factory=dict)  # see `AuroraOptions`
    train_heads: bool = True  # projections, ITM head and temperature beside the adapter
    task: TaskSettings = field(default_factory=RetrievalSettings)  # task.name chooses which
    train: TrainSettings = field(default_factory=TrainSettings)
    root: Place = ""  # folder of a benchmark, or the one that the names of own pictures are relative to
    # what a benchmark's folder calls otherwise, {train: my.json}, or how own data are read, {caption_column: text}
    files: dict[str, str | list[str] | None] = field(default_factory=dict)
    # at pictures and clips that do not decode, or are missing from a benchmark
    broken: Literal["stop", "skip"] = "stop"
    about: str = ""
    needs: str = ""  # data and model that do not come with the package

    def __post_init__(self) -> None:
        self.method_options = typed_options(self.method, self.method_options)
        if getattr(self.task, "chunk_size", 0) and self.train.gradient_checkpointing:
            raise AuroraError(
                "task.chunk_size and train.gradient_checkpointing both compute layers twice; leave one out"
            )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in the place of those that lead to a file or folder from here, so that a run can
    be resumed and evaluated from any folder. Names of embedded data and models, of benchmarks and of the hub stay;
    ``files`` are relative to the data's folder already."""
    from .backbones.load import embedded_models
    from .data import READERS, is_pattern, pack_names

    names = {"model": set(embedded_models()), "data": {*READERS, *pack_names()}, "root": set[str]()}
    made = dataclasses.replace(recipe)
    for name, taken in names.items():
        value = getattr(recipe, name)
        if value and value not in taken and (Path(value).exists() or (name == "data" and is_pattern(value))):
            setattr(made, name, str(Path(value).absolute()))
    if (start := recipe.train.init_from) and Path(start).is_dir():
        made.train = dataclasses.replace(recipe.train, init_from=str(Path(start).absolute()))
    return made


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(
    name_or_path: str | Path | None = None,
    overrides: list[str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe by name or from a YAML file, with ``key=value`` overrides such as ``train.learning_rate=1e-3``.

    Args:
        fields: values of top fields, which win over the overrides' and are taken as they are, not read as YAML. Of a
            section, such as ``train``, they may name some fields alone.

    Raises:
        AuroraError: if there is no such recipe, it is not YAML, or it names an unknown field or a wrong value.
    """
    values: dict[str, Any] = {}
    where = "recipe"
    if name_or_path is not None:
        text, where = _read(str(name_or_path))
        values = parse_yaml(text, where)
        if not values and (values is None or isinstance(values, dict)):
            raise AuroraError(f"{where} is empty; write the fields of a recipe, such as data, or name another recipe")
        if not isinstance(values, dict):
            raise AuroraError(f"{where} is {short(values)}; it must be a mapping of fields")
    fields = dict(fields or {})
    if "method" in fields or any(override.startswith("method=") for override in overrides or []):
        values["method_options"] = {}  # another method's options would not fit
    if _other_task(values, overrides or [], fields.get("task")):
        values["task"] = {}
    for override in overrides or []:
        _override(values, override)
    try:
        return _made(_merged(values, fields))
    except AuroraError as error:
        raise AuroraError(f"{where}: {error}") from error


def load_own(overrides: list[str] | None = None, fields: Mapping[str, Any] | None = None) -> tuple[str, Recipe]:
    """The name of the recipe for one's own pictures with the model that the arguments name, and what they make of it.

    Raises:
        AuroraError: see `load_recipe`, or if there is no such model.
    """
    name = "photos-mini"
    recipe = load_recipe(name, overrides, fields)
    if recipe.model != "blip-mini":
        from .backbones.load import find_family  # and PyTorch

        name = find_family(recipe.model).recipe
        recipe = load_recipe(name, overrides, fields)
    return name, recipe


def default_name(name: str) -> str:
    """What a run is called by default: after its recipe or its data, of a pattern of files after their folder."""
    path = Path(name)
    return path.parent.name or "shards" if any(mark in path.name for mark in "{*?[") else path.stem


def load_saved(path: Path) -> Recipe:
    """The recipe that a run left in its folder, which has every field.

    Raises:
        AuroraError: if it is not whole, or see `load_recipe`.
    """
    recipe, values = load_recipe(path), parse_yaml(read_text(path), str(path))
    if lacking := [field.name for field in dataclasses.fields(Recipe) if field.name not in values]:
        raise AuroraError(f"{path} is not whole: it has no {lacking[0]}; copy the run's folder again, or train anew")
    return recipe


def _merged(values: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of ``fields`` in their place, inside of sections too."""
    made = dict(values)
    for name, value in fields.items():
        own = made.get(name)
        made[name] = {**own, **value} if isinstance(own, dict) and isinstance(value, Mapping) else value
    return made


def _other_task(values: dict[str, Any], overrides: list[str], given: Any = None) -> bool:
    """Whether the overrides or the fields of a task name another one than a recipe's own, whose fields would not
    fit."""
    task = values.get("task")
    own = task.get("name", RetrievalSettings.name) if isinstance(task, dict) else RetrievalSettings.name
    names = [override.removeprefix("task.name=") for override in overrides if override.startswith("task.name=")]
    names += [str(given["name"])] if isinstance(given, Mapping) and "name" in given else []
    return bool(names) and isinstance(task, dict) and names[-1].strip() != own


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise AuroraError(f"override {short(override)} is not of the form key=value, like train.learning_rate=1e-3")
    target = values
    for depth, name in enumerate(names[:-1], 1):
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise AuroraError(
                f"override {short(override)}: {short('.'.join(names[:depth]))[1:-1]} holds a value, not fields"
            )
    target[names[-1]] = parse_yaml(value, f"the value of override {short(override)}")


def _is_data(name: str) -> bool:
    """Whether shards, a pack or a benchmark are called so."""
    from .data import READERS, is_pattern, pack_names  # needed in a refusal alone, and PyTorch with it

    return is_pattern(name) or name in (*pack_names(), *READERS)


def _read(name: str) -> tuple[str, str]:
    if name in recipe_names():
        return read_text(RECIPES / f"{name}.yaml"), f"recipe {name}"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_text(path), str(path)
    close = difflib.get_close_matches(name[:100], recipe_names(), 1)
    if path.suffix not in (".yaml", ".yml") and (os.path.exists(name) or (not close and _is_data(name))):
        raise AuroraError(f"{short(name, 300)} is no recipe but data; give it with --data")
    raise AuroraError(
        f"no recipe {short(name, 300)}: name one of {', '.join(recipe_names())} or a .yaml file"
        + (f"; did you mean {close[0]}?" if close else "")
    )


def _made(values: dict[str, Any]) -> Recipe:
    """The recipe of nested values, such as YAML gives."""
    sections = {name: values[name] for name in ("train", "task") if isinstance(values.get(name), dict)}
    if "train" in sections:
        sections["train"] = TrainSettings(**_named(sections["train"]))
    if "task" in sections:
        try:
            kind, _ = find_task(sections["task"].get("name", RetrievalSettings.name))
        except AuroraError as error:
            raise AuroraError(f"task.name: {error}") from error
        sections["task"] = kind(**_named(sections["task"]))
    return Recipe(**_named(values | sections))


def _named(values: dict[Any, Any]) -> dict[str, Any]:
    """The values under names that are text, which Python demands: no field is called ``1`` or ``a date``."""
    return {key if isinstance(key, str) else short(key): value for key, value in values.items()}
