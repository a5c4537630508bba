"""Pictures, clips and texts of a split, encoded once, and kept on disk for the next evaluation if asked to.

Over several ranks each encodes and scores its own share of the pictures; every rank ends with all features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from tqdm import tqdm

from ..adapter.factors import autocast_dtype
from ..backbones.base import DualEncoder, Texts, is_matcher
from ..backbones.frames import Media, encode_media, pool
from ..data.loading import media_ahead
from ..data.rows import ImageTextDataset
from ..distributed import own_share, total
from ..kept import keep, recall

STATES_BUDGET = 2 * 1024**3  # bytes of picture states kept between ITC and rerank; beyond it they are formed again


class PictureStates:
    """The states of a split's pictures or clips for a second stage, kept where they fit into memory, else formed again.

    Args:
        encode: first and last picture -> their states, formed anew.
        own: the pictures that ``states`` are of.
        states: (len(own), F * N, D), or None.
    """

    def __init__(self, encode: Callable[[int, int], Tensor], own: range, states: Tensor | None) -> None:
        self.anew, self.own, self.states = encode, own, states

    def __call__(self, first: int, last: int) -> Tensor:
        """States of pictures (last - first, F * N, D)"""
        if self.states is None or first < self.own.start or last > self.own.stop:
            return self.anew(first, last)
        return self.states[first - self.own.start : last - self.own.start]


@dataclass
class Features:
    """Features of a split; M pictures, L texts (all captions of all pictures), P the joint width. Where an item has
    several vectors, there is a dimension of them before the last."""

    image: Tensor  # (M, P)
    text: Tensor  # (L, P)
    tokens: Texts  # L, on the CPU, where it is known how many tokens a batch of texts needs
    image_ids: list[str]
    text_ids: list[str]  # the id of the picture that a text describes
    texts: list[str]
    frames: Tensor  # (M, F, P) or (M, F, V, P), of the frames of clips; F is 1 for pictures
    own: range  # the pictures whose pairs this rank scores
    states: PictureStates | None = None  # for a second stage, if there is one
    key: str = ""  # of model, adapter and data, if features are kept on disk


@torch.no_grad()
def extract(
    backbone: DualEncoder,
    dataset: ImageTextDataset,
    *,
    batch_size: int = 64,
    max_tokens: int = 0,
    frames: int = 0,
    cache: Path | None = None,
    progress: bool = False,
) -> Features:
    """Encode every picture and text of ``dataset`` in batches, in evaluation mode.

    Args:
        batch_size: pictures, or frames of clips, at a time.
        max_tokens: where texts are cut; 0: the model's own length.
        frames: how many of a clip, evenly spread; of no effect on pictures.
        cache: a folder. Features, and picture states up to `STATES_BUDGET`, are kept there, and taken from there as
            long as weights, adapter, pictures, texts and precision are the same to the bit.
    """
    device = next(iter(backbone.parameters())).device
    view = backbone.view()

    def encode(pictures: Iterator[Tensor]) -> Media:
        return encode_media(backbone, torch.stack([pixels.to(device, non_blocking=True) for pixels in pictures]))

    def encode_states(first: int, last: int) -> Tensor:
        states = encode(media_ahead(dataset, range(first, last), view, frames)).states
        assert states is not None
        return states

    if dataset.clips:
        batch_size = max(1, batch_size // max(1, frames))

    texts = [caption for item in dataset for caption in item.captions]
    tokens = backbone.texts(texts, max_tokens)
    own = own_share(len(dataset))
    key = _key(backbone, dataset, tokens, frames) if cache else ""
    file = cache / f"{dataset.name.replace('/', '-')}.{own.start}-{own.stop}.safetensors" if cache else None
    tensors = _read(file, key, device)
    if tensors is None:
        pictures: list[Tensor] = []
        states: Tensor | None = None
        ahead = media_ahead(dataset, own, view, frames)
        for first in tqdm(range(0, len(own), batch_size), "pictures", leave=False, disable=not progress):
            media = encode(islice(ahead, batch_size))
            pictures.append(media.frames)
            if media.states is not None and media.states[0].nbytes * len(own) <= STATES_BUDGET:
                states = media.states.new_empty(len(own), *media.states.shape[1:]) if states is None else states
                states[first : first + len(media.states)] = media.states
        tensors = {"text": _encode_texts(backbone, tokens, 4 * batch_size, progress)}
        if pictures:
            tensors["frames"] = torch.cat(pictures)
        if states is not None:
            tensors["states"] = states
        if file is not None:
            keep(file, tensors, {"key": key})
    every = _of_all_ranks(backbone, tensors.get("frames"), dataset, frames, own, device)
    return Features(
        image=pool(every),
        text=tensors["text"],
        tokens=tokens,
        image_ids=[item.id for item in dataset],
        text_ids=[item.id for item in dataset for _ in item.captions],
        texts=texts,
        frames=every,
        own=own,
        states=PictureStates(encode_states, own, tensors.get("states")) if is_matcher(backbone) else None,
        key=key,
    )


def _encode_texts(backbone: DualEncoder, tokens: Texts, count: int, progress: bool) -> Tensor:
    """Features of texts (L, P), so many at a time."""
    device = next(iter(backbone.parameters())).device
    parts = tqdm(tokens.split(count), "texts", leave=False, disable=not progress)
    return torch.cat([backbone.encode_text(part.trimmed().to(device)).feature for part in parts])


def _of_all_ranks(
    backbone: DualEncoder,
    frames: Tensor | None,
    dataset: ImageTextDataset,
    count: int,
    own: range,
    device: torch.device,
) -> Tensor:
    """The features of all pictures (M, F, P) from those of this rank's, None if it has none."""
    shape = backbone.feature_shape
    every = torch.zeros(len(dataset), count if dataset.clips else 1, *shape, device=device)
    if frames is not None:
        every[own.start : own.stop] = frames
    total(every)
    return every


def _key(backbone: DualEncoder, dataset: ImageTextDataset, tokens: Texts, frames: int) -> str:
    """A digest of all that features depend on: weights, which adapters act, pictures, texts, view and precision."""
    made = hashlib.sha256()
    for part in [str(frames).encode(), *_parts(backbone, dataset, tokens)]:
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return made.hexdigest()


def _parts(backbone: DualEncoder, dataset: ImageTextDataset, tokens: Texts) -> Iterator[bytes]:
    kind = autocast_dtype(next(iter(backbone.parameters())).device)
    yield repr((backbone.view_key(), backbone.view().least, kind)).encode()
    for name, weight in backbone.module.state_dict().items():
        yield f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
        yield _bytes(weight)
    for name, module in backbone.module.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield f"{name} {module.active_adapters} {module.disable_adapters} {module.merged}".encode()
    for value in (tokens.ids, tokens.mask):
        yield _bytes(value)
    for row in range(len(dataset)):
        yield dataset.items[row].id.encode()
        yield from dataset.content(row)


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read(file: Path | None, key: str, device: torch.device) -> dict[str, Tensor] | None:
    record = None if file is None else recall(file, key)
    return None if record is None else {name: value.to(device) for name, value in record[0].items()}
