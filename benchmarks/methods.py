"""Compare the tuning methods of the demo over several seeds, each after a search on the validation split.

    python benchmarks/methods.py --search      learning rates and steps, by validation mean recall
    python benchmarks/methods.py               what the search chose, over five seeds, scored on the test split
    python benchmarks/methods.py --steps 60    the best at so many steps, likewise

All are resumable: finished runs in the output folder are read, not repeated. Differences are paired by seed, with
their standard errors over seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch

from aurora_petl.data import load_dataset
from aurora_petl.demo import AURORA, LORA, RATES, methods
from aurora_petl.evaluation.outcome import Outcome
from aurora_petl.files import write_json
from aurora_petl.recipe import Recipe
from aurora_petl.report import table
from aurora_petl.training import fit, prepare, train, untuned

# Rates tried by number of steps, about three times apart. The highest of Aurora and of full fine-tuning fall far
# behind at 60 steps and are left out at 240.
SEARCHED: dict[str, dict[int, tuple[float, ...]]] = {
    "heads only": {60: (1e-3, 3e-3, 1e-2), 240: (1e-3, 3e-3, 1e-2)},
    AURORA: {60: (3e-3, 1e-2, 3e-2), 240: (3e-3, 1e-2)},
    LORA: {60: (1e-3, 3e-3, 1e-2), 240: (1e-3, 3e-3, 1e-2)},
    "full": {60: (3e-4, 1e-3, 3e-3), 240: (1e-4, 3e-4, 1e-3)},
}
SEARCH_SEEDS = {60: (100, 101, 102), 240: (100, 101)}  # others than those of the comparison
BEST = {60: RATES, 240: {"heads only": 3e-3, AURORA: 1e-2, LORA: 3e-3, "full": 3e-4}}  # what it found, by steps
CHOSEN = {"heads only": 240, AURORA: 240, LORA: 60, "full": 240}  # and the steps


def budgeted(recipe: Recipe, steps: int, rate: float, seed: int) -> Recipe:
    """``recipe`` for so many steps, at this rate of all but the heads."""
    changes = {"max_steps": steps, "learning_rate": rate, "seed": seed, "evaluations": max(2, steps // 60)}
    return replace(recipe, train=replace(recipe.train, **changes))


@cache
def untuned_scores() -> tuple[Outcome, dict[str, float]]:
    """What `untuned` gives for the test split and the validation metrics, which all runs of a worker share."""
    recipe = next(iter(methods().values()))
    dataset = load_dataset(recipe.data)
    return untuned(recipe, dataset.split("test")), untuned(recipe, dataset.split("validation")).metrics


def run(recipe: Recipe, folder: Path, score: bool) -> dict:
    """Metrics of a recipe trained in this process (or those of an earlier call); without ``score`` the test split is
    not looked at."""
    torch.set_num_threads(1)
    if not (folder / "metrics.json").is_file():
        if folder.exists():
            shutil.rmtree(folder)
        before, start = untuned_scores()
        if score:
            train(recipe, folder, progress=False, check=False, before=before, start=start)
        else:
            folder.mkdir(parents=True)
            found = fit(folder, prepare(recipe, check=False), progress=False, start=start)
            shutil.rmtree(folder / "checkpoints")
            steps = {row["step"]: row["eval_mean_recall"] for row in found.history if "eval_mean_recall" in row}
            write_json(folder / "metrics.json", found.metrics | {"validation": steps})
    return json.loads((folder / "metrics.json").read_text())


def run_all(tried: dict[tuple, Recipe], out: Path, jobs: int, score: bool) -> dict[tuple, dict]:
    """Metrics of every recipe, ``jobs`` at a time; a line for each as it ends."""
    found: dict[tuple, dict] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        begun = {
            pool.submit(run, recipe, out / "-".join(map(str, key)).replace(" ", "-").replace("=", ""), score): key
            for key, recipe in tried.items()
        }
        for done in as_completed(begun):
            key, metrics = begun[done], done.result()
            found[key] = metrics
            print(*key, f"validation {metrics['validation_best']:.1f}, {metrics['train_seconds']:.0f} s", flush=True)
    return found


def search(out: Path, jobs: int) -> None:
    """Rates and steps of every method; prints validation mean recall, the mean of the search's seeds, at the last step
    and at the best evaluation, whose weights a run keeps."""
    settings = [(name, n, rate) for name, lengths in SEARCHED.items() for n in lengths for rate in lengths[n]]
    tried = {
        (name, steps, rate, seed): budgeted(methods()[name], steps, rate, seed)
        for name, steps, rate in settings
        for seed in SEARCH_SEEDS[steps]
    }
    found = run_all(tried, out, jobs, score=False)
    result, rows = [], []
    for name, steps, rate in settings:
        runs = [found[name, steps, rate, seed] for seed in SEARCH_SEEDS[steps]]
        evaluated = sorted(runs[0]["validation"], key=int)
        scores = {step: mean(run["validation"][step] for run in runs) for step in evaluated}
        best = mean(run["validation_best"] for run in runs)
        row = {"method": name, "steps": steps, "learning_rate": rate, "seeds": SEARCH_SEEDS[steps]}
        result.append(row | {"validation": scores, "validation_best": best})
        rows.append([name, str(steps), f"{rate:g}", f"{scores[evaluated[-1]]:.1f}", f"{best:.1f}"])
    print(table(["validation mean recall", "steps", "rate", "last step", "best evaluation"], rows))
    write_json(out.with_suffix(".json"), result)
    for name in SEARCHED:
        chosen = max((row for row in result if row["method"] == name), key=lambda row: row["validation_best"])
        print(f"{name}: {chosen['steps']} steps at {chosen['learning_rate']:g}")


def compare(out: Path, seeds: int, jobs: int, steps: int | None) -> None:
    """What the search chose, of all or of the numbers of steps, over seeds on the test split: means, and differences to
    Aurora paired by seed."""
    lengths = dict.fromkeys(CHOSEN, steps) if steps else CHOSEN
    tried = {
        (name, length, f"seed{seed}"): budgeted(methods()[name], length, BEST[length][name], seed)
        for seed in range(seeds)
        for name, length in lengths.items()
    }
    found = run_all(tried, out, jobs, score=True)
    zero_shot = next(iter(found.values()))["zero_shot_test"]["mean_recall"]
    scores = {"zero-shot": [zero_shot] * seeds}
    for name, length in lengths.items():
        scores[name] = [found[name, length, f"seed{seed}"]["test"]["mean_recall"] for seed in range(seeds)]
    result = {}
    for name, values in scores.items():
        differences = [ours - theirs for ours, theirs in zip(scores[AURORA], values, strict=True)]
        result[name] = {
            "steps": lengths.get(name, 0),
            "mean_recall": values,
            "mean": mean(values),
            "aurora_minus": mean(differences),
            "standard_error": stdev(differences) / seeds**0.5,
        }
    rows = [
        [name, str(r["steps"]), f"{r['mean']:.2f}", f"{r['aurora_minus']:+.2f}", f"{r['standard_error']:.2f}"]
        for name, r in result.items()
    ]
    print(table([f"test mean recall, {seeds} seeds", "steps", "mean", "Aurora minus it", "standard error"], rows))
    write_json(out / f"methods{steps or ''}.json", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--search", action="store_true", help="search rates and steps on the validation split instead")
    what.add_argument("--steps", type=int, choices=tuple(BEST), help="compare the best at so many steps alone")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    if options.search:
        search(options.out / "search", options.jobs)
    else:
        compare(options.out / "compare", options.seeds, options.jobs, options.steps)


if __name__ == "__main__":
    main()
