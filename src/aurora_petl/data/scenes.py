"""Scenes: pictures and clips that are composed of the drawings of other packs when they are read.

A pack with ``scenes.jsonl`` holds no pictures of its own. A line says where each drawing goes::

    {"name": "0001.bmp", "pack": "fluent-contrast", "ground": [255, 236, 140],
     "things": [{"drawing": "1f34e", "tint": [208, 32, 38], "box": [10, 20, 90]}]}

``box`` is the left, top and side of a square, in pixels of a scene of `SIDE` a side. ``ground`` takes the place of a
drawing's white and ``tint``, where there is one, that of its black. The ``name`` of a clip is that of a folder of
`FRAMES` frames. A thing in a clip may have ``to``, its box in the last frame, and ``shown``, the first frame that shows
it and the first that does so no more.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from .media import load_image
from .places import Files, Tar

SCENES = "scenes.jsonl"
SIDE = 224  # pixels
FRAMES = 8  # of a clip
_DRAWINGS = 1024  # that stay decoded, 38 kB each


class Scenes:
    """The files of a pack and, beside them, the pictures and frames that its ``scenes.jsonl`` describes, as BMP.

    Args:
        files: of the pack.
        packs: the folder of the packs that the drawings are from.
    """

    def __init__(self, files: Files, packs: Path) -> None:
        self.files, self.packs, self.name = files, packs, files.name
        rows = map(json.loads, files.read(SCENES).decode().splitlines())
        self.scenes: dict[str, Mapping[str, Any]] = {row["name"]: row for row in rows}

    def names(self) -> set[str]:
        composed = (self.frames(name) or [name] for name in self.scenes)
        return self.files.names().union(*composed)

    def read(self, name: str, most: int = -1) -> bytes:
        scene, frame = name, "0"
        if name not in self.scenes:
            scene, _, file = name.rpartition("/")
            frame = file.removesuffix(".bmp")
        if scene not in self.scenes or not frame.isdecimal():
            return self.files.read(name, most)
        encoded = io.BytesIO()
        self.picture(scene, int(frame)).save(encoded, "BMP")
        return encoded.getvalue() if most < 0 else encoded.getvalue()[:most]

    def frames(self, name: str) -> list[str]:
        if name not in self.scenes or name.endswith(".bmp"):
            return []
        return [f"{name}/{number}.bmp" for number in range(FRAMES)]

    def why(self, name: str) -> str | None:
        return self.files.why(name)

    def picture(self, name: str, frame: int = 0) -> Image.Image:
        """A scene as it is in one of its frames: RGB, `SIDE` x `SIDE`."""
        scene = self.scenes[name]
        ground = tuple(scene.get("ground", (255, 255, 255)))
        picture = Image.new("RGB", (SIDE, SIDE), ground)
        for thing in scene["things"]:
            first, end = thing.get("shown", (0, FRAMES))
            if not first <= frame < end:
                continue
            start, stop = thing["box"], thing.get("to", thing["box"])
            left, top, side = (a + round((b - a) * frame / (FRAMES - 1)) for a, b in zip(start, stop, strict=True))
            drawing = _drawing(self.packs / f"{scene['pack']}.tar", thing["drawing"])
            drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
            picture.paste(_on_ground(drawing, ground, thing.get("tint")), (left, top))
        return picture


def _on_ground(drawing: Image.Image, ground: tuple[int, ...], tint: Sequence[int] | None) -> Image.Image:
    """A drawing as if it were printed on ``ground``, or, with a ``tint``, in shades between the two colours."""
    white = Image.new("RGB", drawing.size, ground)
    if tint is None:
        return ImageChops.multiply(drawing, white)
    return Image.composite(white, Image.new("RGB", drawing.size, tuple(tint)), drawing.convert("L"))


@lru_cache(maxsize=_DRAWINGS)
def _drawing(pack: Path, code: str) -> Image.Image:
    name = f"images/{code}.png"
    return load_image(_tar(pack).read(name), f"{pack.stem}/{name}")


@lru_cache(maxsize=8)
def _tar(path: Path) -> Tar:
    return Tar(path)
