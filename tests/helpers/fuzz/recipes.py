"""Bad recipes: every field with values that it cannot have, as overrides and in YAML."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from aurora_petl.recipe import Recipe, TrainSettings
from aurora_petl.tasks.settings import RetrievalSettings, VQASettings

from .case import Case, Draw, either, refuse
from .rows import dry, same_table

WRONG = [
    "[1]",
    "{a: 1}",
    ".nan",
    ".inf",
    "-.inf",
    "2024-13-45",
    "2024-01-02",
    "!!int foo",
    "null",
    "[[[[]]]]",
    "!!binary x",
]
WRONG_NUMBERS = ["x", "''", "true", "-7", "1e30", "-1e-30x", "9" * 400, "1.0.0", "0x"]
WRONG_FLAGS = ["maybe", "2", "1.5", "''", "-1"]
WRONG_TEXTS = ["5", "1.5", "true"]
HARMLESS = {"seed", "beta"}  # of which a large or a negative number may be right


def _numbers() -> list[tuple[str, str]]:
    found = []
    for prefix, kind in (
        ("", Recipe),
        ("train.", TrainSettings),
        ("task.", RetrievalSettings),
        ("vqa:task.", VQASettings),
    ):
        hints = get_type_hints(kind)
        for field in fields(kind):
            hint = hints[field.name]
            name = f"{prefix}{field.name}"
            values = list(WRONG)
            if hint in (int, float):
                values += WRONG_NUMBERS
            elif hint is bool:
                values += WRONG_FLAGS
            elif hint is str:
                values += WRONG_TEXTS
            elif is_dataclass(hint) or field.name in ("task", "train"):
                values = [value for value in WRONG if value != "{a: 1}"] + ["{zz: 1}", "x", "5"]
            else:  # a mapping
                values = [value for value in WRONG if value != "{a: 1}"] + ["x", "5", "[a]", "{1: 2}", "{zz: [1]}"]
            if prefix == "vqa:task." and field.name in ("name", "frames", "test_frames"):
                continue
            found += [(name, value) for value in values]
    return found


OVERRIDES = _numbers()
OPTIONS = [
    *(("aurora", "r", value) for value in ("0", "-1", "1.5", "x", "1000000000", "null", "[4]", "true", "''")),
    *(("aurora", "target_modules", value) for value in ("'('", "[nothing]", "5", "''", "[]", "{a: 1}", "[1]")),
    *(("aurora", "modules_to_save", value) for value in ("[nothing]", "5", "x", "[1]", "{a: 1}")),
    *(("aurora", "init_weights", value) for value in ("maybe", "5", "[1]")),
    *(("aurora", "zzz", value) for value in ("1", "x")),
    *(("aurora", "core", value) for value in ("x", "5", "null", "[full]")),
    *(("aurora", "gate", value) for value in ("x", "5", "[released]")),
    *(("aurora", "context", value) for value in ("x", "5", "{a: 1}")),
    *(("aurora", "rank_pattern", value) for value in ("x", "{a: b}", "{'(': 4}", "5")),
    *(("lora", "r", value) for value in ("0", "-1", "1.5", "x", "1000000000", "null")),
    *(("lora", "lora_alpha", value) for value in ("x", "[1]", ".nan", "null")),
    *(("lora", "lora_dropout", value) for value in ("2", "-1", "x", ".nan")),
    *(("lora", "bias", value) for value in ("x", "5")),
    *(("lora", "task_type", value) for value in ("x", "5")),
    *(("vera", "projection_prng_key", value) for value in ("x", "-1", "1.5", "null")),
    *(("vera", "vera_dropout", value) for value in ("2", "x")),
    *(("heads", "r", "4"), ("full", "zzz", "1"), ("dora", "use_dora", "x"), ("dora", "r", "0")),
]
WORDS = [  # overrides as a whole, with what a refusal names
    ("train.lerning_rate=1", "lerning_rate"),
    ("=5", "=5"),
    ("=", "="),
    ("train=", "train"),
    (".=1", "."),
    ("train..seed=1", "train"),
    ("train.seed.x=1", "train.seed"),
    ("model.x=1", "model"),
    ("a.b.c.d.e.f=1", "a"),
    ("train.seed='", "train.seed"),
    ("train.seed={", "train.seed"),
    ("train.seed=*a", "train.seed"),
    ("method_options=&a [*a]", "method_options"),
    ("train.seed=!!python/object/apply:os.system ['touch marker']", "train.seed"),
    ("data=!!python/name:os.system", "data"),
    ("about='\\ud800'", "about"),
    ('about="\\ud800"', "about"),
    ("about=\udcff", "about"),
    ("\udcff=1", "udcff"),
    ("about=" + "[" * 3000, "about"),
    ("about=a\0b", "about"),
    ("method=lorra", "lorra"),
    ("method=5", "method"),
    ("model=", "model"),
    ("data=", "data"),
    ("files={train: 3}", "files"),
    ("files={nothing: x.json}", "files"),
    ("root=nowhere", "root"),
    ("broken=perhaps", "broken"),
    ("task={name: vqaa}", "vqaa"),
    ("task={name: [1]}", "name"),
    ("task={name: null}", "name"),
    ("train.batch_size=1", "batch_size"),
    ("train.warmup=5", "warmup"),
    ("train.seed=4294967296", "seed"),
    ("image_size=33", "image_size"),
    ("image_size=10000000", "image_size"),
    ("image_size=7", "image_size"),
    ("task.max_tokens=65", "max_tokens"),
    ("task.max_tokens=512", "max_tokens"),
    ("task.name=vqa", "task"),
    ('data="a\\0b"', "a"),
    ('model="a\\0b"', "a"),
    ('root="a\\0b"', "root"),
    ('data="a\\nb"', "a"),
    ('model="\\e[31m"', "model"),
]


def overrides(draw: Draw) -> Case:
    way = draw.number % 4
    if way < 2:
        name, value = draw.one_of(OVERRIDES, 4, "field", 2)
        kind, _, bare = name.rpartition(":")
        word = f"{bare}={value}"
        last = bare.rpartition(".")[2]
        names = (last, "override")
        album, model, more = draw.ground.album, draw.ground.model, []
        if kind:
            album, model, more = draw.ground.questions, draw.ground.answerer, ["task.name=vqa"]
        words = dry(draw, album, *more, word, model=model)
        if last in ("data", "model", "method"):  # else the option would win
            option = words.index(f"--{last}") if f"--{last}" in words else None
            words = words if option is None else words[:option] + words[option + 2 :]
        if last == "batch_size":
            words.remove("train.batch_size=2")
        large = last in HARMLESS and value in ("1e30", "9" * 400, "-7")
        if value == "{a: 1}" and last in ("method_options", "files"):
            large = True
        return Case(word[:80], words, either(*names) if large else refuse(*names))
    if way == 2:
        method, name, value = draw.one_of(OPTIONS, 4, "option")
        word = f"method_options.{name}={value}"
        return Case(
            f"{method}, {word}", dry(draw, draw.ground.album, f"method={method}", word), refuse(name, "method_options")
        )
    word, name = draw.one_of(WORDS, 4, "word")
    words = dry(draw, draw.ground.album, word)
    key = word.partition("=")[0]
    if key in ("model", "data"):
        option = words.index(f"--{key}")
        words = words[:option] + words[option + 2 :]
    if key == "train.batch_size":
        words.remove("train.batch_size=2")
    return Case(word[:80], words, refuse(name))


BASE = "data: {album}\nmodel: {model}\nmethod: aurora\ntrain:\n  batch_size: 2\n"
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
FILES: dict[str, tuple[Any, str]] = {
    "aliases": (ALIASES, "mine.yaml"),
    "aliases in a value": ("about: &a [x, x]\nneeds: [*a, *a]\n", "mine.yaml"),
    "loop": ("method_options: &a\n  r: *a\n", "mine.yaml"),
    "tag": ("model: !!python/object/apply:os.system ['touch marker']\n", "mine.yaml"),
    "tag of a set": ("method_options: !!set {a, b}\n", "mine.yaml"),
    "own tag": ("model: !mine x\n", "mine.yaml"),
    "tabs": ("train:\n\tseed: 1\n", "mine.yaml"),
    "NUL": ("about: a\0b\n", "mine.yaml"),
    "list": ("- a\n- b\n", "mine.yaml"),
    "scalar": ("hello\n", "mine.yaml"),
    "number": ("5\n", "mine.yaml"),
    "two documents": (BASE + "---\n" + BASE, "mine.yaml"),
    "keys that are numbers": (BASE + "5: 6\n", "mine.yaml"),
    "key that is a list": (BASE + "? [a, b]\n: 1\n", "mine.yaml"),
    "key that is null": (BASE + "null: 1\n", "mine.yaml"),
    "key that is true": (BASE + "true: 1\n", "mine.yaml"),
    "fields twice": (BASE + "model: other\n", "model"),
    "deep": ("about: " + "[" * 20_000 + "]" * 20_000, "mine.yaml"),
    "deep mapping": ("".join(" " * n + f"a{n}:\n" for n in range(2000)), "mine.yaml"),
    "date": (BASE + "about: 2024-01-02\n", "about"),
    "odd date": (BASE + "about: 2024-13-45\n", "mine.yaml"),
    "digits": (BASE + f"image_size: {'9' * 6000}\n", "mine.yaml"),
    "surrogate": (BASE + 'about: "\\ud800"\n', "about"),
    "utf-16": (BASE.encode("utf-16"), "mine.yaml"),
    "latin-1": (b"about: caf\xe9\n", "mine.yaml"),
    "mark": ("\ufeff" + BASE, ""),
    "CRLF": (BASE.replace("\n", "\r\n"), ""),
    "unknown field": (BASE + "trian: {seed: 1}\n", "trian"),
    "unknown part": (BASE + "  sede: 1\n", "sede"),
    "merge key": ("x: &x {seed: 1}\ntrain:\n  <<: *x\n", "x"),
    "merge of text": (BASE + "<<: x\n", "mine.yaml"),
    "options in a list": (BASE + "method_options: [r, 4]\n", "method_options"),
    "numbers as options": (BASE + "method_options: {1: 2}\n", "method_options"),
    "escape": (BASE + "about: \x1b[31m\n", "mine.yaml"),
    "pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "mine.yaml"),
    "cut": (BASE + "about: 'never ends\n", "mine.yaml"),
    "colon": (BASE + "about: a: b\n", "mine.yaml"),
}


def yaml_files(draw: Draw) -> Case:
    about = draw.one_of([*FILES, "folder", "pipe", "zeros", "link to nothing", "no suffix"])
    file = draw.folder / "mine.yaml"
    name, expects = "mine.yaml", refuse("mine.yaml")
    if about in FILES:
        text, named = FILES[about]
        if isinstance(text, str):
            text = text.replace("{album}", str(draw.ground.album)).replace("{model}", str(draw.ground.model)).encode()
        file.write_bytes(text)
        if not named:
            expects = either(check=same_table(draw, draw.ground.album))
        else:
            expects = refuse(named)
    elif about == "folder":
        file.mkdir()
    elif about == "pipe":
        os.mkfifo(file)
    elif about == "zeros":
        file.symlink_to("/dev/zero")
    elif about == "link to nothing":
        file.symlink_to("nothing")
    else:
        name = "mine"
        Path(draw.folder / name).write_text(BASE)
        expects = refuse("mine")
    return Case(about, ["train", name, "--out", "out", "--dry-run", "--quiet"], expects)
