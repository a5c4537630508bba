"""Small drawn pictures with captions, distinct enough that a model can learn each."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

from aurora_petl.data.places import Folder
from aurora_petl.data.rows import Question, QuestionDataset

COLOURS = {"red": "#d22", "green": "#2a2", "blue": "#24d", "yellow": "#ec2", "black": "#111", "purple": "#82b"}
SHAPES = ("circle", "square", "triangle", "cross")


def draw(shape: str, colour: str, size: int = 96) -> Image.Image:
    """A shape in the middle of a white picture."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    low, high, middle = size // 5, 4 * size // 5, size // 2
    if shape == "circle":
        pen.ellipse((low, low, high, high), COLOURS[colour])
    elif shape == "square":
        pen.rectangle((low, low, high, high), COLOURS[colour])
    elif shape == "triangle":
        pen.polygon([(middle, low), (high, high), (low, high)], COLOURS[colour])
    else:
        pen.line((low, low, high, high), COLOURS[colour], size // 6)
        pen.line((low, high, high, low), COLOURS[colour], size // 6)
    return picture


def make_folder(path: Path, n: int = 24, splits: bool = True) -> Path:
    """A dataset folder of ``n`` (at most 24) pictures with two captions each; half of them train, a quarter each
    validation and test."""
    (path / "images").mkdir(parents=True)
    rows = []
    for number, (shape, colour) in enumerate(list(product(SHAPES, COLOURS))[:n]):
        name = f"images/{number}.png"
        draw(shape, colour).save(path / name)
        row = {"image": name, "caption": [f"a {colour} {shape}", f"{shape}, {colour}"]}
        if splits:
            row["split"] = ("train", "validation", "train", "test")[number % 4]
        rows.append(row)
    (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_questions(path: Path, n: int = 24) -> QuestionDataset:
    """Two questions about each of the pictures of `make_folder`: its colour, and whether it is a circle."""
    make_folder(path, n)
    files, rows = Folder(path), []
    for number, (shape, colour) in enumerate(list(product(SHAPES, COLOURS))[:n]):
        split = ("train", "validation", "train", "test")[number % 4]
        circle = "yes" if shape == "circle" else "no"
        for asked, answer, kind in (
            ("what colour is it?", colour, "other"),
            ("is it a circle?", circle, "yes/no"),
        ):
            rows.append(
                Question(
                    f"images/{number}.png", asked, (answer,), (1.0,), str(len(rows)), split, len(rows) + 1, kind=kind
                )
            )
    return QuestionDataset(path.name, rows, files, "questions.json", candidates=(*COLOURS, "yes", "no"))
