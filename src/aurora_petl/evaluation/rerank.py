"""Two-stage retrieval: ITC picks candidates, ITM rescores them, grouped by picture.

The pairs that either direction asks for are united and each is scored once. All texts that meet a picture go through
the fusion layers together against that one picture's states, so its keys and values are projected once a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..backbones import Backbone
from .features import Features, trim
from .recall import retrieval_metrics

BELOW = 1e4  # puts what was not rescored under all that was, in ITC order


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
    backbone: Backbone,
    features: Features,
    *,
    k_test: int = 128,
    beta: float = 0.0,
    batch_size: int = 128,
    progress: bool = False,
) -> Scores:
    """Rescore the ``k_test`` best candidates of every query by ITM match logit + ``beta`` * ITC similarity.

    Args:
        k_test: candidates a query (256 for COCO, 128 elsewhere in the literature); 0 keeps the ITC order.
        beta: weight of the similarity in the final score.
        batch_size: texts that meet one picture at a time.
    """
    similarity = (features.image @ features.text.T).float()  # (images, texts)
    images, texts = similarity.shape
    wanted_rows = _best(similarity, min(k_test, texts))
    wanted_columns = _best(similarity.T, min(k_test, images)).T
    wanted = wanted_rows | wanted_columns
    lengths = features.attention_mask.sum(1)
    scored = similarity - BELOW
    for image in tqdm(range(images), "rerank", leave=False, disable=not progress):
        candidates = wanted[image].nonzero()[:, 0]
        if not len(candidates):
            continue
        candidates = candidates[lengths[candidates].argsort()]  # alike lengths together: little padding
        states = features.states(image, image + 1)
        for part in candidates.split(batch_size):
            ids, mask = trim(features.input_ids[part], features.attention_mask[part])
            logits = backbone.match(ids, mask, states)
            scored[image, part] = logits[:, 1] + beta * similarity[image, part]
    below = similarity - BELOW
    return Scores(
        torch.where(wanted_rows, scored, below).cpu().numpy(),
        torch.where(wanted_columns, scored, below).T.cpu().numpy(),
        similarity.cpu().numpy(),
    )


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Mask of the k best of every row."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, scores.topk(k, dim=1).indices, True) if k else chosen
