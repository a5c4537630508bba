"""Pictures and clips alike: a clip is a few frames, each encoded as a picture. Features of frames are averaged for
contrast, their tokens read together by the fusion layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter.factors import no_autocast
from .base import DualEncoder

FRAME_TEMPERATURE = 4.0  # of frame-aware attention, as released


class Media(NamedTuple):
    """Pictures or clips, encoded; F is 1 for pictures."""

    feature: Tensor  # (B, P), or (B, V, P) of several vectors an item
    frames: Tensor  # (B, F, P), or (B, F, V, P)
    states: Tensor | None  # (B, F * N, D), the tokens of all frames, for a second stage


def encode_media(backbone: DualEncoder, pixel_values: Tensor) -> Media:
    """(B, 3, H, W), or clips (B, F, 3, H, W), encoded."""
    clips = pixel_values.dim() == 5
    count = pixel_values.shape[1] if clips else 1
    encoded = backbone.encode_image(pixel_values.flatten(0, 1) if clips else pixel_values)
    frames = encoded.feature.unflatten(0, (-1, count))
    states = None if encoded.states is None else encoded.states.unflatten(0, (-1, count)).flatten(1, 2)
    return Media(pool(frames), frames, states)


def media_states(backbone: Any, pixel_values: Tensor) -> Tensor:
    """(B, 3, H, W), or clips (B, F, 3, H, W) -> states (B, F * N, D), of a backbone that has ``image_states``."""
    if pixel_values.dim() == 4:
        return backbone.image_states(pixel_values)
    return backbone.image_states(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2]).flatten(1, 2)


def pool(frames: Tensor) -> Tensor:
    """Unit features of frames (B, F, ...) -> of clips (B, ...), their mean."""
    return frames[:, 0] if frames.shape[1] == 1 else F.normalize(frames.mean(1), dim=-1)


def frame_weights(text: Tensor, frames: Tensor) -> Tensor | None:
    """Frame-aware attention: by how much a text's queries weigh the keys of each frame's patches, F times the softmax
    over frames of similarity / 4, the largest where a frame has several vectors. (B, P), (B, F, P) or (B, F, V, P) ->
    (B, F); None for pictures."""
    if frames.shape[1] == 1:
        return None
    with no_autocast(text.device):
        products = torch.einsum("bp,b...p->b...", text.float(), frames.float())
        products = products.amax(2) if products.dim() == 3 else products
        return frames.shape[1] * F.softmax(products / FRAME_TEMPERATURE, dim=1)
