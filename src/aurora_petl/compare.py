"""``aurora compare``: tuning methods on one dataset, each after the same search, over several seeds.

The validation split chooses learning rate and number of steps of every method, with a seed that the comparison does not
use. What it chose is then trained with every seed and scored on the test split. Each run leaves a file when it ends, so
that a comparison that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from .backbones import load_backbone
from .baselines import apply_method, weight_counts
from .checks import check
from .data import load_dataset
from .data.rows import Dataset as Rows
from .data.rows import announced
from .devices import choose
from .distributed import ranks
from .errors import AuroraError, Diverged, short
from .evaluation.outcome import Outcome
from .files import read_json, write_json
from .locks import lock
from .measuring import peak_memory, reset_peak_memory
from .method_options import typed_options
from .methods import find_method
from .notes import note
from .rate_search import Search, told
from .recipe import Recipe, load_recipe
from .report.comparison import AURORA, Compared, comparison_json, plot_comparison
from .selection import settles
from .tasks import task_class
from .training import ADAPTER, Run, fit, prepare, train, untuned

METHODS = ("heads", AURORA, "lora:1x", "lora:10x", "dora:10x", "vera", "full")
RATES = (3e-4, 1e-3, 3e-3)
BEYOND = 2
SEARCH_SEED = 100  # seeds of a comparison count from 0
CELL, PLAN, UNTUNED = "cell.json", "comparison.json", "untuned"
_BETWEEN = re.compile(r",(?![^\[{]*[\]}])")  # commas between options, not those within a list


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        recipe: data, model, task and everything that the methods have in common.
        methods: as `recipe_of` reads them.
        seeds: how many runs of each method are scored.
        rates: learning rates that are tried for each method; of a single one nothing is searched.
        beyond: while the best rate is the lowest or the highest of those that were tried, a further one is, up to this
            many for each method: methods differ by more than a factor of ten in the rate that suits them.
        steps: numbers of steps that are tried, 0 being what the recipe says.
        also: data whose test split is scored before and after each run, to see what was forgotten; empty for none.
        known: learning rates that were searched before, by method; for these methods nothing is searched.
        search_seeds: runs of each rate and number of steps that are tried; the mean of their validation scores counts.
    """

    recipe: Recipe
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    rates: tuple[float, ...] = RATES
    beyond: int = BEYOND
    steps: tuple[int, ...] = (0,)
    also: str = ""
    known: Mapping[str, float] = field(default_factory=dict)
    search_seeds: int = 1

    def budgets(self, word: str) -> list[tuple[int, float]]:
        """Steps and rates that are tried first for a method; of a single pair nothing is searched."""
        return list(product(self.steps, (self.known[word],) if word in self.known else self.rates))


@dataclass(frozen=True)
class Cell:
    """A finished run of a comparison."""

    validation: float | None  # None of a run of the search that diverged
    score: float | None  # of the test split; None of a run of the search
    also: float | None
    weights: dict[str, int]
    bytes: int  # of the saved file
    seconds: float  # of training
    memory: int | None  # bytes at the peak, of the GPU or, on Linux, of the process


def recipe_of(word: str, recipe: Recipe) -> Recipe:
    """The recipe of a method.

    Args:
        word: a method's name, with its options behind a colon (``lora:r=8,lora_alpha=16``), or with a size: of
            ``lora:10x`` the rank is such that its adapter has about ten times the weights of Aurora's in this recipe.

    Raises:
        AuroraError: if there is no such method or option.
    """
    name, _, rest = word.partition(":")
    if not find_method(name).learns:
        raise AuroraError(f"method {name} learns nothing; the untuned model is in every comparison, leave it out")
    if name == recipe.method and not rest:
        return recipe
    size = rest.removesuffix("x")
    if rest and rest != size and size.replace(".", "", 1).isdecimal():
        if not float(size):
            raise AuroraError(f"method {short(word)}: a size must lie above 0, as in {name}:1x")
        return _sized(name, float(size), recipe)
    options: list[str] = [f"method_options.{part}" for part in _BETWEEN.split(rest)] if rest else []
    made = load_recipe(None, [f"method={name}", *options])
    shared = recipe.method_options if name == recipe.method else _layers(name, recipe)
    return replace(recipe, method=name, method_options={**shared, **made.method_options})


def _layers(name: str, recipe: Recipe) -> dict[str, Any]:
    """The options that say which layers another method adapts, as in the recipe."""
    if find_method(name).config is None:
        return {}
    known = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    config = find_method(name).config
    assert config is not None
    own = {field.name for field in fields(config())}
    return {key: value for key, value in recipe.method_options.items() if key in known and key in own and value}


def _sized(name: str, times: float, recipe: Recipe) -> Recipe:
    """A method whose adapter has about so many times the weights of Aurora's, by its rank."""
    config = find_method(name).config
    if config is None or "r" not in {field.name for field in fields(config())}:
        raise AuroraError(f"method {name} has no rank r, which its size could be set by; name it without a size")
    aim = times * _adapter_weights(recipe_of(AURORA, recipe))

    def of_rank(rank: int) -> Recipe:
        options = _layers(name, recipe) | {"r": rank}
        if "lora_alpha" in {field.name for field in fields(config())}:
            options["lora_alpha"] = rank  # so that the update's scale does not depend on the rank
        return replace(recipe, method=name, method_options=typed_options(name, options))

    one, two = (_adapter_weights(of_rank(rank)) for rank in (1, 2))
    return of_rank(1 + max(0, round((aim - one) / (two - one))))


def _adapter_weights(recipe: Recipe) -> int:
    backbone = load_backbone(recipe.model, weights=False, task=recipe.task.name, image_size=recipe.image_size or None)
    apply_method(backbone, recipe.method, recipe.method_options, recipe.train_heads)
    return weight_counts(backbone)["adapter"]


def compare(plan: Plan, out: Path, *, progress: bool = False) -> list[Compared]:
    """Run what is missing of a comparison in the folder ``out``, and write its table, plot and figures there.

    A line for each run goes to stderr as it ends.

    Raises:
        AuroraError: if ``out`` holds another comparison or other files, or something stands in a run's way.
    """
    if ranks() > 1:
        raise AuroraError("aurora compare runs in one process; start it without torchrun")
    recipes = {word: recipe_of(word, plan.recipe) for word in plan.methods}
    for word, made in recipes.items():  # before the first trains
        try:
            check(made)
        except AuroraError as error:
            raise AuroraError(f"method {word}: {error}") from error
    claim(plan, out)
    with lock(out, "being compared in"):
        compared = _compare(plan, recipes, out, progress)
        write_json(out / "results.json", comparison_json(compared, plan.recipe.data, plan.also))
        plot_comparison(compared, out / "comparison.png")
        shutil.rmtree(out / UNTUNED, ignore_errors=True)
    return compared


def claim(plan: Plan, out: Path) -> None:
    """Make the folder of a comparison, or see that what is there is the same one.

    Raises:
        AuroraError: if ``out`` is a file or holds anything else.
    """
    content = json.loads(json.dumps(asdict(plan)))
    content["recipe"]["method_options"] = plan.recipe.method_options
    for name in ("learning_rate", "seed"):  # every run has its own
        del content["recipe"]["train"][name]
    # a comparison may be widened: runs that are there stay
    widens = ("methods", "seeds", "rates", "beyond", "steps", "search_seeds")
    if out.is_file():
        raise AuroraError(f"{out} is a file; name a folder with --out")
    if (out / PLAN).is_file():
        before = read_json(out / PLAN)
        same = isinstance(before, dict) and all(
            before.get(key) == value for key, value in content.items() if key not in widens
        )
        if not same:
            raise AuroraError(f"{out} holds a comparison of another recipe or other data; name another --out")
    elif out.exists() and any(path.name != ".lock" for path in out.iterdir()):
        raise AuroraError(f"{out} holds other files than a comparison's; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, content)


@dataclass(frozen=True)
class _Untuned:
    """Scores of the untuned model, which all runs share."""

    validation: dict[str, Any]  # with the settings that it settled
    test: Outcome
    also: float | None


def _compare(plan: Plan, recipes: dict[str, Recipe], out: Path, progress: bool) -> list[Compared]:
    recipe = plan.recipe
    dataset = announced(load_dataset(recipe.data, recipe.root, recipe.files, recipe.broken))
    dataset.check(progress=progress)
    other = load_dataset(plan.also, broken=recipe.broken).split("test") if plan.also else None
    start = _start(recipe, dataset, other, out / UNTUNED, progress)
    tried = {word: len(plan.budgets(word)) for word in recipes}
    count = _Count(sum(plan.seeds + (plan.search_seeds * n if n > 1 else 0) for n in tried.values()))
    compared = [_baseline(recipe, start, plan.seeds)]
    for word, made in recipes.items():
        search = _searched(word, made, plan, out, start, count)
        steps, rate = search.best() if search.scores else plan.budgets(word)[0]
        cells = []
        for seed in range(plan.seeds):
            folder = run_folder(out, word, steps, rate, seed)
            cells.append(_cell(_budgeted(made, steps, rate, seed), folder, start, other, score=True))
            count.tell(
                f"{word}, seed {seed}: {told(steps, rate)}, test {cells[-1].score:.1f}, {cells[-1].seconds:.0f} s"
            )
        compared.append(_compared(word, steps, rate, plan, search, cells))
    return compared


def _searched(word: str, made: Recipe, plan: Plan, out: Path, start: _Untuned, count: _Count) -> Search:
    """The search of a method: what the plan names, and then, while the best rate is at the edge, beyond it."""
    search, waiting = Search(), plan.budgets(word)
    if len(waiting) == 1:
        return search
    first = len(waiting)
    while waiting:
        steps, rate = waiting.pop(0)
        scores = []
        for number in range(plan.search_seeds):
            folder = out / _name(word) / f"search-{steps or 'own'}-{rate:g}{f'-seed-{number}' if number else ''}"
            cell = _cell(_budgeted(made, steps, rate, SEARCH_SEED + number), folder, start, None, score=False)
            scores.append(-math.inf if cell.validation is None else cell.validation)
            result = "diverged" if cell.validation is None else f"validation {cell.validation:.1f}"
            count.tell(f"{word}, search: {told(steps, rate)}, {result}")
        search.scores[steps, rate] = mean(scores)
        further = search.beyond()
        if not waiting and further is not None and len(search.scores) < first + plan.beyond:
            waiting.append(further)
            count.total += plan.search_seeds
    if search.scores[search.best()] == -math.inf:
        raise AuroraError(f"{word} diverged at every rate that was tried; give lower --rates")
    return search


@dataclass
class _Count:
    """Which run of a comparison it is, of how many."""

    total: int
    done: int = 0

    def tell(self, line: str) -> None:
        self.done += 1
        note(f"{time.strftime('%H:%M')} {self.done}/{self.total} {line}")


def run_folder(out: Path, word: str, steps: int, rate: float, seed: int) -> Path:
    """Where the comparison in ``out`` keeps a method's run of a seed; ``steps`` is 0 where the recipe says."""
    return out / _name(word) / f"{steps or 'own'}-{rate:g}-seed-{seed}"


def _start(recipe: Recipe, dataset: Rows, other: Rows | None, cache: Path, progress: bool) -> _Untuned:
    """Scores of the untuned model, of which a comparison that was stopped finds again what it had computed."""
    validation = untuned(recipe, dataset.split("validation"), cache=cache, progress=progress)
    plain = replace(recipe, task=replace(recipe.task, **(validation.choice if settles(recipe.task) else {})))
    test = untuned(plain, dataset.split("test"), cache=cache, progress=progress)
    metric = task_class(recipe.task.name).main_metric
    if metric not in test.metrics:
        raise AuroraError(f"{recipe.data}: the test split has no right answers to score by; compare on other data")
    also = None if other is None else untuned(plain, other, cache=cache / "also", progress=progress).metrics[metric]
    return _Untuned({**validation.metrics, **validation.choice}, test, also)


def _budgeted(recipe: Recipe, steps: int, rate: float, seed: int) -> Recipe:
    changes: dict[str, Any] = {"learning_rate": rate, "seed": seed}
    if steps:
        changes["max_steps"] = steps
    if find_method(recipe.method).trains == "heads":
        changes["head_learning_rate"] = 0.0  # the same: heads are all that it trains
    return replace(recipe, train=replace(recipe.train, **changes))


def _cell(recipe: Recipe, folder: Path, start: _Untuned, other: Rows | None, *, score: bool) -> Cell:
    """A run's figures: those that it left, or of training it now."""
    file = folder / CELL
    if file.is_file():
        content = read_json(file)
        if isinstance(content, dict) and content.keys() == {field.name for field in fields(Cell)}:
            return Cell(**content)
        raise AuroraError(f"{file} does not hold the figures of a run; delete its folder to run it again")
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was stopped
    reset_peak_memory()
    try:
        run = _train(recipe, folder, start) if score else _search(recipe, folder, start)
    except Diverged:
        if score:
            raise
        cell = Cell(None, None, None, {}, 0, 0.0, None)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(file, asdict(cell))
        return cell
    metric = run.task.main_metric
    kept = folder / ADAPTER
    cell = Cell(
        validation=run.metrics["validation_best"],
        score=run.metrics["test"][metric] if score else None,
        also=None if other is None else run.task.evaluate(other).metrics[metric],
        weights=run.metrics["weights"],
        bytes=sum(path.stat().st_size for path in kept.glob("*.safetensors")) if score else 0,
        seconds=run.metrics["train_seconds"],
        memory=peak_memory(choose()),
    )
    if find_method(recipe.method).trains == "everything" and kept.exists():
        shutil.rmtree(kept)  # a copy of the whole model for every seed is more than anybody asked for
    write_json(file, asdict(cell))
    return cell


def _train(recipe: Recipe, folder: Path, start: _Untuned) -> Run:
    return train(recipe, folder, progress=False, check=False, before=start.test, start=start.validation)


def _search(recipe: Recipe, folder: Path, start: _Untuned) -> Run:
    folder.mkdir(parents=True)
    run = fit(folder, prepare(recipe, check=False), progress=False, start=start.validation)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return run


def _baseline(recipe: Recipe, start: _Untuned, seeds: int) -> Compared:
    metric = task_class(recipe.task.name).main_metric
    score = start.test.metrics[metric]
    weights = {"adapter": 0, "heads": 0, "trainable": 0}
    return Compared("zero-shot", metric, (score,) * seeds, weights, also=() if start.also is None else (start.also,))


def _compared(word: str, steps: int, rate: float, plan: Plan, search: Search, cells: Sequence[Cell]) -> Compared:
    memory = [cell.memory for cell in cells if cell.memory is not None]
    return Compared(
        word,
        task_class(plan.recipe.task.name).main_metric,
        tuple(cell.score for cell in cells if cell.score is not None),
        cells[0].weights,
        rate=rate,
        steps=steps,
        at_edge=search.at_edge,
        search={told(*tried): value for tried, value in search.scores.items() if value > -math.inf},
        bytes=cells[0].bytes,
        seconds=sum(cell.seconds for cell in cells) / len(cells),
        memory=max(memory) if memory else None,
        also=tuple(cell.also for cell in cells if cell.also is not None),
    )


def _name(word: str) -> str:
    """What a method's folder is called."""
    return "".join(c if c.isalnum() or c in "._=-" else "-" for c in word)
