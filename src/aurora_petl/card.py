"""The README.md beside a saved adapter: what it is, what it was trained on, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .backbones import Tunable


def adapter_card(backbone: Tunable, about: Mapping[str, Any]) -> str:
    """The card of a peft adapter, in Markdown.

    Args:
        about: rows of its table beside those that the backbone knows.
    """
    trained = [(name, weight.numel()) for name, weight in backbone.module.named_parameters() if weight.requires_grad]
    heads = sum(size for name, size in trained if ".modules_to_save." in name)
    every = sum(size for _, size in trained)
    count = f"{every:,}" + (f", {heads:,} of them in {', '.join(backbone.heads)}" if heads else "")
    rows = {"model": backbone.name, **about, "weights that train": count}
    kind = type(backbone.model).__name__
    base = backbone.name if "/" in backbone.name and backbone.name[0] not in "./~" else None
    lines = ["---", "library_name: peft", *([f"base_model: {base}"] if base else []), "---", "", "# Adapter", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", {}, [])]
    task = ", task='vqa'" if "QuestionAnswering" in kind else ""
    lines += [
        "",
        "## How to load it",
        "",
        "```python",
        "import aurora_petl  # tells peft of the method AURORA_PETL",
        "from peft import PeftModel",
        "",
        f"# a {kind} and its tokenizer",
        f"backbone = aurora_petl.load_backbone({backbone.name!r}{task}, image_size={backbone.image_size})",
        'model = PeftModel.from_pretrained(backbone.model, "this folder")',
        "```",
        "",
        "Without the first line peft raises `KeyError: 'AURORA_PETL'` for adapters of that method. If `aurora_petl` is "
        "missing, install it: `pip install .` in a checkout of Aurora.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = ", ".join(f"{name}={part}" for name, part in value.items()) if isinstance(value, Mapping) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
