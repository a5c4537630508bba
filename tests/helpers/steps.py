"""A task of every family with examples, for tests of whole training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from aurora_petl.backbones import load_backbone
from aurora_petl.backbones.blip.model import empty
from aurora_petl.baselines import apply_method
from aurora_petl.tasks.base import Task
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings
from aurora_petl.tasks.vqa import VQA
from tests.adapter.tiny import blip_config

from . import families, writers

SIZES = [(40, 56), (64, 30), (50, 50), (20, 90), (40, 40), (33, 44)]
CAPTIONS = ["a red circle on the left", "two stars", "a", "a photo of a dog", "green", "blue square"]
ASKED = [
    ("what is it?", ["a red circle", "green"], [0.7, 0.3]),
    ("is there a dog in the picture?", ["no"], [1.0]),
    ("how many?", ["two", "a", "a cat"], [0.5, 0.4, 0.1]),
]
BLIP = ("blip", "blip-vqa")
FUSION = {"context": "batch", "gate": "scale_shift"}


def make_task(kind: str, folder: Path, *, width: int = 16, **settings: Any) -> tuple[Task, list[dict[str, Any]]]:
    """A task of a tiny model with an adapter that changes it, and six pairs of five pictures or three questions.

    Args:
        kind: one of `BLIP`, of `families` or of `writers`.
        folder: where the model's folder is made.
        width: of BLIP's states.
        settings: of retrieval.
    """
    asks = kind == "blip-vqa" or kind in writers.WRITERS
    task_name = "vqa" if asks else "retrieval"
    torch.manual_seed(0)
    if kind in BLIP:
        config = blip_config()
        config.text_config.vocab_size, config.text_config.max_position_embeddings = 30_524, 40
        config.text_config.hidden_size = config.text_config.encoder_hidden_size = width
        config.vision_config.hidden_size = width
        backbone: Any = empty(config, kind, task_name)
        backbone.tokenizer = load_backbone("blip-mini").tokenizer
    else:
        make = writers.make if kind in writers.WRITERS else families.make
        if not (folder / kind).is_dir():
            make(kind, folder / kind)
        backbone = load_backbone(str(folder / kind), task=task_name)
    torch.manual_seed(1)
    apply_method(backbone, "aurora", {"r": 4, "init_weights": False, "scale": 0.1, **(FUSION if kind in BLIP else {})})
    view = backbone.view()
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    pixels = [view(picture) for picture in pictures]
    if frames := settings.get("frames", 0):
        pixels = [torch.stack([pixel, *pixels[: frames - 1]]) for pixel in pixels]
    if asks:
        names = ("pixels", "question", "answers", "weights")
        rows = [dict(zip(names, (pixel, *row), strict=True)) for pixel, row in zip(pixels, ASKED, strict=False)]
        return VQA(backbone).train(), rows
    if kind == "blip":
        settings = {"queue_size": 8, "momentum": 0.9} | settings
    pairs = zip(pixels, CAPTIONS, [0, 1, 2, 3, 0, 4], strict=True)
    rows = [{"pixels": pixel, "caption": caption, "id": number} for pixel, caption, number in pairs]
    return Retrieval(backbone, RetrievalSettings(**settings)).train(), rows
