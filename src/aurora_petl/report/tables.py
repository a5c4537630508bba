"""Tables and summaries as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..baselines import saved_bytes, weight_counts

if TYPE_CHECKING:
    from ..backbones import Tunable
    from ..backbones.blip.convert import Conversion

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
    """Bytes as people write them: 421 KB, 2.5 MB, 1.2 GB."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
