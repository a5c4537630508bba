"""A recipe's model, and that of a finished run: tuned, part of the way there, as a step left it, or untuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import checkpoints, selection, warm_start
from .backbones import find_family, load_backbone
from .baselines import PEFT_WEIGHTS, WEIGHTS, apply_method, load_adapter
from .data import loading
from .data.rows import Dataset as Rows
from .devices import choose
from .errors import AuroraError
from .evaluation.outcome import Outcome
from .files import read_json
from .kept import digest
from .methods import find_method
from .recipe import Recipe, load_saved
from .tasks import task_class
from .train_arguments import precision_of

ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
HISTORY = "history.json"


def make_backbone(recipe: Recipe) -> Any:
    """The pretrained model of a recipe, on the CPU."""
    return load_backbone(
        recipe.model,
        dtype=_stored_as(recipe),
        task=recipe.task.name,
        image_size=recipe.image_size or None,
    )


def _stored_as(recipe: Recipe) -> torch.dtype:
    """The type of the model's weights. A frozen one of a large family is kept in bfloat16 where a training computes in
    it; weights that train need more digits."""
    small = find_method(recipe.method).trains == "everything" or not find_family(recipe.model).large
    return torch.float32 if small or precision_of(recipe.train, choose()) != "bf16" else torch.bfloat16


def apply_recipe(recipe: Recipe, backbone: Any, source: warm_start.Source | None = None, fingerprint: str = "") -> None:
    """Apply a recipe's method, drawn from its seed alone, and put the weights of ``source`` into it if there is one.

    Args:
        fingerprint: of the backbone, to compare with that of the model that the source was trained in.

    Raises:
        AuroraError: if the method refuses its options or the source does not fit.
    """
    torch.manual_seed(recipe.train.seed)
    apply_method(backbone, recipe.method, recipe.method_options, recipe.train_heads)
    if source is not None:
        warm_start.check_fit(recipe, backbone, source, fingerprint)
        warm_start.take_over(backbone, source, recipe.method)


def untuned(recipe: Recipe, split: Rows[Any], *, cache: Path | None = None, progress: bool = False) -> Outcome:
    """What `Task.evaluate` gives for the pretrained model on a split, by the recipe's protocol; ``cache`` as there."""
    backbone = make_backbone(recipe)
    apply_method(backbone, "zero-shot")
    backbone.module.to(choose())
    with loading.using(recipe.train.workers):
        return task_class(recipe.task.name)(backbone, recipe.task).evaluate(split, cache=cache, progress=progress)


def started(recipe: Recipe, folder: Path, split: Rows[Any], *, progress: bool = False) -> Outcome:
    """The same for the weights that a run with ``train.init_from`` began with, which its folder keeps."""
    backbone = make_backbone(recipe)
    load_adapter(backbone, folder / warm_start.START, recipe.method)
    backbone.module.to(choose())
    cache = folder / CHECKPOINTS / warm_start.START
    return task_class(recipe.task.name)(backbone, recipe.task).evaluate(split, cache=cache, progress=progress)


def load_run(folder: Path, strength: float = 1.0, step: int | None = None) -> tuple[Recipe, Any]:
    """Recipe, with what its validation split settled, and backbone of a finished run.

    Args:
        strength: 0 gives the untuned model, 1 the tuned one, a share between them weights on the straight line from
            those that the training began with to the tuned ones. These begin as the untuned model, or, of a run with
            ``train.init_from``, as the run that it names.
        step: the weights of a step in the place of the tuned ones; the run kept its checkpoint, see
            ``train.checkpoints``.

    Raises:
        AuroraError: if ``folder`` holds none, the weights that training began with cannot be drawn again, or the run
            did not keep the step.
    """
    recipe = saved_recipe(folder)
    if step is not None:
        return _load_step(recipe, folder, step)
    recipe = selection.settled(recipe, folder, selection.TUNED if strength else selection.UNTUNED)
    backbone = make_backbone(recipe)
    if strength:
        pushed = any((folder / name).is_file() for name in (PEFT_WEIGHTS, WEIGHTS))  # adapter beside recipe
        load_adapter(backbone, folder if pushed else folder / ADAPTER, recipe.method)
    else:
        apply_method(backbone, "zero-shot")
    if 0 < strength < 1:
        starts = _starts(recipe, folder)
        own = [(name, weight) for name, weight in backbone.module.named_parameters() if name in starts]
        selection.blend(own, starts, {name: weight.detach().clone() for name, weight in own}, strength)
    backbone.module.to(choose())
    return recipe, backbone


def _load_step(recipe: Recipe, folder: Path, step: int) -> tuple[Recipe, Any]:
    """A run's recipe and backbone with the weights of a step, of which there is a checkpoint."""
    steps = checkpoints.steps(folder / CHECKPOINTS)
    if step not in steps or not (folder / HISTORY).is_file():
        there = f"it has {', '.join(map(str, steps))}" if steps else "it kept none; train with train.checkpoints=all"
        raise AuroraError(f"{folder} has no checkpoint of step {step}; {there}")
    recipe = selection.with_choice(recipe, selection.choice_at(recipe.task, read_json(folder / HISTORY), step))
    backbone = make_backbone(recipe)
    apply_recipe(recipe, backbone)
    checkpoint = checkpoints.read(checkpoints.path_of(folder / CHECKPOINTS, step))
    state = {
        name.removeprefix("model."): value
        for name, value in checkpoint.tensors(checkpoints.STATE).items()
        if name.startswith("model.")  # else it is the task's: averages, a queue
    }
    own = {name: weight for name, weight in backbone.module.named_parameters() if weight.requires_grad}
    if odd := sorted(own.keys() - state.keys()):
        raise AuroraError(f"{checkpoint.path} is of another method or model: it lacks {odd[0]}; train anew")
    backbone.module.load_state_dict(state, strict=False)
    backbone.module.requires_grad_(False)
    backbone.module.to(choose()).eval()
    return recipe, backbone


def saved_recipe(folder: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        AuroraError: if ``folder`` holds none.
    """
    if not (folder / "recipe.yaml").is_file():
        raise AuroraError(
            f"{folder} holds no run: it has no recipe.yaml; name a run's folder, which a model by itself gets by "
            "aurora train --data DATA --model MODEL method=zero-shot --out RUN"
        )
    return load_saved(folder / "recipe.yaml")


def _starts(recipe: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run's training began with: drawn again, or those of the run that it started from."""
    backbone = make_backbone(recipe)
    apply_recipe(recipe, backbone, warm_start.source_of(recipe, folder))
    starts = {name: weight.detach() for name, weight in backbone.module.named_parameters() if weight.requires_grad}
    if find_method(recipe.method).config is None:
        return starts  # the model's own weights
    file = folder / "metrics.json"
    written = read_json(file) if file.is_file() else {}
    if not isinstance(written, dict) or written.get("start") != digest(starts):
        raise AuroraError(
            f"{folder}: the weights that its training began with cannot be drawn again here, as by other versions of "
            "torch or peft; give --strength 0 or 1, or train anew"
        )
    return starts
