"""A frozen linear layer with its update as one step of autograd: what `layer.py` draws, forward and backward.

The backward passes here are written out, so they are given for first derivatives in reverse mode alone. Whatever else
PyTorch can do with a plain layer needs plain operations: `plain_operations` says when.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .factors import no_autocast, thin, thin_backward
from .norm import NormInputs


def plain_operations() -> bool:
    """Whether derivatives are under way that only plain operations have: forward-mode AD, or a transform of torch.func
    (vmap, jvp, jacrev, hessian, also grad, which asks for higher ones in advance)."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Tensor:
    """`function.apply`, whose output is one tensor."""
    output: Tensor = function.apply(*inputs)
    return output


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse `create_graph=True`: the gradients that `backward` returns do not know what they depend on, and a penalty
    on them would lack this layer's share without a word.

    Raises:
        RuntimeError: if gradients are to be differentiated again.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "A layer adapted by Aurora has no second derivatives in torch.autograd: please leave out "
                "`create_graph=True`, or take derivatives with torch.func, which can differentiate again."
            )
        return backward(ctx, *gradients)

    return checked


class Projection(torch.autograd.Function):
    """x U, for layers that share x and U. Keeps x, or what x was formed from."""

    @staticmethod
    def forward(x: Tensor, U: Tensor, from_norm: NormInputs | None) -> Tensor:
        with no_autocast(x.device):
            return x @ U.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, U, from_norm = inputs
        # x carries the output, by `layer.project_once`: kept itself, it would keep itself alive
        _keep(ctx, x.detach(), from_norm, U)

    @staticmethod
    @first_order
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, (U,) = _kept(ctx, dh.dtype)
        dx = dU = None
        with no_autocast(dh.device):
            if ctx.needs_input_grad[0]:
                dx = dh @ U.t().to(dh.dtype)
            if ctx.needs_input_grad[1]:
                dU = (x.reshape(-1, x.shape[-1]).t() @ dh.reshape(-1, dh.shape[-1])).to(U.dtype)
        return dx, dU, None


class FrozenLinear(torch.autograd.Function):
    """y = x (W + E D^T)^T + b with W and b frozen. Of the size of x it keeps x, or what x was formed from; given
    h = x D (`layer.project_once`), h alone."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        U: Tensor,
        V: Tensor,
        mode: Tensor,
        h: Tensor | None,
        columns: bool,
        merge: bool,
        from_norm: NormInputs | None,
    ) -> Tensor:
        E, D = thin(U, V, mode, columns)
        with no_autocast(x.device):
            bias = None if bias is None else bias.to(x.dtype)
            if merge:
                return F.linear(x, _merged(weight, E, D).to(x.dtype), bias)
            h = x @ D.to(x.dtype) if h is None else h
            return F.linear(x, weight.to(x.dtype), bias) + F.linear(h, E.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, U, V, mode, h, ctx.columns, ctx.merge, from_norm = inputs
        learns = any(ctx.needs_input_grad[3:6])
        _keep(ctx, x if learns and h is None else None, from_norm, weight, U, V, mode, h)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, (weight, U, V, mode, h) = _kept(ctx, dy.dtype)
        need_x, _, _, need_U, need_V, need_mode, need_h, *_ = ctx.needs_input_grad
        given = h is not None
        need_E = need_V or (need_mode and not ctx.columns)
        need_D = not given and (need_U or (need_mode and ctx.columns))
        dx = dE = dD = None
        dh: Any = None
        with no_autocast(dy.device):
            E, D = thin(U, V, mode, ctx.columns)
            dy_rows = dy.reshape(-1, dy.shape[-1])  # (tokens, out)
            merge = ctx.merge and not given and not (need_D and len(dy_rows) < len(weight))
            if need_D or need_h or not (merge or given):
                dh = dy_rows @ E.to(dy.dtype)  # (tokens, R)
            if need_x:
                if merge:
                    dx = dy_rows @ _merged(weight, E, D).to(dy.dtype)
                else:
                    dx = dy_rows @ weight.to(dy.dtype)
                    if not given:  # else it comes by way of h
                        dx.addmm_(dh, D.t().to(dy.dtype))
                dx = dx.view(*dy.shape[:-1], D.shape[0])
            if need_D:
                dD = (x.reshape(-1, D.shape[0]).t() @ dh).to(D.dtype)
            if need_E:
                h_rows = (h if given else x @ D.to(x.dtype)).reshape(-1, D.shape[1])
                dE = (dy_rows.t() @ h_rows).to(E.dtype)
            dU, dV, dmode = thin_backward(U, V, mode, ctx.columns, dE, dD)
        dh = dh.view(*dy.shape[:-1], D.shape[1]) if need_h else None
        return dx, None, None, dU, dV, dmode, dh, None, None, None


def _keep(ctx: Any, x: Tensor | None, from_norm: NormInputs | None, *others: Tensor | None) -> None:
    """Save ``x`` for the backward pass, or what it can be formed from again, and the others; `_kept` returns them."""
    ctx.eps, kept = None, [x]
    if x is not None and from_norm is not None:
        *kept, ctx.eps = from_norm
    ctx.save_for_backward(*kept, *others)


def _kept(ctx: Any, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    x, *others = ctx.saved_tensors
    if ctx.eps is None:
        return x, others
    norm_weight, norm_bias, *others = others
    return NormInputs(x, norm_weight, norm_bias, ctx.eps).output().to(dtype), others


def _merged(weight: Tensor, E: Tensor, D: Tensor) -> Tensor:
    return torch.addmm(weight, E.to(weight.dtype), D.t().to(weight.dtype))


def merge_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether forming W + dW loses nothing (see the top of `layer.py`) and costs less than applying it."""
    out_features, in_features = weight.shape
    tokens = x.numel() // in_features
    return weight.dtype.itemsize >= 4 and tokens * (in_features + out_features) >= in_features * out_features
