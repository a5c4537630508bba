"""Which tokens of a batch are answers', worked out on the CPU before the batch moves to a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Written(NamedTuple):
    """Where W answer tokens lie in A rows of tokens, and which of them make up each answer."""

    places: Tensor  # (W,) row * width + column
    seats: Tensor  # (A, L) of tokens, in the order of `places`; W where an answer has no more

    def sums(self, losses: Tensor) -> Tensor:
        """Sums of the tokens' (W,) over each answer, (A,)."""
        return F.pad(losses, (0, 1)).index_select(0, self.seats.flatten()).view(self.seats.shape).sum(1)


def written(starts: Sequence[int], lengths: Sequence[int], width: int, multiple: int = 1) -> Written:
    """Answers of so many tokens that begin in the given columns of rows of ``width``.

    Args:
        multiple: of which the number of tokens, and that of the longest answer, is made, so that few shapes come about.
    """
    places = [
        row * width + start + place
        for row, (start, n) in enumerate(zip(starts, lengths, strict=True))
        for place in range(n)
    ]
    count, longest = up_to(len(places), multiple), up_to(max(lengths, default=0), multiple)
    seats, first = torch.full((len(lengths), longest), count), 0
    for row, n in enumerate(lengths):
        seats[row, :n] = torch.arange(first, first + n)
        first += n
    return Written(torch.tensor(places + [0] * (count - len(places)), dtype=torch.long), seats)


def up_to(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple
