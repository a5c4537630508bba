"""``aurora demo``: one recipe, tuned by each method, in one table and two pictures."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from .baselines import weight_counts
from .data import load_dataset
from .errors import AuroraError
from .files import write_json
from .recipe import Recipe, load_recipe
from .report import comparison_table, plot_methods
from .training import Run, train, untuned

RECIPE = "emoji"
AURORA, LORA = "Aurora", "LoRA r=12"
RATES = {"heads only": 3e-3, AURORA: 1e-2, LORA: 1e-2, "full": 3e-4}


def methods() -> dict[str, Recipe]:
    """The demo's recipes by the names that its table prints.

    LoRA adapts the same layers, of a rank that makes it about ten times Aurora's size. The learning rate of each was
    searched alike on the validation split (``benchmarks/methods.py --search``), which also picks the step whose
    weights are kept.
    """
    targets = ",".join(load_recipe(RECIPE).method_options["target_modules"])
    options: dict[str, list[str]] = {
        "heads only": ["method=heads", "train.head_learning_rate=0"],
        AURORA: [],
        LORA: ["method=lora", f"method_options={{r: 12, lora_alpha: 12, target_modules: [{targets}]}}"],
        "full": ["method=full"],
    }
    return {name: load_recipe(RECIPE, [*options[name], f"train.learning_rate={RATES[name]}"]) for name in options}


def demo(folder: Path, *, seed: int = 0, progress: bool = False) -> None:
    """Train and compare all methods into ``folder``, print the table and where the pictures are.

    Raises:
        AuroraError: if ``folder`` holds anything but an earlier demo, or is a file, or the seed is out of range.
    """
    recipes = {name: replace(made, train=replace(made.train, seed=seed)) for name, made in methods().items()}
    if folder.is_file():
        raise AuroraError(f"{folder} is a file; name a folder with --out")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "demo.json").is_file():
            raise AuroraError(f"{folder} holds other files than a demo's; name another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "demo.json", {})  # marks the folder as ours from the start
    started = time.perf_counter()
    first = next(iter(recipes.values()))
    dataset = load_dataset(first.data)
    dataset.check()
    counts = {split: len(dataset.split(split)) for split in ("train", "validation", "test")}
    print(
        f"{first.model} on {first.data}: {counts['train']} pictures to learn from, {counts['validation']} to choose "
        f"by, {counts['test']} to score on, of things that neither training nor pretraining shows",
        flush=True,
    )
    before = untuned(first, dataset.split("test"), progress=progress)
    start = untuned(first, dataset.split("validation"), progress=progress).metrics
    rows = {"zero-shot": _zero_shot(first, before.metrics)}
    runs: dict[str, Run] = {}
    for name, recipe in recipes.items():
        print(f"tuning: {name}", flush=True)
        runs[name] = train(
            recipe,
            folder / name.replace(" ", "-").replace("=", ""),
            progress=progress,
            check=False,
            before=before,
            start=start,
        )
        rows[name] = runs[name].metrics
    write_json(folder / "demo.json", rows)
    curve = folder / "curve.png"
    plot_methods(
        {
            name: [(row["step"], row["eval_mean_recall"]) for row in run.history if "eval_mean_recall" in row]
            for name, run in runs.items()
        },
        curve,
        strong=AURORA,
    )
    print(f"\n{comparison_table(rows)}\n")
    aurora = runs[AURORA].folder
    print(f"gallery   {aurora / 'gallery.png'}\ncurve     {curve}\nadapter   {aurora / 'adapter'}")
    trained = sum(row["train_seconds"] for row in rows.values())
    print(f"{time.perf_counter() - started:.0f} s in all, {trained:.0f} s of it training")


def _zero_shot(recipe: Recipe, test: dict[str, float]) -> dict:
    from .backbones import load_backbone
    from .baselines import apply_method

    backbone = load_backbone(recipe.model)
    apply_method(backbone, "zero-shot")
    return {"test": test, "weights": weight_counts(backbone), "train_seconds": 0.0}
