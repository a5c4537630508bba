"""Attention of many texts to few pictures: the keys and values of a picture are read by all its texts where they are.

    texts a c e meet picture 0        K, V of picture 0 (N tokens)  <-  a c e     a row: its texts are one query of
    texts b d meet picture 1          K, V of picture 1 (N tokens)  <-  b d .     3 T tokens; the empty seat is dropped

They are not copied unless one picture has so many texts that its row would make all the others long.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapter.factors import is_bfloat16_on_cpu, no_autocast
from ..devices import bfloat16_is_fast

CPU_IS_FAST = bfloat16_is_fast(torch.device("cpu"))  # in bfloat16; asked here, since a compiled step cannot
LONGEST = 1024  # keys, of which a table of probabilities in bfloat16 takes twice as much as what it reads in float32


class Sharing(NamedTuple):
    """Where B texts sit: R rows, each of one picture, with ``size`` seats for texts."""

    which: Tensor  # (B,) the picture of each text
    rows: Tensor | None  # (R,) the picture of each row; None: row i is picture i
    seats: Tensor  # (B,) row * size + place in the row
    size: int


def share(
    which: Tensor | Sequence[int],
    pictures: int,
    picture_tokens: int,
    text_tokens: int,
    device: torch.device | None = None,
    certain: int = 0,
) -> Sharing:
    """Seat the texts. Rows get as long as keeps the fewest tokens, keys and queries together: a picture with many more
    texts than the others takes several rows.

    What ``which`` holds decides on the number of rows if it is known on the CPU. To read it from another device is to
    wait for that, and a compiled step reads nothing: there are then as many rows as any ``which`` may need, those that
    nobody sits in at the end.

    Args:
        which: (B,) in [0, pictures), the picture of each text.
        device: of the texts.
        certain: how many texts every picture has at least.
    """
    if isinstance(which, Tensor) and (which.device.type != "cpu" or torch.compiler.is_compiling()):
        return _share_unread(which, pictures, picture_tokens, text_tokens, certain)
    chosen, counts, places = which.tolist() if isinstance(which, Tensor) else [*which], [0] * pictures, []
    for picture in chosen:
        places.append(counts[picture])
        counts[picture] += 1

    def rows_of(size: int) -> list[int]:
        return [max(1, -(-count // size)) for count in counts]

    size = min(range(1, max(counts) + 1), key=lambda n: sum(rows_of(n)) * (picture_tokens + n * text_tokens))
    taken = rows_of(size)
    first = [0, *accumulate(taken)]  # row of each picture
    seats = [first[picture] * size + place for picture, place in zip(chosen, places, strict=True)]
    rows = [picture for picture, count in enumerate(taken) for _ in range(count)]

    def tensor(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    return Sharing(tensor(chosen), tensor(rows) if len(rows) > pictures else None, tensor(seats), size)


def _share_unread(which: Tensor, pictures: int, picture_tokens: int, text_tokens: int, certain: int) -> Sharing:
    """The same without a look at ``which``: row i is picture i, and what it has no seats for goes to further rows."""
    spare = len(which) - certain * pictures  # texts that may all meet the same picture
    sizes = range(max(1, certain), certain + spare + 1)

    def further(size: int) -> int:  # a picture opens one with its first text beyond a row's seats
        return spare // (size + 1 - certain) if certain else max(0, spare - 1) // size

    tokens = [(pictures + further(size)) * (picture_tokens + size * text_tokens) for size in sizes]
    size = sizes[tokens.index(min(tokens))]
    same = which[:, None] == which
    place = same.tril(-1).sum(1)  # among the texts of the same picture
    if not further(size):
        return Sharing(which, None, which * size + place, size)
    part, seat = place // size, place % size
    opens = (part > 0) & (seat == 0)  # the first text of a further row, which numbers it
    number = pictures - 1 + opens.cumsum(0)
    opener = (same & opens & (part[:, None] == part)).long().argmax(1)
    row = torch.where(part > 0, number[opener], which)
    last = pictures + further(size)
    rows = torch.cat([torch.arange(pictures, device=which.device), which.new_zeros(further(size) + 1)])
    rows = rows.scatter(0, torch.where(opens, number, last), which)[:last]
    return Sharing(which, rows, row * size + seat, size)


class Packed(NamedTuple):
    """Where the n tokens of B texts lie that stand one behind the other without padding, (1, n, D) for (B, T, D)."""

    padded: Tensor  # (B * T,) of each place of the padded texts, its token; of padding, any
    tokens: Tensor  # (n,) of each token, its place among the padded ones
    first: Tensor  # (B,) the first token of each text
    texts: Tensor  # (n,) the text of each token
    mask: Tensor  # (B, 1, 1, T) additive
    sharing: Sharing  # where the tokens sit, each by itself

    def pad(self, states: Tensor) -> Tensor:
        """(1, n, D) -> (B, T, D)"""
        return states[0].index_select(0, self.padded).unflatten(0, (len(self.first), -1))

    def unpad(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (1, n, D)"""
        return states.flatten(0, 1).index_select(0, self.tokens)[None]


def pack(lengths: Tensor, which: Tensor, pictures: int, picture_tokens: int, like: Tensor) -> Packed:
    """Pack texts whose padding stands behind their tokens.

    Args:
        lengths: (B,) on the CPU, tokens of each text.
        which: (B,) on the CPU, the picture that each text meets.
        like: on the device and in the dtype of the texts' states.
    """
    texts = torch.arange(len(lengths)).repeat_interleave(lengths)
    first = lengths.cumsum(0) - lengths
    place = torch.arange(len(texts)) - first[texts]
    seen = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = (first[:, None] + torch.arange(seen.shape[1])).where(seen, first[:, None]).flatten()
    mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)[:, None, None]
    tokens, device = texts * seen.shape[1] + place, like.device
    padded, tokens, first, mask = padded.to(device), tokens.to(device), first.to(device), mask.to(device)
    sharing = share_tokens(which[texts], pictures, picture_tokens, device)
    return Packed(padded, tokens, first, texts.to(device), mask, sharing)


def packed_states(states: Tensor, lengths: Tensor) -> Tensor:
    """States of padded texts without those of padding: (B, T, D) -> (n, D).

    Args:
        lengths: (B,) on the CPU, tokens of each text; its padding stands behind them.
    """
    seen = torch.arange(states.shape[1]) < lengths[:, None]
    return states.flatten(0, 1).index_select(0, seen.flatten().nonzero()[:, 0].to(states.device))


def share_tokens(which: Tensor, pictures: int, picture_tokens: int, device: torch.device) -> Sharing:
    """`share` for many texts of one token each.

    Args:
        which: (B,) on the CPU, the picture of each.
    """
    counts = which.bincount(minlength=pictures)
    sizes = counts[counts > 0].unique()  # enough to choose from
    rows_of = (-(-counts // sizes[:, None])).clamp(min=1)  # (sizes, pictures)
    best = int((rows_of.sum(1) * (picture_tokens + sizes)).argmin())
    size, taken = int(sizes[best]), rows_of[best]
    order = which.argsort(stable=True)
    place = torch.empty_like(which)
    place[order] = torch.arange(len(which)) - (counts.cumsum(0) - counts)[which[order]]
    seats = (taken.cumsum(0) - taken)[which] * size + place  # a picture's rows stand one behind the other
    rows = torch.arange(pictures).repeat_interleave(taken).to(device) if int(taken.sum()) > pictures else None
    return Sharing(which.to(device), rows, seats.to(device), size)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    sharing: Sharing | None = None,
    frames: Tensor | None = None,
) -> Tensor:
    """Multi-head attention of ``query`` (B, T, D) to ``key`` and ``value`` (M, N, D) -> (B, T, D).

    Args:
        query: its B rows meet M = B pictures, or M = 1 for all, or what ``sharing`` says.
        mask: additive, (M, 1, T, N).
        frames: by how much each text weighs the keys of each frame's patches, (B, F), where pictures are clips of F
            frames of N / F tokens each, whose first, [CLS], weighs 1. To weigh a key is to weigh its score, so shared
            keys stay shared.

    Raises:
        ValueError: if M is none of these.
    """
    texts, tokens, width = query.shape
    if sharing is not None:
        query = seat(query, sharing, len(key))
        if sharing.rows is not None:
            key, value = key.index_select(0, sharing.rows), value.index_select(0, sharing.rows)
            mask = None if mask is None else mask.index_select(0, sharing.rows)
    elif len(key) not in (1, texts):
        raise ValueError(f"{texts} texts cannot meet {len(key)} pictures without being told which")
    if mask is not None:
        if len(query) != len(key) or tokens != mask.shape[2]:
            mask = mask[:, :, :1]  # the padding of the keys, the same for all queries of a row
        mask = finite_mask(mask, query.dtype)
    kind, device = query.dtype, query.device
    trains = is_bfloat16_on_cpu(query) and torch.is_grad_enabled()
    # where the CPU computes in bfloat16, plain products take half as long as PyTorch's attention in float32
    plain = frames is not None or (trains and CPU_IS_FAST and key.shape[1] <= LONGEST)
    if widened := trains and not plain:
        query, key, value = query.float(), key.float(), value.float()
        mask = None if mask is None else mask.float()

    def split(part: Tensor) -> Tensor:  # -> (rows, heads, tokens, width of a head)
        return part.reshape(len(key), -1, heads, width // heads).transpose(1, 2)

    if plain:
        scores = split(query * (width // heads) ** -0.5) @ split(key).mT
        if frames is not None:
            scores = scores * _weights_of_keys(frames, texts, key, sharing, tokens).to(scores.dtype)
        scores = scores if mask is None else scores + mask
        context = F.dropout(F.softmax(scores, -1, dtype=scores.dtype), dropout) @ split(value)
    else:
        with no_autocast(device) if widened else nullcontext():  # autocast would narrow them again
            context = F.scaled_dot_product_attention(split(query), split(key), split(value), mask, dropout)
    context = context.transpose(1, 2).reshape(-1, tokens, width).to(kind)
    return context if sharing is None else context.index_select(0, sharing.seats)


def _weights_of_keys(frames: Tensor, texts: int, key: Tensor, sharing: Sharing | None, tokens: int) -> Tensor:
    """Weights of frames (B, F) as those of keys, for each query: (M, 1, T, N)."""
    weights = frames.new_ones(texts, frames.shape[1], key.shape[1] // frames.shape[1])
    weights = torch.cat([weights[:, :, :1], weights[:, :, 1:] * frames[:, :, None]], 2).flatten(1)  # (texts, N)
    if sharing is not None:
        seats = len(key) * sharing.size
        weights = weights.new_ones(seats, weights.shape[1]).index_copy(0, sharing.seats, weights)
    return weights.repeat_interleave(tokens, 0).view(len(key), 1, -1, key.shape[1])


def seat(query: Tensor, sharing: Sharing, pictures: int) -> Tensor:
    """Texts (B, T, D) to seats (R * size, T, D), empty ones zero."""
    rows = pictures if sharing.rows is None else len(sharing.rows)
    return query.new_zeros(rows * sharing.size, *query.shape[1:]).index_copy(0, sharing.seats, query)


def finite_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf would make NaN of a row of padding."""
    return mask.clamp(min=torch.finfo(dtype).min).to(dtype)
