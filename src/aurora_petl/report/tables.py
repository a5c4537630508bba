"""Tables and summaries as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..baselines import saved_bytes, weight_counts

if TYPE_CHECKING:
    from ..backbones import Tunable
    from ..backbones.blip.convert import Conversion

FEW = 50  # rows of a split whose scores are not worth much
RECALLS = {
    **{f"text_recall@{k}": f"T R@{k}" for k in (1, 5, 10)},
    **{f"image_recall@{k}": f"I R@{k}" for k in (1, 5, 10)},
    "mean_recall": "mean",
}
LEGEND = "T: text found by picture, I: picture found by text; R@K in %, mean of the six"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def metrics_table(rows: dict[str, dict[str, float]]) -> str:
    """A row of metrics for every name; all have the same ones, under them, if they are recalls, what these are."""
    keys = list(next(iter(rows.values())))
    body = [[name, *(f"{found[key]:.1f}" for key in keys)] for name, found in rows.items()]
    shown = table(["", *(RECALLS.get(key, key) for key in keys)], body)
    return f"{shown}\n{LEGEND}" if "mean_recall" in keys else shown


def comparison_table(rows: dict[str, dict[str, Any]]) -> str:
    """Methods side by side: trainable weights, their share, recalls, training seconds (from `Run.metrics`)."""
    body = []
    for name, found in rows.items():
        weights = found["weights"]
        body.append(
            [
                name,
                f"{weights['trainable']:,}",
                f"{100 * weights['trainable'] / weights['model']:.2f}%",
                *(f"{found['test'][key]:.1f}" for key in RECALLS),
                f"{found['train_seconds']:.0f}",
            ]
        )
    return f"{table(['method', 'weights', 'share', *RECALLS.values(), 'seconds'], body)}\n{LEGEND}"


def run_summary(metrics: dict[str, Any]) -> str:
    """A finished run beside the untuned model, if it is not that itself: by the order of candidates that the run
    settled, and, where ITM has a part in it, by ITC alone, which is what a search without ``--rerank`` shows."""
    weights, best = metrics["weights"], metrics.get("best_step")
    views = {"zero_shot": "zero-shot"} | ({"tuned": "tuned"} if metrics["steps"] and best != 0 else {})
    lines = [_scores(metrics, views) if metrics["test"] else "no scores: split test comes without right answers"]
    if small := caution(metrics["test"], metrics.get("test_rows", FEW)):
        lines.append(small)
    for view, name in views.items():
        if choice := metrics.get("chosen", {}).get(view):
            lines.append(f"{name} ranks by {_order(**choice)}: the best on the validation split")
    if "strength" in metrics:
        tried = ", ".join(f"{key} {value:.1f}" for key, value in metrics["strengths"].items())
        lines.append(f"strength of the tuning and its validation score: {tried}; {kept_weights(metrics)}")
    if metrics["steps"] and best == 0:
        lines.append("tuning did not help on the validation split: the untuned model is kept")
    if metrics["steps"]:
        kept = f"; those of step {best} are kept" if best and "strength" not in metrics else ""
        lines.append(
            f"{weights['trainable']:,} weights trained "
            f"({100 * weights['trainable'] / weights['model']:.2f}% of {weights['model']:,}) "
            f"in {metrics['steps']} steps and {metrics['train_seconds']:.0f} s{kept}"
        )
    return "\n".join(lines)


def kept_weights(metrics: dict[str, Any]) -> str:
    """Which weights a run kept, in words."""
    if "strength" in metrics:
        return f"strength {metrics['strength']:g} kept"
    return f"weights of step {metrics['best_step']} kept"


def _scores(metrics: dict[str, Any], views: dict[str, str]) -> str:
    """The test split's metrics of the untuned and the tuned model, and by ITC alone where they are of ITM."""
    keys = {("zero_shot_test" if view == "zero_shot" else "test"): name for view, name in views.items()}
    alone = {f"{name}, ITC only": metrics.get(f"{key}_itc_only") for key, name in keys.items()}
    rows = {name: metrics[key] for key, name in keys.items()}
    return metrics_table(rows | {name: found for name, found in alone.items() if found})


def _order(ranking: str, beta: float) -> str:
    """What a person is told of an order of candidates."""
    if ranking == "itc":
        return "ITC similarity alone, as aurora search does"
    more = f" + {beta:g} * ITC similarity" if beta else ""
    return f"ITM match logit{more}, as aurora search does with --rerank"


def conversion_summary(done: Conversion) -> str:
    """What became of a checkpoint's keys, and what the model folder can be used for."""
    vision, text = done.config.vision_config, done.config.text_config
    reasons: dict[str, int] = {}
    for why in done.dropped.values():
        reasons[why] = reasons.get(why, 0) + 1
    rows = [
        ["weights of the model", str(len(done.used)), "model.safetensors"],
        ["momentum encoder and queue", str(len(done.momentum)), "momentum.safetensors" if done.momentum else "-"],
        *([why, str(number), "dropped"] for why, number in reasons.items()),
    ]
    lines = [
        f"BLIP for pictures of {vision.image_size} x {vision.image_size} pixels",
        *(
            f"{name}: {part.num_hidden_layers} layers, {part.hidden_size} wide, {part.num_attention_heads} heads"
            for name, part in (("vision", vision), ("text", text))
        ),
        table(["keys of the checkpoint", "number", "now in"], rows),
        *(f"not for {task}: the checkpoint has no {', '.join(parts)}" for task, parts in done.lacking.items()),
    ]
    return "\n".join(lines)


def caution(metrics: dict[str, float], rows: int, split: str = "test") -> str:
    """What the first of a small split's metrics, in percent, is worth: a line with its 95% interval by Wilson; nothing
    if there are rows enough.

    Args:
        rows: pictures or clips that were asked for their texts, or questions.
    """
    if not metrics or rows >= FEW:
        return ""
    name, value = next(iter(metrics.items()))
    low, high = wilson(value / 100, rows)
    return (
        f"caution: split {split} has {rows} rows, too few to tell: {RECALLS.get(name, name)} {value:.1f} stands for "
        f"{100 * low:.0f} to {100 * high:.0f} (95% interval)"
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share that was seen in ``count`` trials."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def parameter_summary(backbone: Tunable, title: str) -> str:
    """What trains, by group, with its share of the model, and how large the adapter's file is."""
    counts = weight_counts(backbone)
    counts["factors"] = counts["adapter"] - counts["fusion"]
    parts = [("  its factors", "factors"), ("  context and gates", "fusion")] if counts["fusion"] else []
    rows = [
        [name, f"{counts[key]:,}", f"{100 * counts[key] / counts['model']:.3f}%"]
        for name, key in (
            ("adapter", "adapter"),
            *parts,
            *([("heads and temperature", "heads")] if counts["heads"] or backbone.heads else []),
            ("trainable in all", "trainable"),
            ("model", "model"),
        )
    ]
    shown = f"{title}\n{table(['weights of', 'number', 'share'], rows)}"
    size = saved_bytes(backbone)
    if not size:
        return shown
    of = f", {size_of(4 * counts['adapter'])} of them the adapter's own weights" if counts["heads"] else ""
    return f"{shown}\nthe saved file: {size_of(size)}{of}"


def size_of(count: float) -> str:
    """Bytes as people write them: 421 KB, 2.5 MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
