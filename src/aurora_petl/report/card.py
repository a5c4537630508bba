"""The README.md beside a run's adapter: what it is, what it was trained on, how it scores, how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..backbones.hub import is_hub_id
from ..data.rows import SPLITS, Dataset
from ..methods import find_method
from ..recipe import Recipe
from ..tasks.base import TEXTS
from .scores import LABELS
from .tables import markdown_table

RUN_PLACE, ADAPTER_PLACE = "path/of/the/run", "path/of/this/folder"  # until the run is pushed
TASK_TAGS = {"retrieval": "image-text-retrieval", "vqa": "visual-question-answering"}
USE = {
    "retrieval": 'vectors = model.encode_images(["cat.jpg"])\ntexts = model.encode_texts(["a cat on a wall"])',
    "vqa": 'answers = model.answer("cat.jpg", ["what colour is it?"])',
}


def run_card(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """The model card of a run, in Markdown, with front matter for the hub.

    It names no licence: which one the model and the data allow is not known here.

    Args:
        metrics: of the run's ``metrics.json``.
    """
    method, task = find_method(recipe.method), recipe.task.name
    of_peft = method.config is not None
    data, weights = metrics.get("data") or {}, metrics.get("weights") or {}
    name = str(data.get("name") or recipe.data)
    rows = {
        "model": recipe.model,
        "data": ", ".join([name, *_counts(data)]),
        "task": task,
        "method": f"{recipe.method}: {method.about}",
        "options": recipe.method_options,
        "weights that train": _weights(weights),
        "began with": _start(recipe.train.init_from),
    }
    lines = ["---", front_matter(recipe).to_yaml().strip(), "---", "", f"# {recipe.model}, tuned on {name}", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in (None, "", {}, [])]
    lines += _scores(metrics)
    lines += [
        "",
        "## How to load it",
        "",
        "The package `aurora-petl` is needed; install it by `pip install .` in a checkout of Aurora.",
        "",
        "```python",
        "import aurora_petl",
        "",
        f'model = aurora_petl.load("{RUN_PLACE}")',
        USE[task],
        "```",
    ]
    return "\n".join(lines + (_with_peft(recipe) if of_peft else [])) + "\n"


def front_matter(recipe: Recipe) -> ModelCardData:
    """What the hub reads of a card."""
    of_peft, task = find_method(recipe.method).config is not None, recipe.task.name
    made = ModelCardData(
        library_name="peft" if of_peft else "aurora-petl",
        pipeline_tag=TASK_TAGS[task] if task == "vqa" else None,
        tags=["aurora-petl", recipe.method, TASK_TAGS[task]],
    )
    if is_hub_id(recipe.model):
        made["base_model"] = recipe.model
        made["base_model_relation"] = "adapter" if of_peft else "finetune"
    return made


def data_facts(recipe: Recipe, dataset: Dataset[Any]) -> dict[str, Any]:
    """What `run_card` says of a run's data, as ``metrics.json`` holds it under ``data``."""
    counts = {split: count for split in SPLITS if (count := sum(item.split == split for item in dataset))}
    media = "clips" if dataset.clips else "pictures"
    return {"name": Path(recipe.data).name, "kind": f"{media} with {TEXTS[type(dataset)]}", **counts}


def _counts(data: Mapping[str, Any]) -> list[str]:
    """What a dataset holds, in words."""
    return [str(data[key]) for key in ("kind",) if key in data] + [
        f"{data[split]:,} {words}"
        for split, words in (("train", "to train"), ("validation", "to validate"), ("test", "to test"))
        if split in data
    ]


def _weights(weights: Mapping[str, int]) -> str:
    if not weights:
        return ""
    heads = f", {weights['heads']:,} of them in heads" if weights.get("heads") else ""
    return f"{weights['trainable']:,}{heads}, {100 * weights['trainable'] / weights['model']:.3f}% of the model's"


def _start(name: str) -> str:
    """Whose weights training began with: a name of the hub, or a run's name without its path; nothing of a model's."""
    return f"the weights of {name if is_hub_id(name) else Path(name).name}" if name else ""


def _scores(metrics: Mapping[str, Any]) -> list[str]:
    """The section on the test split's metrics before and after."""
    after, before = metrics.get("test"), metrics.get("zero_shot_test")
    if not after or not before:
        return []
    columns = {"untuned": "zero_shot_test", "start": "start_test", "tuned": "test", "tuned, ITC only": "test_itc_only"}
    columns = {name: key for name, key in columns.items() if metrics.get(key)}
    intervals = metrics.get("intervals") or {}
    body = []
    for name in after:
        cells = [_score(metrics[key].get(name), intervals.get(key, {}).get(name)) for key in columns.values()]
        body.append([LABELS.get(name, name), *cells])
    count = f", {metrics['test_rows']:,} rows" if "test_rows" in metrics else ""
    said = f"On the test split{count}; R@K, MRR and accuracy are in percent, [ ] are 95% intervals:"
    return ["", "## Scores", "", said, "", markdown_table(["", *columns], body)]


def _score(value: float | None, interval: Sequence[float] | None) -> str:
    """A metric and where it may lie."""
    if value is None:
        return ""
    return f"{value:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _with_peft(recipe: Recipe) -> list[str]:
    more = "" if recipe.task.name == "retrieval" else f", task={recipe.task.name!r}"
    more += f", image_size={recipe.image_size}" if recipe.image_size else ""
    lines = [
        "",
        "Or with peft, for a model of your own making:",
        "",
        "```python",
        "import aurora_petl  # first: it tells peft of the method AURORA_PETL",
        "from peft import PeftModel",
        "",
        f"backbone = aurora_petl.load_backbone({recipe.model!r}{more})",
        f'model = PeftModel.from_pretrained(backbone.model, "{ADAPTER_PLACE}")',
        "```",
    ]
    if recipe.method == "aurora":
        lines += ["", "Without the first line peft ends with `KeyError: 'AURORA_PETL: please ...'`."]
    return lines


def _cell(value: Any) -> str:
    text = ", ".join(f"{name}={part}" for name, part in value.items()) if isinstance(value, Mapping) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
