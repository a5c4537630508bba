"""What would stop a recipe's run and shows before data are read or weights loaded."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from . import warm_start
from .backbones import load_backbone
from .backbones.load import check_company
from .baselines import apply_method
from .errors import AuroraError, did_you_mean, short
from .methods import find_method
from .recipe import Recipe
from .tasks import task_class
from .tasks.settings import TaskSettings


def check(recipe: Recipe, folder: Path | None = None) -> TaskSettings:
    """Check files and lengths of texts, that the modules that the options name are in the model, and that the weights
    that training begins with fit. Returns the settings of the task with what they leave to the model.

    Args:
        folder: of the run, if it began already.

    Raises:
        AuroraError: at the first thing that would stop a run.
    """
    source = warm_start.source_of(recipe, folder)
    image_size = recipe.image_size or None
    check_company(recipe.model, task=recipe.task.name, image_size=image_size)
    backbone = load_backbone(recipe.model, weights=False, task=recipe.task.name, image_size=image_size)
    places = backbone.longest
    for field in fields(recipe.task):
        if field.name.endswith("_tokens") and (length := getattr(recipe.task, field.name) or 0) > places:
            raise AuroraError(f"task.{field.name} is {length}; {recipe.model} has places for {places} tokens")
    settings: TaskSettings = task_class(recipe.task.name).fitted(recipe.task, backbone)
    children = sorted(child for child, _ in backbone.model.named_children())
    with warnings.catch_warnings(), suppress(RuntimeError):  # some methods of peft begin from the weights
        warnings.simplefilter("ignore")
        apply_method(backbone, recipe.method, recipe.method_options, recipe.train_heads)
    modules = [name for name, _ in backbone.model.named_modules()]
    for name in recipe.method_options.get("modules_to_save") or ():
        if not name or not any(module.endswith(name) for module in modules):
            raise AuroraError(
                f"method_options.modules_to_save: {recipe.model} has no {short(name)}; {did_you_mean(name, children)}"
            )
    if source is not None and (backbone.adapter is not None or find_method(recipe.method).config is None):
        warm_start.check_fit(recipe, backbone, source)
    return settings
