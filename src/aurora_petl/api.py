"""The package from Python: `train` a recipe, `load` a model; both give a `model.Model`."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import training
from .backbones import find_family, load_backbone
from .backbones.hub import RUN
from .devices import choose, using
from .errors import AuroraError, check_name, short
from .files import whole_folder
from .model import Model
from .recipe import default_name, load_own, load_recipe, load_saved
from .search.encoder import run_folder


def train(
    data: Any = None,
    model: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    show_progress_bar: bool = False,
    **fields: Any,
) -> Model:
    """Tune a model on pictures with texts, as ``aurora train`` does, and load the result.

    Args:
        data: a folder or files with pictures and texts in one of the forms of docs/data.md, an embedded pack, or a
            benchmark, whose folder is then ``root``; or a ``Dataset`` or ``DatasetDict`` of the library ``datasets``,
            which is saved beside ``out`` first, so that the run can be resumed and evaluated.
        model: ``blip-mini``, a model folder or a hub id; by default the recipe's.
        recipe: a recipe's name or a ``.yaml`` file; by default the one for own pictures with this model.
        out: the run's folder; by default ``runs/`` and the name of recipe or data.
        resume: continue the run in ``out``, which was stopped, by its own recipe.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.
        fields: other fields of a recipe, such as ``method="lora"``; sections as mappings of the fields to set,
            ``train={"learning_rate": 1e-3}``.

    Returns:
        The tuned model; its ``metrics`` are those of ``metrics.json``.

    Raises:
        AuroraError: at the first thing that stands in the way of the run.
        Stopped: at Ctrl-C or SIGTERM, after the step that ran is saved; ``resume`` then goes on.
    """
    if hasattr(data, "save_to_disk"):
        data = _saved(data, out)
    for name, value in (("data", data), ("model", model), ("recipe", recipe), ("out", out)):
        if value is not None:
            check_name(name, value)
    given = {name: str(value) for name, value in (("data", data), ("model", model)) if value is not None}
    given |= _plain(fields)
    if resume:
        if given or recipe is not None or out is None:
            raise AuroraError("resume takes the run's own recipe: give its folder as out, no recipe and no fields")
        made = load_saved(Path(out) / RUN)
    elif recipe is None:
        if data is None:
            raise AuroraError("nothing to train on; give data, a folder of pictures with captions, or recipe")
        _, made = load_own(fields=given)
    else:
        made = load_recipe(recipe, fields=given)
    folder = Path(out) if out is not None else Path("runs") / default_name(str(recipe or data))
    with using(device):
        training.train(made, folder, resume=resume, progress=show_progress_bar)
        return load(folder)


def _saved(data: Any, out: str | Path | None) -> Path:
    """The folder beside ``out`` that a dataset in memory is saved to.

    Raises:
        AuroraError: if the run has no name, or the folder is there already.
    """
    if out is None:
        raise AuroraError("a dataset in memory has no name that a run could be called by; give out, the run's folder")
    folder = Path(out).with_name(f"{Path(out).name}.data")
    if folder.exists():
        raise AuroraError(f"{folder} is there already; give data={str(folder)!r} if it is these data, or another out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as partial:
        data.save_to_disk(str(partial))
    return folder


def load(
    model: str | Path = "blip-mini",
    *,
    task: str | None = None,
    image_size: int | None = None,
    strength: float = 1.0,
    step: int | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """A tuned model, or one as it was pretrained.

    Args:
        model: the folder of a finished run, or a run on the hub that ``aurora push`` put there; untuned: ``blip-mini``,
            a model folder, or a model of the hub.
        task: ``retrieval`` or ``vqa``; by default the run's, or the first that the model's family offers.
        image_size: of an untuned model, pixels a side of the pictures that it reads; by default its own.
        strength: of a run, how far its weights are from the untuned model (0) to the tuned one (1).
        step: of a run, the weights of a step that it kept, see ``train.checkpoints``.
        device: ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises:
        AuroraError: if there is no such model or run, it is broken, or it does not do the task.
    """
    check_name("model", model)
    name = str(model)
    if not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
        raise AuroraError(f"strength is {short(strength)}; it must lie between 0, the untuned model, and 1")
    if image_size is not None and not isinstance(image_size, int):
        raise AuroraError(f"image_size is {short(image_size)}; give the pixels a side as a whole number")
    with using(device):
        if (folder := run_folder(name)) is not None:
            recipe, tuned = training.load_run(folder, strength, step)
            if task not in (None, recipe.task.name):
                raise AuroraError(f"{name} was tuned for {recipe.task.name}; leave out task")
            if image_size is not None:
                raise AuroraError(f"{name} is a run, which has its own image_size; leave it out")
            return Model(tuned, name, recipe.task.name, recipe, folder)
        if strength != 1 or step is not None:
            raise AuroraError(f"{name} is no run of aurora train; strength and step are of a run alone, leave them out")
        task = task or find_family(name).tasks[0]
        backbone = load_backbone(name, choose(), task=task, image_size=image_size)
        backbone.model.requires_grad_(False)
        return Model(backbone, name, task)


def _plain(value: Any) -> Any:
    """What Python has for paths, lists and numbers, as a recipe's file would hold them."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(part) for part in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if isinstance(value, np.generic) else value
