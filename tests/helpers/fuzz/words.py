"""Bad words on the command line, and outputs that cannot be written."""

from __future__ import annotations

import os
import stat
from typing import Any

from .case import Case, Draw, Expectation, accept, either, refuse
from .rows import dry

LONG, DIGITS = "y" * 20_000, "9" * 5000
LINES: list[tuple[list[Any], tuple[str, ...]]] = [
    (["trian"], ("trian",)),
    (["Train"], ("Train",)),
    ([""], ("COMMAND", "''")),
    (["--"], ("COMMAND", "--")),
    (["-x"], ("-x",)),
    (["--sed=1"], ("--sed",)),
    ([LONG], ("yyy", "COMMAND")),
    (["\udcff"], ("udcff", "COMMAND")),
    (["a\nb"], ("a", "COMMAND")),
    (["\x1b[31m"], ("COMMAND", "31m")),
    (["recipes", "x"], ("x",)),
    (["recipes", "--x"], ("--x",)),
    (["demo", "--seeds", "x"], ("--seeds",)),
    (["demo", "--seeds", "-1", "--out", "out"], ("--seeds",)),
    (["demo", "--seeds", "0", "--out", "out"], ("--seeds",)),
    (["demo", "--seeds", DIGITS], ("--seeds",)),
    (["demo", "--out", "taken.txt"], ("taken.txt",)),
    (["demo", "--out", "taken.txt/x"], ("taken.txt",)),
    (["demo", "--out", "{album}"], ("album", "--out")),
    (["demo", "extra"], ("extra",)),
    (["demo", "--out", "\udcff/x", "--seeds", "x"], ("--seeds",)),
    (["train"], ("nothing to train on",)),
    (["train", ""], ("data",)),
    (["train", "\udcff"], ("udcff", "recipe")),
    (["train", LONG], ("recipe",)),
    (["train", "emojy"], ("emojy",)),
    (["train", "a\nb"], ("recipe",)),
    (["train", "emoji", "emoji"], ("emoji",)),
    (["train", "--data"], ("--data",)),
    (["train", "--data", "", "--dry-run"], ("data",)),
    (["train", "--data", "nowhere"], ("nowhere",)),
    (["train", "--data", "\udcff"], ("udcff", "data")),
    (["train", "--data", "taken.txt"], ("taken.txt",)),
    (["train", "--data", "/dev/null"], ("/dev/null",)),
    (["train", "--data", "/dev/zero"], ("/dev/zero",)),
    (["train", "--data", "."], ("captions.jsonl",)),
    (["train", "--data", "a\nb"], ("a",)),
    (["train", "--data", LONG], ("yyy",)),
    (["train", "--data", "coco"], ("coco",)),
    (["train", "--data", "coco", "--root", "taken.txt"], ("taken.txt",)),
    (["train", "--data", "coco", "--root", "{album}"], ("coco", "album")),
    (["train", "--data", "{album}", "--method", "lorra"], ("lorra",)),
    (["train", "--data", "{album}", "--method", ""], ("method",)),
    (["train", "--data", "{album}", "--out", "taken.txt"], ("taken.txt",)),
    (["train", "--data", "{album}", "--out", "taken.txt/x"], ("taken.txt",)),
    (["train", "--data", "{album}", "--out", "{album}"], ("album",)),
    (["train", "--data", "{album}", "--out", "/dev/null/x"], ("/dev/null",)),
    (["train", "--data", "{album}", "--out", "y" * 300], ("yyy",)),
    (["train", "--data", "{album}", "--device", "tpu", "--dry-run"], ("tpu",)),
    (["train", "--data", "{album}", "--device", "cuda:99", "--dry-run"], ("cuda",)),
    (["train", "--data", "{album}", "--device", "", "--dry-run"], ("device",)),
    (["train", "--data", "{album}", "--lr", "1"], ("--lr",)),
    (["train", "--data", "{album}", "--dry-run=x"], ("--dry-run",)),
    (["train", "--resume"], ("runs/photos",)),
    (["train", "--resume", "--out", "nowhere"], ("nowhere",)),
    (["train", "--resume", "--out", "{run}"], ("run", "finished")),
    (["train", "--resume", "--out", "taken.txt"], ("taken.txt",)),
    (["train", "--resume", "--out", "{album}"], ("album",)),
    (["train", "emoji", "--resume"], ("--resume",)),
    (["train", "train.seed=1", "--resume"], ("--resume",)),
    (["train", "x.yaml"], ("x.yaml",)),
    (["train", "taken.txt"], ("taken.txt",)),
    (["evaluate"], ("RUN",)),
    (["evaluate", ""], ("run", "recipe.yaml")),
    (["evaluate", "nowhere"], ("nowhere",)),
    (["evaluate", "taken.txt"], ("taken.txt",)),
    (["evaluate", "{album}"], ("album",)),
    (["evaluate", "\udcff"], ("udcff", "xff")),
    (["evaluate", LONG], ("yyy",)),
    (["evaluate", "{run}", "--split", "tset"], ("tset",)),
    (["evaluate", "{run}", "--split", ""], ("split",)),
    (["evaluate", "{run}", "--split", "\udcff"], ("split",)),
    (["evaluate", "{run}", "--split", LONG], ("split",)),
    (["evaluate", "{run}", "--data", "nowhere"], ("nowhere",)),
    (["evaluate", "{run}", "--data", "coco"], ("coco",)),
    (["evaluate", "{run}", "--dtype", "float16"], ("--dtype",)),
    (["evaluate", "{run}", "--dtype", "bfloat16", "--rescore", "-1"], ("rescore",)),
    (["evaluate", "{run}", "--rescore", "5"], ("--rescore",)),
    (["evaluate", "{run}", "--rescore", DIGITS], ("--rescore",)),
    (["evaluate", "{run}", "--no-cache", "--upload", "x.json"], ("upload",)),
    (["evaluate", "{run}", "--no-cache", "--json", "{album}"], ("album",)),
    (["evaluate", "{run}", "--no-cache", "--json", "/dev/null/x"], ("/dev/null",)),
    (["evaluate", "{run}", "--no-cache", "--json", "taken.txt/x"], ("taken.txt",)),
    (["params"], ("MODEL",)),
    (["params", "blip-mini", "--task", "x"], ("x", "task")),
    (["params", "blip-mini", "--task", ""], ("task",)),
    (["params", "blip-mini", "--r", "0"], ("`r`", "r ")),
    (["params", "blip-mini", "--r", "1000000000"], ("r ", "`r`")),
    (["params", "blip-mini", "--r", DIGITS], ("--r",)),
    (["params", "blip-mini", "--r", "1.5"], ("--r",)),
    (["params", "blip-mini", "--core", ""], ("core",)),
    (["params", "blip-mini", "--core", LONG], ("core",)),
    (["params", "blip-mini", "--gate", "x"], ("gate",)),
    (["params", "blip-mini", "--context", "\udcff"], ("context",)),
    (["params", "blip-mini", "extra"], ("extra",)),
    (["convert"], ("FILE.pth",)),
    (["convert", "x.pth"], ("--out",)),
    (["convert", "nowhere.pth", "--out", "out"], ("nowhere.pth",)),
    (["convert", "", "--out", "out"], ("out", "file", ".")),
    (["convert", "taken.txt", "--out", "out"], ("taken.txt",)),
    (["index"], ("FOLDER",)),
    (["index", "{album}"], ("--model",)),
    (["index", "nowhere", "--model", "{model}"], ("nowhere",)),
    (["index", "taken.txt", "--model", "{model}"], ("taken.txt",)),
    (["index", "", "--model", "{model}"], ("folder", "pictures")),
    (["index", "/dev/null", "--model", "{model}"], ("/dev/null",)),
    (["index", ".", "--model", "{model}", "--out", "out"], ("pictures",)),
    (["index", "{album}", "--model", "{model}", "--out", "taken.txt"], ("taken.txt",)),
    (["index", "{album}", "--model", "{model}", "--out", "taken.txt/x"], ("taken.txt",)),
    (["index", "{album}", "--model", "{model}", "--out", "{album}"], ("album",)),
    (["index", "{album}", "--model", "{model}", "--out", "{index}"], ("album.index",)),
    (["index", "{album}", "--model", "{album}", "--out", "out"], ("album",)),
    (["search"], ("say what to look for",)),
    (["search", "x", "--image", "y.png"], ("say what to look for",)),
    (["search", "x"], ("index",)),
    (["search", "x", "--index", "nowhere"], ("nowhere",)),
    (["search", "x", "--index", "taken.txt"], ("taken.txt",)),
    (["search", "x", "--index", "{album}"], ("album",)),
    (["search", "x", "--index", "\udcff"], ("index",)),
    (["search", "", "--index", "{index}"], ("empty", "look for")),
    (["search", "  \n ", "--index", "{index}"], ("empty", "look for")),
    (["search", "\udcff", "--index", "{index}"], ("UTF-8",)),
    (["search", "x", "--index", "{index}", "-k", "0"], ("k is 0", "k ")),
    (["search", "x", "--index", "{index}", "-k", "-5"], ("k ", "-k")),
    (["search", "x", "--index", "{index}", "-k", "x"], ("-k",)),
    (["search", "x", "--index", "{index}", "-k", DIGITS], ("-k", "k ")),
    (["search", "x", "--index", "{index}", "--rerank", "-1"], ("rerank",)),
    (["search", "x", "--index", "{index}", "--rerank", "1.5"], ("--rerank",)),
    (["search", "--image", "nowhere.png", "--index", "{index}"], ("nowhere.png",)),
    (["search", "--image", "{album}", "--index", "{index}"], ("album",)),
    (["search", "--image", "/dev/null", "--index", "{index}"], ("/dev/null",)),
    (["search", "--image", "/dev/zero", "--index", "{index}"], ("/dev/zero",)),
    (["search", "--image", "taken.txt", "--index", "{index}"], ("taken.txt",)),
    (["search", "x", "--index", "{index}", "--json", "{album}"], ("album",)),
    (["search", "x", "--index", "{index}", "--json", "taken.txt/x"], ("taken.txt",)),
    (["search", "x", "--index", "{index}", "--sheet", "taken.txt/x.png"], ("taken.txt",)),
    (["search", "x", "--index", "{index}", "--sheet", "{album}"], ("album",)),
    (["search", "x", "--index", "{index}", "--sheet", "/dev/null/x.png"], ("/dev/null",)),
    (["serve", "--index", "nowhere"], ("nowhere",)),
    (["serve", "--port", "x"], ("--port",)),
    (["serve", "--index", "{index}", "--port", "99999"], ("99999",)),
    (["serve", "--index", "{index}", "--port", "-1"], ("-1",)),
    (["serve", "--index", "{index}", "--port", DIGITS], ("--port",)),
    (["serve", "extra"], ("extra",)),
]
GOOD: list[tuple[list[Any], str]] = [  # odd, but right; what is printed then
    (["search", LONG, "--index", "{index}", "-k", "3"], "pictures"),
    (["search", "a red circle", "--index", "{index}", "-k", "1000000"], "pictures"),
    (["search", "a\nb\x1b[31m", "--index", "{index}", "-k", "3"], "pictures"),
    (["search", "ünïcödé 圆 🔴", "--index", "{index}", "-k", "3"], "pictures"),
    (["search", "a circle", "--index", "{index}", "--rerank", "1000000"], "ITM"),
    (["search", "--image", "{album}/images/0.png", "--texts", "--index", "{index}"], "captions"),
    (["search", "a circle", "--index", "{index}/", "-k", "2"], "pictures"),
    (["params", "{model}", "--r", "1"], "adapter"),
    ([], "usage: aurora"),
    (["recipes"], "emoji"),
]
OUTPUTS: list[list[Any]] = [
    ["evaluate", "{run}", "--no-cache", "--json"],
    ["search", "x", "--index", "{index}", "--json"],
    ["search", "x", "--index", "{index}", "--sheet"],
]


def _filled(draw: Draw, words: list[Any]) -> list[str]:
    def places(word: Any) -> str:
        word = str(word)
        for name in ("album", "run", "index", "model"):
            if f"{{{name}}}" in word:
                word = word.replace(f"{{{name}}}", str(getattr(draw.ground, name)))
        return word

    (draw.folder / "taken.txt").write_text("precious\n")
    return [places(word) for word in words]


def lines(draw: Draw) -> Case:
    words, names = draw.one_of(LINES)
    return Case(" ".join(words)[:80], _filled(draw, words), refuse(*names))


def good_lines(draw: Draw) -> Case:
    words, shown = draw.one_of(GOOD)
    expects = accept(lambda outcome: None if shown in outcome.out else f"{outcome.out[:300]!r}")
    return Case(" ".join(words)[:80], _filled(draw, words), expects)


def outputs(draw: Draw) -> Case:
    """An output that is a device, a pipe or a folder, which must stay what it is.

    Devices are made in the case's folder: as root a fault could replace those of the machine.
    """
    words, kind = draw.one_of([(words, kind) for words in OUTPUTS for kind in ("device", "pipe", "folder")])
    place = draw.folder / f"{kind}.png"
    if kind == "folder":
        place.mkdir()
    else:
        try:
            os.mknod(place, 0o666 | (stat.S_IFCHR if kind == "device" else stat.S_IFIFO), os.makedev(1, 7))
        except PermissionError:  # only root makes devices
            os.mkfifo(place)
    return Case(f"{words[0]} {words[-1]} {kind}", _filled(draw, [*words, place]), refuse(place.name))


NOISE = [
    "--",
    "-",
    "--out",
    "--data",
    "=",
    "a=b",
    "--seed",
    "-k",
    "\udcff",
    "",
    "--index",
    "--quiet",
    "9" * 50,
    "--help=x",
]


def mixtures(draw: Draw) -> Case:
    """Words of a good command with others among them."""
    rng = draw.rng
    command = draw.one_of(["train", "evaluate", "params", "index", "search", "convert"])
    words = {
        "train": dry(draw, draw.ground.album),
        "evaluate": ["evaluate", draw.ground.run, "--no-cache"],
        "params": ["params", draw.ground.model],
        "index": ["index", draw.ground.album, "--model", draw.ground.model, "--out", "out", "--quiet"],
        "search": ["search", "a circle", "--index", draw.ground.index],
        "convert": ["convert", "nowhere.pth", "--out", "out"],
    }[command]
    words = [str(word) for word in words]
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(1, len(words) + 1)
        if rng.random() < 0.3 and len(words) > 2:
            del words[min(place, len(words) - 1)]
        else:
            words.insert(place, rng.choice(NOISE))
    expects: Expectation = either()
    return Case(" ".join(words)[:200], words, expects, (".",))
