"""Two-stage retrieval: ITC picks candidates, ITM rescores them.

The usual loop takes one query at a time and projects the whole of each candidate picture to keys and values again for
every text. Here the pairs that either direction asks for are united and each is scored once, picture by picture:

    pictures  . . . .  a block: states -> keys and values of all fusion layers, once
              |/ |\\
    texts    a bb ccc  its pairs by length of text, in calls of a few thousand word pieces each, without padding;
                       what comes before a text meets a picture is computed once for the whole run

Memory is bounded by `BLOCK_BUDGET` (keys and values of a block), `BEGUN_BUDGET` (of texts) and `CALL_TOKENS`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..adapter.factors import no_autocast
from ..backbones.base import DualEncoder, Matcher, is_matcher
from ..backbones.frames import frame_weights
from ..backbones.sharing import packed_states
from ..distributed import SharedError, total
from ..kept import keep, recall
from .features import Features
from .scores import Candidates, Scores, Similarity, best_of, candidates, scored

BEGUN_BUDGET = 512 * 1024**2  # bytes of what is computed of texts before they meet a picture
BLOCK_BUDGET = 256 * 1024**2  # bytes of a block's picture states; its keys and values take twice that a fusion layer
CALL_TOKENS = 4096  # word pieces in one call of the model
RECORD_SECONDS = 30.0


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
    near = Similarity(features.image, features.text)
    if not k_test:
        return Scores(near)
    if not is_matcher(backbone) or features.states is None:
        raise SharedError(f"{backbone.name} has no second stage to rerank with; set task.ranking=itc")
    found = candidates(near, k_test)

    def score(own: Candidates, which: Any, states: Callable[[int, int], Tensor], file: Path | None) -> Candidates:
        pairs = torch.from_numpy(np.stack([own.image[which], own.text[which]], 1))
        logits = match_pairs(
            backbone, features, pairs, states, frame_attention=frame_attention, resume=file, progress=progress
        )
        return scored(own, logits.cpu().numpy(), beta, which)

    found = score(found, slice(None), features.states, resume)
    if rescore:
        with no_autocast(near.device):
            found = score(found, best_of(found, rescore), features.states.anew, None)
    return Scores(near, found)


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
    images, texts = (part.contiguous() for part in pairs.T)
    device = features.image.device
    logits = torch.zeros(len(pairs), device=device)
    lengths = features.tokens.lengths()
    begun = _Begun(backbone, features)
    record = _Record(resume, features, pairs, frame_attention)
    done = record.read(logits)
    bar = tqdm(total=len(pairs), desc="rerank", unit="pair", leave=False, disable=not progress)
    for first, last in _blocks(images, texts, lengths, features.own, states):
        low, high = torch.searchsorted(images, torch.tensor([first, last], dtype=images.dtype)).tolist()
        if last > done:
            block_states = states(first, last)
            kept: dict[int, tuple[Tensor, Tensor]] = {}
            own = lengths[texts[low:high].long()]
            order = low + own.argsort(stable=True)  # alike lengths together: little padding
            for part in order.split(max(1, CALL_TOKENS // int(own.float().mean().ceil()))):
                rows, pictures = texts[part].long(), images[part].long()
                tokens = features.tokens.rows(rows).trimmed()
                text, image = rows.to(device), pictures.to(device)
                frames = frame_weights(features.text[text], features.frames[image]) if frame_attention else None
                matched = backbone.match(
                    tokens.to(device),
                    block_states,
                    pictures - first,
                    begun=begun(rows),
                    kept=kept,
                    frames=frames,
                    lengths=lengths[rows],
                )
                logits[part.to(device)] = matched[:, 1]
            record.write(logits, last)
        bar.update(high - low)
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


class _Begun:
    """`Matcher.begin_match` of all texts, token after token, where that fits into `BEGUN_BUDGET`; else each call of the
    model computes it for its own texts, which is a fortieth of its work on texts."""

    def __init__(self, backbone: Matcher, features: Features) -> None:
        device, done = features.image.device, 0
        self.lengths = features.tokens.lengths()
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.states: Tensor | None = None
        for part in features.tokens.split(256):
            states = backbone.begin_match(part.to(device))
            if states is None:
                return
            states = packed_states(states, part.lengths())
            if self.states is None:
                count = int(self.lengths.sum())
                if states[0].nbytes * count > BEGUN_BUDGET:
                    return
                self.states = states.new_empty(count, states.shape[1])
            self.states[done : done + len(states)] = states
            done += len(states)

    def __call__(self, texts: Tensor) -> Tensor | None:
        """(n, D) of some texts, which are named on the CPU"""
        if self.states is None:
            return None
        lengths = self.lengths[texts]
        starts = self.starts[texts] - (lengths.cumsum(0) - lengths)
        places = starts.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
        return self.states[places.to(self.states.device)]


def _blocks(
    images: Tensor, texts: Tensor, lengths: Tensor, own: range, states: Callable[[int, int], Tensor]
) -> Iterator[tuple[int, int]]:
    """Ranges of this rank's pictures, as few as fill calls of `CALL_TOKENS`, never more than `BLOCK_BUDGET` allows."""
    tokens = torch.bincount(images, weights=lengths[texts.long()].float(), minlength=own.stop)
    held = tokens.cumsum(0).tolist() if own else []
    limit = max(1, BLOCK_BUDGET // states(own.start, own.start + 1).nbytes) if len(own) and len(images) else 1
    first = own.start
    for picture in own:
        before = held[first - 1] if first else 0.0
        if held[picture] - before >= CALL_TOKENS or picture + 1 - first >= limit or picture + 1 == own.stop:
            if held[picture] > before:
                yield first, picture + 1
            first = picture + 1
