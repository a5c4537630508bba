"""Bad model folders and names of models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .case import Case, Draw, either, refuse
from .damage import ODD, PLACES, RUINS, TEXT_RUINS, places_of, put, with_text
from .rows import dry

WEIGHTS, CONFIG, WORDS = "model.safetensors", "config.json", "tokenizer.json"
Values = dict[str, Tensor]


def rewrite(path: Path, change: Callable[[Values], Values]) -> None:
    """Change the tensors of a safetensors file, whose metadata stay."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata)


def _one(values: Values, part: str) -> str:
    return next(name for name in sorted(values) if part in name and values[name].dim() == 2)


def replaced(part: str, make: Callable[[Tensor], Tensor | None]) -> Callable[[Values], Values]:
    def change(values: Values) -> Values:
        name = _one(values, part)
        made = make(values[name])
        rest = {key: value for key, value in values.items() if key != name}
        return rest if made is None else {**rest, name: made}

    return change


TENSORS: dict[str, Callable[[Values], Values]] = {
    "a weight is missing": replaced("vision", lambda value: None),
    "a text weight is missing": replaced("text_encoder", lambda value: None),
    "a weight is wider": replaced("vision", lambda value: torch.zeros(len(value), value.shape[1] + 1)),
    "a weight is flat": replaced("text_encoder", lambda value: value.reshape(-1)),
    "a weight is whole numbers": replaced("vision", lambda value: value.long()),
    "a weight is true or false": replaced("text_encoder", lambda value: value > 0),
    "a weight is empty": replaced("vision", lambda value: torch.zeros(0, 0)),
    "nothing": lambda values: {},
    "other names": lambda values: {f"module.{name}": value for name, value in values.items()},
    "one weight": lambda values: {"x": torch.zeros(2)},
    "NaN": replaced("vision", lambda value: value * float("nan")),
    "infinite": replaced("text_encoder", lambda value: value + float("inf")),
}
BAD_FIELDS: list[tuple[str, str, str]] = [  # part, field, JSON that it cannot hold in this folder
    *(
        ("vision_config", "hidden_size", text)
        for text in ("0", "-16", '"x"', "17", "1000000000", "null", "[16]", "1.5")
    ),
    *(("text_config", "num_hidden_layers", text) for text in ("0", "-1", "1000000", '"2"', "2.5", "3")),
    *(("vision_config", "num_attention_heads", text) for text in ("0", "3", "-2", '"x"')),
    *(("vision_config", "patch_size", text) for text in ("0", "-16", "7", '"x"', "32", "[16]")),
    *(("vision_config", "image_size", text) for text in ("0", "-1", '"x"', "64", "100000000")),
    *(("text_config", "vocab_size", text) for text in ("0", "10", "-1", '"x"', "10000000000")),
    *(("text_config", "hidden_act", text) for text in ('"nope"', "5", "[]")),
    *(("vision_config", "layer_norm_eps", text) for text in ('"x"', "[]", "-1")),
    *(("text_config", "max_position_embeddings", text) for text in ("0", "1", '"x"', "65")),
    *(("text_config", "encoder_hidden_size", text) for text in ("0", "-1", '"x"')),
    *(("text_config", "hidden_dropout_prob", text) for text in ("2", "-1", '"x"')),
    *(("", "model_type", text) for text in ('"bert"', "null", "5", '"nope"', '"blip_2"', "[]")),
    *(("", "text_config", text) for text in ("[]", '"x"', "5", "{}")),
    *(("", "vision_config", text) for text in ("[]", '"x"', "5", "{}")),
    *(("", "image_text_hidden_size", text) for text in ("0", '"x"', "-1", "9")),
]
NAMES = [
    *(
        "a/b?c",
        "a//b",
        "/a/b/c",
        "a/b/c",
        "..",
        "../..",
        "~",
        "~/model",
        "a/b ",
        " a/b",
        "a b/c",
        "a/b#c",
        "a/..",
        "./a",
    ),
    *(
        "",
        "x" * 300,
        f"{'o' * 90}/{'m' * 90}",
        "http://example.org/a",
        "https://huggingface.co/a/b",
        "hf://a/b",
        "a/b@main",
    ),
    *(
        "blip-mimi",
        "BLIP-mini",
        "blip_mini",
        "a\nb/c",
        "a/b\n",
        "\x1b[31m",
        "\udcff/x",
        "owner/modèle",
        "-",
        "a/-b",
    ),
    *(
        "a/b--c",
        "a/b..c",
        "a/b.git",
        "owner/",
        "/owner",
        "C:\\models",
        "/dev/null",
        "/dev/zero",
        "/etc/passwd",
        "file:///etc",
    ),
]


def _act(draw: Draw, model: Any) -> list[Any]:
    """A command that reads the weights."""
    if draw.rng.random() < 0.5:
        return ["index", draw.ground.album, "--model", model, "--out", "out", "--quiet"]
    words = dry(draw, draw.ground.album)
    return ["--model" if word == "--model" else model if word == draw.ground.model else word for word in words]


def folders(draw: Draw) -> Case:
    """A file of a model folder is harmed."""
    model = draw.folder / "model"
    shutil.copytree(draw.ground.model, model)
    way, rng = draw.number % 6, draw.rng
    names: tuple[str, ...] = (str(model), "model")
    if way == 0:
        part, field, text = draw.one_of(BAD_FIELDS, 6, "field")
        path = (part, field) if part else (field,)
        config = json.loads((model / CONFIG).read_text())
        (model / CONFIG).write_text(with_text(config, path, text))
        return Case(f"{part}.{field}: {text}", _act(draw, model), refuse(field, CONFIG, "weights are missing"), ())
    if way == 1:
        about = draw.one_of(list(TENSORS), 6, "tensor")
        rewrite(model / WEIGHTS, TENSORS[about])
        words = ["index", draw.ground.album, "--model", model, "--out", "out", "--quiet"]
        return Case(about, words, refuse(*names), ())
    if way == 2:
        file, ruin = draw.one_of([(f, r) for f in (WEIGHTS, CONFIG, WORDS) for r in RUINS], 6, "ruin")
        (model / file).write_bytes(RUINS[ruin]((model / file).read_bytes(), rng))
        return Case(f"{file}: {ruin}", _act(draw, model), refuse(file, *names), ())
    if way == 3:
        file, kind = draw.one_of([(f, p) for f in (WEIGHTS, CONFIG, WORDS) for p in PLACES], 6, "place")
        put(model / file, kind)
        return Case(f"{file}: {kind}", _act(draw, model), refuse(file, "tokenizer", *names), ())
    if way == 4:
        file, ruin = draw.one_of(
            [(f, r) for f in (CONFIG, WORDS, "tokenizer_config.json") for r in TEXT_RUINS], 6, "text"
        )
        (model / file).write_bytes(TEXT_RUINS[ruin]((model / file).read_bytes(), rng))
        about = f"{file}: {ruin}"
        expects = refuse(file, "tokenizer", *names)
        if file == "tokenizer_config.json":  # what matters of it stands in tokenizer.json as well
            expects = either(file, "tokenizer", *names, check=same_weights(draw, model))
        return Case(about, _act(draw, model), expects, ("out",) if file == "tokenizer_config.json" else ())
    file = draw.one_of([CONFIG, "tokenizer_config.json", WORDS], 6, "odd file")
    value = json.loads((model / file).read_text())
    if file == WORDS:  # its vocabulary is long
        vocabulary = value["model"].pop("vocab")
        place = rng.choice(places_of(value))
        value["model"]["vocab"] = vocabulary
    else:
        place = rng.choice(places_of(value))
    text = rng.choice([*ODD, None])
    (model / file).write_text(with_text(value, place, text))
    about = f"{file}: {'.'.join(map(str, place))} = {text and text[:30]}"
    expects = either(file, "tokenizer", *names, check=same_weights(draw, model))
    return Case(about, _act(draw, model), expects, ("out",))


def same_weights(draw: Draw, model: Path) -> Any:
    """If the command took the folder, it did with it what it does with the whole one."""
    whole = draw.ground.model

    def check(outcome: Any) -> str | None:
        if (out := outcome.folder / "out").is_dir():
            made = _features(out)
            draw.ground.command(
                "index", draw.ground.album, "--model", whole, "--out", outcome.folder / "other", "--quiet"
            )
            expected = _features(outcome.folder / "other")
            same = made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in expected)
            return None if same else "features differ from those of the whole folder"
        expected_text = draw.ground.printed(*map(str, dry(draw, draw.ground.album)))
        if _numbers(outcome.out) != _numbers(expected_text):
            return f"{outcome.out[:500]!r} in place of {expected_text[:500]!r}"
        return None

    return check


def _features(folder: Path) -> Values:
    return {
        f"{path.name}/{key}": value
        for path in sorted(folder.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


def _numbers(text: str) -> list[str]:
    return re.findall(r"[\d,]{3,}", "\n".join(line for line in text.splitlines() if "%" in line))


def names(draw: Draw) -> Case:
    """A model's name that is none."""
    name = draw.one_of(NAMES)
    words = {
        "params": ["params", name],
        "train": dry(draw, draw.ground.album, f"model={json.dumps(name)}"),
        "index": ["index", draw.ground.album, "--model", name, "--out", "out", "--quiet"],
    }[draw.one_of(["params", "index", "params"], 1, "way")]
    shown = name.strip().encode("unicode_escape", "surrogatepass").decode()[:20]
    return Case(f"name {name[:40]!r}", words, refuse(shown, name[:20], "model", "MODEL"), (), {"HF_HUB_OFFLINE": "1"})
