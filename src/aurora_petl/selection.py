"""What the validation split settles in a run: the step whose weights are kept, and settings of the task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import AuroraError
from .files import read_json
from .recipe import Recipe
from .tasks.settings import RetrievalSettings, TaskSettings

TUNED, UNTUNED = "tuned", "zero_shot"  # keys of ``metrics.json``'s ``chosen``
SETTLED = ("ranking", "beta")  # settings that an evaluation settles, see `Task.choice`


def settles(task: TaskSettings) -> bool:
    """Whether settings of a task are left to the validation split."""
    return isinstance(task, RetrievalSettings) and task.ranking == "choose"


def choice_at(task: TaskSettings, history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
    """Settings that the evaluation of a step settled, from the rows of a run's history."""
    if not settles(task):
        return {}
    row = next(row for row in history if row["step"] == step and all(f"eval_{name}" in row for name in SETTLED))
    return {name: row[f"eval_{name}"] for name in SETTLED}


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
