"""Pictures and clips alike: a clip is a few frames, each encoded as a picture. Features of frames are averaged for
contrast, their tokens read together by the fusion layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapter.factors import no_autocast
from ..backbones.base import Backbone, Tunable
from ..errors import AuroraError

FRAME_TEMPERATURE = 4.0  # of frame-aware attention, as released


def load_media(
    dataset: Any, row: int, transform: Callable[[Image.Image], Tensor], frames: int, rng: random.Random | None = None
) -> Tensor:
    """The picture of a row through ``transform`` -> (3, H, W); of clips so many frames -> (frames, 3, H, W).

    Args:
        rng: draws the frames; without it they are evenly spread.

    Raises:
        AuroraError: naming file and line, if it is missing or broken; if no frames of a clip are asked for.
    """
    if not dataset.clips:
        return transform(dataset.image(row))
    need_frames(dataset, frames)
    return torch.stack([transform(frame) for frame in dataset.frames(row, frames, rng)])


def need_frames(dataset: Any, frames: int) -> None:
    """Refuse clips of no frames.

    Raises:
        AuroraError: if ``dataset`` holds clips and ``frames`` is 0.
    """
    if dataset.clips and frames < 1:
        raise AuroraError(f"{dataset.name} holds clips; say how many frames to take of each, like task.frames=8")


def encode_media(backbone: Tunable, pixel_values: Tensor) -> Tensor:
    """(B, 3, H, W), or clips (B, T, 3, H, W) -> states (B, T, N, D), T being 1 for pictures.

    ``flatten(1, 2)`` of it is what fusion attends to: the tokens of all frames.
    """
    if pixel_values.dim() == 4:
        return backbone.encode_image(pixel_values)[:, None]
    return backbone.encode_image(pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])


def project_frames(backbone: Backbone, states: Tensor) -> Tensor:
    """(B, F, N, D) -> unit features of frames (B, F, P)"""
    return backbone.project_image(states.flatten(0, 1)).unflatten(0, states.shape[:2])


def pool(frames: Tensor) -> Tensor:
    """Unit features of frames (B, F, P) -> of clips (B, P), their mean."""
    return frames[:, 0] if frames.shape[1] == 1 else F.normalize(frames.mean(1), dim=-1)


def frame_weights(text: Tensor, frames: Tensor) -> Tensor | None:
    """Frame-aware attention: by how much a text's queries weigh the keys of each frame's patches, F times the softmax
    over frames of similarity / 4. (B, P), (B, F, P) -> (B, F); None for pictures."""
    if frames.shape[1] == 1:
        return None
    with no_autocast(text.device):
        similarity = torch.einsum("bp,bfp->bf", text.float(), frames.float())
        return frames.shape[1] * F.softmax(similarity / FRAME_TEMPERATURE, dim=1)
