"""Plots of what validation measured, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import whole


def plot_curve(
    history: Sequence[dict[str, Any]],
    path: Path,
    metric: str = "mean_recall",
    objective: str = "ITC + ITM",
    note: str = "",
    start: str = "zero-shot",
) -> None:
    """Training loss, which is the ``objective``, and the validation ``metric`` against steps; at step 0 the model that
    ``start`` names. The title says ``note``."""
    name = metric.replace("_", " ")
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    scores = [(row["step"], row[f"eval_{metric}"]) for row in history if f"eval_{metric}" in row]
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:grey", label=f"training loss ({objective})")
    left.set(xlabel="step", ylabel="training loss")
    right = left.twinx()
    if scores:
        right.plot(*zip(*scores, strict=True), color="tab:blue", marker="o", label=f"validation {name}")
        right.axhline(scores[0][1], color="tab:orange", linestyle="--", linewidth=1, label=start)
    right.set_ylabel(f"{name} (%)")
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="upper center", ncols=3, fontsize=8)
    left.set_title(f"Training{f', {note}' if note else ''}", loc="left")
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.15 * (high - low))
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.15 * (high - low))
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
