"""Tuning methods side by side: one table, one plot of score against weights, one file of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .curves import save
from .tables import size_of, table

AURORA = "aurora"
LEGEND = "+-: standard error over seeds, of differences paired by seed"
EDGE = "*: the best rate is at the edge of those that were tried; give --rates beyond it"


@dataclass(frozen=True)
class Compared:
    """A method's runs, one for each seed, on the test split.

    Args:
        metric: what the scores are, in percent.
        weights: how many train, by group, as `baselines.weight_counts` gives them.
        steps: 0 where the recipe's number was taken.
        at_edge: whether the rate is the lowest or the highest of those that were tried.
        search: validation scores by what was tried.
        bytes: of the saved weights.
        seconds: of a run, the mean.
        memory: bytes at the peak, the largest of all runs.
        also: scores of other data.
    """

    name: str
    metric: str
    scores: tuple[float, ...]
    weights: Mapping[str, int]
    rate: float = 0.0
    steps: int = 0
    at_edge: bool = False
    search: Mapping[str, float] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    memory: int | None = None
    also: tuple[float, ...] = ()


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of some values; None of fewer than two."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def over(ours: Compared, theirs: Compared) -> list[float]:
    """By how much a method's score is higher than another's, by seed."""
    return [a - b for a, b in zip(ours.scores, theirs.scores, strict=True)]


def _reference(compared: Sequence[Compared]) -> Compared:
    """What others are compared with: Aurora, or the first method without it."""
    return next((one for one in compared if one.name.partition(":")[0] == AURORA), compared[0])


def comparison_table(compared: Sequence[Compared]) -> str:
    """A row for each method: weights and their share of the model's, size of the file, score, how far Aurora is above
    it, what was forgotten of other data, seconds and memory."""
    reference = _reference(compared)
    forgets, measured = any(one.also for one in compared), any(one.memory for one in compared)
    seeds = len(reference.scores)
    header = [
        "method",
        "weights",
        "share",
        "file",
        "rate",
        reference.metric.replace("_", " "),
        f"{reference.name} minus it",
    ]
    header += [*(["other data"] if forgets else []), "seconds", *(["memory"] if measured else [])]
    rows = []
    for one in compared:
        row = [
            one.name,
            f"{one.weights['trainable']:,}" if one.weights["trainable"] else "0",
            f"{100 * one.weights['trainable'] / one.weights['model']:.2f}%" if one.weights.get("model") else "",
            size_of(one.bytes) if one.bytes else "",
            f"{one.rate:g}{'*' if one.at_edge else ''}" if one.rate else "",
            _told(one.scores if one.rate else one.scores[:1]),
            "" if one is reference else _told(over(reference, one), "+"),
        ]
        row += [f"{mean(one.also):.1f}" if one.also else ""] if forgets else []
        row += [
            f"{one.seconds:.0f}" if one.rate else "",
            *([size_of(one.memory) if one.memory else ""] if measured else []),
        ]
        rows.append(row)
    notes = [f"{seeds} seeds; {LEGEND}" if seeds > 1 else "one seed: differences may be chance"]
    notes += [EDGE] if any(one.at_edge for one in compared) else []
    return "\n".join([table(header, rows), *notes])


def _told(values: Sequence[float], sign: str = "") -> str:
    error = standard_error(values)
    return f"{mean(values):{sign}.1f}" + ("" if error is None else f" +- {error:.1f}")


def comparison_json(compared: Sequence[Compared], data: str, also: str) -> dict[str, Any]:
    """The figures of all methods for a file."""
    reference, methods = _reference(compared), {}
    for one in compared:
        differences = over(reference, one)
        methods[one.name] = {key: value for key, value in asdict(one).items() if key not in ("name", "metric")} | {
            "mean": mean(one.scores),
            "standard_error": standard_error(one.scores) if one.rate else None,
            f"{reference.name}_minus": mean(differences),
            f"{reference.name}_minus_standard_error": standard_error(differences),
        }
    return {"data": data, "metric": reference.metric, "also": also or None, "methods": methods}


def plot_comparison(compared: Sequence[Compared], path: Path) -> None:
    """Score against trained weights, a point with its standard error for each method, dashed the untuned model."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes, reference = figure.subplots(), _reference(compared)
    for one in compared:
        count, score = one.weights["trainable"], mean(one.scores)
        if not count:
            axes.axhline(score, color="tab:grey", linestyle="--", linewidth=1, label=one.name)
            continue
        error = standard_error(one.scores)
        colour = "tab:red" if one is reference else "tab:blue"
        axes.errorbar(count, score, yerr=error, marker="o", color=colour, capsize=3, linestyle="none")
        axes.annotate(one.name, (count, score), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="weights that train", ylabel=f"test {reference.metric.replace('_', ' ')} (%)")
    axes.set_title("Score against weights", loc="left")
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.25)
    if any(not one.weights["trainable"] for one in compared):
        axes.legend(fontsize=9)
    save(figure, path)
