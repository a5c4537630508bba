"""The position embeddings of BLIP's vision tower, for pictures of any size that its patches fill."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import AuroraError

MOST_PATCHES = 1024  # a side; their square is the number of position embeddings


def patches_per_side(image_size: int, patch_size: int) -> int:
    """Patches along a side of a picture.

    Raises:
        AuroraError: if they do not fill it, or are beyond `MOST_PATCHES`.
    """
    side, rest = divmod(image_size, patch_size)
    if side > MOST_PATCHES:
        raise AuroraError(f"image_size is {image_size}, {side} patches a side; the most are {MOST_PATCHES}")
    if side < 1 or rest:
        sizes = [size for size in (side * patch_size, (side + 1) * patch_size) if size > 0]
        raise AuroraError(
            f"image_size is {image_size}, which patches of {patch_size} pixels do not fill; "
            f"the next that fit: {' and '.join(map(str, sizes or [patch_size]))}"
        )
    return side


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, D) -> (1, 1 + side * side, D): [CLS]'s as it is, those of the patches
    interpolated bicubically, as the original does when it loads."""
    if positions.shape[1] == 1 + side * side:
        return positions
    first, grid = positions[:, :1], positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


def set_image_size(model: Any, image_size: int) -> None:
    """Give a loaded BLIP position embeddings for pictures of ``image_size`` x ``image_size``, in place.

    Raises:
        AuroraError: if its patches do not fill that.
    """
    vision, embeddings = model.config.vision_config, model.vision_model.embeddings
    side = patches_per_side(image_size, vision.patch_size)
    embeddings.position_embedding = nn.Parameter(resize_positions(embeddings.position_embedding.data, side))
    embeddings.image_size = vision.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1
