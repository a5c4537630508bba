"""Image-text retrieval with BLIP's objective (arXiv 2201.12086, section 3.2): momentum ITC and ITM with hard negatives.

The backbone is frozen, so the momentum encoder differs from the online one in its trainable weights alone: an
exponential average of those, swapped in under ``no_grad``, replaces the second copy of the model.

Over several ranks, contrast and context (`adapter/fusion.py`) are those of the joint batch; negatives for ITM are drawn
within each rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.convert import read_momentum
from ..data.folder import ImageTextDataset
from ..errors import AuroraError
from ..evaluation.features import Features, extract, trim
from ..evaluation.rerank import Scores, rerank
from .ranks import gather, rank
from .settings import RetrievalSettings


class Retrieval(nn.Module):
    """The loss of a batch and the scores of a split.

    A batch is a dict of ``pixel_values`` (B, 3, H, W), ``input_ids`` and ``attention_mask`` (B, T) and ``ids`` (B,),
    whole numbers that are equal for pairs that describe the same picture.

    Args:
        backbone: with its adapter injected and its trainable weights marked: the average starts from them.
        settings: numbers of the objective.
    """

    queue_image: Tensor
    queue_text: Tensor
    queue_ids: Tensor
    queue_used: Tensor
    steps: Tensor

    def __init__(self, backbone: Backbone, settings: RetrievalSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or RetrievalSettings()
        self.backbone = backbone
        self.model = backbone.module  # registered, so that the Trainer sees its weights
        self.warmup_steps = 0  # over which alpha rises; the Trainer's driver sets it to one epoch
        self._averages = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(weight.detach().clone(), False) for name, weight in self.trained()}
        )
        size = self.settings.queue_size
        device, width = next(self.model.parameters()).device, backbone.joint_width
        self.register_buffer("queue_image", torch.zeros(size, width, device=device))
        self.register_buffer("queue_text", torch.zeros(size, width, device=device))
        self.register_buffer("queue_ids", torch.full((size,), -1, device=device))
        self.register_buffer("queue_used", torch.zeros(2, dtype=torch.long, device=device))  # next row, rows filled
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=device))
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
            self.queue_used[0], self.queue_used[1] = rows % len(self.queue_ids), rows

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights that training changes, in model order."""
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

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

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, ids: Tensor
    ) -> dict[str, Tensor]:
        """Losses ``loss``, ``itc`` and ``itm`` of a batch. Side effects: the averages, the queue and the step count
        advance in training mode."""
        backbone, settings = self.backbone, self.settings
        if self.training:
            self._advance_averages()
        with torch.no_grad(), self.momentum_weights():
            teacher_image = backbone.project_image(backbone.encode_image(pixel_values))
            teacher_text = backbone.project_text(backbone.encode_text(input_ids, attention_mask))
            teacher = gather(teacher_image), gather(teacher_text), gather(ids)
        image_states = backbone.encode_image(pixel_values)
        image = backbone.project_image(image_states)
        text_states = backbone.encode_text(input_ids, attention_mask)
        text = backbone.project_text(text_states)
        context = gather(text_states[:, 0]) if self.training else None
        itc = self._contrast(image, text, ids, *teacher)
        itm = self._matching(image_states, image, text, input_ids, attention_mask, ids, context)
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
        filled = int(self.queue_used[1])
        all_image = torch.cat([teacher_image, self.queue_image[:filled]])
        all_text = torch.cat([teacher_text, self.queue_text[:filled]])
        all_ids = torch.cat([teacher_ids, self.queue_ids[:filled]])
        temperature = self.backbone.temperature()
        same = (ids[:, None] == all_ids[None]).float()
        hard = same / same.sum(1, keepdim=True)
        alpha = self.settings.alpha * min(1.0, int(self.steps) / max(1, self.warmup_steps))
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
        input_ids: Tensor,
        attention_mask: Tensor,
        ids: Tensor,
        context: Tensor | None,
    ) -> Tensor:
        """ITM: each picture with its text, with a hard negative text, and as the hard negative of another text."""
        different = ids[:, None] != ids[None]
        with torch.no_grad():
            similarity = (image @ text.T / self.backbone.temperature()).float()
            rows = different.any(1).nonzero()[:, 0]  # others of the batch show the same picture: no negative
            texts = images = rows
            if len(rows):
                weights = similarity.masked_fill(~different, -torch.inf)
                texts = torch.multinomial(F.softmax(weights[rows], 1), 1)[:, 0]
                images = torch.multinomial(F.softmax(weights.T.masked_fill(~different, -torch.inf)[rows], 1), 1)[:, 0]
        own = torch.arange(len(ids), device=ids.device)
        which_text, which_image = torch.cat([own, texts, rows]), torch.cat([own, rows, images])
        words = trim(input_ids[which_text], attention_mask[which_text])
        positive = torch.arange(len(which_text), device=ids.device) < len(ids)
        logits = self.backbone.match(*words, image_states, which_image, context=context, positive=positive)
        return F.cross_entropy(logits, positive.long())

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
        places = (int(self.queue_used[0]) + torch.arange(len(ids), device=ids.device)) % size
        self.queue_image[places], self.queue_text[places], self.queue_ids[places] = image.float(), text.float(), ids
        self.queue_used[0] = (int(self.queue_used[0]) + len(ids)) % size
        self.queue_used[1] = min(size, int(self.queue_used[1]) + len(ids))

    def training_state(self) -> dict[str, Tensor]:
        """All that a resumed training needs of this module: trained weights, averages, queue, step count, and the
        model's own buffers, such as an adapter's bank of texts."""
        frozen = {f"model.{name}" for name, weight in self.model.named_parameters() if not weight.requires_grad}
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Put `training_state` back.

        Raises:
            AuroraError: if it is of another set of trained weights.
        """
        expected = self.training_state()
        if odd := sorted(set(expected) ^ set(state)):
            raise AuroraError(f"the checkpoint is of another method or queue: {odd[0]} is in only one of the two")
        self.load_state_dict(state, strict=False)

    def evaluate(
        self, dataset: ImageTextDataset, *, progress: bool = False
    ) -> tuple[dict[str, float], Scores, Features]:
        """Metrics, scores and features of a split: ITC candidates, ITM rerank, R@1/5/10 both ways."""
        was_training = self.training
        self.eval()
        try:
            features = extract(self.backbone, dataset, max_tokens=self.settings.max_tokens, progress=progress)
            scores = rerank(
                self.backbone, features, k_test=self.settings.k_test, beta=self.settings.beta, progress=progress
            )
        finally:
            self.train(was_training)
        return scores.metrics(features), scores, features


def fit_queue(queue_size: int, batch_size: int, rows: int) -> int:
    """The queue for ``rows`` training pairs: at most what other batches of an epoch can fill, whole batches."""
    return max(0, min(queue_size, rows - 2 * batch_size) // batch_size * batch_size)
