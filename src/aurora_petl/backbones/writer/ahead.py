"""What Qwen-VL derives from the grids of pictures, computed on the CPU before a batch goes to the device.

Its vision tower attends to each picture by itself, and asks for the lengths of all of them in every layer; its language
model asks where every picture begins. Asked of a GPU, each is a wait: three a layer and about eight an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    from transformers import vision_utils
    from transformers.utils.generic import is_flash_attention_requested

    TAKEN = hasattr(vision_utils, "get_vision_interpolation_indices_and_weights")
except ImportError:
    TAKEN = False  # by the installed transformers; the tower then asks the device

PREFIXES = ("pixel_", "image_")  # of the names in a batch that the vision tower reads
Grid = tuple[int, int, int]  # of a picture: frames, rows and columns of patches


def of_tower(model: Any, grids: Sequence[Grid]) -> dict[str, Any]:
    """What the vision tower needs of pictures' grids, under the names that ``get_image_features`` takes: tensors, and
    tuples of what stays on the CPU. Empty where transformers does not take it."""
    if not TAKEN:
        return {}
    tower, grid = model.base_model.visual, torch.tensor(grids)
    merge = tower.spatial_merge_size
    ahead: dict[str, Any] = {
        "image_position_ids": vision_utils.get_vision_position_ids(grid, merge),
        "image_cu_seqlens": tuple(vision_utils.get_vision_cu_seqlens(grid).tolist()),
    }
    if hasattr(tower, "window_size"):
        index, lengths = vision_utils.get_vision_window_index(grid, merge, tower.window_size, tower.patch_size)
        ahead |= {"image_window_index": index, "image_cu_window_seqlens": tuple(lengths.tolist())}
    if hasattr(tower, "num_grid_per_side"):
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        ahead |= {"image_interp_indices": indices, "image_interp_weights": weights}
    return ahead


def arguments_of(batch: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The part of a batch that ``get_image_features`` takes, its tuples as tensors where the tower reads them.

    Args:
        config: of the model.
    """
    given = {name: part for name, part in batch.items() if name.startswith(PREFIXES)}
    device = given["pixel_values"].device
    asks_device = "image_cu_seqlens" not in given
    lengths_device = device if TAKEN and is_flash_attention_requested(config.vision_config) else torch.device("cpu")
    for name, part in given.items():
        if not isinstance(part, Tensor):
            grid = name == "image_grid_thw"
            place = (device if asks_device else torch.device("cpu")) if grid else lengths_device
            given[name] = torch.tensor(part, dtype=torch.long if grid else torch.int32, device=place)
    return given
