"""Padding masks that transformers need not look at.

transformers leaves a mask out where nothing is padding, and looks at its values for that: at each pass of each tower
the CPU waits for the device, and launches nothing meanwhile. A mask of four axes it takes as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def ready(mask: Tensor, model: Any, causal: bool = False) -> Tensor:
    """A mask (B, T) as attention reads it, (B, 1, 1, T), or (B, 1, T, T) if ``causal``; the mask itself where to look
    at it takes no wait, and in inference, which computes what transformers would to the bit.

    Args:
        model: transformers' module that takes it; its configuration says how its attention is computed.
        causal: whether a token reads those before it only.
    """
    way = model.config._attn_implementation
    if mask.device.type == "cpu" or torch.compiler.is_compiling() or not model.training or way not in ("eager", "sdpa"):
        return mask
    seen = mask[:, None, None].bool()
    if causal:
        seen = seen & mask.new_ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    if way == "sdpa":
        return seen
    dtype = model.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)
