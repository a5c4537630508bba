"""How near the estimates of ``aurora train --dry-run`` come to the run: seconds of a step, and memory at the peak.

    python benchmarks/dry_run.py emoji train.batch_size=32 --steps 8

Each side has a process of its own, by turns, since the memory of a process at its peak does not shrink. The ratios are
of medians. On a machine that does nothing else both should lie between 0.7 and 1.4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from transformers import TrainerCallback

from aurora_petl.devices import choose
from aurora_petl.measuring import peak_memory
from aurora_petl.plan import make_plan
from aurora_petl.recipe import Recipe, load_recipe
from aurora_petl.training import fit, prepare


class Clock(TrainerCallback):
    """Seconds of every step, the reading of its pictures included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began: float | None = None

    def on_train_begin(self, *_, **__) -> None:
        self._began = None

    def on_step_end(self, *_, **__) -> None:
        now = time.perf_counter()
        if self._began is not None:
            self.seconds.append(now - self._began)
        self._began = now

    def on_evaluate(self, *_, **__) -> None:
        self._began = None  # what an evaluation takes is nobody's step


def estimate(recipe: Recipe) -> tuple[float, int | None]:
    """Seconds of a step and memory, as a dry run says."""
    prepared = prepare(recipe, check=False, compiles=False)
    found = make_plan(prepared.recipe, prepared.dataset, prepared.task).measured
    assert found is not None
    return found.seconds, found.memory


def run(recipe: Recipe) -> tuple[float, int | None]:
    """The same of a run's steps."""
    prepared = prepare(recipe, check=False)
    # one validation picture: an evaluation of many would decide on the memory
    few = [item for item in prepared.dataset if item.split == "train"]
    few += [item for item in prepared.dataset if item.split == "validation"][:1]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            Path(folder),
            replace(prepared, dataset=replace(prepared.dataset, items=few)),
            progress=False,
            callbacks=[clock],
        )
    return statistics.median(clock.seconds), peak_memory(choose())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a recipe, or a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=8, help="of the run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of both (default: %(default)s)")
    parser.add_argument("--side", choices=("estimate", "run"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        fields = [*options.overrides, f"train.max_steps={options.steps}", "train.evaluations=1"]
        recipe = load_recipe(options.recipe, fields)
        print(json.dumps((estimate if options.side == "estimate" else run)(recipe)))
        return
    found: dict[str, list[list[float]]] = {"estimate": [], "run": []}
    for _ in range(options.repeats):
        for side, rows in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    medians = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in found.items()}
    for number, name in enumerate(("seconds of a step", "bytes at the peak")):
        told, true = medians["estimate"][number], medians["run"][number]
        print(f"{name:18} estimate {told:.4g}, run {true:.4g}, ratio {told / true:.2f}")


if __name__ == "__main__":
    main()
