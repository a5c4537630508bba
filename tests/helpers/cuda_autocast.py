"""A stand-in for CUDA's autocast, which computes in float32 what the CPU's leaves in bfloat16: softmax, norms, powers.

    with CudaAutocast(), torch.autocast("cpu", torch.bfloat16):
        torch.softmax(scores, -1)                       # float32, whatever the scores are
        torch.softmax(scores, -1, dtype=scores.dtype)   # as asked for

Its lists are "CUDA Ops that can autocast to float32" of PyTorch's documentation of `torch.amp`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

BY_DTYPE = {"softmax", "softmin", "log_softmax", "sum", "prod", "cumsum", "cumprod"}  # float32 if no dtype is given
BY_CAST = {
    *("__pow__", "__rpow__", "__rdiv__", "__rtruediv__", "pow", "rsqrt", "reciprocal", "exp", "expm1", "logsumexp"),
    *("log", "log10", "log1p", "log2", "acos", "asin", "cosh", "sinh", "tan", "erfinv", "softplus", "interpolate"),
    *("layer_norm", "group_norm", "norm", "vector_norm", "normalize", "renorm", "cosine_similarity", "cdist", "dist"),
    *("kl_div", "l1_loss", "smooth_l1_loss", "mse_loss", "nll_loss", "cross_entropy", "soft_margin_loss"),
    *("binary_cross_entropy_with_logits", "cosine_embedding_loss", "hinge_embedding_loss"),
}


class CudaAutocast(TorchFunctionMode):
    """Within it, the CPU's autocast keeps to CUDA's lists. ``widened`` counts what was computed in float32 for that."""

    def __init__(self) -> None:
        super().__init__()
        self.widened: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if torch.is_autocast_enabled("cpu") and any(map(_is_narrow, (*args, *kwargs.values()))):
            given = kwargs.get("dtype") is not None or any(isinstance(value, torch.dtype) for value in args)
            if name in BY_DTYPE and not given:
                self.widened[name] += 1
                kwargs = {**kwargs, "dtype": torch.float32}
            elif name in BY_CAST:
                self.widened[name] += 1
                args, kwargs = tree_map(_wide, (args, kwargs))
        return func(*args, **kwargs)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)


def _wide(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value
