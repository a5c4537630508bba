"""What the validation split settles in a run: the weights that are kept, and settings of the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .errors import AuroraError
from .files import read_json
from .recipe import Recipe
from .tasks.settings import RetrievalSettings, TaskSettings

TUNED, UNTUNED = "tuned", "zero_shot"  # keys of ``metrics.json``'s ``chosen``
SETTLED = ("ranking", "beta")  # settings that an evaluation settles, see `Task.choice`

STRENGTHS = (0.0, 0.3, 0.5, 0.7, 1.0)  # tried shares of the change from the untuned weights to the last ones
LIKELY = 0.3  # the strength that is taken where the validation split cannot tell


@dataclass(frozen=True)
class Kept:
    """The weights that a run keeps: those of a ``step``, of whose change ``strength`` is kept."""

    step: int  # 0: the untuned ones
    metric: float | None  # on the validation split
    choice: dict[str, Any]  # settings of the task that the validation split settled
    strength: float | None = None
    strengths: dict[float, float] | None = None  # the metric at every strength that was tried


def choose_strength(errors: Mapping[float, np.ndarray]) -> float:
    """The strength, of those that are within a standard error of the best, that is nearest to `LIKELY`.

    A model part of the way from untuned to tuned is seldom worse than either (Wortsman et al., 2022, arXiv
    2109.01903), and the smallest mean of a few examples is often so by luck.

    Args:
        errors: by strength, how wrong the model is at every example; the examples are the same for all.
    """
    best = min(errors, key=lambda strength: float(errors[strength].mean()))
    near = []
    for strength, own in errors.items():
        more = own - errors[best]
        error = more.std(ddof=1) / len(more) ** 0.5 if len(more) > 1 else 0.0
        if more.mean() <= error + 1e-9:  # where a single example differs, the two are equal but for rounding
            near.append(strength)
    return min(near, key=lambda strength: (abs(strength - LIKELY), strength))


def blend(
    weights: Iterable[tuple[str, Tensor]], starts: Mapping[str, Tensor], ends: Mapping[str, Tensor], strength: float
) -> None:
    """Put named weights on the straight line from where training started (strength 0) to where it ended (1)."""
    with torch.no_grad():
        for name, weight in weights:
            weight.copy_(starts[name] if strength == 0 else starts[name].lerp(ends[name], strength))


def settles(task: TaskSettings) -> bool:
    """Whether settings of a task are left to the validation split."""
    return isinstance(task, RetrievalSettings) and task.ranking == "choose"


def steps_to_keep(
    checkpoints: Literal["none", "best", "last", "all"] | int, history: Sequence[dict[str, Any]], metric: str
) -> set[int]:
    """The evaluated steps whose checkpoints stay, by ``train.checkpoints``. Step 0, of the weights that training began
    with, is one of ``all``.

    Args:
        history: of a run, whose rows hold the validation ``metric`` of evaluated steps under ``eval_`` and its name.
    """
    metrics = {int(row["step"]): row[f"eval_{metric}"] for row in history if f"eval_{metric}" in row}
    trained = sorted(step for step in metrics if step)
    if checkpoints == "all":
        return set(metrics)
    if checkpoints == "best":
        return {max(trained, key=lambda step: (metrics[step], -step))} if trained else set()
    count = {"none": 0, "last": 1}[checkpoints] if isinstance(checkpoints, str) else checkpoints
    return set(trained[max(0, len(trained) - count) :])


def choice_at(task: TaskSettings, history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """Settings that the evaluation of a step settled, from the rows of a run's history."""
    if not settles(task):
        return {}
    row = next(row for row in history if row["step"] == step and all(f"eval_{name}" in row for name in SETTLED))
    return {name: row[f"eval_{name}"] for name in SETTLED}


def with_choice(recipe: Recipe, choice: Mapping[str, Any]) -> Recipe:
    """The recipe with settings of its task that an evaluation settled."""
    return replace(recipe, task=replace(recipe.task, **choice))


def settled(recipe: Recipe, folder: Path, view: str = TUNED) -> Recipe:
    """A finished run's recipe with the settings that its validation split settled, for the tuned or the untuned model.

    Raises:
        AuroraError: if the run has not come so far.
    """
    if not settles(recipe.task):
        return recipe
    file = folder / "metrics.json"
    if not file.is_file():
        raise AuroraError(f"{folder} holds no finished run: it has no metrics.json; go on with aurora train --resume")
    metrics = read_json(file)
    try:
        task = replace(recipe.task, **metrics["chosen"][view])
    except (AuroraError, KeyError, TypeError) as error:
        raise AuroraError(f'{file} does not say in "chosen" how candidates are ranked; train the run anew') from error
    if settles(task):
        raise AuroraError(f'{file} does not say in "chosen" how candidates are ranked; train the run anew')
    return replace(recipe, task=task)
