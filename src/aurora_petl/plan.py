"""What a run will do and about how long that takes, told by a dry run."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

import torch

from .backbones import Tunable
from .data import loading
from .data.rows import Dataset, QuestionDataset
from .devices import choose
from .distributed import rank, ranks
from .errors import AuroraError
from .examples import TrainingExamples
from .recipe import Recipe, TrainSettings
from .report import parameter_summary, table
from .tasks.base import Task
from .train_arguments import precision_of

MOST_SECONDS = 8.0  # that the measurement may take


@dataclass
class Plan:
    """The size of a run. ``pairs`` are the training examples of a step over all ranks; ``seconds`` is about how long
    the steps take here, evaluations apart, or None if that is not known."""

    steps: int
    epochs: float
    pairs: int
    device: str
    precision: str
    seconds: float | None


def fit_batch(recipe: Recipe, examples: int, what: str) -> TrainSettings:
    """The recipe's settings with the batch, or how many make a step, lowered to what there is to train on; says so.

    Raises:
        AuroraError: if that is less than two for every process.
    """
    settings = recipe.train
    batch, each = settings.batch_size, examples // ranks()
    if each < 2:
        raise AuroraError(f"{recipe.data}: {examples} training {what}s are too few; every process needs at least 2")
    fitted = min(batch, each)
    if fitted < batch and rank() == 0:
        print(
            f"aurora: a batch is {fitted}, not {batch}: there are {examples} training {what}s",
            file=sys.stderr,
        )
    accumulation = min(settings.gradient_accumulation, each // fitted)
    return replace(settings, batch_size=fitted, gradient_accumulation=accumulation)


def count_steps(settings: TrainSettings, examples: int) -> tuple[int, int]:
    """Steps of an epoch of so many examples, and of the whole run."""
    batches = examples // (settings.batch_size * settings.gradient_accumulation * ranks())
    return batches, settings.max_steps or max(settings.min_steps, round(settings.epochs * batches))


def make_plan(recipe: Recipe, dataset: Dataset, task: Task) -> Plan:
    """The plan of a prepared run. It takes one or two steps to measure them, so the task is to be thrown away."""
    settings, device = recipe.train, choose()
    training = TrainingExamples(
        task, dataset.split("train"), seed=settings.seed, augment=settings.augment, flip=settings.flip
    )
    _, steps = count_steps(settings, len(training))
    pairs = settings.batch_size * settings.gradient_accumulation * ranks()
    precision = precision_of(settings, device)
    step = None if ranks() > 1 else settings.gradient_accumulation * _seconds(task, training, settings, precision)
    return Plan(
        steps, steps * pairs / len(training), pairs, str(device), precision, None if step is None else steps * step
    )


def _seconds(task: Task, training: TrainingExamples, settings: TrainSettings, precision: str) -> float:
    """About how long a batch takes, forward and backward, its pictures' loading shared by the workers: the time of the
    largest part of a batch that is quick enough, after a pass as warm-up."""
    with loading.using(settings.workers):
        workers = loading.chosen()
    _timed(task, training, 2, workers, precision)  # the first pass of a process makes its kernels
    size, seconds = 2, _timed(task, training, 2, workers, precision)
    while size < settings.batch_size and 4 * seconds < MOST_SECONDS:
        size = min(4 * size, settings.batch_size)
        seconds = _timed(task, training, size, workers, precision)
    return seconds * settings.batch_size / size


def _timed(task: Task, training: TrainingExamples, size: int, workers: int, precision: str) -> float:
    device = choose()
    apart = max(1, len(training) // size)  # examples of different pictures
    started = time.perf_counter()
    rows = [training[0, (apart * place) % len(training)] for place in range(size)]
    loading = (time.perf_counter() - started) / max(1, workers)
    collated = task.to(device).train().collate(rows).items()
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in collated}
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    started = time.perf_counter()
    with torch.autocast(device.type, kind, enabled=kind is not None):
        loss = task(**batch)["loss"]
    loss.backward()
    loss.item()  # waits for the device
    return loading + time.perf_counter() - started


def describe(recipe: Recipe, dataset: Dataset, backbone: Tunable, plan: Plan | None, name: str) -> str:
    """What a run of the recipe called ``name`` would do: data by split, what would train, and the ``plan`` of training,
    None for a method that has none."""
    media, rows = "clips" if dataset.clips else "pictures", []
    for split in ("train", "validation", "test"):
        part = [item for item in dataset if item.split == split]
        if isinstance(dataset, QuestionDataset):
            counts = [len({item.image for item in part}), len(part), sum(len(item.answers) for item in part)]
        else:
            counts = [len(part), sum(len(item.captions) for item in part)]
        rows.append([split, *map(str, counts)])
    texts = ["questions", "answers"] if isinstance(dataset, QuestionDataset) else ["captions"]
    data = table([recipe.data, media, *texts], rows)
    weights = parameter_summary(backbone, f"{recipe.method} on {recipe.model}")
    return f"{data}\n\n{weights}\n\n{_planned(recipe, plan, name)}"


def _planned(recipe: Recipe, plan: Plan | None, name: str) -> str:
    if plan is None:
        return f"recipe     {name}\nsteps      none, {recipe.method} has nothing to learn"
    train = recipe.train
    parts = [f"batch {train.batch_size}"]
    parts += [f"accumulation {train.gradient_accumulation}"] if train.gradient_accumulation > 1 else []
    processes = plan.pairs // (train.batch_size * train.gradient_accumulation)
    parts += [f"processes {processes}"] if processes > 1 else []
    heads = train.head_learning_rate or train.learning_rate
    lines = [
        ("recipe", name),
        ("steps", f"{plan.steps:,}, which is {plan.epochs:.3g} epochs"),
        ("a step", f"{plan.pairs:,} pairs ({', '.join(parts)})"),
        ("rates", f"{train.learning_rate:g}, of heads {heads:g}"),
        ("computes", f"on {plan.device} in {plan.precision}"),
        ("takes", "unknown" if plan.seconds is None else f"about {_duration(plan.seconds)}, evaluations apart"),
    ]
    return "\n".join(f"{what:<10} {value}" for what, value in lines)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{max(1, seconds):.0f} s"
