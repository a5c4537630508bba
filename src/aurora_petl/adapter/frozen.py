"""A frozen linear layer with its update as one step of autograd: what `layer.py` draws, forward and backward.

The backward passes here are written out, so they are given for first derivatives in reverse mode alone. Whatever else
PyTorch can do with a plain layer needs plain operations: `plain_operations` says when.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .factors import is_bfloat16_on_cpu, no_autocast, thin, thin_backward
from .norm import NormInputs


class Formed(Protocol):
    """What a step of several layers computes with: see `updates.Formed`."""

    merged: bool
    rows: list[int]
    U: Tensor
    E: Tensor

    @property
    def stack(self) -> Tensor | None: ...

    @property
    def weight(self) -> Any: ...

    @property
    def bias(self) -> Tensor | None: ...


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


class Extension(torch.autograd.Function):
    """x beside x U, (..., in + R), for layers that share x and U. Of the size of x it keeps its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, U: Tensor, dtype: torch.dtype) -> Tensor:
        with no_autocast(x.device):
            taken = x.to(dtype)
            z = torch.cat([taken, taken @ U.to(dtype)], -1)
        ctx.save_for_backward(z, U)
        return z

    @staticmethod
    @first_order
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        z, U = ctx.saved_tensors
        width, dx, dU = len(U), None, None
        rows = _rows(dz)
        with no_autocast(dz.device):
            if ctx.needs_input_grad[0]:
                dx = torch.addmm(rows[:, :width], rows[:, width:], U.t().to(dz.dtype)).view(*dz.shape[:-1], width)
            if ctx.needs_input_grad[1]:
                dU = (_rows(z)[:, :width].t() @ rows[:, width:]).to(U.dtype)
        return dx, dU, None


class FrozenLinear(torch.autograd.Function):
    """y = x (W + E D^T)^T + b with W and b frozen, by itself: for what `updates.py` does not form. Of the size of x it
    keeps x, or what x was formed from."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        U: Tensor,
        V: Tensor,
        mode: Tensor,
        columns: bool,
        merge: bool,
        from_norm: NormInputs | None,
    ) -> Tensor:
        E, D = thin(U, V, mode, columns)
        with no_autocast(x.device):
            bias = None if bias is None else bias.to(x.dtype)
            if merge:
                return _own(F.linear(x, _merged(weight, E, D).to(x.dtype), bias))
            return F.linear(x, weight.to(x.dtype), bias) + F.linear(x @ D.to(x.dtype), E.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, U, V, mode, ctx.columns, ctx.merge, from_norm = inputs
        _keep(ctx, x if any(ctx.needs_input_grad[3:6]) else None, from_norm, weight, U, V, mode)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, (weight, U, V, mode) = _kept(ctx, dy.dtype)
        need_x, _, _, need_U, need_V, need_mode, *_ = ctx.needs_input_grad
        need_E = need_V or (need_mode and not ctx.columns)
        need_D = need_U or (need_mode and ctx.columns)
        dx = dE = dD = None
        dh: Any = None
        with no_autocast(dy.device):
            E, D = thin(U, V, mode, ctx.columns)
            dy_rows = dy.reshape(-1, dy.shape[-1])  # (tokens, out)
            merge = ctx.merge and not (need_D and len(dy_rows) < len(weight))
            if need_D or not merge:
                dh = dy_rows @ E.to(dy.dtype)  # (tokens, R)
            if need_x:
                if merge:
                    dx = dy_rows @ _merged(weight, E, D).to(dy.dtype)
                else:
                    dx = (dy_rows @ weight.to(dy.dtype)).addmm_(dh, D.t().to(dy.dtype))
                dx = dx.view(*dy.shape[:-1], D.shape[0])
            if need_D:
                dD = (x.reshape(-1, D.shape[0]).t() @ dh).to(D.dtype)
            if need_E:
                dE = (dy_rows.t() @ (x @ D.to(x.dtype)).reshape(-1, D.shape[1])).to(E.dtype)
            dU, dV, dmode = thin_backward(U, V, mode, ctx.columns, dE, dD)
        return dx, None, None, dU, dV, dmode, None, None, None


class FormedLinear(torch.autograd.Function):
    """Linear layers that read the same x, with what `updates.py` formed for them: y = x (W + E U^T)^T + b, cut into the
    given widths. Of the size of x it keeps x, or what x was formed from; over weights in half precision on a GPU it
    keeps x in any case. It keeps x U too, where the forward pass has it.

    A single layer of one width returns a tensor by itself. Otherwise x U comes with y of one product, if there is a
    stack, and outputs are parts of one tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        formed: Formed,
        from_norm: NormInputs | None,
        widths: list[int] | None,
        of_U: Tensor | None,
        *of_E: Tensor,
    ) -> Any:
        out, stack, weight = len(formed.E), formed.stack, formed.weight
        joint = None if widths is None else stack
        # all is in the dtype of compute: autocast, if it is on, finds nothing to cast
        taken, h = _taken(x, formed, with_h=joint is None and not formed.merged)
        if not formed.merged and taken.dtype.itemsize < 4 and not is_bfloat16_on_cpu(taken):
            from_norm = None  # a GPU waits for launches, and to keep x saves one or two for each layer
        if joint is not None:
            both = F.linear(taken, joint, formed.bias)
            y, h = both[..., :out], both[..., out:]
            if is_bfloat16_on_cpu(h):
                h = h.clone()  # else it would hold y too, which attention copies there and lets go
        else:
            bias = None if formed.bias is None else formed.bias[:out]
            y = F.linear(taken, _weight(formed, weight), bias)
        if not formed.merged:
            y.view(-1, out).addmm_(_rows(h), formed.E.t())
        need_U, need_E = ctx.needs_input_grad[4], any(ctx.needs_input_grad[5:])
        ctx.formed = formed
        known = None
        if need_U or (need_E and h is None):
            known = taken if from_norm is None else x
        _keep(ctx, known, from_norm, h if need_E or need_U else None, weight)
        return _own(y) if widths is None else y.split(widths, -1)

    @staticmethod
    @first_order
    def backward(ctx: Any, *parts: Tensor) -> tuple[Tensor | None, ...]:
        formed: Formed = ctx.formed
        out, stack, E, U = len(formed.E), formed.stack, formed.E, formed.U
        x, (h, weight) = _kept(ctx, E.dtype)
        need_x, _, _, _, need_U, *need_E = ctx.needs_input_grad
        dx: Any = None
        dh: Any = None
        with no_autocast(E.device):
            if len(parts) > 1 and not formed.merged and stack is not None and h is not None:
                both = _rows(torch.cat([*parts, h], -1))  # x U makes place for its gradient
                dy = both[:, :out]
                dh = torch.mm(dy, E, out=both[:, out:])
                dx = both @ stack if need_x else None
            else:
                dy = _rows(parts[0] if len(parts) == 1 else torch.cat(parts, -1))
                if need_U or not formed.merged:
                    dh = dy @ E
                if need_x:
                    dx = dy @ _weight(formed, weight)
                    if not formed.merged:
                        dx.addmm_(dh, U.t())
            dE: Any = [None] * len(need_E)
            if any(need_E):
                dE = (dy.t() @ (_rows(x) @ U if h is None else _rows(h))).split(formed.rows)
            dU = _rows(x).t() @ dh if need_U else None
        return None if dx is None else dx.view(*parts[0].shape[:-1], -1), None, None, None, dU, *dE


class Taken(NamedTuple):
    """What all layers that read the same x make of it first. It is kept as an attribute of x, and no operation hands it
    on to its output."""

    U: Tensor
    version: int  # of x
    x: Tensor | None  # in the dtype of compute; None where x has it
    h: Tensor | None  # x U


def _taken(x: Tensor, formed: Formed, with_h: bool) -> tuple[Tensor, Any]:
    """x in the dtype of compute, and x U if wanted. Both are computed once for all layers that read this very x, where
    x is the output of an operation of autograd: a tensor that a user gives may be filled anew without a trace, through
    ``.data`` or by a CUDA graph."""
    dtype, U = formed.E.dtype, formed.U
    if x.grad_fn is None or (x.dtype == dtype and not with_h):
        taken = x.to(dtype)
        return taken, taken @ U if with_h else None
    note = getattr(x, "_aurora_taken", None)
    if note is None or note.U is not U or note.version != x._version:
        note = Taken(U, x._version, None if x.dtype == dtype else x.to(dtype), None)
    taken = x if note.x is None else note.x
    if with_h and note.h is None:
        note = note._replace(h=taken @ U)
    x._aurora_taken = note  # type: ignore[attr-defined]
    return taken, note.h if with_h else None


def _weight(formed: Formed, weight: Tensor | None) -> Tensor:
    """(out, in), of the stack or as the layer has it."""
    if formed.stack is not None:
        return formed.stack[: len(formed.E)]
    assert weight is not None
    return weight.to(formed.E.dtype)


def _own(y: Tensor) -> Tensor:
    """The same memory as a tensor that is no view, which models may change in place, as `nn.ReLU(inplace=True)` does:
    autograd refuses that for a view that comes out of a function of ours, and `F.linear` returns one."""
    return torch.ops.aten._unsafe_view(y, y.shape)  # type: ignore[no-any-return]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _keep(ctx: Any, x: Tensor | None, from_norm: NormInputs | None, *others: Tensor | None) -> None:
    """Save ``x`` for the backward pass, or what it can be formed from again, and the others; `_kept` returns them."""
    ctx.eps, kept = None, [x]
    if x is not None and from_norm is not None:
        *kept, ctx.eps = from_norm
    ctx.save_for_backward(*kept, *others)


def _kept(ctx: Any, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    x, *others = ctx.saved_tensors
    if ctx.eps is None:
        return None if x is None else x.to(dtype), others
    norm_weight, norm_bias, *others = others
    return NormInputs(x, norm_weight, norm_bias, ctx.eps).output().to(dtype), others


def _merged(weight: Tensor, E: Tensor, D: Tensor) -> Tensor:
    return torch.addmm(weight, E.to(weight.dtype), D.t().to(weight.dtype))


def merge_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether forming W + dW loses nothing (see the top of `layer.py`) and costs less than applying it."""
    out_features, in_features = weight.shape
    tokens = x.numel() // in_features
    return weight.dtype.itemsize >= 4 and tokens * (in_features + out_features) >= in_features * out_features
