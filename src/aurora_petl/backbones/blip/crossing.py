"""The cross-attention of training where few text tokens meet a picture, with an adapter on its keys and values.

                      forward                               backward, for each head of S = softmax(q k^T)
    x (N, D) --[W_k + E_k U^T]--> k --.                     dx <- dS^T (q W_k)  +  S^T (do W_v)
             --[W_v + E_v U^T]--> v --+--> softmax --> o    d(x U) <- dS^T (q E_k)  +  S^T (do E_v)
    q (L, D) -------------------------'                     dE_k <- q^T (dS (x U))     dE_v <- do^T (S (x U))

L text tokens in H heads give the gradients of k and v a rank of at most L in each head. So they are never formed: where
L * H < D, to go from the scores straight to x costs less than to go there by way of k and v (BLIP-base, three texts of
16 tokens a picture: 576 < 768). Where 2 L * H < D, neither are k and v (one text of 16 tokens: 192; the last layer, of
which only [CLS] is wanted: 36): scores are (q W_k) x^T, and the output is (S x) W_v^T. Products with x then have 6 L H
columns, not 2 L H + 2 D, and of the pictures nothing but x and x U is kept. A bias of the keys moves all scores of a
query alike, which the softmax does not see; that of the values passes to the output unchanged.

In float32 and where gradients are wanted alone: without them, and so in evaluation, keys and values are formed, and an
adapter at its start computes what the pretrained model does to the bit; here it does up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapter.layer import FrozenUpdate, frozen_update


def cross_layers(
    key: nn.Module, value: nn.Module, states: Tensor, queries: int, heads: int
) -> tuple[FrozenUpdate, FrozenUpdate] | None:
    """What `cross` needs, if it can stand in for the layers ``key`` and ``value`` and is the cheaper way.

    Args:
        states: (M, N, D), that both layers read; `adapter.layer.project_once` has been at them.
        queries: tokens that meet a picture.
    """
    if queries * heads >= states.shape[-1] or not torch.is_grad_enabled():
        return None
    of_key, of_value = frozen_update(key, states), frozen_update(value, states)
    return None if of_key is None or of_value is None else (of_key, of_value)


def cross(
    query: Tensor, states: Tensor, layers: tuple[FrozenUpdate, FrozenUpdate], heads: int, mask: Tensor | None
) -> Tensor:
    """Attention of ``query`` to the keys and values that ``layers`` make of ``states``.

    Args:
        query: (M, L, D)
        states: (M, N, D)
        mask: additive, (M, 1, 1, N) or None.

    Returns:
        (M, L, D)
    """
    key, value = layers
    way = _Absorbed if 2 * heads * query.shape[1] < states.shape[-1] else _Crossing
    context = way.apply(query, states, key.projected, key.weight, key.E, value.weight, value.E, key.U, mask, heads)
    return context if value.bias is None else context + value.bias


class _Heads:
    """Products of what each head has, for M rows, L tokens and H heads of width d = D / H."""

    def __init__(self, query: Tensor, heads: int) -> None:
        (self.rows, self.tokens, self.width), self.heads = query.shape, heads
        self.scale = (self.width // heads) ** -0.5

    def split(self, part: Tensor) -> Tensor:
        """(M, any, D) -> (M, H, any, d)"""
        return part.view(self.rows, -1, self.heads, self.width // self.heads).transpose(1, 2)

    def join(self, part: Tensor) -> Tensor:
        """(M, H, L, d) -> (M, L, D)"""
        return part.transpose(1, 2).reshape(self.rows, self.tokens, self.width)

    def through(self, part: Tensor, weight: Tensor) -> Tensor:
        """(M, H, L, d) by each head's rows of a weight (D, any) -> (M, H L, any)"""
        return self._by_heads(part, weight.view(self.heads, self.width // self.heads, -1)).flatten(1, 2)

    def out(self, part: Tensor, weight: Tensor) -> Tensor:
        """The same with the weight turned: (M, H L, any) -> (M, H, L, d)"""
        split = weight.view(self.heads, self.width // self.heads, -1)
        return self._by_heads(part.view(self.rows, self.heads, self.tokens, -1), split.mT)

    def _by_heads(self, part: Tensor, weight: Tensor) -> Tensor:
        """(M, H, L, a) by (H, a, b) -> (M, H, L, b); the product that broadcasts would copy the weight M times."""
        made = torch.bmm(part.transpose(0, 1).reshape(self.heads, self.rows * self.tokens, -1), weight)
        return made.view(self.heads, self.rows, self.tokens, -1).transpose(0, 1)

    def of_weight(self, part: Tensor, seen: Tensor) -> Tensor:
        """Gradient of `through`'s weight: (M, H, L, d) and (M, H L, any) -> (D, any)"""
        return (part.mT @ seen.view(self.rows, self.heads, self.tokens, -1)).sum(0).view(self.width, -1)

    def probabilities(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """(M, H L, N), the mask (M, 1, 1, N) added"""
        return F.softmax(scores if mask is None else scores + mask[:, 0], -1)


def _softmax_backward(S: Tensor, dS: Tensor) -> Tensor:
    """Gradient of the scores."""
    return S * (dS - (dS * S).sum(-1, keepdim=True))


def _back(dS: Tensor, first: Tensor, S: Tensor, second: Tensor) -> Tensor:
    """dS^T first + S^T second, (M, N, any)"""
    return torch.bmm(dS.mT, first).baddbmm_(S.mT, second)


class _Crossing(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, with k = x (W_k + E_k U^T)^T and v likewise. U gets its gradient through x U."""

    @staticmethod
    def forward(ctx, query, x, h, Wk, Ek, Wv, Ev, U, mask, heads):  # type: ignore[override]
        by = _Heads(query, heads)
        key, value = (x @ torch.addmm(W, E, U.t()).t() for W, E in ((Wk, Ek), (Wv, Ev)))
        context = F.scaled_dot_product_attention(by.split(query), by.split(key), by.split(value), mask)
        ctx.save_for_backward(query, x, h, Wk, Ek, Wv, Ev, key, value, mask)
        ctx.by = by
        return by.join(context)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dcontext):  # type: ignore[override]
        query, x, h, Wk, Ek, Wv, Ev, key, value, mask = ctx.saved_tensors
        by = ctx.by
        q, do = by.split(query) * by.scale, by.split(dcontext)
        key, value = by.split(key).contiguous(), by.split(value).contiguous()  # or each product copies them
        S = by.probabilities((q @ key.mT).flatten(1, 2), mask)
        dS = _softmax_backward(S, (do @ value.mT).flatten(1, 2))
        dquery = by.join(dS.view(by.rows, by.heads, by.tokens, -1) @ key) * by.scale
        dx = _back(dS, by.through(q, Wk), S, by.through(do, Wv)) if ctx.needs_input_grad[1] else None
        dh = _back(dS, by.through(q, Ek), S, by.through(do, Ev))
        dEk, dEv = by.of_weight(q, dS @ h), by.of_weight(do, S @ h)
        return dquery, dx, dh, None, dEk, None, dEv, None, None, None


class _Absorbed(torch.autograd.Function):
    """The same without forming k and v."""

    @staticmethod
    def forward(ctx, query, x, h, Wk, Ek, Wv, Ev, U, mask, heads):  # type: ignore[override]
        by = _Heads(query, heads)
        q = by.split(query) * by.scale
        S = by.probabilities(torch.bmm(by.through(q, Wk), x.mT).baddbmm_(by.through(q, Ek), h.mT), mask)
        ctx.save_for_backward(query, x, h, Wk, Ek, Wv, Ev, S)
        ctx.by = by
        return by.join(by.out(S @ x, Wv) + by.out(S @ h, Ev))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dcontext):  # type: ignore[override]
        query, x, h, Wk, Ek, Wv, Ev, S = ctx.saved_tensors
        by = ctx.by
        q, do = by.split(query) * by.scale, by.split(dcontext)
        through, thin = by.through(do, Wv), by.through(do, Ev)
        dS = _softmax_backward(S, torch.bmm(through, x.mT).baddbmm_(thin, h.mT))
        read = dS @ h
        dquery = by.join(by.out(dS @ x, Wk) + by.out(read, Ek)) * by.scale
        dx = _back(dS, by.through(q, Wk), S, through) if ctx.needs_input_grad[1] else None
        dh = _back(dS, by.through(q, Ek), S, thin)
        return dquery, dx, dh, None, by.of_weight(q, read), None, by.of_weight(do, S @ h), None, None, None
