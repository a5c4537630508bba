"""The model families, by ``model_type`` of a transformers configuration; a table that needs no PyTorch to be read.

A family is one module beside this file and a row here. The module has ``configure(content, path)``, which makes a
transformers configuration of a ``config.json``; ``load(folder, config, name, task, image_size)``; and ``empty(config,
name, task, image_size)``, the model without weights or tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What a family is called, where it lives and what it can do."""

    title: str
    module: str  # beside this file
    tasks: tuple[str, ...]  # that it offers
    matches: bool = False  # whether it has a second stage, ITM, behind retrieval
    recipe: str = "photos"  # for one's own pictures


FAMILIES: dict[str, Family] = {
    "blip": Family("BLIP", "blip", ("retrieval", "vqa"), matches=True),
    "blip-2": Family("BLIP-2", "blip2", ("retrieval",), matches=True, recipe="photos-dual"),
    "clip": Family("CLIP", "dual", ("retrieval",), recipe="photos-dual"),
    "metaclip_2": Family("MetaCLIP 2", "dual", ("retrieval",), recipe="photos-dual"),
    "siglip": Family("SigLIP, and SigLIP 2 of fixed size", "dual", ("retrieval",), recipe="photos-dual"),
}


def offering(task: str) -> list[str]:
    """Model types that offer a task."""
    return sorted(kind for kind, family in FAMILIES.items() if task in family.tasks)
