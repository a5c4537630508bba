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

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..adapter.factors import no_autocast
from ..backbones.base import DualEncoder, Matcher, is_matcher, similarity
from ..backbones.frames import frame_weights
from ..distributed import SharedError, total
from ..kept import keep, recall
from .features import Features
from .recall import Ranks, rank_metrics, ranks_of

BELOW = 1e4  # puts what was not rescored under all that was, in ITC order
BLOCK_BUDGET = 256 * 1024**2  # bytes of a block's picture states; its keys and values take twice that a fusion layer
CALL_TOKENS = 4096  # word pieces in one call of the model
RECORD_SECONDS = 30.0


@dataclass
class Scores:
    """Score matrices of both directions after reranking, and the ITC similarity beneath them."""

    image_to_text: np.ndarray  # (images, texts)
    text_to_image: np.ndarray  # (texts, images)
    similarity: np.ndarray  # (images, texts)
    reranked: bool = True  # whether ITM orders the best of them
    choice: dict[str, Any] = field(default_factory=dict)  # what `ranking.choose` settled, by the task's setting

    def ranks(self, features: Features) -> Ranks:
        """The rank of the best right item of every query."""
        return Ranks(
            ranks_of(self.image_to_text, features.image_ids, features.text_ids),
            ranks_of(self.text_to_image, features.text_ids, features.image_ids),
        )

    def metrics(self, features: Features) -> dict[str, float]:
        """Metrics of the reranked scores, see `recall.rank_metrics`."""
        return rank_metrics(self.ranks(features))

    def by_similarity(self) -> Scores:
        """Scores of the order by ITC similarity alone."""
        return Scores(self.similarity, self.similarity.T, self.similarity, reranked=False)


@torch.no_grad()
def rerank(
    backbone: DualEncoder,
    features: Features,
    *,
    k_test: int = 128,
    beta: float = 0.0,
    rescore: int = 0,
    frame_attention: bool = True,
    resume: Path | None = None,
    progress: bool = False,
) -> Scores:
    """Rescore the ``k_test`` best candidates of every query by ITM match logit + ``beta`` * ITC similarity.

    Args:
        k_test: candidates a query (256 for COCO, 128 elsewhere in the literature); 0 keeps the order by similarity.
        beta: weight of the similarity in the final score.
        rescore: under autocast, how many of the best of every list are scored once more in float32.
        frame_attention: whether texts weigh the frames of clips, see `frames.frame_weights`.
        resume: a file that holds what was scored so far; an evaluation that was killed goes on from there.

    Raises:
        AuroraError: if there are candidates to rescore, and the model has no second stage.
    """
    with no_autocast(features.image.device):
        similarities = similarity(features.image.float(), features.text.float())  # (images, texts)
    if not k_test:
        near = similarities.cpu().numpy()
        return Scores(near, near.T, near, reranked=False)
    if not is_matcher(backbone) or features.states is None:
        raise SharedError(f"{backbone.name} has no second stage to rerank with; set task.ranking=itc")
    images, texts = similarities.shape
    wanted_rows = _best(similarities, min(k_test, texts))
    wanted_columns = _best(similarities.T, min(k_test, images)).T
    below = similarities - BELOW
    scored = below.clone()

    def score(wanted: Tensor, states: Callable[[int, int], Tensor], file: Path | None) -> None:
        pairs = wanted.cpu().nonzero()  # by picture
        logits = match_pairs(
            backbone, features, pairs, states, frame_attention=frame_attention, resume=file, progress=progress
        )
        rows = tuple(pairs.T.to(scored.device))
        scored[rows] = logits + beta * similarities[rows]

    score(wanted_rows | wanted_columns, features.states, resume)
    if rescore:
        with no_autocast(similarities.device):
            best_rows = _best(torch.where(wanted_rows, scored, below), min(rescore, texts)) & wanted_rows
            best_columns = _best(torch.where(wanted_columns, scored, below).T, min(rescore, images)).T & wanted_columns
            score(best_rows | best_columns, features.states.anew, None)
    return Scores(
        torch.where(wanted_rows, scored, below).cpu().numpy(),
        torch.where(wanted_columns, scored, below).T.cpu().numpy(),
        similarities.cpu().numpy(),
    )


@torch.no_grad()
def match_pairs(
    backbone: Matcher,
    features: Features,
    pairs: Tensor,
    states: Callable[[int, int], Tensor],
    *,
    frame_attention: bool = True,
    resume: Path | None = None,
    progress: bool = False,
) -> Tensor:
    """ITM match logits (n,) of ``pairs`` (n, 2), each a picture and a text of ``features``, in the order of pictures.

    Pairs are on the CPU, as all that decides on blocks, calls and their shapes; logits are on the model's device.
    ``states`` gives picture states as `features.PictureStates` does.
    """
    images, texts = pairs.T
    device = features.image.device
    logits = torch.zeros(len(pairs), device=device)
    lengths = features.tokens.lengths()
    begun = _begin(backbone, features)
    record = _Record(resume, features, pairs, frame_attention)
    done = record.read(logits)
    bar = tqdm(total=len(pairs), desc="rerank", unit="pair", leave=False, disable=not progress)
    for first, last in _blocks(images, texts, lengths, features.own, states):
        block = ((images >= first) & (images < last)).nonzero()[:, 0]
        if last > done:
            block_states = states(first, last)
            kept: dict[int, tuple[Tensor, Tensor]] = {}
            block = block[lengths[texts[block]].argsort(stable=True)]  # alike lengths together: little padding
            for part in block.split(max(1, CALL_TOKENS // int(lengths[texts[block]].float().mean().ceil()))):
                tokens = features.tokens.rows(texts[part]).trimmed()
                text, image = texts[part].to(device), images[part].to(device)
                ready = None if begun is None else begun[text, : tokens.ids.shape[1]]
                frames = frame_weights(features.text[text], features.frames[image]) if frame_attention else None
                matched = backbone.match(
                    tokens.to(device),
                    block_states,
                    images[part] - first,
                    begun=ready,
                    kept=kept,
                    frames=frames,
                )
                logits[part.to(device)] = matched[:, 1]
            record.write(logits, last)
        bar.update(len(block))
    bar.close()
    if done < features.own.stop:
        record.write(logits, features.own.stop, whole=True)
    return total(logits)


class _Record:
    """Logits on disk, so that an evaluation that was killed goes on where it stood. Written every half minute."""

    def __init__(self, file: Path | None, features: Features, pairs: Tensor, frame_attention: bool) -> None:
        self.file, self.written = file, time.monotonic()
        asked = hashlib.sha256(pairs.numpy().tobytes()).hexdigest()
        self.key = f"{features.key} {frame_attention} {features.own} {asked}"

    def read(self, logits: Tensor) -> int:
        """Put back what was scored; returns the picture up to which it was."""
        held = None if self.file is None else recall(self.file, self.key)
        if held is None:
            return 0
        logits.copy_(held[0]["logits"])
        return int(held[1]["done"])

    def write(self, logits: Tensor, done: int, whole: bool = False) -> None:
        if self.file is None or not (whole or time.monotonic() - self.written > RECORD_SECONDS):
            return
        if not keep(self.file, {"logits": logits}, {"key": self.key, "done": str(done)}):
            self.file = None
        self.written = time.monotonic()


def _begin(backbone: Matcher, features: Features) -> Tensor | None:
    """`Matcher.begin_match` of all texts, (L, T, D)."""
    device = features.image.device
    parts = [backbone.begin_match(part.to(device)) for part in features.tokens.split(256)]
    return None if not parts or parts[0] is None else torch.cat(parts)  # type: ignore[arg-type]


def _blocks(
    images: Tensor, texts: Tensor, lengths: Tensor, own: range, states: Callable[[int, int], Tensor]
) -> Iterator[tuple[int, int]]:
    """Ranges of this rank's pictures, as few as fill calls of `CALL_TOKENS`, never more than `BLOCK_BUDGET` allows."""
    tokens = torch.bincount(images, weights=lengths[texts].float(), minlength=own.stop)
    held = tokens.cumsum(0).tolist() if own else []
    limit = max(1, BLOCK_BUDGET // states(own.start, own.start + 1).nbytes) if len(own) and len(images) else 1
    first = own.start
    for picture in own:
        before = held[first - 1] if first else 0.0
        if held[picture] - before >= CALL_TOKENS or picture + 1 - first >= limit or picture + 1 == own.stop:
            if held[picture] > before:
                yield first, picture + 1
            first = picture + 1


def _best(scores: Tensor, k: int) -> Tensor:
    """Mask of the k best of every row."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, scores.topk(k, dim=1).indices, True) if k else chosen
