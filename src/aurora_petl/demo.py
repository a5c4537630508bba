"""``aurora demo``: a comparison of tuning methods on an embedded pack, whose rates were searched before."""

from __future__ import annotations

import time
from pathlib import Path

from .compare import Plan, claim, compare, run_folder
from .data import load_dataset
from .recipe import load_recipe
from .report.comparison import AURORA, comparison_table
from .training import ADAPTER

RECIPE = "emoji"
# on the validation split, by `aurora compare` (docs/methods.md)
RATES = {"heads": 1e-3, AURORA: 3e-3, "lora:10x": 3e-3, "full": 9e-5}


def plan(seeds: int) -> Plan:
    """What the demo compares: Aurora, its heads alone, LoRA of ten times its size, and full fine-tuning."""
    return Plan(load_recipe(RECIPE), tuple(RATES), seeds=seeds, known=RATES)


def demo(folder: Path, *, seeds: int = 1, progress: bool = False) -> None:
    """Train and compare all methods into ``folder``, print the table and where the pictures are. A demo that was
    stopped goes on.

    Raises:
        AuroraError: if ``folder`` holds anything but a demo, or is a file.
    """
    started, planned = time.perf_counter(), plan(seeds)
    claim(planned, folder)
    recipe = planned.recipe
    dataset = load_dataset(recipe.data)
    counts = {split: len(dataset.split(split)) for split in ("train", "validation", "test")}
    print(
        f"{recipe.model} on {recipe.data}: {counts['train']} pictures to learn from, {counts['validation']} to choose "
        f"by, {counts['test']} to score on, of things that neither training nor pretraining shows",
        flush=True,
    )
    compared = compare(planned, folder, progress=progress)
    shown = run_folder(folder, AURORA, 0, RATES[AURORA], 0)
    print(f"\n{comparison_table(compared)}\n")
    print(f"gallery   {shown / 'gallery.png'}\nplot      {folder / 'comparison.png'}\nadapter   {shown / ADAPTER}")
    print(f"{time.perf_counter() - started:.0f} s in all")
