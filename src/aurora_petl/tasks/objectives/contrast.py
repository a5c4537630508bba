"""Image-text contrast (ITC): symmetric InfoNCE over all ranks' batches, as CLIP has it, with the queue and the soft
targets of ALBEF and BLIP (Li et al., 2021, arXiv 2107.07651) where they are asked for.

Use it for models that were trained with a softmax over the batch: CLIP, MetaCLIP 2, BLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...adapter.factors import autocast_dtype
from ...backbones.base import similarity
from ...distributed import rank

EMPTY = -1  # the id of a place in the queue that holds nothing yet


class Teacher(NamedTuple):
    """Features of all ranks' batches by the momentum encoder, or by the model itself, without gradient to it."""

    image: Tensor  # (ranks * B, P), or (ranks * B, V, P)
    text: Tensor  # (ranks * B, P)
    ids: Tensor  # (ranks * B,)


class Contrast(nn.Module):
    """The loss of a batch against all ranks' batches and a queue of earlier ones.

    The queue has its full size from the start: shapes are the same at every step, and where the next features go is
    known on the device alone.

    Args:
        size: pairs in the queue; 0 for none.
        image_shape: of a picture's feature, (P,) or (V, P).
        text_shape: of a text's feature, (P,).
        alpha: weight of soft targets, the teacher's own similarities, reached after the warm-up.
        device: of the queue.
    """

    image: Tensor
    text: Tensor
    ids: Tensor  # -1 where nothing is yet
    next_row: Tensor

    def __init__(
        self,
        size: int,
        image_shape: tuple[int, ...],
        text_shape: tuple[int, ...],
        alpha: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.register_buffer("image", torch.zeros(size, *image_shape, device=device))
        self.register_buffer("text", torch.zeros(size, *text_shape, device=device))
        self.register_buffer("ids", torch.full((size,), EMPTY, device=device))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.long, device=device))

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        ids: Tensor,
        teacher: Teacher,
        logits: Callable[[Tensor], Tensor],
        ramp: float | Tensor = 1.0,
    ) -> Tensor:
        """The mean over the batch of the cross-entropy both ways, a scalar.

        Args:
            image: features (B, P), or (B, V, P).
            text: features (B, P).
            ids: (B,), equal for pairs that describe the same picture, which are right answers for each other.
            logits: similarities -> logits.
            ramp: share of ``alpha`` that counts at this step.
        """
        all_ids = torch.cat([teacher.ids, self.ids])
        same = (ids[:, None] == all_ids[None]).float()
        hard = same / same.sum(1, keepdim=True)
        empty = all_ids == EMPTY if len(self.ids) else None
        alpha = self.alpha * ramp
        loss = image.new_zeros(())
        own = slice(rank() * len(ids), (rank() + 1) * len(ids))

        def scores(queries: Tensor, batch: Tensor, queue: Tensor) -> Tensor:
            found = similarity(queries, batch)
            if empty is None:
                return logits(found)
            kind = autocast_dtype(queue.device)
            queue = queue.clone() if kind is None else queue.to(kind)  # `enqueue` changes it before the backward pass
            found = logits(torch.cat([found, similarity(queries, queue)], 1))
            return found.masked_fill(empty, torch.finfo(found.dtype).min)  # for -inf, which times 0 is no number

        for student, teaching, batch, queue in (
            (image, teacher.image[own], teacher.text, self.text),
            (text, teacher.text[own], teacher.image, self.image),
        ):
            if self.alpha:  # both by one product with the queue, which is large
                found, taught = scores(torch.cat([student, teaching]), batch, queue).split(len(ids))
                target = alpha * F.softmax(taught.detach(), dim=1) + (1 - alpha) * hard
            else:
                found, target = scores(student, batch, queue), hard
            loss = loss - (F.log_softmax(found, dim=1) * target).sum(1).mean() / 2
        return loss

    @torch.no_grad()
    def enqueue(self, teacher: Teacher) -> None:
        """Put the newest features into the queue, in the place of the oldest."""
        size = len(self.ids)
        if not size:
            return
        image, text, ids = teacher.image[-size:], teacher.text[-size:], teacher.ids[-size:]
        places = (self.next_row + torch.arange(len(ids), device=ids.device)) % size
        self.image.index_copy_(0, places, image.float())
        self.text.index_copy_(0, places, text.float())
        self.ids.index_copy_(0, places, ids)
        self.next_row.add_(len(ids)).remainder_(size)

    @torch.no_grad()
    def fill(self, image: Tensor, text: Tensor, number: int) -> None:
        """Begin with features of other pairs, as many as there is room for, all with the same id."""
        rows = min(len(self.ids), len(image))
        if rows:
            self.image[:rows], self.text[:rows], self.ids[:rows] = image[:rows], text[:rows], number
            self.next_row.fill_(rows % len(self.ids))


def fit_queue(queue_size: int, batch_size: int, rows: int) -> int:
    """The queue for ``rows`` training pairs: at most what other batches of an epoch can fill, whole batches."""
    return max(0, min(queue_size, rows - 2 * batch_size) // batch_size * batch_size)
