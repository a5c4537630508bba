"""A recipe: one dataclass that says what to train on what, read from YAML and overridden by ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .errors import AuroraError, short
from .fields import check, check_plain, choice, number, typed
from .files import read_text, write_text
from .tasks.settings import RetrievalSettings, TaskSettings, find_task
from .yaml_files import parse_yaml

PATHS = ("model", "data", "root")  # fields that may name a file or folder


@dataclass
class TrainSettings:
    """How to optimise. A run takes ``epochs`` passes over the training pairs, but at least ``min_steps`` steps; or
    ``max_steps`` steps, if that is positive."""

    learning_rate: float = number(1e-4, 1e-12, 10)
    head_learning_rate: float = number(0.0, 0, 10)  # of projections, ITM head and temperature; 0: the same
    batch_size: int = number(16, 2, 65_536)  # pairs a device, all of them if there are fewer; contrast needs two
    gradient_accumulation: int = number(1, 1, 65_536)
    gradient_checkpointing: bool = False  # keep each layer's input alone, compute the layer again going back
    epochs: float = number(4.0, 0, 10**6)
    max_steps: int = number(0, 0, 10**9)
    min_steps: int = number(1, 1, 10**9)
    warmup: float = number(0.0, 0, 1)  # share of the steps
    weight_decay: float = number(0.05, 0, 100)
    max_grad_norm: float = number(1.0, 0, 10**6)  # 0: gradients are not clipped
    precision: str = choice("auto", "fp32", "bf16", "fp16")  # auto is bf16 where the hardware computes in it
    seed: int = number(0, 0, 2**32 - 1)
    evaluations: int = number(4, 1, 10_000)  # on the validation split, evenly spread
    # best: the weights of the best evaluation | strength: the last weights, drawn back towards the untuned ones as far
    # as the validation split likes, all the way if it likes these best
    keep: str = choice("best", "strength")
    save_minutes: float = number(10.0, 0, 10**6)  # between two checkpoints at most; one is also written at evaluations
    workers: int = number(0, 0, 256)
    augment: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        check(self, "train.")
        if not self.max_steps and not self.epochs:
            raise AuroraError("train.epochs and train.max_steps are both zero; give one of them")


@dataclass
class Recipe:
    """Model, data, method and settings of one run."""

    model: str = "blip-mini"
    image_size: int = number(0, 0, 2048)  # pixels a side; 0: the model's own
    data: str = "fluent-flat"
    method: str = "aurora"
    method_options: dict[str, Any] = field(default_factory=dict)
    train_heads: bool = True  # projections, ITM head and temperature beside the adapter
    task: TaskSettings = field(default_factory=RetrievalSettings)  # task.name chooses which
    train: TrainSettings = field(default_factory=TrainSettings)
    root: str = ""  # folder of a benchmark
    files: dict[str, Any] = field(default_factory=dict)  # what a benchmark's folder calls otherwise: {train: my.json}
    broken: str = choice("stop", "skip")  # at pictures and clips that do not decode, or are missing from a benchmark
    about: str = ""
    needs: str = ""  # data and model that do not come with the package

    def __post_init__(self) -> None:
        check(self, "")
        for key, value in self.files.items():
            typed(value, str | list[str] | None, f"files.{key[:60]}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in the place of those that lead to a file or folder from here, so that a run can
    be resumed and evaluated from any folder. Names of embedded data and models, of benchmarks and of the hub stay;
    ``files`` are relative to the data's folder already."""
    from .backbones.base import embedded_models
    from .data import READERS, pack_names

    names = {"model": set(embedded_models()), "data": {*READERS, *pack_names()}, "root": set[str]()}
    made = dataclasses.replace(recipe)
    for name, taken in names.items():
        value = getattr(recipe, name)
        if value and value not in taken and Path(value).exists():
            setattr(made, name, str(Path(value).absolute()))
    return made


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("aurora_petl").joinpath("recipes").iterdir()
        if path.name.endswith(".yaml")
    )


def load_recipe(
    name_or_path: str | Path | None = None,
    overrides: list[str] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe by name or from a YAML file, with ``key=value`` overrides such as ``train.learning_rate=1e-3``.

    Args:
        fields: values of top fields, which win over the overrides' and are taken as they are, not read as YAML.

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
    if _other_task(values, overrides or []):
        values["task"] = {}
    for override in overrides or []:
        _override(values, override)
    return _build(Recipe, values | fields, where, "")


def _other_task(values: dict[str, Any], overrides: list[str]) -> bool:
    """Whether the overrides name another task than a recipe's own, whose fields would not fit."""
    task = values.get("task")
    own = task.get("name", RetrievalSettings.name) if isinstance(task, dict) else RetrievalSettings.name
    names = [override.removeprefix("task.name=") for override in overrides if override.startswith("task.name=")]
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


def _read(name: str) -> tuple[str, str]:
    if name in recipe_names():
        return files("aurora_petl").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_text(path), str(path)
    close = difflib.get_close_matches(name[:100], recipe_names(), 1)
    raise AuroraError(
        f"no recipe {short(name, 300)}: name one of {', '.join(recipe_names())} or a .yaml file"
        + (f"; did you mean {close[0]}?" if close else "")
    )


def _build(kind: type, values: dict[str, Any], where: str, prefix: str) -> Any:
    """A dataclass from a mapping, each value checked against the field's type."""
    hints = get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in hints:
            key = key[:60] if isinstance(key, str) else short(key)
            close = difflib.get_close_matches(key, hints, 1)
            raise AuroraError(
                f"{where}: there is no field {prefix}{key}; "
                + (f"did you mean {prefix}{close[0]}?" if close else f"fields are {', '.join(hints)}")
            )
        wanted, name = hints[key], f"{where}: {prefix}{key}"
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, dict):
                raise AuroraError(f"{name} is {short(value)}; it must be a mapping of fields")
            made[key] = _build(_settings(wanted, value, where), value, where, f"{prefix}{key}.")  # type: ignore[arg-type]
            continue
        if prefix or key not in PATHS:  # a path may hold bytes that are not UTF-8
            check_plain(value, name)
        made[key] = typed(value, wanted, name)
    try:
        return kind(**made)
    except AuroraError as error:
        raise AuroraError(f"{where}: {error}") from error


def _settings(wanted: Any, values: dict[str, Any], where: str) -> Any:
    if wanted is not TaskSettings:
        return wanted
    try:
        return find_task(values.get("name", RetrievalSettings.name))[0]
    except AuroraError as error:
        raise AuroraError(f"{where}: task.name: {error}") from error
