"""A recipe: one dataclass that says what to train on what, read from YAML and overridden by ``key=value``."""

from __future__ import annotations

import dataclasses
import difflib
import math
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from .errors import AuroraError
from .files import write_text
from .tasks.settings import RetrievalSettings, TaskSettings, find_task


@dataclass
class TrainSettings:
    """How to optimise. ``epochs`` counts passes over the training pairs unless ``max_steps`` is positive."""

    learning_rate: float = 1e-4
    head_learning_rate: float = 0.0  # of projections, ITM head and temperature; 0: the same
    batch_size: int = 16  # pairs a device
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False  # keep each layer's input alone, compute the layer again going back
    epochs: float = 4.0
    max_steps: int = 0
    warmup: float = 0.0  # share of the steps
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    precision: str = "auto"  # auto | fp32 | bf16 | fp16; auto is bf16 where the hardware computes in it
    seed: int = 0
    evaluations: int = 4  # on the validation split, evenly spread; the best one is kept
    untuned_may_win: bool = False  # whether the weights of step 0 are a candidate for the best ones
    save_minutes: float = 10.0  # between two checkpoints at most; one is also written at every evaluation
    workers: int = 0
    augment: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation", "evaluations"):
            if getattr(self, name) < 1:
                raise AuroraError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size < 2:
            raise AuroraError("train.batch_size is 1; contrast needs at least 2 pairs a batch")
        if self.learning_rate <= 0:
            raise AuroraError(f"train.learning_rate is {self.learning_rate}; it must be positive")
        if self.head_learning_rate < 0:
            raise AuroraError(f"train.head_learning_rate is {self.head_learning_rate}; it must be positive, or 0")
        if self.max_steps <= 0 and self.epochs <= 0:
            raise AuroraError("train.epochs and train.max_steps are both zero; give one of them")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise AuroraError(f"train.precision is {self.precision!r}; choose auto, fp32, bf16 or fp16")


@dataclass
class Recipe:
    """Model, data, method and settings of one run."""

    model: str = "blip-mini"
    image_size: int = 0  # pixels a side; 0: the model's own
    data: str = "fluent-flat"
    method: str = "aurora"
    method_options: dict[str, Any] = field(default_factory=dict)
    train_heads: bool = True  # projections, ITM head and temperature beside the adapter
    task: TaskSettings = field(default_factory=RetrievalSettings)  # task.name chooses which
    train: TrainSettings = field(default_factory=TrainSettings)
    root: str = ""  # folder of a benchmark
    files: dict[str, Any] = field(default_factory=dict)  # what a benchmark's folder calls otherwise: {train: my.json}
    broken: str = "stop"  # stop | skip: at pictures and clips that do not decode, or are missing from a benchmark
    about: str = ""
    needs: str = ""  # data and model that do not come with the package

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Write as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(
        path.name.removesuffix(".yaml")
        for path in files("aurora_petl").joinpath("recipes").iterdir()
        if path.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str | Path | None = None, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name or from a YAML file, with ``key=value`` overrides such as ``train.learning_rate=1e-3``.

    Raises:
        AuroraError: if there is no such recipe, it is not YAML, or it names an unknown field or a wrong value.
    """
    values: dict[str, Any] = {}
    where = "recipe"
    if name_or_path is not None:
        text, where = _read(str(name_or_path))
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise AuroraError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise AuroraError(f"{where} holds a {type(values).__name__}; it must be a mapping of fields")
    for override in sorted(overrides or [], key=lambda text: not text.startswith("method=")):
        key, equals, value = override.partition("=")
        if not equals:
            raise AuroraError(f"override {override!r} is not of the form key=value, like train.learning_rate=1e-3")
        if key == "method":
            values["method_options"] = {}  # another method's options would not fit
        target = values
        *parents, last = key.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise AuroraError(f"override {override!r}: {parent} holds a value, not fields")
        try:
            target[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise AuroraError(f"override {override!r}: the value is not YAML") from error
    return _build(Recipe, values, where, "")


def _read(name: str) -> tuple[str, str]:
    if name in recipe_names():
        return files("aurora_petl").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise AuroraError(f"{path} is not UTF-8; save the file as UTF-8") from error
    close = difflib.get_close_matches(name, recipe_names(), 1)
    raise AuroraError(
        f"no recipe {name!r}: name one of {', '.join(recipe_names())} or a .yaml file"
        + (f"; did you mean {close[0]}?" if close else "")
    )


def _build(kind: type, values: dict[str, Any], where: str, prefix: str) -> Any:
    """A dataclass from a mapping, each value checked against the field's type."""
    hints = get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, 1)
            raise AuroraError(
                f"{where}: there is no field {prefix}{key}; "
                + (f"did you mean {prefix}{close[0]}?" if close else f"fields are {', '.join(hints)}")
            )
        wanted = hints[key]
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, dict):
                raise AuroraError(f"{where}: {prefix}{key} is {value!r}; it must be a mapping of fields")
            if wanted is TaskSettings:
                wanted, _ = find_task(value.get("name", RetrievalSettings.name))
            made[key] = _build(wanted, value, where, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            made[key] = _value(value, wanted, f"{where}: {prefix}{key}")
    return kind(**made)


def _value(value: Any, wanted: Any, where: str) -> Any:
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 1e-3 as text
    if isinstance(value, float) and not math.isfinite(value):
        raise AuroraError(f"{where} is {value}; it must be a finite number")
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    plain = wanted if isinstance(wanted, type) else dict
    if not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise AuroraError(f"{where} is {value!r}; it must be a {plain.__name__}")
    return value
