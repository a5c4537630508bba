"""All families of bad inputs, and how many cases each has."""

from __future__ import annotations

from collections.abc import Callable

from . import converted, indexes, models, page, pictures, recipes, roots, rows, runs, words
from .case import Case, Draw

FAMILIES: dict[str, tuple[Callable[[Draw], Case], int]] = {
    "captions": (rows.captions_jsonl, 64),
    "caption-files": (rows.caption_files, 32),
    "csv": (rows.captions_csv, 36),
    "questions": (rows.questions, 40),
    "pictures": (pictures.pictures, 78),
    "places": (pictures.places, 16),
    "several": (pictures.several, 6),
    "clips": (pictures.clips, 33),
    "overrides": (recipes.overrides, 128),
    "yaml": (recipes.yaml_files, 42),
    "models": (models.folders, 84),
    "names": (models.names, 40),
    "runs": (runs.finished, 65),
    "caches": (runs.caches, 26),
    "stopped": (runs.stopped, 24),
    "indexes": (indexes.folders, 60),
    "updates": (indexes.updates, 28),
    "convert": (converted.checkpoint, 35),
    "words": (words.lines, len(words.LINES)),
    "good-words": (words.good_lines, 10),
    "outputs": (words.outputs, 9),
    "mixtures": (words.mixtures, 36),
    "page": (page.requests, 130),
    "benchmarks": (roots.roots, 60),
}
