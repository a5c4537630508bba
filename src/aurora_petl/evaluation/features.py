"""Pictures, clips and texts of a split, encoded once, and kept on disk for the next evaluation if asked to.

Over several ranks each encodes and scores its own share of the pictures; every rank ends with all features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from tqdm import tqdm

from ..adapter.factors import autocast_dtype
from ..backbones import Backbone, Tunable
from ..data.media import EvalTransform
from ..data.rows import ImageTextDataset
from ..distributed import own_share, total
from ..kept import keep, recall
from ..tasks.clips import encode_media, load_media, pool, project_frames

STATES_BUDGET = 2 * 1024**3  # bytes of picture states kept between ITC and rerank; beyond it they are formed again


@dataclass
class Features:
    """ITC features of a split; M pictures, L texts (all captions of all pictures), P the joint width."""

    image: Tensor  # (M, P)
    text: Tensor  # (L, P)
    input_ids: Tensor  # (L, T) on the CPU, where it is known how many tokens a batch of texts needs
    attention_mask: Tensor  # (L, T), too
    image_ids: list[str]
    text_ids: list[str]  # the id of the picture that a text describes
    texts: list[str]
    frames: Tensor  # (M, F, P), of the frames of clips; F is 1 for pictures
    states: Callable[[int, int], Tensor]  # (first, last) -> states of pictures or clips (last - first, F * N, D)
    encode: Callable[[int, int], Tensor]  # the same, formed anew in the precision of the call
    own: range  # the pictures whose pairs this rank scores
    key: str = ""  # of model, adapter and data, if features are kept on disk


@torch.no_grad()
def extract(
    backbone: Backbone,
    dataset: ImageTextDataset,
    *,
    batch_size: int = 64,
    max_tokens: int = 35,
    frames: int = 0,
    cache: Path | None = None,
    progress: bool = False,
) -> Features:
    """Encode every picture and text of ``dataset`` in batches, in evaluation mode.

    Args:
        batch_size: pictures, or frames of clips, at a time.
        frames: how many of a clip, evenly spread; of no effect on pictures.
        cache: a folder. Features, and picture states up to `STATES_BUDGET`, are kept there, and taken from there as
            long as weights, adapter, pictures, texts and precision are the same to the bit.
    """
    device = next(iter(backbone.parameters())).device
    transform = EvalTransform(backbone.image_size)

    def encode(first: int, last: int) -> Tensor:
        pixels = torch.stack([load_media(dataset, row, transform, frames) for row in range(first, last)])
        return encode_media(backbone, pixels.to(device)).flatten(1, 2)

    if dataset.clips:
        batch_size = max(1, batch_size // max(1, frames))

    texts = [caption for item in dataset for caption in item.captions]
    tokens = tokenize(backbone, texts, max_tokens)
    own = own_share(len(dataset))
    key = _key(backbone, dataset, tokens, frames) if cache else ""
    file = cache / f"{dataset.name.replace('/', '-')}.{own.start}-{own.stop}.safetensors" if cache else None
    found = _read(file, key, device)
    count = frames if dataset.clips else 1
    every = torch.zeros(len(dataset), count, backbone.joint_width, device=device)
    if found is None:
        found = {}
        rows_of_frames, kept = [], []
        for first in tqdm(range(own.start, own.stop, batch_size), "pictures", leave=False, disable=not progress):
            formed = encode(first, min(first + batch_size, own.stop))
            rows_of_frames.append(project_frames(backbone, formed.unflatten(1, (count, -1))))
            if formed[0].nbytes * len(own) <= STATES_BUDGET:
                kept.append(formed)
        found["frames"] = torch.cat(rows_of_frames) if rows_of_frames else every[:0]
        if kept:
            found["states"] = torch.cat(kept)
        text_rows = []
        for first in tqdm(range(0, len(texts), 4 * batch_size), "texts", leave=False, disable=not progress):
            rows = slice(first, first + 4 * batch_size)
            ids, mask = trim(tokens["input_ids"][rows], tokens["attention_mask"][rows])
            text_rows.append(backbone.project_text(backbone.encode_text(ids.to(device), mask.to(device))))
        found["text"] = torch.cat(text_rows)
        if file is not None:
            keep(file, found, {"key": key})
    every[own.start : own.stop] = found["frames"]
    whole = found.get("states")

    def states(first: int, last: int) -> Tensor:
        if whole is None or first < own.start or last > own.stop:
            return encode(first, last)
        return whole[first - own.start : last - own.start]

    total(every)
    return Features(
        pool(every),
        found["text"],
        tokens["input_ids"],
        tokens["attention_mask"],
        [item.id for item in dataset],
        [item.id for item in dataset for _ in item.captions],
        texts,
        every,
        states,
        encode,
        own,
        key,
    )


def tokenize(backbone: Tunable, texts: list[str], max_tokens: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, each (texts, longest) on the CPU, cut at ``max_tokens``."""
    tokens = backbone.tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def trim(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns that are padding in every row; on the CPU, since elsewhere to look at them takes a wait."""
    longest = int(attention_mask.sum(1).max())
    return input_ids[:, :longest], attention_mask[:, :longest]


def _key(backbone: Backbone, dataset: ImageTextDataset, tokens: dict[str, Tensor], frames: int) -> str:
    """A digest of all that features depend on: weights, which adapters act, pictures, texts, size and precision."""
    made = hashlib.sha256()
    for part in [str(frames).encode(), *_parts(backbone, dataset, tokens)]:
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return made.hexdigest()


def _parts(backbone: Backbone, dataset: ImageTextDataset, tokens: dict[str, Tensor]) -> Iterator[bytes]:
    yield repr((backbone.image_size, autocast_dtype(next(iter(backbone.parameters())).device))).encode()
    for name, weight in backbone.module.state_dict().items():
        yield f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
        yield _bytes(weight)
    for name, module in backbone.module.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield f"{name} {module.active_adapters} {module.disable_adapters} {module.merged}".encode()
    for value in tokens.values():
        yield _bytes(value)
    for row in range(len(dataset)):
        yield dataset.items[row].id.encode()
        yield from dataset.content(row)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read(file: Path | None, key: str, device: torch.device) -> dict[str, Tensor] | None:
    held = None if file is None else recall(file, key)
    return None if held is None else {name: value.to(device) for name, value in held[0].items()}
