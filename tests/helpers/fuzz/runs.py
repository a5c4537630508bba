"""Bad folders of finished and of stopped runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .case import Case, Draw, Outcome, accept, either, refuse
from .damage import HARMS, ODD, PLACES, RUINS, TEXT_RUINS, places_of, put, with_text
from .models import Values, rewrite

ADAPTER, SETTINGS = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"


def figures(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if re.match(r"([TI] R@|mean )", line)]


def same_figures(draw: Draw) -> Any:
    expected = figures(draw.ground.printed("evaluate", str(draw.ground.run), "--no-cache"))

    def check(outcome: Outcome) -> str | None:
        found = figures(outcome.out)
        return None if found == expected and found else f"figures {found}, of the undamaged run {expected}"

    return check


def _first(values: Values, part: str) -> str:
    return next(name for name in sorted(values) if part in name)


def _with(part: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Values], Values]:
    def change(values: Values) -> Values:
        name = _first(values, part)
        made = make(values[name])
        rest = {key: value for key, value in values.items() if key != name}
        return rest if made is None else {**rest, name: made}

    return change


ADAPTERS: dict[str, Callable[[Values], Values]] = {
    "a factor is missing": _with("U_", lambda value: None),
    "lambdas are missing": _with("lambda", lambda value: None),
    "a head is missing": _with("itm_head", lambda value: None),
    "heads are missing": lambda values: {k: v for k, v in values.items() if "head" not in k and "proj" not in k},
    "a factor holds NaN": _with("U_", lambda value: value * float("nan")),
    "a factor is infinite": _with("U_", lambda value: value + float("inf")),
    "a head holds NaN": _with("itm_head", lambda value: value * float("nan")),
    "a factor of another rank": _with("U_", lambda value: value[:, :-1] if value.dim() > 1 else value[:-1]),
    "a factor of another width": _with("U_", lambda value: value[:-1]),
    "a factor of whole numbers": _with("U_", lambda value: value.long()),
    "a factor is flat": _with("U_", lambda value: value.reshape(-1)),
    "a weight more": lambda values: {**values, "base_model.model.zzz": torch.zeros(2)},
    "nothing": lambda values: {},
    "other names": lambda values: {f"x.{name}": value for name, value in values.items()},
    "half precision": lambda values: {name: value.half() for name, value in values.items()},
}
CONFIGS: list[tuple[str, str]] = [
    *(("peft_type", text) for text in ('"LORA"', '"VERA"', '"nope"', "5", "null", "[]")),
    *(("r", text) for text in ("4", "0", "-1", '"x"', "1000000000", "null", "65", "[64]", "1.5")),
    *(("core", text) for text in ('"full"', '"x"', "5", "null")),
    *(("target_modules", text) for text in ('["nothing"]', "5", '"("', "[]", '["query"]')),
    *(("modules_to_save", text) for text in ('["nothing"]', '["itm_head"]', "5")),
    *(("gate", text) for text in ("null", '"released"', '"x"')),
]
RECIPES: list[tuple[Callable[[str], str], str]] = [
    (lambda text: "", "recipe.yaml"),
    (lambda text: "{}\n", "recipe.yaml"),
    (lambda text: "[]\n", "recipe.yaml"),
    (lambda text: text[: len(text) // 3], "recipe.yaml"),
    (lambda text: re.sub("method: .*", "method: lora", text), "method"),
    (lambda text: re.sub("method: .*", "method: nope", text), "nope"),
    (lambda text: re.sub("model: .*", "model: nowhere", text), "nowhere"),
    (lambda text: re.sub("model: .*", "model: blip-mini", text), "adapter"),
    (lambda text: re.sub("data: .*", "data: nowhere", text), "nowhere"),
    (lambda text: re.sub("data: .*", "data: ''", text), "data"),
    (lambda text: re.sub("image_size: .*", "image_size: 33", text), "image_size"),
    (lambda text: re.sub("broken: .*", "broken: 5", text), "broken"),
    (lambda text: text + "zzz: 1\n", "zzz"),
    (lambda text: text + "train: 5\n", "train"),
    (lambda text: re.sub("name: retrieval", "name: vqa", text), "recipe.yaml"),
    (lambda text: re.sub("method_options:", "method_options: 5\nx:", text), "recipe.yaml"),
    (lambda text: text.encode("utf-16").decode("latin-1"), "recipe.yaml"),
    (lambda text: "!!python/object/apply:os.system ['touch marker']\n", "recipe.yaml"),
]


def finished(draw: Draw) -> Case:
    """A file of a finished run is harmed, and the run evaluated or indexed with."""
    run = draw.folder / "run"
    shutil.copytree(draw.ground.run, run)
    shutil.rmtree(run / "features")
    way, same = draw.number % 5, same_figures(draw)
    words = ["evaluate", run, "--no-cache"]
    if draw.rng.random() < 0.25:
        words = ["index", draw.ground.album, "--model", run, "--out", "out", "--quiet"]
    if way == 0:
        about = draw.one_of(list(ADAPTERS), 5, "adapter")
        rewrite(run / ADAPTER, ADAPTERS[about])
        if about == "half precision":  # the same numbers but for rounding
            return Case(about, ["evaluate", run, "--no-cache"], either("adapter"))
        return Case(about, words, refuse("adapter", str(run)))
    if way == 1:
        field, text = draw.one_of(CONFIGS, 5, "config")
        value = json.loads((run / SETTINGS).read_text())
        (run / SETTINGS).write_text(with_text({**value, field: None}, (field,), text))
        return Case(f"{field}: {text}", ["evaluate", run, "--no-cache"], either("adapter", check=same))
    if way == 2:
        number = draw.one_of(range(len(RECIPES)), 5, "recipe")
        change, name = RECIPES[number]
        (run / "recipe.yaml").write_text(change((run / "recipe.yaml").read_text()))
        return Case(f"recipe {number}", ["evaluate", run, "--no-cache"], refuse(name, "recipe.yaml"))
    if way == 3:
        file, harm = draw.one_of(
            [(f, h) for f in (ADAPTER, SETTINGS, "recipe.yaml") for h in [*RUINS, *PLACES]], 5, "ruin"
        )
        _harm(draw, run / file, harm)
        return Case(f"{file}: {harm}", words, refuse(file, "adapter", "no run", "recipe.yaml", str(run)))
    about = draw.one_of(["odd settings", "ruined settings", "metrics", "card", "history"], 5, "rest")
    if about == "odd settings":
        value = json.loads((run / SETTINGS).read_text())
        place, text = draw.rng.choice(places_of(value)), draw.rng.choice([*ODD, None])
        (run / SETTINGS).write_text(with_text(value, place, text))
        about += f": {place} = {text and text[:30]}"
        return Case(about, ["evaluate", run, "--no-cache"], either("adapter", str(run), check=same))
    if about == "ruined settings":
        ruin = draw.rng.choice(list(TEXT_RUINS))
        (run / SETTINGS).write_bytes(TEXT_RUINS[ruin]((run / SETTINGS).read_bytes(), draw.rng))
        return Case(f"{SETTINGS}: {ruin}", words, refuse("adapter", str(run)))
    file = {"metrics": "metrics.json", "card": "adapter/README.md", "history": "history.json"}[about]
    (run / file).write_bytes(RUINS[draw.rng.choice(list(RUINS))](b"x" * 100, draw.rng))
    return Case(about, ["evaluate", run, "--no-cache"], either(file, check=same))


def _harm(draw: Draw, path: Path, harm: str) -> None:
    if harm in PLACES:
        put(path, harm)
    else:
        path.write_bytes({**RUINS, **HARMS}[harm](path.read_bytes(), draw.rng))


def caches(draw: Draw) -> Case:
    """What `evaluate` kept is harmed: it must be made anew, to the same figures."""
    run = draw.folder / "run"
    shutil.copytree(draw.ground.run, run)
    file = draw.one_of(sorted((run / "features").iterdir()))
    ways = [*RUINS, *HARMS, *PLACES, "NaN", "shorter", "nothing in it", "other names", "whole numbers", "flat", "wider"]
    about = draw.one_of(ways, 1, "way")
    changes: dict[str, Callable[[Values], Values]] = {
        "NaN": lambda values: {name: value * float("nan") for name, value in values.items()},
        "shorter": lambda values: {name: value[:-1] for name, value in values.items()},
        "nothing in it": lambda values: {},
        "other names": lambda values: {f"x{name}": value for name, value in values.items()},
        "whole numbers": lambda values: {name: value.long() for name, value in values.items()},
        "flat": lambda values: {name: value.reshape(-1) for name, value in values.items()},
        "wider": lambda values: {name: torch.cat([value, value], -1) for name, value in values.items()},
    }
    if about in changes:
        rewrite(file, changes[about])
    else:
        _harm(draw, file, about)
    return Case(f"{file.name}: {about}", ["evaluate", run], accept(same_figures(draw)), ("run/features",))


def stopped(draw: Draw) -> Case:
    """A stopped run is harmed and resumed: it comes to the same weights, from an older checkpoint if need be."""
    run = draw.folder / "run"
    shutil.copytree(draw.ground.stopped, run)
    whole = draw.ground.root / "resumed"
    if not whole.exists():
        shutil.copytree(draw.ground.stopped, whole)
        draw.ground.command("train", "--resume", "--out", whole, "--quiet")
    expected = (whole / ADAPTER).read_bytes()
    newest = sorted((run / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[-1]
    names = sorted(path.name for path in newest.iterdir())
    about = draw.one_of(["file", "file", "file", "odd", "all", "folder", "names", "untuned", "recipe"])
    if about in ("file", "all"):
        for folder in [newest] if about == "file" else list((run / "checkpoints").glob("checkpoint-*")):
            name, harm = draw.rng.choice(names), draw.rng.choice([*RUINS, *PLACES, "one byte"])
            _harm(draw, folder / name, harm)
            about += f", {folder.name}/{name}: {harm}"
    elif about == "odd":
        value = json.loads((newest / "checkpoint.json").read_text())
        place, text = draw.rng.choice(places_of(value)), draw.rng.choice([*ODD, None])
        (newest / "checkpoint.json").write_text(with_text(value, place, text))
        about = f"checkpoint.json: {place} = {text and text[:30]}"
    elif about == "folder":
        shutil.rmtree(newest)
        newest.write_bytes(b"x")
    elif about == "names":
        for name in ("checkpoint-x", "checkpoint-99999999999999999999", "checkpoint--1", "checkpoint-007", "other"):
            (run / "checkpoints" / name).mkdir()
    elif about == "untuned":
        for path in sorted((run / "checkpoints").rglob("*")):
            if path.is_file() and "untuned" in str(path):
                _harm(draw, path, draw.rng.choice([*RUINS, "one byte"]))
    else:
        path = run / "recipe.yaml"
        path.write_text(draw.rng.choice(RECIPES[:4])[0](path.read_text()))
        return Case("recipe", ["train", "--resume", "--out", run, "--quiet"], refuse("recipe.yaml"), ("run",))

    def check(outcome: Outcome) -> str | None:
        return (
            None if (run / ADAPTER).read_bytes() == expected else "other weights than those of the run without a break"
        )

    words = ["train", "--resume", "--out", run, "--quiet"]
    return Case(about, words, either("checkpoint", check=check), ("run",))
