"""Image-text matching (ITM) with hard negatives (arXiv 2107.07651, section 3.2): the fusion layers tell pairs that
match from pairs that are only alike.

Use it for models with a second stage, whose candidates it reranks: BLIP, BLIP-2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.base import Matcher, Texts, similarity
from ...backbones.frames import frame_weights
from ...distributed import gather, largest, ranks


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

    def __call__(self, backbone: Matcher, pairs: Pairs, context: Tensor | None) -> Tensor:
        """The mean cross-entropy over pairs, a scalar.

        Which negatives were drawn is known on the device alone: shapes do not depend on it, so that a step need not
        read it.

        Args:
            context: see `Matcher.match`.
        """
        ids, count = pairs.ids, len(pairs.ids)
        own = torch.arange(count, device=ids.device)
        every, texts = pairs, pairs.texts
        if self.all_ranks and ranks() > 1:
            texts = texts.padded(self._width(texts))
            every = replace(pairs, texts=texts).gathered()
        different = ids[:, None] != every.ids[None]
        with torch.no_grad():
            of_text = _negatives(backbone, pairs.image, every.text, different)
            of_image = _negatives(backbone, pairs.text, every.image, different)
        states, frames, which, certain = pairs.states, every.frames[of_image], torch.cat([own, own, of_image]), 2
        if every is not pairs:  # most pictures are of other ranks: each that was drawn stands by itself
            states, certain = torch.cat([states, every.states.index_select(0, of_image)]), 1
            which = torch.cat([own, own, own + count])
        weights = None
        if self.frame_attention:
            heard = torch.cat([pairs.text, every.text[of_text], pairs.text])
            weights = frame_weights(heard, torch.cat([pairs.frames, pairs.frames, frames]))
        negatives = every.texts.rows(of_text)
        positive = torch.arange(3 * count, device=ids.device) < count
        logits = backbone.match(
            Texts(
                torch.cat([texts.ids, negatives.ids, texts.ids]), torch.cat([texts.mask, negatives.mask, texts.mask])
            ),
            states,
            which,
            certain=certain,
            context=context,
            positive=positive,
            frames=weights,
        )
        # a batch of one picture has no negatives: what was drawn in their place does not count
        counts = (positive | different.any(1).repeat(3)).to(logits.dtype)
        return (F.cross_entropy(logits, positive.long(), reduction="none") * counts).sum() / counts.sum()

    def _width(self, texts: Texts) -> int:
        """Columns of the longest text of all ranks; in a compiled step, where ranks do not ask each other, those that
        texts may have."""
        if torch.compiler.is_compiling():
            return self.longest
        return int(largest(texts.ids.shape[1])[0])


def _negatives(backbone: Matcher, queries: Tensor, items: Tensor, different: Tensor) -> Tensor:
    """For each query an item of another picture, drawn by similarity.

    Where a similarity is not a number, as in a training that diverged, any item is drawn: a GPU would end the process
    at such a draw, before the loss can tell.
    """
    logits = backbone.logits(similarity(queries, items)).float()
    weights = logits.masked_fill(~different, -torch.inf)
    return torch.multinomial(F.softmax(weights, 1).nan_to_num(1.0), 1)[:, 0]
