"""Bad folders of an index."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .case import Case, Draw, Outcome, accept, either, refuse
from .damage import HARMS, ODD, PLACES, RUINS, TEXT_RUINS, places_of, put, with_text
from .models import Values, rewrite

MANIFEST, SHARD, CAPTIONS = "manifest.json", "pictures-00000.safetensors", "captions-00000.safetensors"
QUERY = ("search", "a red circle", "-k", "24")


def hits(text: str) -> list[str]:
    return [re.sub(r"\S*images/", "images/", line) for line in text.splitlines() if re.match(r" +\d+ ", line)]


def same_hits(draw: Draw) -> Any:
    expected = hits(draw.ground.printed(*QUERY, "--index", str(draw.ground.index)))

    def check(outcome: Outcome) -> str | None:
        found = hits(outcome.out)
        return None if found == expected and found else f"hits {found[:3]} in place of {expected[:3]}"

    return check


def _names(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Change the names of a shard's rows."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    key = next(iter(metadata))
    told = json.loads(metadata[key])
    if isinstance(told, dict):
        told = {**told, "names": change(told["names"])}
    else:
        told = change(told)
    save_file(load_file(path), path, {key: json.dumps(told)})


TENSORS: dict[str, Callable[[Values], Values]] = {
    "NaN": lambda values: {name: value * float("nan") for name, value in values.items()},
    "one NaN": lambda values: {name: _one_nan(value) for name, value in values.items()},
    "whole numbers": lambda values: {name: value.long() for name, value in values.items()},
    "single precision": lambda values: {name: value.float() for name, value in values.items()},
    "flat": lambda values: {name: value.reshape(-1) for name, value in values.items()},
    "a row too few": lambda values: {name: value[:-1].contiguous() for name, value in values.items()},
    "rotated": lambda values: {name: value.roll(1, 0) for name, value in values.items()},
    "wider": lambda values: {name: torch.cat([value, value], 1) for name, value in values.items()},
    "views exchanged": lambda values: dict(zip(values, reversed(list(values.values())), strict=True)),
    "one view": lambda values: dict(list(values.items())[:1]),
    "another view": lambda values: {**values, "other": torch.zeros(2, 2)},
    "zeros": lambda values: {name: value * 0 for name, value in values.items()},
    "nothing": lambda values: {},
}
NAMES: dict[str, Callable[[list[str]], list[str]]] = {
    "a name too few": lambda names: names[:-1],
    "names rotated": lambda names: names[1:] + names[:1],
    "a name twice": lambda names: [names[0], *names[:-1]],
    "names that are numbers": lambda names: list(range(len(names))),  # type: ignore[arg-type]
    "no names": lambda names: [],
    "names that are a text": lambda names: "x",  # type: ignore[arg-type,return-value]
}


def _one_nan(value: torch.Tensor) -> torch.Tensor:
    changed = value.clone()
    changed[0, 0] = float("nan")
    return changed


def folders(draw: Draw) -> Case:
    """A file of an index is harmed, and the index searched."""
    index = draw.folder / "album.index"
    shutil.copytree(draw.ground.index, index)
    words = [*QUERY, "--index", index]
    names = (str(index), "album.index")
    way = draw.number % 5
    if way == 0:
        about = draw.one_of([*TENSORS, *NAMES], 5, "shard")
        if about in TENSORS:
            rewrite(index / SHARD, TENSORS[about])
        else:
            _names(index / SHARD, NAMES[about])
        return Case(about, words, refuse(*names))
    if way == 1:
        value = json.loads((index / MANIFEST).read_text())
        value["pictures"], value["texts"] = value["pictures"][:3], value["texts"][:1]
        place, text = draw.rng.choice(places_of(value)), draw.rng.choice([*ODD, None])
        whole = json.loads((index / MANIFEST).read_text())
        (index / MANIFEST).write_text(with_text(whole, place, text))
        about = f"manifest: {place} = {text and text[:30]}"
        expects = either(*names, check=None if _harmless(place) else same_hits(draw))
        return Case(about, words, expects)
    if way == 2:
        file, harm = draw.one_of([(f, h) for f in (MANIFEST, SHARD) for h in [*RUINS, *PLACES]], 5, "ruin")
        if harm in PLACES:
            put(index / file, harm)
        else:
            (index / file).write_bytes(RUINS[harm]((index / file).read_bytes(), draw.rng))
        return Case(f"{file}: {harm}", words, refuse(*names))
    if way == 3:
        if draw.rng.random() < 0.5:
            about = draw.one_of(list(TEXT_RUINS), 5, "text")
            (index / MANIFEST).write_bytes(TEXT_RUINS[about]((index / MANIFEST).read_bytes(), draw.rng))
            return Case(f"manifest: {about}", words, refuse(*names))
        about = draw.one_of(list(HARMS), 5, "harm")
        (index / SHARD).write_bytes(HARMS[about]((index / SHARD).read_bytes(), draw.rng))
        return Case(f"shard: {about}", words, either(*names, check=same_hits(draw)))
    about = draw.one_of(["exchanged", "more files", "shard of captions", "shard twice", "of another model"], 5, "rest")
    if about == "exchanged":
        (index / SHARD).rename(index / "x")
        (index / CAPTIONS).rename(index / SHARD)
        (index / "x").rename(index / CAPTIONS)
    elif about == "more files":
        for name in (
            "pictures-x.safetensors",
            "pictures-.safetensors",
            "pictures-1.safetensors",
            "pictures.safetensors",
        ):
            (index / name).write_bytes(b"x")
        return Case(about, words, either(*names, check=same_hits(draw)))
    elif about == "shard of captions":
        shutil.copy(index / CAPTIONS, index / SHARD)
    elif about == "shard twice":
        shutil.copy(index / SHARD, index / "pictures-00001.safetensors")
        return Case(about, words, either(*names, check=same_hits(draw)))
    else:
        value = json.loads((index / MANIFEST).read_text())
        value["model"] = "blip-mini"
        (index / MANIFEST).write_text(json.dumps(value))
    return Case(about, words, refuse(*names))


def _harmless(place: tuple[Any, ...]) -> bool:
    """Whether a field does not change what is found: captions, times, what was skipped."""
    return place[0] in ("texts", "skipped") or place[-1] in ("size", "mtime_ns", "path") or place == ("pictures",)


LINKS = (
    ".lock",
    "lock",
    MANIFEST,
    f"{MANIFEST}.part",
    SHARD,
    "pictures-00001.safetensors",
    "captions-00000.safetensors",
)


def updates(draw: Draw) -> Case:
    """A harmed index is brought up to date: afterwards it finds what a whole one finds, or the command refused."""
    index = draw.folder / "album.index"
    shutil.copytree(draw.ground.index, index)
    words = ["index", draw.ground.album, "--model", draw.ground.run, "--out", index, "--quiet"]
    names = (str(index), "album.index")
    if draw.number % 2:
        name = draw.one_of(LINKS, 2, "link")
        victim = draw.folder / "victim.txt"
        victim.write_text("precious\n")
        if (index / name).exists():
            (index / name).unlink()
        (index / name).symlink_to(victim)
        return Case(f"link {name}", words, either(*names, check=_searched(draw, index)), ("album.index",))
    about = draw.one_of([*TENSORS, *NAMES, "shard gone", "manifest gone", "unfinished", "pipe", "empty"], 2, "harm")
    if about in TENSORS:
        rewrite(index / SHARD, TENSORS[about])
    elif about in NAMES:
        _names(index / SHARD, NAMES[about])
    elif about == "shard gone":
        (index / SHARD).unlink()
    elif about == "manifest gone":
        (index / MANIFEST).unlink()
    elif about == "pipe":
        os.mkfifo(index / "pictures-00001.safetensors")
    elif about == "empty":
        (index / CAPTIONS).write_bytes(b"")
    else:
        value = json.loads((index / MANIFEST).read_text())
        (index / MANIFEST).write_text(json.dumps({k: v for k, v in value.items() if k not in ("pictures", "texts")}))
    expects = either(*names, check=_searched(draw, index))
    if about == "shard gone":
        expects = accept(_searched(draw, index))
    return Case(about, words, expects, ("album.index",))


def _searched(draw: Draw, index: Path) -> Any:
    expected = hits(draw.ground.printed(*QUERY, "--index", str(draw.ground.index)))

    def check(outcome: Outcome) -> str | None:
        found = hits(draw.ground.command(*QUERY, "--index", index))
        return None if found == expected else f"afterwards hits {found[:3]} in place of {expected[:3]}"

    return check
