"""Image-text retrieval with BLIP's objective (arXiv 2201.12086, section 3.2): momentum ITC and ITM with hard negatives.

The backbone is frozen, so the momentum encoder differs from the online one in its trainable weights alone: an
exponential average of those, swapped in under ``no_grad``, replaces the second copy of the model.

Over several ranks, contrast and context (`adapter/fusion.py`) are those of the joint batch; negatives for ITM are drawn
within each rank, or from all of them (``negative_all_rank``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.blip.convert import read_momentum
from ..data.rows import ImageTextDataset
from ..distributed import SharedError, gather, rank
from ..evaluation.features import Features, extract, tokenize
from ..evaluation.ranking import by_similarity, choose
from ..evaluation.rerank import Scores, rerank
from .base import Task
from .clips import encode_media, frame_weights, pool, project_frames
from .settings import RetrievalSettings


class Retrieval(Task):
    """The loss of a batch and the scores of a split.

    A batch is a dict of ``pixel_values``, (B, 3, H, W) or of clips (B, F, 3, H, W), ``input_ids`` and
    ``attention_mask`` (B, T) and ``ids`` (B,), whole numbers that are equal for pairs that describe the same picture.
    ``several`` says whether the ids differ at all: without it they are asked, which waits for the device.

    Args:
        backbone: with its adapter injected and its trainable weights marked: the average starts from them.
        settings: numbers of the objective.
    """

    data = ImageTextDataset
    example = "pair"
    objective = "ITC + ITM"
    main_metric = "mean_recall"

    backbone: Backbone
    settings: RetrievalSettings
    queue_image: Tensor
    queue_text: Tensor
    queue_ids: Tensor

    def __init__(self, backbone: Backbone, settings: RetrievalSettings | None = None) -> None:
        super().__init__(backbone, settings or RetrievalSettings())
        self._averages = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(weight.detach().clone(), False) for name, weight in self.trained()}
        )
        size = self.settings.queue_size
        device, width = next(self.model.parameters()).device, backbone.joint_width
        self.register_buffer("queue_image", torch.zeros(size, width, device=device))
        self.register_buffer("queue_text", torch.zeros(size, width, device=device))
        self.register_buffer("queue_ids", torch.full((size,), -1, device=device))
        self.next_row = self.filled = 0  # of the queue; numbers, for to read one from the device is to wait for it
        self.steps = 0
        if self.settings.momentum_init == "checkpoint" and len(self._averages):  # else nothing will be trained
            self._start_from_checkpoint()

    @torch.no_grad()
    def _start_from_checkpoint(self) -> None:
        """Averages and queue as the original checkpoint has them, its pairs being negatives for every picture."""
        plain = {  # less what peft adds to the names of heads
            name: name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            for name, _ in self.trained()
        }
        kept = read_momentum(self.backbone.name, plain.values(), self.backbone.image_size)
        for name, original in plain.items():
            if original in kept.weights:
                self._averages[name.replace(".", "/")].copy_(kept.weights[original])
        rows = min(len(self.queue_ids), len(kept.image_queue))
        if rows:
            self.queue_image[:rows], self.queue_text[:rows] = kept.image_queue[:rows], kept.text_queue[:rows]
            self.queue_ids[:rows] = -100
            self.next_row, self.filled = rows % len(self.queue_ids), rows

    @classmethod
    def examples(cls, dataset: ImageTextDataset) -> list[tuple[int, dict[str, Any]]]:
        """Every (picture, caption) pair of a split; pictures of the same id have the same number."""
        numbers: dict[str, int] = {}
        ids = [numbers.setdefault(item.id, len(numbers)) for item in dataset]
        return [
            (row, {"caption": caption, "id": ids[row]}) for row, item in enumerate(dataset) for caption in item.captions
        ]

    @classmethod
    def fit_settings(cls, settings: RetrievalSettings, batch_size: int, examples: int) -> None:
        settings.queue_size = fit_queue(settings.queue_size, batch_size, examples)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["pixels"] for row in rows]),
            "ids": torch.tensor([row["id"] for row in rows]),
            "several": len({row["id"] for row in rows}) > 1,
            **tokenize(self.backbone, [row["caption"] for row in rows], self.settings.max_tokens),
        }

    @contextmanager
    def momentum_weights(self) -> Iterator[None]:
        """Within it, the model computes with the averaged weights."""
        weights = dict(self.trained())
        own = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self._averages[name.replace(".", "/")].data
            yield
        finally:
            for name, weight in weights.items():
                weight.data = own[name]

    def training_state(self) -> dict[str, Tensor]:
        numbers = {"queue_used": torch.tensor([self.next_row, self.filled]), "steps": torch.tensor(self.steps)}
        return super().training_state() | numbers

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        super().load_training_state(state)
        self.next_row, self.filled = state["queue_used"].tolist()
        self.steps = int(state["steps"])

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        ids: Tensor,
        several: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses ``loss``, ``itc`` and ``itm`` of a batch. Side effects: the averages, the queue and the step count
        advance in training mode."""
        backbone, settings = self.backbone, self.settings
        if self.training:
            self._advance_averages()
        states = encode_media(backbone, pixel_values)
        frames = project_frames(backbone, states)
        image = pool(frames)
        text_states = backbone.encode_text(input_ids, attention_mask)
        text = backbone.project_text(text_states)
        teacher_image, teacher_text = image.detach(), text.detach()
        if settings.momentum:  # without, the averaged model is the model
            with torch.no_grad(), self.momentum_weights():
                teacher_image = pool(project_frames(backbone, encode_media(backbone, pixel_values)))
                teacher_text = backbone.project_text(backbone.encode_text(input_ids, attention_mask))
        teacher = gather(teacher_image), gather(teacher_text), gather(ids)
        context = gather(text_states[:, 0]) if self.training else None
        itc = self._contrast(image, text, ids, *teacher)
        pairs = states.flatten(1, 2), image, text, frames, input_ids, attention_mask, ids
        itm = self._matching(*pairs, several, context)
        if self.training:
            self._enqueue(*teacher)
            self.steps += 1
        return {"loss": itc + settings.itm_weight * itm, "itc": itc.detach(), "itm": itm.detach()}

    def _contrast(
        self,
        image: Tensor,
        text: Tensor,
        ids: Tensor,
        teacher_image: Tensor,
        teacher_text: Tensor,
        teacher_ids: Tensor,
    ) -> Tensor:
        """ITC: features (B, P) against the teacher's of all ranks' batches and the queue (ranks * B + Q, P), targets
        softened by the teacher's own similarities."""
        all_image = torch.cat([teacher_image, self.queue_image[: self.filled]])
        all_text = torch.cat([teacher_text, self.queue_text[: self.filled]])
        all_ids = torch.cat([teacher_ids, self.queue_ids[: self.filled]])
        temperature = self.backbone.temperature()
        same = (ids[:, None] == all_ids[None]).float()
        hard = same / same.sum(1, keepdim=True)
        alpha = self.settings.alpha * min(1.0, self.steps / max(1, self.warmup_steps))
        loss = image.new_zeros(())
        own = slice(rank() * len(ids), (rank() + 1) * len(ids))
        for student, teacher, keys in ((image, teacher_image[own], all_text), (text, teacher_text[own], all_image)):
            with torch.no_grad():
                soft = F.softmax(teacher @ keys.T / temperature, dim=1)
                target = alpha * soft + (1 - alpha) * hard
            loss = loss - (F.log_softmax(student @ keys.T / temperature, dim=1) * target).sum(1).mean() / 2
        return loss

    def _matching(
        self,
        image_states: Tensor,
        image: Tensor,
        text: Tensor,
        frames: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        ids: Tensor,
        several: bool | None,
        context: Tensor | None,
    ) -> Tensor:
        """ITM: each picture with its text, with a hard negative text, and as the hard negative of another text.

        The shapes of that depend on which negatives were drawn: their places in the batch, and the lengths of texts,
        are what a step reads from the device, all at once.
        """
        own = torch.arange(len(ids))
        every = image_states, image, text, frames, *_padded(input_ids, attention_mask, self.settings.max_tokens), ids
        if self.settings.negative_all_rank:
            every, own = tuple(gather(value) for value in every), own + rank() * len(ids)  # type: ignore[assignment]
        all_states, all_images, all_texts, all_frames, all_words, all_masks, all_ids = every
        different = ids[:, None] != all_ids[None]
        if several is None or (not several and len(all_ids) > len(ids)):
            several = bool(different.any())
        negatives = len(ids) if several else 0  # of a batch of one picture there are none, else every row has one
        with torch.no_grad():
            drawn = [all_masks.sum(1)]
            if negatives:
                drawn.append(self._negatives(image, all_texts, different))
                drawn.append(self._negatives(text, all_images, different))
            lengths, texts, images = torch.cat(drawn).cpu().split([len(all_ids), negatives, negatives])
        which_text, which_image = torch.cat([own, texts, own[:negatives]]), torch.cat([own, own[:negatives], images])
        used, which = which_image.unique(return_inverse=True)
        longest = int(lengths[which_text].max())
        of_text, of_image, used = (places.to(ids.device) for places in (which_text, which_image, used))
        positive = torch.arange(len(of_text), device=ids.device) < len(ids)
        by_frame = frame_weights(all_texts[of_text], all_frames[of_image])
        logits = self.backbone.match(
            all_words[of_text, :longest],
            all_masks[of_text, :longest],
            all_states[used],
            which,
            context=context,
            positive=positive,
            frames=by_frame if self.settings.frame_attention else None,
        )
        return F.cross_entropy(logits, positive.long())

    def _negatives(self, queries: Tensor, keys: Tensor, different: Tensor) -> Tensor:
        """For each query a key of another picture, drawn by similarity.

        Where a similarity is not a number, as in a training that diverged, any key is drawn: a GPU would end the
        process at such a draw, before the loss can tell.
        """
        weights = (queries @ keys.T / self.backbone.temperature()).float().masked_fill(~different, -torch.inf)
        return torch.multinomial(F.softmax(weights, 1).nan_to_num(1.0), 1)[:, 0]

    @torch.no_grad()
    def _advance_averages(self) -> None:
        for name, weight in self.trained():
            self._averages[name.replace(".", "/")].lerp_(weight, 1 - self.settings.momentum)

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        size = len(self.queue_ids)
        if not size:
            return
        image, text, ids = image[-size:], text[-size:], ids[-size:]
        places = (self.next_row + torch.arange(len(ids), device=ids.device)) % size
        self.queue_image[places], self.queue_text[places], self.queue_ids[places] = image.float(), text.float(), ids
        self.next_row, self.filled = (self.next_row + len(ids)) % size, min(size, self.filled + len(ids))

    def evaluate(
        self, dataset: ImageTextDataset, *, cache: Path | None = None, rescore: int = 0, progress: bool = False
    ) -> tuple[dict[str, float], Scores, Features]:
        """Metrics, scores and features of a split: ITC candidates, ITM rerank, R@1/5/10 both ways. With ``ranking`` at
        ``choose``, the order is what this very split likes best; runs let the validation split choose.

        Args:
            cache: folder for features and for what was scored so far; see `features.extract` and `rerank.rerank`.
            rescore: see `rerank.rerank`.
        """
        was_training, settings = self.training, self.settings
        self.eval()
        try:
            features = extract(
                self.backbone,
                dataset,
                max_tokens=settings.max_tokens,
                frames=settings.evaluation_frames,
                cache=cache,
                progress=progress,
            )
            scores = rerank(
                self.backbone,
                features,
                k_test=0 if settings.ranking == "itc" else settings.k_test,
                beta=settings.beta if settings.ranking == "itm" else 0.0,
                rescore=rescore,
                frame_attention=settings.frame_attention,
                resume=_scores_file(cache, dataset, features),
                progress=progress,
            )
        finally:
            self.train(was_training)
        if np.isnan(scores.similarity).any() or np.isnan(scores.image_to_text).any():
            raise SharedError(
                "the model's scores are not numbers: its training diverged, or numbers overflow in this precision; "
                "lower train.learning_rate, or compute in float32"
            )
        if settings.ranking != "itm":
            scores = by_similarity(scores) if settings.ranking == "itc" else choose(scores, features)
        return scores.metrics(features), scores, features

    @property
    def protocol(self) -> str:  # type: ignore[override]
        return "ITC" if self.settings.ranking == "itc" else "ITC, ITM rerank"

    def choice(self, scores: Scores, features: Features) -> dict[str, Any]:  # type: ignore[override]
        return scores.choice

    def errors(self, scores: Scores, features: Features) -> np.ndarray:  # type: ignore[override]
        """Logarithms of the ranks of right items."""
        return np.log(scores.ranks(features))

    def other_metrics(self, scores: Scores, features: Features) -> dict[str, dict[str, float]]:  # type: ignore[override]
        return {"ITC only": scores.itc_metrics(features)} if scores.reranked else {}


def _scores_file(cache: Path | None, dataset: ImageTextDataset, features: Features) -> Path | None:
    """Where this rank keeps the scores of its pictures."""
    own = features.own
    return cache / f"{dataset.name.replace('/', '-')}.{own.start}-{own.stop}.scores" if cache else None


def _padded(input_ids: Tensor, attention_mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Both padded to the same width on every rank."""
    more = (0, max(0, width - input_ids.shape[1]))
    return F.pad(input_ids, more), F.pad(attention_mask, more)


def fit_queue(queue_size: int, batch_size: int, rows: int) -> int:
    """The queue for ``rows`` training pairs: at most what other batches of an epoch can fill, whole batches."""
    return max(0, min(queue_size, rows - 2 * batch_size) // batch_size * batch_size)
