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
from .chunks import once_more, parts


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
        chunk_size: pairs of the batch whose graph is held at once, see `chunks.py`; negatives are drawn from the whole
            batch all the same. 0: all of them.
    """

    def __init__(self, longest: int, all_ranks: bool, frame_attention: bool, chunk_size: int = 0) -> None:
        self.longest, self.all_ranks, self.frame_attention = longest, all_ranks, frame_attention
        self.chunk_size = chunk_size

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
        positive = torch.arange(3 * count, device=ids.device) < count
        if every is pairs and not 0 < self.chunk_size < count:
            logits = self._logits(backbone, pairs, texts, every, own, of_text, of_image, context, shared=True)
        else:
            chunks = [
                once_more(
                    self._logits, backbone, pairs, texts, every, own[part], of_text[part], of_image[part], context
                ).view(3, -1, 2)
                for part in parts(count, self.chunk_size)
            ]
            logits = torch.cat(chunks, 1).flatten(0, 1)
        # a batch of one picture has no negatives: what was drawn in their place does not count
        counts = (positive | different.any(1).repeat(3)).to(logits.dtype)
        return (F.cross_entropy(logits, positive.long(), reduction="none") * counts).sum() / counts.sum()

    def _logits(
        self,
        backbone: Matcher,
        pairs: Pairs,
        texts: Texts,
        every: Pairs,
        own: Tensor,
        of_text: Tensor,
        of_image: Tensor,
        context: Tensor | None,
        shared: bool = False,
    ) -> Tensor:
        """Logits (3 C, 2) of C pictures with their texts, with negative texts, and of the texts with negative pictures.

        Args:
            texts: of ``pairs``, padded as those of ``every`` are.
            own: (C,), places in ``pairs``.
            of_text: (C,), places of negatives in ``every``, and so is ``of_image``.
            shared: whether negative pictures are among the C, which are all: their keys and values are computed once.
                Else each negative stands by itself.
        """
        place = torch.arange(len(own), device=own.device)
        mine, others, drawn = texts.rows(own), every.texts.rows(of_text), every.frames[of_image]
        if shared:
            states, which = pairs.states, torch.cat([place, place, of_image])
        else:
            states = torch.cat([pairs.states[own], every.states[of_image]])
            which = torch.cat([place, place, len(own) + place])
        frames = None
        if self.frame_attention:
            heard = torch.cat([pairs.text[own], every.text[of_text], pairs.text[own]])
            frames = frame_weights(heard, torch.cat([pairs.frames[own], pairs.frames[own], drawn]))
        ids, mask = (torch.cat(three) for three in zip(_of(mine), _of(others), _of(mine), strict=True))
        return backbone.match(
            Texts(ids, mask),
            states,
            which,
            certain=2 if shared else 1,
            context=context,
            positive=torch.arange(3 * len(own), device=own.device) < len(own),
            frames=frames,
        )

    def _width(self, texts: Texts) -> int:
        """Columns of the longest text of all ranks; in a compiled step, where ranks do not ask each other, those that
        texts may have."""
        if torch.compiler.is_compiling():
            return self.longest
        return int(largest(texts.ids.shape[1])[0])


def _of(texts: Texts) -> tuple[Tensor, Tensor]:
    return texts.ids, texts.mask


def _negatives(backbone: Matcher, queries: Tensor, items: Tensor, different: Tensor) -> Tensor:
    """For each query an item of another picture, drawn by similarity; any item where there is no other picture, or a
    similarity is not a number, as in a training that diverged."""
    logits = backbone.logits(similarity(queries, items)).float()
    weights = logits.masked_fill(~different, -torch.inf)
    return draw(F.softmax(weights, 1).nan_to_num(1.0))


def draw(weights: Tensor) -> Tensor:
    """A column of each row, (B,), drawn by weights (B, N): the same as `torch.multinomial` draws, which waits for a GPU
    to check them."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(1)
