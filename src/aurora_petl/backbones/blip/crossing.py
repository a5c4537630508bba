"""The cross-attention of training where few text tokens meet a picture, with an adapter on its keys and values.

                            forward                             backward, for each head of S = softmax(q k^T)
    z = [x | x U] (N, D + R)                                    dz <- dS^T (q A_k)  +  S^T (do A_v)
    A = [W | E]   (D, D + R)   k = z A_k^T,  v = z A_v^T        dE_k <- q^T (dS (x U))     dE_v <- do^T (S (x U))
    q (L, D)                   o = softmax(q k^T) v

z A^T = x (W + E U^T)^T: with x U beside x, a layer with its update is one product, and nothing of the update is
rounded away where weights are bfloat16. z is formed once for all layers that meet a picture; dx and dU follow from dz
at the end.

L text tokens in H heads give the gradients of k and v a rank of at most L in each head. So they are never formed: where
L * H < D, to go from the scores straight to z costs less than to go there by way of k and v (BLIP-base, three texts of
16 tokens a picture: 576 < 768). Where 2 L * H < D, neither are k and v (one text of 16 tokens: 192; the last layer, of
which only [CLS] is wanted: 36): scores are (q A_k) z^T, and the output is (S z) A_v^T. Products with z then have 6 L H
columns, not 2 L H + 2 D, and of the pictures nothing but z is kept. A bias of the keys moves all scores of a query
alike, which the softmax does not see; that of the values passes to the output unchanged.

Where gradients are wanted alone: without them, and so in evaluation, keys and values are formed, and an adapter at its
start computes what the pretrained model does to the bit; here it does up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapter.together import Crossing, crossing


def crossing_of(
    key: nn.Module, value: nn.Module, states: Tensor, queries: int, heads: int, first: bool
) -> Crossing | None:
    """What `cross` needs, if it can stand in for the layers ``key`` and ``value`` and is the cheaper way.

    Args:
        states: (M, N, D), that both layers read.
        queries: tokens that meet a picture.
        first: whether these are the first layers that read ``states`` in this pass.
    """
    if queries * heads >= states.shape[-1] or key.out_features != value.out_features:
        return None
    return crossing(states, key, value, first=first)


def cross(query: Tensor, parts: Crossing, heads: int, mask: Tensor | None) -> Tensor:
    """Attention of ``query`` to the keys and values that ``parts`` make of pictures.

    Args:
        query: (M, L, D)
        parts: of keys and values, z (M, N, D + R)
        mask: additive, (M, 1, 1, N) or None.

    Returns:
        (M, L, D)
    """
    way = _Absorbed if 2 * heads * query.shape[1] < query.shape[2] else _Crossing
    context: Tensor = way.apply(query, parts.z, parts.A, mask, heads, *parts.of_E)  # type: ignore[no-untyped-call]
    return context if parts.bias is None else context + parts.bias[query.shape[2] :]


class _Heads:
    """Products of what each head has, for M rows, L tokens and H heads of width d = D / H. Pairs of token and head lie
    with tokens outside: (M, L H, any). Results are written where they are read next, so that nothing is copied."""

    def __init__(self, query: Tensor, A: Tensor, heads: int) -> None:
        (self.rows, self.tokens, self.width), self.heads = query.shape, heads
        self.size, self.scale = self.width // heads, (self.width // heads) ** -0.5
        self.key, self.value = A.view(2, heads, self.size, -1)  # (H, d, D + R) each

    def by_head(self, part: Tensor) -> Tensor:
        """(M, L, D) or (M, L H, any) -> (H, M L, any)"""
        return part.reshape(self.rows * self.tokens, self.heads, -1).transpose(0, 1)

    def through(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Of each pair, (M, L, D) by each head's rows of a weight -> (pairs, M, L H, any)"""
        (part, A), *_ = pairs
        made = part.new_empty(len(pairs), self.rows * self.tokens, self.heads, A.shape[2])
        for place, (part, A) in enumerate(pairs):
            torch.bmm(self.by_head(part), A, out=made[place].transpose(0, 1))
        return made.view(len(pairs), self.rows, self.tokens * self.heads, -1)

    def back(self, part: Tensor, A: Tensor) -> Tensor:
        """The same with the weight turned: (M, L H, any) -> (M, L, D)"""
        made = part.new_empty(self.rows * self.tokens, self.heads, self.size)
        torch.bmm(self.by_head(part), A.mT, out=made.transpose(0, 1))
        return made.view(self.rows, self.tokens, self.width)

    def of_E(self, query: Tensor, keys: Tensor, dcontext: Tensor, values: Tensor) -> Tensor:
        """Gradient of E of keys and values, (2 D, R), from what each head saw of x U, (M, L H, R)."""
        made = query.new_empty(2, self.heads, self.size, keys.shape[2])
        for place, (part, seen) in enumerate(((query, keys), (dcontext, values))):
            torch.bmm(self.by_head(part).mT, self.by_head(seen), out=made[place])
        return made.view(2 * self.width, -1)

    def probabilities(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """softmax(q k^T / sqrt(d) + mask) of batches of any kind, the mask broadcast to (batch, any, N). The dtype is
        that of the scores: without it, the autocast of GPUs makes float32, to which no gradient in bfloat16 fits."""
        beta, mask = (0, q[:1, :1, :1]) if mask is None else (1, mask)
        scores = torch.baddbmm(mask, q, k.mT, beta=beta, alpha=self.scale)
        return F.softmax(scores, -1, dtype=scores.dtype)

    def scaled(self, dscores: Tensor, k: Tensor) -> Tensor:
        """dscores k / sqrt(d)"""
        return torch.baddbmm(k[:1, :1, :1], dscores, k, beta=0, alpha=self.scale)

    def of_z(self, dscores: Tensor, keys: Tensor, S: Tensor, values: Tensor) -> Tensor:
        """dS^T (q A_k) / sqrt(d) + S^T (do A_v), (M, N, D + R)"""
        return torch.bmm(S.mT, values).baddbmm_(dscores.mT, keys, alpha=self.scale)


def _of_scores(dS: Tensor, S: Tensor) -> Tensor:
    """The gradient of the scores from that of S = softmax(scores)."""
    return torch._softmax_backward_data(dS, S, -1, S.dtype)


class _Absorbed(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, with k = z A_k^T and v = z A_v^T, without forming k and v."""

    @staticmethod
    def forward(ctx, query, z, A, mask, heads, *of_E):  # type: ignore[override]
        by = _Heads(query, A, heads)
        (keys,) = by.through((query, by.key))
        S = by.probabilities(keys, z, None if mask is None else mask[:, 0])
        ctx.save_for_backward(query, z, S)
        ctx.by, ctx.sizes = by, [len(token) for token in of_E]
        return by.back(S @ z, by.value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dcontext):  # type: ignore[override]
        query, z, S = ctx.saved_tensors
        by, h = ctx.by, z[..., ctx.by.width :]
        keys, values = by.through((query, by.key), (dcontext, by.value))
        dscores = _of_scores(values @ z.mT, S)
        seen = by.scaled(dscores, z)
        dquery = by.back(seen, by.key)
        of_E = by.of_E(query, seen[..., by.width :], dcontext, S @ h).split(ctx.sizes) if ctx.sizes else ()
        dz = by.of_z(dscores, keys, S, values)
        return dquery, dz, None, None, None, *of_E


class _Crossing(torch.autograd.Function):
    """The same with k and v, but without their gradients."""

    @staticmethod
    def forward(ctx, query, z, A, mask, heads, *of_E):  # type: ignore[override]
        by = _Heads(query, A, heads)
        both = F.linear(z, A)  # (M, N, 2 D)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, *both.chunk(2, -1)))
        context = F.scaled_dot_product_attention(q, k, v, mask)
        ctx.save_for_backward(query, z, both, mask)
        ctx.by, ctx.sizes = by, [len(token) for token in of_E]
        return context.transpose(1, 2).reshape(query.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dcontext):  # type: ignore[override]
        query, z, both, mask = ctx.saved_tensors
        by, h = ctx.by, z[..., ctx.by.width :]
        batch = by.rows * by.heads
        q, do, k, v = (
            part.unflatten(-1, (by.heads, -1)).transpose(1, 2).reshape(batch, -1, by.size)
            for part in (query, dcontext, *both.chunk(2, -1))
        )
        mask = None if mask is None else mask[:, 0].repeat_interleave(by.heads, 0)
        S = by.probabilities(q, k, mask)
        dscores = _of_scores(torch.bmm(do, v.mT), S)
        dquery = by.scaled(dscores, k).view(by.rows, by.heads, by.tokens, -1).transpose(1, 2).reshape(query.shape)
        S, dscores = (
            part.view(by.rows, by.heads, by.tokens, -1).transpose(1, 2).reshape(by.rows, by.tokens * by.heads, -1)
            for part in (S, dscores)
        )
        of_E = by.of_E(query, by.scaled(dscores, h), dcontext, S @ h).split(ctx.sizes) if ctx.sizes else ()
        keys, values = by.through((query, by.key), (dcontext, by.value))
        dz = by.of_z(dscores, keys, S, values)
        return dquery, dz, None, None, None, *of_E
