"""Image-text and video-text retrieval: contrast (ITC) with any dual encoder, and image-text matching (ITM) beside it
where the model has a second stage, which is BLIP's objective (arXiv 2201.12086, section 3.2).

The backbone is frozen, so a momentum encoder differs from the online one in its trainable weights alone: an
exponential average of those, swapped in under ``no_grad``, replaces the second copy of the model.

Over several ranks, contrast and context (`backbones/blip/fusion.py`) are those of the joint batch; negatives for ITM
are drawn within each rank, or from all of them (``negative_all_rank``).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ..adapter.stamp import weights_unchanged
from ..backbones.answers import up_to
from ..backbones.base import DualEncoder, Encoded, Matcher, Texts, is_matcher, similarity
from ..backbones.frames import Media, encode_media
from ..data.rows import ImageTextDataset
from ..distributed import gather
from ..errors import AuroraError, SharedError
from ..evaluation.features import Features, extract
from ..evaluation.outcome import RetrievalOutcome
from ..evaluation.ranking import choose
from ..evaluation.rerank import rerank
from .base import Task
from .objectives import Averages, Contrast, Matching, Pairs, by_chunks, sigmoid_loss
from .objectives.contrast import Teacher, fit_queue
from .settings import RetrievalSettings


class CaptionPairs(Sequence[tuple[int, dict[str, Any]]]):
    """The (picture, caption) pairs of a split, made when they are asked for: a million captions need not be objects."""

    def __init__(self, dataset: ImageTextDataset) -> None:
        self.dataset = dataset
        numbers: dict[str, int] = {}
        counts, ids = array("q"), array("q")
        for item in dataset:
            counts.append(len(item.captions))
            ids.append(numbers.setdefault(item.id, len(numbers)))
        self.ids = ids  # of each picture, its number
        self.rows = np.repeat(np.arange(len(counts)), counts)  # of each pair, its picture
        self.first = np.cumsum(counts, dtype=np.int64) - np.asarray(counts)  # of each picture, its first pair

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, dict[str, Any]]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        row = int(self.rows[place])
        caption = self.dataset[row].captions[place - int(self.first[row])]
        return row, {"caption": caption, "id": self.ids[row]}


class Retrieval(Task):
    """The loss of a batch and the scores of a split.

    A batch is a dict of ``pixel_values``, (B, 3, H, W) or of clips (B, F, 3, H, W), ``input_ids`` and
    ``attention_mask`` (B, T) and ``ids`` (B,), whole numbers that are equal for pairs that describe the same picture.

    Args:
        backbone: with its adapter injected and its trainable weights marked: the average starts from them.
        settings: numbers of the objective; what they leave to the model is taken from it.
    """

    data = ImageTextDataset
    example = "pair"
    main_metric = "mean_recall"

    backbone: DualEncoder
    settings: RetrievalSettings
    steps: Tensor  # so far, a number that no step has to read from the device

    def __init__(self, backbone: DualEncoder, settings: RetrievalSettings | None = None) -> None:
        super().__init__(backbone, self.fitted(settings or RetrievalSettings(), backbone))
        settings = self.settings
        self._places = {  # of what is averaged: to look through the whole model takes longer than to average it
            name: (self.model.get_submodule(owner)._parameters, own)
            for name, (owner, _, own) in ((name, name.rpartition(".")) for name, _ in self.trained())
        }
        momentum = settings.momentum or 0.0
        self._averages = Averages(self._averaged() if momentum else {}, momentum)
        device = next(self.model.parameters()).device
        shape = backbone.feature_shape
        self._contrast = Contrast(settings.queue_size or 0, shape, shape[-1:], settings.alpha or 0.0, device)
        self._matching = Matching(
            settings.longest_text, settings.negative_all_rank, settings.frame_attention, settings.chunk_size
        )
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
        if settings.momentum_init == "checkpoint" and self._places:  # else nothing will be trained
            self._start_from_checkpoint()

    @torch.no_grad()
    def _start_from_checkpoint(self) -> None:
        """Averages and queue as the original checkpoint has them, its pairs being negatives for every picture."""
        plain = {  # less what peft adds to the names of heads
            name: name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            for name, _ in self.trained()
        }
        read = getattr(self.backbone, "momentum_state", None)
        if read is None:
            raise AuroraError(f"{self.backbone.name} has no momentum encoder; set task.momentum_init=copy")
        state = read(plain.values())
        for name, original in plain.items():
            if original in state.weights and self.settings.momentum:
                self._averages.put(name, state.weights[original])
        self._contrast.fill(state.image_queue, state.text_queue, -100)

    @classmethod
    def fitted(
        cls, settings: RetrievalSettings, backbone: Any, batch_size: int = 0, examples: int = 0
    ) -> RetrievalSettings:
        own = {name: value for name, value in backbone.defaults.items() if getattr(settings, name) is None}
        fitted = replace(settings, **own)
        if not is_matcher(backbone):
            if settings.ranking == "itm":
                raise AuroraError(
                    f"task.ranking is itm, but {backbone.name} has no second stage to rank with; leave it out"
                )
            fitted = replace(fitted, ranking="itc", itm_weight=0.0, k_test=0)
        if backbone.contrast == "sigmoid" and (fitted.queue_size or fitted.momentum):
            raise AuroraError(
                f"{backbone.name} is trained with the sigmoid loss, which has no queue and no momentum encoder; leave "
                "out task.queue_size and task.momentum"
            )
        if batch_size:
            fitted = replace(fitted, queue_size=fit_queue(fitted.queue_size or 0, batch_size, examples))
        return fitted

    @property
    def objective(self) -> str:
        contrast = "sigmoid loss" if self.backbone.contrast == "sigmoid" else "ITC"
        return f"{contrast} + ITM" if self.settings.itm_weight else contrast

    @classmethod
    def examples(cls, dataset: ImageTextDataset) -> CaptionPairs:
        """Every (picture, caption) pair of a split; pictures of the same id have the same number."""
        return CaptionPairs(dataset)

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = self.settings.longest_text
        texts = self.backbone.texts([row["caption"] for row in rows], longest)
        texts = texts.padded(min(longest, up_to(texts.ids.shape[1], self.multiple)))
        return {
            "pixel_values": torch.stack([row["pixels"] for row in rows]),
            "ids": torch.tensor([row["id"] for row in rows]),
            "input_ids": texts.ids,
            "attention_mask": texts.mask,
        }

    def loss(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """``loss`` of a batch, and its parts where there are two, ``itc`` and ``itm``. Side effects: the averages, the
        queue and the step count advance in training mode."""
        backbone, settings, texts = self.backbone, self.settings, Texts(input_ids, attention_mask)
        if self.training and settings.momentum:
            self._averages.advance(self._averaged())
        teaches = backbone.contrast == "softmax" and bool(settings.momentum)  # without, the averaged model is the model
        with weights_unchanged():  # the averages take their place and leave it openly
            taught = self._taught(pixel_values, texts) if teaches else None
            return self._parts(taught, pixel_values, texts, ids)

    def _parts(
        self, taught: tuple[Tensor, Tensor] | None, pixel_values: Tensor, texts: Texts, ids: Tensor
    ) -> dict[str, Tensor]:
        backbone, settings = self.backbone, self.settings
        media, text = self._encoded(pixel_values, texts)
        if backbone.contrast == "sigmoid":
            loss = sigmoid_loss(backbone.logits(similarity(media.feature, gather(text.feature))), ids, gather(ids))
        else:
            loss = self._itc(media, text, taught, ids)
        parts = {"loss": loss}
        if settings.itm_weight and is_matcher(backbone):
            itm = self._itm(backbone, media, text, texts, ids)
            parts = {"loss": loss + settings.itm_weight * itm, "itc": loss.detach(), "itm": itm.detach()}
        if self.training:
            self.steps.add_(1)
        return parts

    def _encoded(self, pixel_values: Tensor, texts: Texts) -> tuple[Media, Encoded]:
        """Pictures and texts, a chunk at a time."""
        backbone, size = self.backbone, self.settings.chunk_size
        media: Media = by_chunks(lambda pixels: encode_media(backbone, pixels), size, pixel_values)
        text: Encoded = by_chunks(lambda ids, mask: backbone.encode_text(Texts(ids, mask)), size, texts.ids, texts.mask)
        return media, text

    @torch.no_grad()
    def _taught(self, pixel_values: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """Features by the averaged weights."""
        with self._averages.swapped_in(self._averaged()):
            media, text = self._encoded(pixel_values, texts)
        return media.feature, text.feature

    def _averaged(self) -> dict[str, nn.Parameter]:
        """`trained`, of the weights that were trained when the averages began."""
        return {name: place[own] for name, (place, own) in self._places.items()}

    def _itc(self, media: Media, text: Encoded, taught: tuple[Tensor, Tensor] | None, ids: Tensor) -> Tensor:
        backbone = self.backbone
        image_feature, text_feature = taught or (media.feature.detach(), text.feature.detach())
        if taught is None and not self.settings.alpha and not backbone.defaults["momentum"]:
            # as CLIP trains: gradients reach both sides of every product; BLIP's reach the side without a teacher
            image_feature, text_feature = media.feature, text.feature
        teacher = Teacher(gather(image_feature), gather(text_feature), gather(ids))
        ramp = (self.steps / max(1, self.warmup_steps)).clamp(max=1.0)
        loss: Tensor = self._contrast(media.feature, text.feature, ids, teacher, backbone.logits, ramp)
        if self.training:
            self._contrast.enqueue(teacher)
        return loss

    def _itm(self, backbone: Matcher, media: Media, text: Encoded, texts: Texts, ids: Tensor) -> Tensor:
        assert media.states is not None
        context = backbone.context(text) if self.training else None
        context = None if context is None else gather(context)
        pairs = Pairs(media.states, media.feature, text.feature, media.frames, texts, ids)
        return self._matching(backbone, pairs, context)

    def evaluate(
        self, dataset: ImageTextDataset, *, cache: Path | None = None, rescore: int = 0, progress: bool = False
    ) -> RetrievalOutcome:
        """Scores of a split: ITC candidates, ITM rerank, R@1/5/10 both ways. With ``ranking`` at
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
                max_tokens=settings.longest_text,
                frames=settings.evaluation_frames,
                cache=cache,
                progress=progress,
            )
            scores = rerank(
                self.backbone,
                features,
                k_test=0 if settings.ranking == "itc" else settings.k_test or 0,
                beta=settings.beta if settings.ranking == "itm" else 0.0,
                rescore=rescore,
                frame_attention=settings.frame_attention,
                resume=_scores_file(cache, dataset, features),
                progress=progress,
            )
        finally:
            self.train(was_training)
        if scores.has_nan():
            raise SharedError(
                "the model's scores are not numbers: its training diverged, or numbers overflow in this precision; "
                "lower train.learning_rate, or compute in float32"
            )
        if settings.ranking != "itm":
            scores = scores.by_similarity() if settings.ranking == "itc" else choose(scores, features)
        return RetrievalOutcome(scores, replace(features, states=None), dataset.items)  # states are large

    @property
    def protocol(self) -> str:
        return "ITC" if self.settings.ranking == "itc" else "ITC, ITM rerank"


def _scores_file(cache: Path | None, dataset: ImageTextDataset, features: Features) -> Path | None:
    """Where this rank keeps the scores of its pictures."""
    own = features.own
    return cache / f"{dataset.name.replace('/', '-')}.{own.start}-{own.stop}.scores" if cache else None
