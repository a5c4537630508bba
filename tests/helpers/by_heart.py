"""Models that learn a few drawn pictures with their captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from aurora_petl.backbones import load_backbone, similarity
from aurora_petl.baselines import apply_method
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings
from tests.helpers.pictures import COLOURS, SHAPES, draw


def trained(path: Path, steps: int, pairs: int = 40, rate: float = 1e-2):
    """A task with a backbone tuned on pairs of pictures of two colours with their captions, until it knows them or for
    so many steps, and the pairs."""
    names = [(first, second, shape) for first in COLOURS for second in COLOURS for shape in SHAPES if first != second]
    backbone = load_backbone(path)
    torch.manual_seed(0)
    apply_method(backbone, "aurora", {"r": 32, "target_modules": "all-linear"})
    task = Retrieval(backbone, RetrievalSettings()).train()
    rows = []
    for number, (first, second, shape) in enumerate(names[:pairs]):
        picture = Image.new("RGB", (64, 32), "white")
        picture.paste(draw(shape, first, 32), (0, 0))
        picture.paste(draw(shape, second, 32), (32, 0))
        pixels = backbone.view()(picture.resize((32, 32)))
        rows.append({"pixels": pixels, "caption": f"{first} {shape} {second}", "id": number})
    batch = task.collate(rows)
    optimizer = torch.optim.AdamW([weight for _, weight in task.trained()], lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        task(**batch)["loss"].backward()
        optimizer.step()
        if step % 20 == 19 and recall(task, batch) == 1:
            break
    return task.eval(), batch


@torch.no_grad()
def recall(task, batch) -> float:
    """Share of the pictures of a batch whose own text is the nearest."""
    texts = task.backbone.texts([""])
    texts = replace(texts, ids=batch["input_ids"], mask=batch["attention_mask"])
    image = task.backbone.encode_image(batch["pixel_values"]).feature
    scores = similarity(image, task.backbone.encode_text(texts).feature)
    return float((scores.argmax(1) == torch.arange(len(scores))).float().mean())
