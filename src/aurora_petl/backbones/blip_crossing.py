"""The cross-attention of training where few text tokens meet a picture, with an adapter on its keys and values.

                      forward                               backward, for each head of S = softmax(q k^T)
    x (N, D) --[W_k + E_k U^T]--> k --.                     dx <- dS^T (q W_k)  +  S^T (do W_v)
             --[W_v + E_v U^T]--> v --+--> softmax --> o    d(x U) <- dS^T (q E_k)  +  S^T (do E_v)
    q (L, D) -------------------------'                     dE_k <- q^T (dS (x U))     dE_v <- do^T (S (x U))

L text tokens in H heads give the gradients of k and v a rank of at most L in each head. So they are never formed: where
L * H < D, to go from the scores straight to x costs less than to go there by way of k and v (BLIP-base, three texts of
16 tokens a picture: 576 < 768). A bias of the keys moves all scores of a query alike, which the softmax does not see;
that of the values passes to the output unchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter.layer import FrozenUpdate, frozen_update


class CrossLayers(NamedTuple):
    """The key and value layers of a cross-attention, as `_Crossing` takes them."""

    key: FrozenUpdate
    value: FrozenUpdate
    bias: Tensor | None  # of the values


def cross_layers(key: nn.Module, value: nn.Module, states: Tensor, queries: int, heads: int) -> CrossLayers | None:
    """What `cross` needs, if it can stand in for the layers ``key`` and ``value`` and is the cheaper way.

    Args:
        states: (M, N, D), that both layers read; `adapter.layer.project_once` has been at them.
        queries: tokens that meet a picture.
    """
    if queries * heads >= states.shape[-1] or not torch.is_grad_enabled():
        return None
    of_key, of_value = frozen_update(key, states), frozen_update(value, states)
    if of_key is None or of_value is None:
        return None
    return CrossLayers(of_key, of_value, of_value.bias)


def cross(query: Tensor, states: Tensor, layers: CrossLayers, heads: int, mask: Tensor | None) -> Tensor:
    """Attention of ``query`` to the keys and values that ``layers`` make of ``states``.

    Args:
        query: (M, L, D)
        states: (M, N, D)
        mask: additive, (M, 1, 1, N) or None.

    Returns:
        (M, L, D)
    """
    key, value, bias = layers
    context = _Crossing.apply(
        query, states, key.projected, key.weight, key.E, value.weight, value.E, key.U, mask, heads
    )
    return context if bias is None else context + bias


class _Crossing(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, with k = x (W_k + E_k U^T)^T and v likewise. U gets its gradient through x U."""

    @staticmethod
    def forward(ctx, query, x, h, Wk, Ek, Wv, Ev, U, mask, heads):  # type: ignore[override]
        key, value = (x @ torch.addmm(W, E, U.t()).t() for W, E in ((Wk, Ek), (Wv, Ev)))
        q, k, v = (_split(part, heads) for part in (query, key, value))
        context = F.scaled_dot_product_attention(q, k, v, mask)
        ctx.save_for_backward(query, x, h, Wk, Ek, Wv, Ev, key, value, mask)
        ctx.heads = heads
        return context.transpose(1, 2).reshape(query.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dcontext):  # type: ignore[override]
        query, x, h, Wk, Ek, Wv, Ev, key, value, mask = ctx.saved_tensors
        heads, (rows, tokens, width) = ctx.heads, query.shape
        scale = (width // heads) ** -0.5
        q, do = _split(query, heads) * scale, _split(dcontext, heads)  # (M, H, L, d)
        key, value = _split(key, heads), _split(value, heads)
        scores = q @ key.mT
        S = F.softmax(scores if mask is None else scores + mask, -1)  # (M, H, L, N)
        dS = do @ value.mT
        dS = S * (dS - (dS * S).sum(-1, keepdim=True))
        dquery = ((dS @ key) * scale).transpose(1, 2).reshape(query.shape)

        def through(part: Tensor, weight: Tensor) -> Tensor:
            """(M, H, L, d) by each head's rows of a weight (D, any) -> (M, H L, any)"""
            return (part @ weight.view(heads, width // heads, -1)).reshape(rows, heads * tokens, -1)

        def back(first: Tensor, second: Tensor) -> Tensor:
            """dS^T first + S^T second, (M, N, any)"""
            return torch.baddbmm(torch.bmm(flat_dS.mT, first), flat_S.mT, second)

        flat_S, flat_dS = S.view(rows, heads * tokens, -1), dS.view(rows, heads * tokens, -1)
        dx = back(through(q, Wk), through(do, Wv)) if ctx.needs_input_grad[1] else None
        dh = back(through(q, Ek), through(do, Ev))
        read = (torch.bmm(part, h).view(rows, heads, tokens, -1) for part in (flat_dS, flat_S))
        dEk, dEv = ((part.mT @ seen).sum(0).view(width, -1) for part, seen in zip((q, do), read, strict=True))
        return dquery, dx, dh, None, dEk, None, dEv, None, None, None


def _split(part: Any, heads: int) -> Any:
    """(M, any, D) -> (M, H, any, D / H)"""
    return part.view(*part.shape[:2], heads, -1).transpose(1, 2)
