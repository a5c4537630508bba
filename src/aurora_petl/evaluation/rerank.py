"""Two-stage retrieval: ITC picks candidates, ITM rescores them.

The usual loop takes one query at a time and projects the whole of each candidate picture to keys and values again for
every text. Here the pairs that either direction asks for are united and each is scored once, picture by picture:

    pictures  . . . .  a block: states -> keys and values of all fusion layers, once
              |/ |\\
    texts    a bb ccc  its pairs by length of text, in calls of alike lengths, a few thousand word pieces each;
                       what comes before a text meets a picture is computed once for the whole run

Memory is bounded by `BLOCK_BUDGET` (keys and values of a block) and `CALL_TOKENS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones import Backbone
from .features import Features, trim
from .recall import retrieval_metrics

BELOW = 1e4  # puts what was not rescored under all that was, in ITC order
BLOCK_BUDGET = 256 * 1024**2  # bytes of a block's picture states; its keys and values take twice that a fusion layer
CALL_TOKENS = 4096  # word pieces in one call of the model


@dataclass
class Scores:
    """Score matrices of both directions after reranking, and the ITC similarity beneath them."""

    image_to_text: np.ndarray  # (images, texts)
    text_to_image: np.ndarray  # (texts, images)
    similarity: np.ndarray  # (images, texts)

    def metrics(self, features: Features) -> dict[str, float]:
        """R@K both ways of the reranked scores, see `recall.retrieval_metrics`."""
        return retrieval_metrics(self.image_to_text, self.text_to_image, features.image_ids, features.text_ids)

    def itc_metrics(self, features: Features) -> dict[str, float]:
        """The same by ITC similarity alone."""
        return retrieval_metrics(self.similarity, self.similarity.T, features.image_ids, features.text_ids)


@torch.no_grad()
def rerank(
    backbone: Backbone, features: Features, *, k_test: int = 128, beta: float = 0.0, progress: bool = False
) -> Scores:
    """Rescore the ``k_test`` best candidates of every query by ITM match logit + ``beta`` * ITC similarity.

    Args:
        k_test: candidates a query (256 for COCO, 128 elsewhere in the literature); 0 keeps the ITC order.
        beta: weight of the similarity in the final score.
    """
    similarity = (features.image @ features.text.T).float()  # (images, texts)
    images, texts = similarity.shape
    wanted_rows = _best(similarity, min(k_test, texts))
    wanted_columns = _best(similarity.T, min(k_test, images)).T
    below = similarity - BELOW
    scored = below.clone()
    pairs = (wanted_rows | wanted_columns).nonzero()  # by picture
    logits = match_pairs(backbone, features, pairs[:, 0], pairs[:, 1], progress=progress)
    rows = tuple(pairs.T)
    scored[rows] = logits + beta * similarity[rows]
    return Scores(
        torch.where(wanted_rows, scored, below).cpu().numpy(),
        torch.where(wanted_columns, scored, below).T.cpu().numpy(),
        similarity.cpu().numpy(),
    )


@torch.no_grad()
def match_pairs(
    backbone: Backbone, features: Features, images: Tensor, texts: Tensor, *, progress: bool = False
) -> Tensor:
    """ITM match logits (n,) of n pairs of a picture and a text, rows of ``features``; ``images`` in rising order."""
    logits = torch.zeros(len(images), device=images.device)
    lengths = features.attention_mask.sum(1)
    begun = _begin(backbone, features)
    bar = tqdm(total=len(images), desc="rerank", unit="pair", leave=False, disable=not progress)
    for first, last in _blocks(images, texts, lengths, features.states):
        states = features.states(first, last)
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        block = torch.arange(
            int(torch.searchsorted(images, first)), int(torch.searchsorted(images, last)), device=images.device
        )
        block = block[lengths[texts[block]].argsort(stable=True)]  # alike lengths together: little padding
        for part in block.split(max(1, CALL_TOKENS // int(lengths[texts[block]].float().mean().ceil()))):
            text = texts[part]
            ids, mask = trim(features.input_ids[text], features.attention_mask[text])
            ready = None if begun is None else begun[text, : ids.shape[1]]
            logits[part] = backbone.match(ids, mask, states, images[part] - first, begun=ready, kept=kept)[:, 1]
            bar.update(len(part))
    bar.close()
    return logits


def _begin(backbone: Backbone, features: Features) -> Tensor | None:
    """`Backbone.begin_match` of all texts, (L, T, D)."""
    parts = [
        backbone.begin_match(features.input_ids[rows], features.attention_mask[rows])
        for rows in torch.arange(len(features.input_ids)).split(256)
    ]
    return None if not parts or parts[0] is None else torch.cat(parts)  # type: ignore[arg-type]


def _blocks(images: Tensor, texts: Tensor, lengths: Tensor, states) -> Iterator[tuple[int, int]]:
    """Ranges of pictures, as few as fill calls of `CALL_TOKENS` and never more than `BLOCK_BUDGET` allows."""
    if not len(images):
        return
    last_picture = int(images[-1])
    tokens = torch.zeros(last_picture + 1, device=images.device).index_add_(0, images, lengths[texts].float()).tolist()
    limit = max(1, BLOCK_BUDGET // states(0, 1).nbytes)
    first, held = 0, 0.0
    for picture in range(last_picture + 1):
        held += tokens[picture]
        if held >= CALL_TOKENS or picture + 1 - first >= limit or picture == last_picture:
            if held:
                yield first, picture + 1
            first, held = picture + 1, 0.0


def _best(scores: Tensor, k: int) -> Tensor:
    """Mask of the k best of every row."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, scores.topk(k, dim=1).indices, True) if k else chosen
