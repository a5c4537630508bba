"""Bad pictures and clips."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

from tests.helpers.pictures import draw as drawn

from .case import Case, Check, Draw, Outcome, accept, either, refuse
from .damage import HARMS, PLACES, POINTER, cut, put
from .rows import copy, dry, same_table

FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "avif": "AVIF"}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n(x) show\nshowpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'


def encoded(kind: str, shape: str = "circle", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    drawn(shape, colour).save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG that says to be this large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


def _large(kind: str, side: int) -> bytes:
    """A picture of many pixels in few bytes."""
    buffer = io.BytesIO()
    Image.new("1" if kind in ("TIFF", "PNG") else "L", (side, side)).save(
        buffer, kind, **({"compression": "group4"} if kind == "TIFF" else {})
    )
    return buffer.getvalue()


NO_PICTURES: dict[str, Any] = {  # bytes that are no picture that can be read
    "empty": lambda: b"",
    "zeros": lambda: bytes(5000),
    "EPS": lambda: EPS,
    "SVG": lambda: SVG,
    "PDF": lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n",
    "HTML": lambda: b"<!DOCTYPE html><title>403</title>",
    "text": lambda: b"a circle\n",
    "pointer": lambda: POINTER,
    "zip": lambda: b"PK\x03\x04" + bytes(60),
    "PNG signature": lambda: b"\x89PNG\r\n\x1a\n",
    "JPEG start": lambda: b"\xff\xd8\xff\xe0",
    "GIF head": lambda: b"GIF89a",
    "RIFF": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\x7f",
    "PNG of 2**31": lambda: png(2**31 - 1, 2**31 - 1),
    "PNG of 60000": lambda: png(60_000, 60_000),
    "PNG of nothing": lambda: png(0, 0),
    "PNG that lacks rows": lambda: png(96, 96),
    "PNG of 20000, whole": lambda: _large("PNG", 20_000),
    "GIF of 65535": lambda: (
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;"
    ),
    "TIFF of 30000": lambda: _large("TIFF", 30_000),
    "BMP of 2**31": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6)
    ),
    "sound": lambda: _sound(),
    "pickle": lambda: b"\x80\x02cos\nsystem\nX\x01\0\0\0:\x85R.",
}


def _sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(4000))
    return buffer.getvalue()


def indexed(count: int, named: str = "", must: bool = False) -> Check:
    """An index has every picture but those that are named as skipped, and its features are finite."""

    def check(outcome: Outcome) -> str | None:
        match = re.search(r": ([\d,]+) pictures", outcome.out)
        skipped = re.search(r"^([\d,]+) skipped", outcome.out, re.M)
        here, left = int(match[1]) if match else -1, int(skipped[1]) if skipped else 0
        if here + left != count:
            return f"{here} pictures and {left} skipped of {count}: {outcome.out[:300]!r}"
        if left and named not in outcome.out:
            return f"{named} was skipped without its name"
        if must and not left:
            return f"{named} was taken"
        shards = [load_file(path) for path in (outcome.folder / "out").glob("pictures-*.safetensors")]
        values = [value.float() for shard in shards for value in shard.values()]
        if not all(bool(value.isfinite().all()) for value in values):
            return "features that are not finite"
        longer = [value for value in values if not bool(((value.norm(dim=1) - 1).abs() < 0.01).all())]
        return "features that are no unit vectors" if longer else None

    return check


def pictures(draw: Draw) -> Case:
    """One picture of the album is harmed, and indexed, trained on or searched by."""
    folder = copy(draw, draw.ground.album)
    kind = draw.number % 3
    suffix = draw.one_of(list(FORMATS), 3, "format")
    must = True
    if kind == 0:
        harm = draw.one_of([*HARMS, "cut"], 3, "harm")
        whole = encoded(FORMATS[suffix])
        data = cut(whole, draw.rng) if harm == "cut" else HARMS[harm](whole, draw.rng)
        about, must = f"{suffix}, {harm}", harm == "cut" and suffix in ("png", "jpg", "webp", "bmp", "tiff")
    else:
        about = draw.one_of(list(NO_PICTURES), 3, f"none{kind}")
        data = NO_PICTURES[about]()
        about = f"{about} as .{suffix}"
    old, name = folder / "images/4.png", f"images/4.{suffix}"
    old.unlink()
    (folder / name).write_bytes(data)
    rows = (folder / "captions.jsonl").read_text().replace('"images/4.png"', f'"{name}"')
    (folder / "captions.jsonl").write_text(rows)
    tools = draw.folder / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {draw.folder}/ran-ghostscript\n")
    (tools / "gs").chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    way = draw.one_of(["index", "train", "skip", "search"], 2, "way")
    if way == "index":
        words = ["index", folder, "--model", draw.ground.model, "--out", "out", "--quiet"]
        return Case(about, words, accept(indexed(24, name, must)), ("out",), env)
    if way == "train":
        same = same_table(draw, draw.ground.album)
        return Case(about, dry(draw, folder), refuse(name) if must else either(name, check=same), (), env)
    if way == "skip":
        return Case(about, dry(draw, folder, "broken=skip"), accept(_one_less(must)), (), env)
    words = ["search", "--image", folder / name, "--index", draw.ground.index]
    return Case(about, words, refuse(name) if must else either(name, check=_ten_hits), (), env)


def _one_less(must: bool) -> Check:
    def check(outcome: Outcome) -> str | None:
        rows = dict(
            line.split()[:2] for line in outcome.out.splitlines() if re.match(r"(train|validation|test) ", line)
        )
        return None if int(rows["train"]) in ([11] if must else [11, 12]) else f"rows {rows}"

    return check


def _ten_hits(outcome: Outcome) -> str | None:
    hits = re.findall(r"^ +\d+ +-?\d\.\d+  \S", outcome.out, re.M)
    return None if len(hits) == 10 else f"{len(hits)} hits"


def places(draw: Draw) -> Case:
    """Folders, pipes and links in a picture's place."""
    folder = copy(draw, draw.ground.album)
    name = f"images/{draw.rng.choice([4, 5, 7])}.png"
    about = draw.one_of([*PLACES, "link to zeros", "link to the folder", "picture that shrinks to a byte"])
    if about in PLACES:
        put(folder / name, about)
    else:
        (folder / name).unlink()
        if about == "link to zeros":
            (folder / name).symlink_to("/dev/zero")
        elif about == "link to the folder":
            (folder / name).symlink_to(folder)
        else:
            (folder / name).write_bytes(b"\x89")
    if draw.number % 2:
        (folder / "captions.jsonl").unlink()
        words = ["index", folder, "--model", draw.ground.model, "--out", "out", "--quiet"]
        return Case(about, words, accept(lambda outcome: _at_least(outcome, 23)), ("out",))
    return Case(about, dry(draw, folder), refuse(name))


def _at_least(outcome: Outcome, count: int) -> str | None:
    match = re.search(r": ([\d,]+) pictures", outcome.out)
    return None if match and int(match[1]) >= count else f"{outcome.out[:200]!r}"


def clips(draw: Draw) -> Case:
    """One clip is harmed."""
    folder = copy(draw, draw.ground.clips, "films")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    name = draw.one_of([row["clip"] for row in rows])
    must, more = True, ("task.frames=2",)
    way = draw.number % 3
    if way < 2:
        harm = draw.one_of([*HARMS, "cut"], 1, "harm")
        whole = (folder / name).read_bytes()
        about, must = f"{name}, {harm}", False
        (folder / name).write_bytes(cut(whole, draw.rng) if harm == "cut" else HARMS[harm](whole, draw.rng))
    else:
        about = draw.one_of([*NO_PICTURES, "still", "empty folder", "frames", *PLACES], 3, "none")
        if about == "still":
            (folder / name).write_bytes(encoded("PNG"))
            must = False
        elif about == "empty folder":
            put(folder / name, "folder")
        elif about == "frames":
            put(folder / name, "folder")
            for n in range(4):
                (folder / name / f"{n}.jpg").write_bytes(encoded("JPEG") if n != 2 else b"\xff\xd8")
        elif about in PLACES:
            put(folder / name, about)
        else:
            (folder / name).write_bytes(NO_PICTURES[about]())
    expects = refuse(name) if must else either(name, check=same_table(draw, draw.ground.clips, *more))
    return Case(about, dry(draw, folder, *more), expects)


def several(draw: Draw) -> Case:
    """Many broken pictures at once, among them all of them."""
    folder = copy(draw, draw.ground.album)
    (folder / "captions.jsonl").unlink()
    chosen = sorted(Path(folder / "images").iterdir())[: draw.one_of([3, 12, 23, 24])]
    for path in chosen:
        path.write_bytes(NO_PICTURES[draw.rng.choice(list(NO_PICTURES))]() or b"x")
    words = ["index", folder, "--model", draw.ground.model, "--out", "out", "--quiet"]
    expects = either(*[path.name for path in chosen], "pictures", check=indexed(24, chosen[0].name, True))
    return Case(f"{len(chosen)} broken", words, expects, ("out",))
