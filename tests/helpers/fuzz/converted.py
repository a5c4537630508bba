"""Bad checkpoints to convert. None of them may run code."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.helpers import checkpoints

from .case import Case, Check, Draw, Outcome, accept, either, refuse
from .damage import HARMS, PLACES, RUINS, put

FILE = "model_base.pth"


class _Code:
    """What a pickle calls when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def _archive(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    return buffer.getvalue()


def _saved(value: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def _state(change: Any) -> Any:
    def make(marker: Path) -> bytes:
        state = checkpoints.retrieval()
        return _saved({"model": change(state) or state})

    return make


VISION, TEXT = "visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.encoder.layer.0.attention.self.query.weight"
FILES: dict[str, Any] = {  # made of the path of a marker, which code in them would make
    "pickle with code": lambda marker: pickle.dumps({"model": _Code(marker)}),
    "old pickle with code": lambda marker: pickle.dumps(_Code(marker), protocol=0),
    "saved code": lambda marker: _saved({"model": {"x": _Code(marker)}}),
    "saved code, old format": lambda marker: _saved({"model": _Code(marker)}, _use_new_zipfile_serialization=False),
    "archive with code": lambda marker: _archive({"x/data.pkl": pickle.dumps(_Code(marker)), "x/version": b"3"}),
    "code beside weights": lambda marker: _saved({"model": checkpoints.vqa(), "config": _Code(marker)}),
    "archive of zeros": lambda marker: _archive({"x/data.pkl": bytes(50_000_000), "x/version": b"3"}),
    "archive with climbing names": lambda marker: _archive({"../../x": b"x", "x/data.pkl": b"\x80\x02."}),
    "plain zip": lambda marker: _archive({"a.txt": b"x"}),
    "list": lambda marker: _saved([1, 2]),
    "tensor": lambda marker: _saved(torch.zeros(3)),
    "number": lambda marker: _saved(5),
    "empty mapping": lambda marker: _saved({}),
    "no weights": lambda marker: _saved({"model": {}}),
    "texts for weights": lambda marker: _saved({"model": {"visual_encoder.cls_token": "x"}}),
    "keys that are numbers": lambda marker: _saved({"model": {1: torch.zeros(2)}}),
    "another model": lambda marker: _saved({"model": {"layer.weight": torch.zeros(3, 3)}}),
    "a module": lambda marker: _saved(torch.nn.Linear(2, 2)),
    "a weight missing": _state(lambda state: {k: v for k, v in state.items() if k != VISION}),
    "a text weight missing": _state(lambda state: {k: v for k, v in state.items() if k != TEXT}),
    "heads missing": _state(lambda state: {k: v for k, v in state.items() if "itm_head" not in k}),
    "a weight of another shape": _state(lambda state: {**state, VISION: torch.zeros(3, 3)}),
    "a flat weight": _state(lambda state: {**state, TEXT: torch.zeros(9)}),
    "a weight that is text": _state(lambda state: {**state, TEXT: "x"}),
    "whole numbers": _state(lambda state: {**state, VISION: state[VISION].long()}),
    "NaN": _state(lambda state: {**state, VISION: state[VISION] * float("nan")}),
    "a weight more": _state(lambda state: {**state, "visual_encoder.zzz": torch.zeros(2)}),
    "positions of no square": _state(lambda state: {**state, "visual_encoder.pos_embed": torch.zeros(1, 18, 192)}),
    "no positions": _state(lambda state: {**state, "visual_encoder.pos_embed": torch.zeros(1, 0, 192)}),
    "few words": _state(lambda state: {**state, "text_encoder.embeddings.word_embeddings.weight": torch.zeros(9, 128)}),
    "vision alone": _state(lambda state: {k: v for k, v in state.items() if k.startswith("visual_encoder.")}),
}
OPTIONS: list[tuple[list[str], str]] = [
    (["--image-size", "0"], "image"),
    (["--image-size", "-16"], "image"),
    (["--image-size", "17"], "image"),
    (["--image-size", "1600000"], "image"),
    (["--image-size", "x"], "--image-size"),
    (["--image-size", "1e3"], "--image-size"),
    (["--image-size", "9" * 5000], "--image-size"),
]


def _tells(words: str) -> Check:
    return lambda outcome: None if words in outcome.out else f"it does not say {words!r}"


def _same_weights(draw: Draw) -> Check:
    whole = draw.ground.root / "converted"
    if not whole.exists():
        draw.ground.command("convert", draw.ground.checkpoint, "--out", whole)

    def check(outcome: Outcome) -> str | None:
        made, expected = (load_file(folder / "model.safetensors") for folder in (outcome.folder / "out", whole))
        same = made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in expected)
        return None if same else "other weights than those of the whole file"

    return check


def checkpoint(draw: Draw) -> Case:
    """A file that is no checkpoint, or an option that does not fit it."""
    file, way, marker = draw.folder / FILE, draw.number % 5, draw.folder / "ran-code"
    words: list[Any] = ["convert", file, "--out", "out"]
    names = (FILE, str(file))
    if way < 3:
        about = draw.one_of(list(FILES), 5, f"file{way}") if way else draw.one_of(list(FILES)[:12], 5, "code")
        file.write_bytes(FILES[about](marker))
        if about == "heads missing":  # a model for nothing yet, as the report says
            return Case(about, words, accept(_tells("not for retrieval")), ("out",))
        return Case(about, words, refuse(*names))
    if way == 3:
        about = draw.one_of([*RUINS, *PLACES, "head"], 5, "ruin")
        if about in PLACES:
            file.touch()
            put(file, about)
        else:
            file.write_bytes({**RUINS, **HARMS}[about](draw.ground.checkpoint.read_bytes(), draw.rng))
        if about == "head":  # an archive is read from its end
            return Case(about, words, either(*names, check=_same_weights(draw)), ("out",))
        return Case(about, words, refuse(*names))
    options, name = draw.one_of(OPTIONS, 5, "option")
    file.symlink_to(draw.ground.checkpoint)
    if draw.rng.random() < 0.3:
        about, place = draw.one_of(
            [("out is a file", "taken"), ("out in a file", "taken/x"), ("out on a device", "/dev/null/x")]
        )
        (draw.folder / "taken").write_text("precious\n")
        return Case(about, ["convert", file, "--out", place], refuse(place, "taken", "/dev/null"))
    if draw.rng.random() < 0.15:
        return Case("whole", words, accept(), ("out",))
    return Case(" ".join(options)[:40], [*words, *options], refuse(name))
