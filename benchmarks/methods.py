"""Compare the tuning methods of the demo over several seeds, each after the same search on the validation split.

    python benchmarks/methods.py --search      learning rates x evaluations of one seed, by validation mean recall
    python benchmarks/methods.py               the demo's settings over five seeds, scored on the test split

Both are resumable: finished runs in the output folder are read, not repeated. Differences are paired by seed, with
their standard errors over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from aurora_petl.demo import AURORA, methods
from aurora_petl.recipe import Recipe
from aurora_petl.report import table, write_json

RATES = {  # a factor of about three apart, five each; the middle from each method's usual range
    "heads only": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    AURORA: (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "LoRA r=20": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "full": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
}
STEPS = (40, 80, 160)


def run(recipe: Recipe, folder: Path) -> dict:
    """Metrics of a recipe trained in its own process with one thread (or those of an earlier call)."""
    if not (folder / "metrics.json").is_file():
        if folder.exists():
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(folder.name + ".yaml")
        recipe.save(file)
        command = [sys.executable, "-m", "aurora_petl.cli", "train", str(file), "--out", str(folder), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
    return json.loads((folder / "metrics.json").read_text())


def search(out: Path, jobs: int) -> None:
    """Every method over the same number of rates and step counts; prints validation mean recall."""
    tried = {
        (name, rate, steps): replace(recipe, train=replace(recipe.train, learning_rate=rate, max_steps=steps, seed=100))
        for name, recipe in methods().items()
        for rate in RATES[name]
        for steps in STEPS
    }
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(
            zip(
                tried,
                pool.map(lambda key: run(tried[key], out / f"{key[0]}-{key[1]:g}-{key[2]}".replace(" ", "-")), tried),
                strict=True,
            )
        )
    rows = [
        [name, f"{rate:g}", *(f"{found[name, rate, steps]['validation_best']:.1f}" for steps in STEPS)]
        for name in RATES
        for rate in RATES[name]
    ]
    print(table(["validation mean recall", "rate", *(f"{s} steps" for s in STEPS)], rows))
    best = {
        name: max((k for k in found if k[0] == name), key=lambda key: found[key]["validation_best"]) for name in RATES
    }
    for name, (_, rate, steps) in best.items():
        print(f"{name}: rate {rate:g}, {steps} steps")


def compare(out: Path, seeds: int, jobs: int) -> None:
    """The demo's settings over seeds on the test split: means, and differences to Aurora paired by seed."""
    tried = {
        (name, seed): replace(recipe, train=replace(recipe.train, seed=seed))
        for seed in range(seeds)
        for name, recipe in methods().items()
    }
    with ThreadPoolExecutor(jobs) as pool:
        found = dict(
            zip(
                tried,
                pool.map(lambda key: run(tried[key], out / f"{key[0]}-seed{key[1]}".replace(" ", "-")), tried),
                strict=True,
            )
        )
    zero_shot = next(iter(found.values()))["zero_shot_test"]["mean_recall"]
    scores = {name: [found[name, seed]["test"]["mean_recall"] for seed in range(seeds)] for name in methods()}
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
