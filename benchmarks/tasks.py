"""Tuning methods over several tasks: `aurora compare` on every pack, and one table of all of them.

    python benchmarks/tasks.py --out runs/tasks --seeds 5                       the six packs of scenes, hours
    python benchmarks/tasks.py --out runs/tasks --packs scenes-questions ...    one of them; others may run beside it
    python benchmarks/tasks.py --out runs/tasks --report --json F --docs docs/methods.md     what is there so far
    python benchmarks/tasks.py --out runs/few-64 --set train.max_train_samples=64 --rates-of runs/tasks ...
                                                                                with fewer pictures, at the same rates
    python benchmarks/tasks.py --out runs/default --default                     Aurora as the recipes have it, no search

Every method gets the same search over rates, by the validation split with a seed that is not scored. ``--set`` changes
all recipes alike. In the table +- is the standard error over seeds of the difference of means over the tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from pages import write_between

from aurora_petl.compare import BEYOND, RATES, Plan, compare
from aurora_petl.files import read_json, write_json
from aurora_petl.recipe import load_recipe
from aurora_petl.report import markdown_table
from aurora_petl.report.comparison import AURORA, standard_error

PACKS = (
    *("scenes-colour", "scenes-ink", "scenes-moves", "scenes-changes"),
    *("scenes-questions", "scenes-clip-questions"),
)
METHODS = ("heads", AURORA, "lora:1x", "lora:10x", "full")
Figures = Mapping[str, Any]  # of a method, as `comparison_json` has them


def run(pack: str, options: argparse.Namespace) -> None:
    """The comparison on one pack, as far as it is missing."""
    recipe = load_recipe(pack, options.set)
    known = {AURORA: recipe.train.learning_rate} if options.default else rates_of(options.rates_of, pack)
    methods = (AURORA,) if options.default else tuple(options.methods)
    plan = Plan(recipe, methods, options.seeds, tuple(options.rates), options.beyond, known=known)
    compare(plan, options.out / pack)


def rates_of(out: Path | None, pack: str) -> dict[str, float]:
    """The rate that each method has in the comparison on a pack in a folder; none without a folder."""
    if out is None:
        return {}
    if pack not in (results := finished(out, [pack])):
        raise SystemExit(f"{out} holds no comparison on {pack} that ended")
    return {method: figures["rate"] for method, figures in results[pack].items() if figures["rate"]}


def marks(title: str) -> tuple[str, str]:
    """Between what a page has the table of this title."""
    return f"<!-- {title}: python benchmarks/tasks.py -->", f"<!-- end of {title} -->"


def finished(out: Path, packs: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """Figures of the methods by pack, of every comparison that ended."""
    files = {pack: out / pack / "results.json" for pack in packs}
    return {pack: read_json(file)["methods"] for pack, file in files.items() if file.is_file()}


def mean_difference(packs: Sequence[Mapping[str, Figures]], name: str) -> list[float]:
    """By how much Aurora's mean over the packs is above a method's, for each seed that all have."""
    seeds = min(len(methods[word]["scores"]) for methods in packs for word in (AURORA, name))
    by_pack = [
        [a - b for a, b in zip(methods[AURORA]["scores"], methods[name]["scores"], strict=False)] for methods in packs
    ]
    return [mean(differences[seed] for differences in by_pack) for seed in range(seeds)]


def told(values: Sequence[float], sign: str = "") -> str:
    """A mean with its standard error, if there is one."""
    error = standard_error(values)
    return f"{mean(values):{sign}.1f}" + ("" if error is None else f" +- {error:.1f}")


def in_table(results: Mapping[str, Mapping[str, Figures]]) -> str:
    """A row for each method that all packs have, with its rates, a column for each pack."""
    packs = list(results.values())
    names = [name for name in packs[0] if all(name in methods for methods in packs)]
    names.sort(key=lambda name: (name != "zero-shot", name != AURORA))  # in whichever order they were run
    header = ["method", *results, "mean", "Aurora minus it", "Aurora is at least as good in"]
    rows = []
    for name in names:
        cells = [_cell(methods[name]) for methods in packs]
        row = [name, *cells, f"{mean(methods[name]['mean'] for methods in packs):.1f}"]
        if name == AURORA or AURORA not in names:
            rows.append([*row, "", ""])
            continue
        wins = sum(methods[AURORA]["mean"] >= methods[name]["mean"] for methods in packs)
        rows.append([*row, told(mean_difference(packs, name), "+"), f"{wins} of {len(packs)}"])
    return markdown_table(header, rows)


def _cell(figures: Figures) -> str:
    if not figures["rate"]:
        return f"{figures['mean']:.1f}"
    star = "*" if figures["at_edge"] else ""
    return f"{told(figures['scores'])} (rate {figures['rate']:g}{star})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the comparisons; what is there is not repeated"
    )
    parser.add_argument("--packs", nargs="+", default=PACKS, help="recipes, the six of scenes if none are named")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="as of aurora compare")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--beyond", type=int, default=BEYOND)
    parser.add_argument("--rates-of", type=Path, help="comparisons whose rates are taken; others are searched")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="fields of all recipes")
    parser.add_argument("--default", action="store_true", help="Aurora alone, with the recipes' own rates")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="where figures go")
    parser.add_argument("--docs", type=Path, help="a page with the marks that the table goes between")
    parser.add_argument("--title", default="methods over tasks", help="what the marks name (default: %(default)s)")
    options = parser.parse_args()
    for pack in () if options.report else options.packs:
        run(pack, options)
    if not (results := finished(options.out, options.packs)):
        raise SystemExit(f"{options.out} holds no comparison that ended")
    table = in_table(results)
    print(table)
    if options.json:
        write_json(options.json, {"date": date.today().isoformat(), "set": options.set, "packs": results})
    if options.docs:
        write_between(options.docs, table, marks(options.title))


if __name__ == "__main__":
    main()
