"""What a training reads: a task's examples, and the order that they come in.

Which examples a batch holds, and how an example is seen, depends on the seed, the epoch and the example's place alone:
not on how many processes there are, how many loader workers they have, or whether the run was resumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .data.rows import Dataset as Rows
from .data.rows import load_media
from .tasks.base import Task


class TrainingExamples(Dataset):
    """A task's examples of a split, `Task.examples`, by epoch and place. Frames of a clip are seen alike."""

    def __init__(self, task: Task, dataset: Rows, *, seed: int, augment: bool, flip: bool) -> None:
        self.dataset, self.seed = dataset, seed
        self.examples = task.examples(dataset)
        self.view = task.backbone.view(training=augment, flip=flip)
        self.frames = task.settings.frames

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, index = place
        row, rest = self.examples[index]
        key = f"{self.seed}/{epoch}/{index}"

        def view(image: Image.Image) -> Tensor:
            return self.view(image, random.Random(key))

        rng = random.Random(f"{key}/frames")
        return {"pixels": load_media(self.dataset, row, view, self.frames, rng, self.view.least), **rest}


class Order(Sampler):
    """Epochs and places of ``count`` of the ``examples``, each epoch in an order of its own, cut to whole batches of
    ``batch`` examples of all ranks together."""

    def __init__(self, examples: int, batch: int, count: int, seed: int) -> None:
        self.examples, self.whole, self.count, self.seed = examples, examples // batch * batch, count, seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for epoch in range(-(-self.count // self.whole)):
            order = torch.randperm(self.examples, generator=torch.Generator().manual_seed(self.seed + epoch))
            for index in order[: min(self.whole, self.count - epoch * self.whole)].tolist():
                yield epoch, index
