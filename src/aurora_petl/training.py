"""What a run is: prepared, trained, evaluated and written to a folder.

Under ``torchrun`` or ``accelerate launch`` every process calls `train`, and the first one writes. A run's folder holds
``recipe.yaml``, ``adapter/``, ``metrics.json``, ``history.json``, ``losses.jsonl`` (a line a step), ``curve.png``,
``gallery.png`` and, until it is finished or as far as ``train.checkpoints`` has it, ``checkpoints/``; where the right
answers of the test split are not published, also the file for the benchmark's server. A run that began with the weights
of another one keeps them in ``start/``.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from . import checkpoints, distributed, selection, warm_start
from .backbones import Tunable, checkpoint_layers
from .baselines import save_adapter, weight_counts
from .checks import check as check_recipe
from .data import load_dataset, loading
from .data.rows import SPLITS, announced
from .data.rows import Dataset as Rows
from .devices import choose
from .distributed import rank, ranks
from .errors import AuroraError
from .evaluation.outcome import Outcome
from .examples import TrainingExamples
from .files import write_json
from .kept import digest
from .methods import find_method
from .plan import count_steps, fit_batch
from .recipe import Recipe, located
from .report import data_facts, kept_weights, plot_curve, run_card, run_scores, start_scores
from .report.gallery import GALLERIES
from .run_folder import ours
from .run_model import ADAPTER as ADAPTER
from .run_model import CHECKPOINTS, HISTORY, apply_recipe, make_backbone, started
from .run_model import load_run as load_run  # which others import from here
from .run_model import untuned as untuned
from .stopping import Signals
from .tasks import task_class
from .tasks.base import Task
from .tasks.settings import TaskSettings
from .train_arguments import check_trackers
from .trainer import make_trainer

UPLOAD = "upload.json"
ANSWERS = "answers.json"  # that inference by rank chooses from


@dataclass
class Run:
    """What a finished run knows of itself."""

    folder: Path
    recipe: Recipe
    backbone: Tunable
    task: Task
    metrics: dict[str, Any]
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Prepared:
    """All of a run before its first step."""

    recipe: Recipe  # with batch and task fitted to data and model
    dataset: Rows[Any]
    backbone: Tunable
    task: Task
    fingerprint: str  # of the pretrained model
    source: warm_start.Source | None = None  # of the first weights, if they are not the pretrained model's


def prepare(
    recipe: Recipe, *, check: bool = True, progress: bool = False, folder: Path | None = None, compiles: bool = True
) -> Prepared:
    """Read and check a run's data, then load its model, method and task.

    Of a method that has nothing to learn, the test split is all that is needed, checked and returned, and where
    settings are left to the validation split, that one if there is one.

    Args:
        folder: of the run, if it began already.
        compiles: whether ``train.compile`` is followed.

    Raises:
        AuroraError: at the first thing that would stop the run.
    """
    distributed.start()
    with distributed.together():
        check_trackers(recipe.train)
        dataset = _dataset(recipe, check_recipe(recipe, folder))
        if check:
            announced(dataset)
    if check:
        dataset.check(progress=progress)
    if recipe.train.max_train_samples and find_method(recipe.method).learns:
        dataset = dataset.few("train", recipe.train.max_train_samples, recipe.train.seed)
    with distributed.together():
        prepared = _prepared(recipe, dataset, warm_start.source_of(recipe, folder))
    if compiles and recipe.train.compile and find_method(recipe.method).learns:
        prepared.task.compile_loss()
    return prepared


def _dataset(recipe: Recipe, settings: TaskSettings) -> Rows[Any]:
    method, kind = find_method(recipe.method), task_class(recipe.task.name)
    dataset: Rows[Any] = load_dataset(recipe.data, recipe.root, recipe.files, recipe.broken)
    if method.learns:
        for needed in SPLITS:
            dataset.split(needed)
    else:
        items = dataset.split("test").items
        if selection.settles(recipe.task):
            items = [*items, *(item for item in dataset.items if item.split == "validation")]
        dataset = replace(dataset, items=items)
    kind.check(settings, dataset)
    return dataset


def _prepared(recipe: Recipe, dataset: Rows[Any], source: warm_start.Source | None) -> Prepared:
    method, kind = find_method(recipe.method), task_class(recipe.task.name)
    backbone = make_backbone(recipe)
    fingerprint = warm_start.fingerprint(backbone)
    apply_recipe(recipe, backbone, source, fingerprint)
    if method.learns:
        examples = len(kind.examples(dataset.split("train")))  # after the check, which may leave out rows
        settings = fit_batch(recipe, examples, kind.example)
        fitted = kind.fitted(recipe.task, backbone, settings.batch_size * ranks(), examples)
        recipe = replace(recipe, train=settings, task=fitted)
        if recipe.train.gradient_checkpointing:
            checkpoint_layers(backbone.model)
    else:
        recipe = replace(recipe, task=kind.fitted(recipe.task, backbone))
    backbone.module.to(choose())  # only now: a seed draws the same adapter on every device
    task = kind(backbone, recipe.task)
    return Prepared(recipe, dataset, backbone, task, fingerprint, source)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    check: bool = True,
    before: Outcome | None = None,
    start: dict[str, float] | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Run:
    """Train a recipe into ``folder`` and evaluate it on the test split.

    Args:
        resume: continue from the last whole checkpoint in ``folder``, to the same losses and weights as a run without
            a break.
        check: decode every picture before the first step.
        before: what `untuned` gives for the test split, if known already.
        start: validation metrics of the untuned model, if known already.

    Raises:
        AuroraError: if data, model or folder stand in the way, or the training diverges.
        Stopped: at Ctrl-C or SIGTERM, after the step that ran is saved.
    """
    recipe = located(recipe)
    distributed.start()
    first = rank() == 0  # of several processes it alone writes
    progress = progress and first
    with ours(folder, resume), Signals() as signals, loading.using(recipe.train.workers):
        prepared = prepare(recipe, check=check, progress=progress, folder=folder)
        recipe = prepared.recipe
        if first:
            if prepared.source is not None:
                warm_start.copy_start(prepared.source, folder)
            recipe.save(folder / "recipe.yaml")
        test = prepared.dataset.split("test")
        if find_method(recipe.method).learns:
            run = _fit(folder, prepared, signals, resume, progress, start, callbacks)
            chosen, warm = run.metrics["chosen"], prepared.source is not None
            if warm and selection.settles(recipe.task):  # step 0 was not the untuned model
                chosen[selection.UNTUNED] = untuned(recipe, prepared.dataset.split("validation")).choice
            plain = selection.with_choice(recipe, chosen[selection.UNTUNED])
            before = before or untuned(plain, test, cache=folder / CHECKPOINTS / "untuned", progress=progress)
            after = run.task.evaluate(test, progress=progress) if warm or run.metrics["best_step"] else before
            if warm:
                begun = selection.with_choice(recipe, selection.choice_at(recipe.task, run.history, 0))
                run.metrics["init_from"] = recipe.train.init_from
                start_scores(run.metrics, started(begun, folder, test, progress=progress), after)
        else:
            run = _unchanged(folder, prepared, progress)
            after = before = before or run.task.evaluate(test, progress=progress)
        if first:
            run.metrics["data"] = data_facts(recipe, prepared.dataset)
            _write(run, test, before, after)
        distributed.from_first(None)  # the others wait until all is written
    return run


def _unchanged(folder: Path, prepared: Prepared, progress: bool) -> Run:
    """The run of a method that has nothing to learn, its settings settled; without a validation split, ITC ranks."""
    recipe, dataset, backbone, task = prepared.recipe, prepared.dataset, prepared.backbone, prepared.task
    choice: dict[str, Any] = {}
    if selection.settles(task.settings):
        choice = {"ranking": "itc", "beta": 0.0}
        if any(item.split == "validation" for item in dataset):
            choice = task.evaluate(dataset.split("validation"), progress=progress).choice
        task.settings = replace(task.settings, **choice)
    metrics: dict[str, Any] = {"validation_best": None, "best_step": 0, "train_seconds": 0.0, "steps": 0}
    metrics |= {"chosen": dict.fromkeys((selection.TUNED, selection.UNTUNED), choice)}
    metrics |= {"weights": weight_counts(backbone)}
    return Run(folder, recipe, backbone, task, metrics, [])


def _write(run: Run, test: Rows[Any], before: Outcome, after: Outcome) -> None:
    """All that a finished run leaves in its folder."""
    folder, recipe = run.folder, run.recipe
    if (folder / ADAPTER).exists():
        shutil.rmtree(folder / ADAPTER)  # of a run that was killed while it wrote its results
    for key, value in run_scores(before, after).items():
        run.metrics[key] = run.metrics.get(key, {}) | value
    run.metrics["test_rows"] = len(test)
    if after.metrics:
        run.metrics["test_clips" if test.clips else "test_pictures"] = after.sample.clusters
    save_adapter(run.backbone, folder / ADAPTER, run_card(recipe, run.metrics))
    if getattr(recipe.task, "inference", None) == "rank":
        write_json(folder / ANSWERS, test.candidates)  # type: ignore[attr-defined]
    write_json(folder / HISTORY, run.history)
    if run.history:
        note = f"{kept_weights(run.metrics)}, scores by {run.task.protocol}"
        named = "start" if "init_from" in run.metrics else "zero-shot"
        plot_curve(run.history, folder / "curve.png", run.task.main_metric, run.task.objective, note, named)
    if draw := GALLERIES.get(recipe.task.name):
        draw(folder / "gallery.png", test, before, after)
    if not after.metrics:
        write_json(folder / f"{recipe.task.name}_{UPLOAD}", run.task.upload(test, after))
    write_json(folder / "metrics.json", run.metrics)  # last: it marks the run as finished
    _clear(folder / CHECKPOINTS, run)


def _clear(folder: Path, run: Run) -> None:
    """Leave of a finished run's checkpoints those that its recipe keeps."""
    keep = selection.steps_to_keep(run.recipe.train.checkpoints, run.history, run.task.main_metric)
    for place in folder.iterdir() if folder.is_dir() else ():
        if place not in {checkpoints.path_of(folder, step) for step in keep}:
            shutil.rmtree(place, ignore_errors=True)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


def fit(
    folder: Path,
    prepared: Prepared,
    *,
    progress: bool = True,
    start: dict[str, float] | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Run:
    """The steps of a run alone, from what `prepare` made: the best weights by the validation split are in the task
    afterwards, the test split is not looked at."""
    with Signals() as signals, loading.using(prepared.recipe.train.workers):
        return _fit(folder, prepared, signals, False, progress, start, callbacks)


def _fit(
    folder: Path,
    prepared: Prepared,
    signals: Signals,
    resume: bool,
    progress: bool,
    start: dict[str, float] | None,
    callbacks: list[TrainerCallback] | None,
) -> Run:
    recipe, dataset, backbone, task = prepared.recipe, prepared.dataset, prepared.backbone, prepared.task
    settings = recipe.train
    training = TrainingExamples(
        task, dataset.split("train"), seed=settings.seed, augment=settings.augment, flip=settings.flip
    )
    batches, steps = count_steps(settings, len(training))
    task.warmup_steps = batches * settings.gradient_accumulation
    start_digest = digest(dict(task.trained())) if find_method(recipe.method).config else None
    checkpoint = _checkpoint(folder) if resume else None
    validation = dataset.split("validation")
    trainer = make_trainer(
        task, training, validation, recipe, folder, signals, steps=steps, progress=progress, callbacks=callbacks
    )
    trainer.start_metrics = None if prepared.source else start  # which are the untuned model's
    trainer.resume(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
    kept = trainer.settle()
    history = list(trainer.state.log_history)
    task.settings = replace(task.settings, **kept.choice)
    metrics: dict[str, Any] = {
        "validation_best": kept.metric,
        "best_step": kept.step,
        "chosen": {selection.TUNED: kept.choice, selection.UNTUNED: selection.choice_at(recipe.task, history, 0)},
        "weights": weight_counts(backbone),
        "start": start_digest,
        "backbone": prepared.fingerprint,
        "train_seconds": trainer.seconds,
        "steps": trainer.state.global_step,
    }
    if kept.strengths is not None:
        metrics |= {
            "strength": kept.strength,
            "strengths": {f"{key:g}": value for key, value in kept.strengths.items()},
        }
    return Run(folder, recipe, backbone, task, metrics, history)


def _checkpoint(folder: Path) -> checkpoints.Checkpoint | None:
    """The newest whole checkpoint of a run, the same on every rank; damaged newer ones are told and set aside.

    Raises:
        AuroraError: if another number of processes wrote it.
    """
    with distributed.together():
        checkpoint, problems = checkpoints.newest(folder / CHECKPOINTS) if rank() == 0 else (None, [])
        if checkpoint is not None and checkpoint.facts["ranks"] != ranks():
            raise AuroraError(
                f"{checkpoint.path} was written by {checkpoint.facts['ranks']} processes, and this run has {ranks()}; "
                "resume with as many as before"
            )
    for problem in problems:
        then = f"step {checkpoint.step}" if checkpoint else "the start"
        print(f"aurora: warning: {problem}; the run goes on from {then}", file=sys.stderr)
    path = distributed.from_first(None if checkpoint is None else checkpoint.path)
    return checkpoint if path is None or checkpoint is not None else checkpoints.read(path)
