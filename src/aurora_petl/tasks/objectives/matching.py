"""Image-text matching (ITM) with hard negatives (arXiv 2107.07651, section 3.2): the fusion layers tell pairs that
match from pairs that are only alike.

Use it for models with a second stage, whose candidates it reranks: BLIP, BLIP-2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.base import Matcher, Texts, similarity
from ...backbones.frames import frame_weights
from ...distributed import gather, rank


@dataclass(frozen=True)
class Pairs:
    """A batch of B pictures or clips with a text each, encoded."""

    states: Tensor  # (B, F * N, D)
    image: Tensor  # features (B, P), or (B, V, P) where a picture has V vectors
    text: Tensor  # features (B, P)
    frames: Tensor  # features (B, F, P), or (B, F, V, P)
    texts: Texts  # (B, T)
    ids: Tensor  # (B,), equal for pairs that describe the same picture

    def gathered(self) -> Pairs:
        """Those of all ranks, whose texts must be padded alike."""
        states, image, text, frames = map(gather, (self.states, self.image, self.text, self.frames))
        texts = Texts(gather(self.texts.ids), gather(self.texts.mask))
        return Pairs(states, image, text, frames, texts, gather(self.ids))


class Matching:
    """The loss of a batch: each picture with its text, with a hard negative text, and as the hard negative of another
    text.

    Args:
        longest: columns that texts are padded to, the same on every rank.
        all_ranks: whether negatives come from the batches of all ranks.
        frame_attention: whether texts weigh the frames of clips, see `frames.frame_weights`.
    """

    def __init__(self, longest: int, all_ranks: bool, frame_attention: bool) -> None:
        self.longest, self.all_ranks, self.frame_attention = longest, all_ranks, frame_attention

    def __call__(self, backbone: Matcher, pairs: Pairs, several: bool | None, context: Tensor | None) -> Tensor:
        """The mean cross-entropy over pairs, a scalar.

        The shapes depend on which negatives were drawn: their places in the batch, and the lengths of texts, are what a
        step reads from the device, all at once.

        Args:
            several: whether the ids differ at all; None asks them.
            context: see `Matcher.match`.
        """
        ids, own = pairs.ids, torch.arange(len(pairs.ids))
        every = Pairs(pairs.states, pairs.image, pairs.text, pairs.frames, pairs.texts.padded(self.longest), ids)
        if self.all_ranks:
            every, own = every.gathered(), own + rank() * len(ids)
        different = ids[:, None] != every.ids[None]
        if several is None or (not several and len(every.ids) > len(ids)):
            several = bool(different.any())
        negatives = len(ids) if several else 0  # of a batch of one picture there are none, else every row has one
        with torch.no_grad():
            drawn = [every.texts.lengths()]
            if negatives:
                drawn.append(_negatives(backbone, pairs.image, every.text, different))
                drawn.append(_negatives(backbone, pairs.text, every.image, different))
            lengths, texts, images = torch.cat(drawn).cpu().split([len(every.ids), negatives, negatives])
        which_text, which_image = torch.cat([own, texts, own[:negatives]]), torch.cat([own, own[:negatives], images])
        used, which = which_image.unique(return_inverse=True)
        longest = int(lengths[which_text].max())
        of_text, of_image, used = (places.to(ids.device) for places in (which_text, which_image, used))
        positive = torch.arange(len(of_text), device=ids.device) < len(ids)
        frames = frame_weights(every.text[of_text], every.frames[of_image]) if self.frame_attention else None
        logits = backbone.match(
            every.texts.rows(of_text).cut(longest),
            every.states[used],
            which,
            context=context,
            positive=positive,
            frames=frames,
        )
        return F.cross_entropy(logits, positive.long())


def _negatives(backbone: Matcher, queries: Tensor, items: Tensor, different: Tensor) -> Tensor:
    """For each query an item of another picture, drawn by similarity.

    Where a similarity is not a number, as in a training that diverged, any item is drawn: a GPU would end the process
    at such a draw, before the loss can tell.
    """
    logits = backbone.logits(similarity(queries, items)).float()
    weights = logits.masked_fill(~different, -torch.inf)
    return torch.multinomial(F.softmax(weights, 1).nan_to_num(1.0), 1)[:, 0]
