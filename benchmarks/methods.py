"""Compare the tuning methods of the demo over several seeds, each after the same search on the validation split.

    python benchmarks/methods.py --search      learning rates over three seeds, by validation mean recall
    python benchmarks/methods.py               the demo's settings over five seeds, scored on the test split

Both are resumable: finished runs in the output folder are read, not repeated. Differences are paired by seed, with
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
from typing import Any

import torch

from aurora_petl.data import load_dataset
from aurora_petl.demo import AURORA, LORA, methods
from aurora_petl.recipe import Recipe
from aurora_petl.report import table, write_json
from aurora_petl.training import fit, prepare, train, untuned

RATES = {  # a factor of about three apart, around what is best for each method
    "heads only": (1e-3, 3e-3, 1e-2),
    AURORA: (3e-3, 1e-2, 3e-2),
    LORA: (1e-3, 3e-3, 1e-2),
    "full": (3e-4, 1e-3, 3e-3),
}
SEARCH_SEEDS = (100, 101, 102)  # others than those of the comparison


@cache
def untuned_scores() -> tuple[tuple[Any, ...], dict[str, float]]:
    """What `untuned` gives for the test split and the validation metrics, which all runs of a worker share."""
    recipe = next(iter(methods().values()))
    dataset = load_dataset(recipe.data)
    return untuned(recipe, dataset.split("test")), untuned(recipe, dataset.split("validation"))[0]


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
            found = fit(recipe, folder, prepare(recipe, check=False), progress=False, start=start)
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
    """Every method over the same number of learning rates; prints validation mean recall at each evaluation, the mean
    of the search's seeds."""
    tried = {
        (name, rate, seed): replace(recipe, train=replace(recipe.train, learning_rate=rate, seed=seed))
        for seed in SEARCH_SEEDS
        for name, recipe in methods().items()
        for rate in RATES[name]
    }
    found = run_all(tried, out, jobs, score=False)
    steps = sorted(next(iter(found.values()))["validation"], key=int)
    result, rows = [], []
    for name, rates in RATES.items():
        for rate in rates:
            runs = [found[name, rate, seed] for seed in SEARCH_SEEDS]
            scores = {step: mean(run["validation"][step] for run in runs) for step in steps}
            best = mean(run["validation_best"] for run in runs)
            result.append({"method": name, "learning_rate": rate, "validation": scores, "validation_best": best})
            rows.append([name, f"{rate:g}", *(f"{score:.1f}" for score in scores.values()), f"{best:.1f}"])
    print(table(["validation mean recall", "rate", *(f"step {step}" for step in steps), "better one"], rows))
    write_json(out.with_suffix(".json"), result)
    for name in RATES:
        chosen = max((row for row in result if row["method"] == name), key=lambda row: row["validation_best"])
        print(f"{name}: rate {chosen['learning_rate']:g}")


def compare(out: Path, seeds: int, jobs: int) -> None:
    """The demo's settings over seeds on the test split: means, and differences to Aurora paired by seed."""
    tried = {
        (name, f"seed{seed}"): replace(recipe, train=replace(recipe.train, seed=seed))
        for seed in range(seeds)
        for name, recipe in methods().items()
    }
    found = run_all(tried, out, jobs, score=True)
    zero_shot = next(iter(found.values()))["zero_shot_test"]["mean_recall"]
    scores = {name: [found[name, f"seed{seed}"]["test"]["mean_recall"] for seed in range(seeds)] for name in methods()}
    scores = {"zero-shot": [zero_shot] * seeds, **scores}
    result = {}
    for name, values in scores.items():
        differences = [ours - theirs for ours, theirs in zip(scores[AURORA], values, strict=True)]
        result[name] = {
            "mean_recall": values,
            "mean": mean(values),
            "aurora_minus": mean(differences),
            "standard_error": stdev(differences) / seeds**0.5,
        }
    rows = [
        [name, f"{r['mean']:.2f}", f"{r['aurora_minus']:+.2f}", f"{r['standard_error']:.2f}"]
        for name, r in result.items()
    ]
    print(table([f"test mean recall, {seeds} seeds", "mean", "Aurora minus it", "standard error"], rows))
    write_json(out / "methods.json", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="search rates and steps on the validation split instead")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    options = parser.parse_args()
    if options.search:
        search(options.out / "search", options.jobs)
    else:
        compare(options.out / "compare", options.seeds, options.jobs)


if __name__ == "__main__":
    main()
