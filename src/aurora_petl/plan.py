"""What a run will do and about how long that takes, told by a dry run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .backbones import Tunable
from .data import loading
from .data.rows import Dataset, QuestionDataset
from .devices import choose
from .distributed import rank, ranks
from .errors import AuroraError
from .examples import TrainingExamples
from .measuring import Measured, measure
from .notes import note
from .recipe import Recipe, TrainSettings
from .report import parameter_summary, size_of, table
from .tasks.base import Task
from .train_arguments import precision_of


@dataclass
class Plan:
    """The size of a run. ``pairs`` are the training examples of a step over all ranks; ``measured`` is what a step
    takes here, or None of several processes, which measure nothing."""

    steps: int
    epochs: float
    pairs: int
    device: str
    precision: str
    measured: Measured | None


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
        note(f"a batch is {fitted}, not {batch}: there are {examples} training {what}s")
    accumulation = min(settings.gradient_accumulation, each // fitted)
    return replace(settings, batch_size=fitted, gradient_accumulation=accumulation)


def count_steps(settings: TrainSettings, examples: int) -> tuple[int, int]:
    """Steps of an epoch of so many examples, and of the whole run."""
    batches = examples // (settings.batch_size * settings.gradient_accumulation * ranks())
    return batches, settings.max_steps or max(settings.min_steps, round(settings.epochs * batches))


def make_plan(recipe: Recipe, dataset: Dataset, task: Task) -> Plan:
    """The plan of a prepared run. It takes a few steps to measure them, so the task is to be thrown away."""
    settings, device = recipe.train, choose()
    training = TrainingExamples(
        task, dataset.split("train"), seed=settings.seed, augment=settings.augment, flip=settings.flip
    )
    _, steps = count_steps(settings, len(training))
    pairs = settings.batch_size * settings.gradient_accumulation * ranks()
    precision = precision_of(settings, device)
    with loading.using(settings.workers):
        workers = loading.chosen()
    measured = None if ranks() > 1 else measure(task, training, settings, precision, workers)
    return Plan(steps, steps * pairs / len(training), pairs, str(device), precision, measured)


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
        *_estimates(plan, train),
    ]
    return "\n".join(f"{what:<10} {value}" for what, value in lines)


def _estimates(plan: Plan, train: TrainSettings) -> list[tuple[str, str]]:
    """Time and memory of a run's steps, and what was measured for them."""
    found = plan.measured
    if found is None:
        return [("takes", "unknown: one process alone measures it")]
    lines = [("takes", f"about {_duration(plan.steps * found.seconds)}, evaluations apart")]
    if found.memory is not None:
        where = "of this process" if plan.device == "cpu" else f"on {plan.device}"
        lines.append(("memory", f"about {size_of(found.memory)} at the peak of a step, {where}"))
    part = f"{found.pairs} pairs" if found.pairs == found.whole else f"{found.pairs} of {found.whole} pairs, scaled up"
    times = f"{found.times} times {part}" if found.times > 1 else part
    waits = f", {found.reading:.2g} s of it for pictures" if found.reading >= 0.05 * found.seconds else ""
    plain = ", without train.compile" if train.compile else ""
    lines.append(("measured", f"{times}{plain}: {found.seconds:.2g} s a step{waits}"))
    return lines


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{max(1, seconds):.0f} s"
