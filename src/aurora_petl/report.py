"""Tables and pictures that a person can read, JSON that a program can."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .files import whole

if TYPE_CHECKING:
    from .backbones import Tunable
    from .backbones.blip.convert import Conversion

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
    from .baselines import saved_bytes, weight_counts

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


def plot_curve(
    history: Sequence[dict[str, Any]],
    path: Path,
    metric: str = "mean_recall",
    objective: str = "ITC + ITM",
    note: str = "",
) -> None:
    """Training loss, which is the ``objective``, and the validation ``metric`` against steps; at step 0 the untuned
    model. The title says ``note``."""
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
        right.axhline(scores[0][1], color="tab:orange", linestyle="--", linewidth=1, label="zero-shot")
    right.set_ylabel(f"{name} (%)")
    lines = [*left.get_lines(), *right.get_lines()]
    left.legend(lines, [str(line.get_label()) for line in lines], loc="upper center", ncols=3, fontsize=8)
    left.set_title(f"Training{f', {note}' if note else ''}", loc="left")
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.15 * (high - low))
    low, high = right.get_ylim()
    right.set_ylim(low, high + 0.15 * (high - low))
    _save(figure, path)


def plot_methods(curves: dict[str, Sequence[tuple[float, float]]], path: Path, *, strong: str = "") -> None:
    """One line a method of the validation mean recall against steps, dashed where the untuned model stands (step 0);
    ``strong`` is drawn thick."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=4, linewidth=2.6 if name == strong else 1.4, label=name
        )
    zero_shot = next((recall for points in curves.values() for step, recall in points if step == 0), None)
    if zero_shot is not None:
        axes.axhline(zero_shot, color="tab:grey", linestyle="--", linewidth=1, label="zero-shot")
    axes.set(xlabel="step", ylabel="validation mean recall (%)")
    axes.set_title("What each method learns", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


@dataclass
class Hit:
    """A retrieved picture or text."""

    image: Image.Image | None
    text: str | None
    correct: bool
    score: float


@dataclass
class GalleryQuery:
    """A text or a picture, with what was found before and after tuning, best first."""

    text: str | None
    image: Image.Image | None
    before: list[Hit]
    after: list[Hit]


_THUMB, _GAP, _QUERY, _LINE = 88, 8, 260, 18
_GREEN, _GREY, _INK, _PALE = (22, 140, 60), (205, 205, 205), (25, 25, 25), (120, 120, 120)


def gallery(path: Path, queries: Sequence[GalleryQuery]) -> None:
    """Draw queries with their hits before and after, right ones in a green frame with a tick."""
    regular, bold = _font(13), _font(14, bold=True)
    count = max((len(hits) for query in queries for hits in (query.before, query.after)), default=1)
    block = count * (_THUMB + _GAP)
    middle, right = _QUERY + 2 * _GAP, _QUERY + block + 5 * _GAP
    row = _THUMB + 2 * _GAP
    width = right + block + _GAP
    height = 44 + 34 * len({query.text is None for query in queries}) + row * len(queries) + 30
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top, kind = 8, None
    for query in sorted(queries, key=lambda q: q.text is None):
        if (query.text is None) != kind:
            kind = query.text is None
            title = "Picture queries: texts found" if kind else "Text queries: pictures found"
            for x, text in ((_GAP, title), (middle, "before (zero-shot)"), (right, "after tuning")):
                draw.text((x, top + 8), text, _INK, bold)
            top += 34
        if query.text is not None:
            for n, line in enumerate(_wrap(query.text, _QUERY, regular, 5)):
                draw.text((_GAP, top + 4 + n * _LINE), line, _INK, regular)
        if query.image is not None:
            sheet.paste(_thumbnail(query.image), (_GAP, top))
        for x, hits in ((middle, query.before), (right, query.after)):
            for n, hit in enumerate(hits):
                _draw_hit(sheet, draw, hit, n, x, top, block, regular, bold)
        top += row
        draw.line((_GAP, top - _GAP, width - _GAP, top - _GAP), (235, 235, 235))
    draw.text((_GAP, height - 24), "Best first. Green frame and tick: the right answer.", _PALE, regular)
    with whole(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


@dataclass
class AnsweredQuestion:
    """A question about a picture or a frame, its right answer ("" if not known), and what was answered before and after
    tuning, with whether that is right."""

    image: Image.Image
    question: str
    right: str
    before: tuple[str, bool]
    after: tuple[str, bool]


def answer_gallery(path: Path, questions: Sequence[AnsweredQuestion]) -> None:
    """Draw questions in rows: picture, question, right answer, answers before and after, right ones ticked in green."""
    regular, bold = _font(13), _font(14, bold=True)
    lefts, ends = (_THUMB + 3 * _GAP, _THUMB + 280, _THUMB + 430, _THUMB + 610), _THUMB + 790
    row = _THUMB + 2 * _GAP
    sheet = Image.new("RGB", (ends, 44 + row * len(questions) + 30), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in zip(lefts, ("question", "right answer", "before (zero-shot)", "after tuning"), strict=True):
        draw.text((x, 14), title, _INK, bold)
    for n, asked in enumerate(questions):
        top = 44 + n * row
        sheet.paste(_thumbnail(asked.image), (_GAP, top))
        cells = [(asked.question, False), (asked.right, False), asked.before, asked.after]
        for x, end, (text, right) in zip(lefts, (*lefts[1:], ends), cells, strict=True):
            indent = 18 if right else 0
            if right:
                _tick(draw, x, top + 5, 12)
            font = bold if right else regular
            for line, words in enumerate(_wrap(text, end - x - indent - _GAP, font, 5)):
                draw.text((x + indent, top + 2 + line * _LINE), words, _GREEN if right else _INK, font)
        draw.line((_GAP, top + row - _GAP, ends - _GAP, top + row - _GAP), (235, 235, 235))
    draw.text((_GAP, sheet.height - 24), "Green with a tick: the right answer.", _PALE, regular)
    with whole(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def _draw_hit(sheet, draw, hit: Hit, n: int, x: int, top: int, block: int, regular, bold) -> None:
    if hit.image is None:
        line = _wrap(hit.text or "", block - 24, bold if hit.correct else regular, 1)[0]
        y = top + n * _LINE
        if hit.correct:
            _tick(draw, x, y + 3, 12)
        draw.text((x + 18, y), line, _GREEN if hit.correct else _INK, bold if hit.correct else regular)
        return
    left = x + n * (_THUMB + _GAP)
    sheet.paste(_thumbnail(hit.image), (left, top))
    box = (left - 2, top - 2, left + _THUMB + 1, top + _THUMB + 1)
    draw.rectangle(box, outline=_GREEN if hit.correct else _GREY, width=4 if hit.correct else 1)
    if hit.correct:
        draw.rectangle((left + _THUMB - 22, top, left + _THUMB - 1, top + 21), fill=_GREEN)
        _tick(draw, left + _THUMB - 18, top + 5, 12, "white")


def _tick(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, colour: str | tuple[int, int, int] = _GREEN) -> None:
    draw.line([(x, y + size * 0.55), (x + size * 0.4, y + size * 0.95), (x + size, y)], colour, 3)


def _thumbnail(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (_THUMB, _THUMB), color="white")


def _wrap(text: str, width: int, font: Any, most: int) -> list[str]:
    """Lines of at most ``width`` pixels, the last one cut with an ellipsis."""
    rest, lines = " ".join(text.split()), list[str]()
    while rest and len(lines) < most:
        if font.getlength(rest) <= width:
            return [*lines, rest]
        end = "..." if len(lines) == most - 1 else ""
        fit = bisect_right(range(1, len(rest)), width, key=lambda n: font.getlength(rest[:n] + end)) or 1
        cut = rest.rfind(" ", 0, fit + 1)
        cut = cut if cut > fit // 2 else fit  # a long word is broken rather than leave most of its line empty
        lines.append(rest[:cut].rstrip() + end)
        rest = rest[cut:].lstrip()
    return lines or [""]


def _font(size: int, bold: bool = False) -> Any:
    found = font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    )
    return ImageFont.truetype(found, size)
