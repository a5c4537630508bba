"""Scores of finished runs: of one, beside its untuned model if asked for, or of two on the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import distributed
from .data import READERS, load_dataset
from .data.rows import Dataset as Rows
from .data.rows import announced
from .devices import choose
from .distributed import rank
from .errors import AuroraError
from .evaluation.outcome import Outcome
from .recipe import Recipe
from .report.scores import TUNED, UNTUNED
from .run_model import load_run, saved_recipe
from .tasks import task_class
from .tasks.base import Task

PAIR = ("A", "B")  # what two runs are called


@dataclass(frozen=True)
class Manner:
    """How a run is scored.

    Args:
        strength: how far its weights are on the way from the untuned model (0) to the tuned one (1).
        step: the weights of a step that the run kept, in the place of the tuned ones.
        merge: fold the adapter into the weights first.
        dtype: bfloat16 computes under autocast.
        rescore: with bfloat16, how many of the best of every list are scored once more in float32.
        cache: keep features and scores in the run's folder, and take them from there.
    """

    strength: float = 1.0
    step: int | None = None
    merge: bool = False
    dtype: torch.dtype = torch.float32
    rescore: int = 0
    cache: bool = True
    progress: bool = False


@dataclass
class Evaluation:
    """Models on a split: one, or two of which the second is compared with the first. It holds their scores alone, so
    that two models need not fit into memory together.

    Args:
        protocols: what tables call the metrics, by the model's name.
        upload: what the benchmark's server takes, if it was asked for.
    """

    split: Rows[Any]
    protocols: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    upload: list[dict[str, Any]] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last model."""
        return list(self.outcomes.values())[-1].metrics


def evaluate(
    folders: Sequence[Path],
    *,
    split: str = "test",
    data: str = "",
    root: str = "",
    files: Mapping[str, Any] | None = None,
    also: str = "",
    zero_shot: bool = False,
    upload: bool = False,
    manner: Manner = Manner(),
) -> list[Evaluation]:
    """Score a finished run, or compare two. Of several ranks each scores its share of the pictures, and all end with
    all scores.

    Args:
        data: another dataset than the run's own.
        root, files: how it is read, see `load_dataset`; without ``data``, in the place of the run's own.
        also: a folder, a tar or an embedded pack whose split is scored by the untuned and the tuned model, too.
        zero_shot: score the untuned model beside the tuned one.
        upload: make what the benchmark's server takes, and see beforehand that it can be made.

    Returns:
        The evaluation of the run's data, and with ``also`` that of the other data.

    Raises:
        AuroraError: if a folder holds no finished run, the data does not fit, two runs are not of one task and the same
            data, or there is nothing to merge.
    """
    distributed.start()
    with distributed.together():
        recipes = [saved_recipe(folder) for folder in folders]
        _check_pair(folders, recipes, data)
        own = ("", {}) if data else (recipes[0].root, recipes[0].files)
        read_as = root or own[0], {**own[1], **(files or {})}
        splits = [announced(load_dataset(data or recipes[0].data, *read_as, recipes[0].broken)).split(split)]
        if also:
            splits.append(_other_data(also, recipes[0]).split(split))
    names = PAIR if len(folders) == 2 else (_name(manner),)
    own_data, *other_data = found = [Evaluation(rows) for rows in splits]
    if zero_shot or also:
        plain = replace(manner, strength=0.0, step=None, merge=False)
        _add(UNTUNED, folders[0], plain, own_data if zero_shot else None, other_data)
    for name, folder in zip(names, folders, strict=True):
        _add(name, folder, manner, own_data, other_data, upload)
    return found


def _name(manner: Manner) -> str:
    """What tables call the model."""
    if manner.step is not None:
        return f"step {manner.step}"
    return TUNED if manner.strength == 1 else f"strength {manner.strength:g}"


def _add(
    name: str,
    folder: Path,
    manner: Manner,
    own_data: Evaluation | None,
    other_data: Sequence[Evaluation],
    upload: bool = False,
) -> None:
    """Score a run's model and add what comes of it to the evaluations under its name."""
    named = _name(manner)
    place = folder / "features" / ("" if named == TUNED else named.replace(" ", "-"))
    caches = [(own_data, place)] if own_data else []
    caches += [(evaluation, place / "also") for evaluation in other_data]  # its name may be that of the own data
    task = _load(folder, manner, [evaluation.split for evaluation, _ in caches], upload)
    half = manner.dtype == torch.bfloat16
    for evaluation, cache in caches:
        with torch.autocast(choose().type, manner.dtype) if half else nullcontext():
            evaluation.outcomes[name] = task.evaluate(
                evaluation.split,
                cache=cache if manner.cache else None,
                rescore=manner.rescore,
                progress=manner.progress and rank() == 0,
            )
        evaluation.protocols[name] = task.protocol
    if upload and own_data:
        own_data.upload = task.upload(own_data.split, own_data.outcomes[name])


def _load(folder: Path, manner: Manner, splits: Sequence[Rows[Any]], upload: bool) -> Task:
    """A run's task with its model, which fits the splits.

    Raises:
        AuroraError: see `evaluate`.
    """
    with distributed.together():
        recipe, backbone = load_run(folder, manner.strength, manner.step)
        task = task_class(recipe.task.name)(backbone, recipe.task)
        for rows in splits:
            task.check(recipe.task, rows)
        if upload:
            task.check_upload(splits[0])
        if manner.merge:
            if backbone.adapter is None:
                raise AuroraError(f"{folder} was tuned by {recipe.method}, which has nothing to merge")
            backbone.adapter.merge_adapter()
    return task


def _check_pair(folders: Sequence[Path], recipes: Sequence[Recipe], data: str) -> None:
    """Refuse two runs whose scores say nothing about each other."""
    (folder, own), *others = zip(folders, recipes, strict=True)
    for place, other in others:
        if other.task.name != own.task.name:
            raise AuroraError(
                f"{folder} is of task {own.task.name} and {place} of {other.task.name}; compare runs of one task"
            )
        if not data and (own.data, own.root, own.files) != (other.data, other.root, other.files):
            raise AuroraError(
                f"{folder} was trained on {own.data} and {place} on {other.data}; compare runs of the same data, or "
                "name what both are scored on with --data"
            )


def _other_data(name: str, recipe: Recipe) -> Rows[Any]:
    if name in READERS:
        raise AuroraError(f"--also takes a folder, a .tar or an embedded pack, and {name} is a benchmark; see --data")
    return announced(load_dataset(name, broken=recipe.broken))
