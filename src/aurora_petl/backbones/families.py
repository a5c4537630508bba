"""The model families, by ``model_type`` of a transformers configuration; a table that needs no PyTorch to be read.

A family is one module beside this file and a row here. The module has ``configure(content, path)``, which makes a
transformers configuration of a ``config.json``; ``load(folder, config, name, task, image_size)``; ``check(folder,
config, name, image_size)``, which looks for what would stop ``load`` beside the weights; and ``empty(config, name,
task, image_size)``, the model without weights or tokenizer.
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
    large: bool = False  # whether a frozen model is kept in bfloat16 where the hardware computes in it


FAMILIES: dict[str, Family] = {
    "blip": Family("BLIP", "blip", ("retrieval", "vqa"), matches=True),
    "blip-2": Family("BLIP-2", "blip2", ("retrieval",), matches=True, recipe="photos-dual"),
    "clip": Family("CLIP", "dual", ("retrieval",), recipe="photos-dual"),
    "metaclip_2": Family("MetaCLIP 2", "dual", ("retrieval",), recipe="photos-dual"),
    "siglip": Family("SigLIP, and SigLIP 2 of fixed size", "dual", ("retrieval",), recipe="photos-dual"),
    "siglip2": Family("SigLIP 2 for pictures of any shape", "naflex", ("retrieval",), recipe="photos-dual"),
    "idefics3": Family("Idefics3, and SmolVLM", "writer", ("vqa",), large=True),
    "internvl": Family("InternVL", "writer", ("vqa",), large=True),
    "llava": Family("LLaVA", "writer", ("vqa",), large=True),
    "paligemma": Family("PaliGemma", "writer", ("vqa",), large=True),
    "qwen2_5_vl": Family("Qwen2.5-VL", "writer", ("vqa",), large=True),
    "qwen2_vl": Family("Qwen2-VL", "writer", ("vqa",), large=True),
    "qwen3_vl": Family("Qwen3-VL", "writer", ("vqa",), large=True),
    "smolvlm": Family("SmolVLM2", "writer", ("vqa",), large=True),
}


def offering(task: str) -> list[str]:
    """Model types that offer a task."""
    return sorted(kind for kind, family in FAMILIES.items() if task in family.tasks)
