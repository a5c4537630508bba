"""Warm start: a training that begins with the weights that another run, or a shared adapter, ended with.

The two must fit: the same pretrained model, method and places of weights. What differs is named in one line. A run
keeps a copy of the weights that it began with, so that it is resumed and scored whatever becomes of the other one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backbones import Tunable
from .backbones.hub import RUN, fetch_adapter, is_hub_id
from .baselines import (
    PARAMETERS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    WEIGHTS,
    Saved,
    is_head,
    own_weights,
    put_weights,
    read_saved,
)
from .errors import AuroraError, short
from .files import read_json, whole_folder
from .methods import find_method
from .recipe import Recipe, load_saved

START = "start"  # the folder of a run that holds what it began with
FIELD = "train.init_from"
METRICS, ADAPTER = "metrics.json", "adapter"
SAMPLES = 64  # values of a weight that a fingerprint looks at
POSITIONS = ("pos_embed", "position_embedding")  # in names of weights that are another size for another image_size
# of a method's configuration, what does not change what its weights do, or shows in their names and shapes
FREE = {
    *("base_model_name_or_path", "revision", "peft_version", "task_type", "auto_mapping", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias"),
    *("runtime_config", "save_projection", "ephemeral_gpu_offload", "low_cpu_mem_usage"),
}


@dataclass(frozen=True)
class Source:
    """Where a training takes its first weights from.

    Args:
        name: as the recipe names it.
        folder: which holds the weights.
        recipe: of the run that trained them; None of an adapter alone.
        fingerprint: of the pretrained model that they were trained in; empty if nobody noted it.
    """

    name: str
    folder: Path
    recipe: Recipe | None = None
    fingerprint: str = ""


def source_of(recipe: Recipe, folder: Path | None = None) -> Source | None:
    """The source that a recipe names, None if it names none. A run that began already, in ``folder``, has a copy.

    Raises:
        AuroraError: if there is no finished run and no adapter.
    """
    name = recipe.train.init_from
    if not name:
        return None
    if not find_method(recipe.method).learns:
        raise AuroraError(f"{FIELD}: method {recipe.method} trains nothing; leave one of them out")
    if folder is not None and (folder / START).is_dir():
        return Source(name, folder / START)
    place = Path(name)
    if not place.is_dir():
        if place.exists() or not is_hub_id(name):
            raise AuroraError(f"{FIELD}: there is no folder {short(name, 300)}; name a finished run, or an adapter's")
        place = fetch_adapter(name)
    run, metrics = place / RUN, {}
    weights = place / ADAPTER if (place / ADAPTER).is_dir() else place
    if not any((weights / file).is_file() for file in (PEFT_WEIGHTS, WEIGHTS)):
        what = "holds a run that is not finished; train it to its end" if run.is_file() else "holds no adapter"
        raise AuroraError(f"{FIELD}: {place} {what}, or name another folder")
    if (place / METRICS).is_file():
        content = read_json(place / METRICS)
        metrics = content if isinstance(content, dict) else {}
    own = load_saved(run) if run.is_file() else None
    return Source(name, weights, own, str(metrics.get("backbone", "")))


def check_fit(recipe: Recipe, backbone: Tunable, source: Source, fingerprint: str = "") -> None:
    """Make sure that the weights of a source have their places in a backbone to which the recipe's method was applied;
    it may lie on the meta device.

    Args:
        fingerprint: of the backbone, where it is known.

    Raises:
        AuroraError: which says what differs.
    """
    other = source.recipe
    if other is not None:
        facts = {"task.name": (other.task.name, recipe.task.name), "method": (other.method, recipe.method)}
        for field, (theirs, ours) in facts.items():
            if theirs != ours:
                raise _differs(source, {field: (theirs, ours)})
    if fingerprint and source.fingerprint and fingerprint != source.fingerprint:
        model = f"model {other.model}" if other else "another model"
        raise AuroraError(
            f"{FIELD}: {source.name} was trained in {model}, whose weights are not those of {recipe.model} (their "
            "digests differ); set model to that"
        )
    saved = _read(source, recipe.method, backbone.name)
    _compare_options(source, saved, backbone)
    _compare_weights(source, saved, backbone, own_weights(backbone, recipe.method))


def take_over(backbone: Tunable, source: Source, method: str) -> None:
    """Put the weights of a source, which fit, into a backbone to which the method was applied; they go on training."""
    put_weights(backbone, method, _read(source, method, backbone.name))


def copy_start(source: Source, folder: Path) -> None:
    """Keep the weights of a source in the folder of the run that begins with them."""
    if (folder / START).is_dir():
        return
    with whole_folder(folder / START) as partial:
        for name in (PEFT_WEIGHTS, PEFT_CONFIG, PARAMETERS, WEIGHTS):
            if (source.folder / name).is_file():
                (partial / name).write_bytes((source.folder / name).read_bytes())


def fingerprint(backbone: Tunable) -> str:
    """A digest of a pretrained model, before a method is applied to it: names of weights and some values of each, as
    bfloat16, so that neither the type that it is loaded in nor the size of pictures matters."""
    made = hashlib.sha256()
    for name, weight in sorted(backbone.model.named_parameters()):
        if weight.is_floating_point() and not any(part in name for part in POSITIONS):
            values = weight.detach().reshape(-1)
            places = torch.linspace(0, len(values) - 1, min(SAMPLES, len(values)), dtype=torch.float64).long()
            taken = values[places.to(values.device)].to(torch.bfloat16).cpu().view(torch.uint8)
            made.update(json.dumps([name, list(weight.shape)]).encode() + taken.numpy().tobytes())
    return made.hexdigest()


def _read(source: Source, method: str, name: str) -> Saved:
    file = PEFT_WEIGHTS if find_method(method).config else WEIGHTS
    if not (source.folder / file).is_file():
        raise AuroraError(f"{FIELD}: {source.name} was not trained by method {method}; set method to the one that was")
    return read_saved(source.folder, method, name, f"set method to the one of {source.name}")


def _differs(source: Source, fields: Mapping[str, tuple[Any, Any]]) -> AuroraError:
    """An error that names fields with their values in the source and in the recipe."""
    told = [f"{name} {short(theirs, 80)} (this recipe {short(ours, 80)})" for name, (theirs, ours) in fields.items()]
    mend = " ".join(f"{name}={_spelled(theirs)}" for name, (theirs, _) in fields.items())
    return AuroraError(f"{FIELD}: {source.name} has {', '.join(told)}; give {mend}")


def _spelled(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _compare_options(source: Source, saved: Saved, backbone: Tunable) -> None:
    """Options that change what weights do, such as a rank or a scale."""
    if saved.config is None or backbone.adapter is None:
        return
    theirs, ours = (_plain(config.to_dict()) for config in (saved.config, backbone.adapter.peft_config["default"]))
    both = sorted(theirs.keys() & ours.keys() - FREE, key=lambda field: (field != "r", field))
    same = [field for field in both if "dropout" not in field and not field.startswith("init_")]
    if odd := {f"method_options.{f}": (theirs[f], ours[f]) for f in same if theirs[f] != ours[f]}:
        raise _differs(source, odd)


def _compare_weights(source: Source, saved: Saved, backbone: Tunable, own: Mapping[str, Tensor]) -> None:
    theirs = saved.weights | saved.heads
    for name in sorted(theirs.keys() ^ own.keys()):
        has, lacks = (source.name, "this recipe") if name in theirs else ("this recipe", source.name)
        fields = "train_heads" if is_head(backbone, name) else "method_options.target_modules and modules_to_save"
        raise AuroraError(f"{FIELD}: {has} trains {short(name, 200)}, {lacks} does not; give both the same {fields}")
    for name, value in theirs.items():
        if value.shape != own[name].shape:
            raise AuroraError(
                f"{FIELD}: {name} of {source.name} is {tuple(value.shape)}, and {tuple(own[name].shape)} in "
                f"{backbone.name}; set model to the one that it was trained in"
            )


def _plain(value: Any) -> Any:
    """A value as JSON has it, so that sets and lists, enums and their names are equal."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        parts = [_plain(part) for part in value]
        return sorted(parts, key=str) if isinstance(value, set) else parts
    return value.value if isinstance(value, Enum) else value
