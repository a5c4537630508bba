"""Clips: their frames are encoded as pictures, averaged for contrast and read together by the fusion layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import Backbone

FRAME_TEMPERATURE = 4.0  # of frame-aware attention, as released


def encode_media(backbone: Backbone, pixel_values: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) or clips (B, F, 3, H, W) -> states (B, F, N, D) of each frame; F is 1 for pictures."""
    if pixel_values.dim() == 4:
        return backbone.encode_image(pixel_values).unsqueeze(1)
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
    with torch.autocast(text.device.type, enabled=False):
        similarity = torch.einsum("bp,bfp->bf", text.float(), frames.float())
        return frames.shape[1] * F.softmax(similarity / FRAME_TEMPERATURE, dim=1)
