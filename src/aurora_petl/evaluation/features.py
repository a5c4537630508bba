"""Pictures and texts of a split, encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones import Backbone, Tunable
from ..data.media import EvalTransform
from ..data.rows import ImageTextDataset

STATES_BUDGET = 2 * 1024**3  # bytes of picture states kept between ITC and rerank; beyond it they are formed again


@dataclass
class Features:
    """ITC features of a split; M pictures, L texts (all captions of all pictures), P the joint width."""

    image: Tensor  # (M, P)
    text: Tensor  # (L, P)
    input_ids: Tensor  # (L, T)
    attention_mask: Tensor  # (L, T)
    image_ids: list[str]
    text_ids: list[str]  # the id of the picture that a text describes
    texts: list[str]
    states: Callable[[int, int], Tensor]  # (first, last) -> picture states (last - first, N, D)


@torch.no_grad()
def extract(
    backbone: Backbone, dataset: ImageTextDataset, *, batch_size: int = 64, max_tokens: int = 35, progress: bool = False
) -> Features:
    """Encode every picture and text of ``dataset`` in batches, in evaluation mode."""
    device = next(iter(backbone.parameters())).device
    transform = EvalTransform(backbone.image_size)

    def encode(first: int, last: int) -> Tensor:
        pixels = torch.stack([transform(dataset.image(i)) for i in range(first, last)])
        return backbone.encode_image(pixels.to(device))

    kept: list[Tensor] = []
    image_features = []
    fits = True
    for first in tqdm(range(0, len(dataset), batch_size), "pictures", leave=False, disable=not progress):
        states = encode(first, min(first + batch_size, len(dataset)))
        image_features.append(backbone.project_image(states))
        fits = fits and states[0].nbytes * len(dataset) <= STATES_BUDGET
        if fits:
            kept.append(states)
    whole = torch.cat(kept) if fits else None

    texts = [caption for item in dataset for caption in item.captions]
    tokens = tokenize(backbone, texts, max_tokens)
    text_features = []
    for first in tqdm(range(0, len(texts), 4 * batch_size), "texts", leave=False, disable=not progress):
        rows = slice(first, first + 4 * batch_size)
        ids, mask = trim(tokens["input_ids"][rows], tokens["attention_mask"][rows])
        text_features.append(backbone.project_text(backbone.encode_text(ids.to(device), mask.to(device))))
    return Features(
        torch.cat(image_features),
        torch.cat(text_features),
        tokens["input_ids"].to(device),
        tokens["attention_mask"].to(device),
        [item.id for item in dataset],
        [item.id for item in dataset for _ in item.captions],
        texts,
        encode if whole is None else lambda first, last: whole[first:last],
    )


def tokenize(backbone: Tunable, texts: list[str], max_tokens: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, each (texts, longest), cut at ``max_tokens``."""
    tokens = backbone.tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def trim(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that are padding in every row."""
    longest = int(attention_mask.sum(1).max())
    return input_ids[:, :longest], attention_mask[:, :longest]
