"""A training step as the code released with BLIP and ALBEF takes it, on transformers' own classes: what `step.py`
compares Aurora's step with.

What is usual, and where Aurora's own step differs:

- Texts are padded to the longest that the model reads, 35 tokens of BLIP and 77 of CLIP, not to the longest of a batch.
- The momentum encoder is a second copy of the whole model. All its weights are averaged at every step.
- Matching encodes 3 B pairs of a text and a picture. The states of a picture are repeated for each, and the positives
  and negatives are passes of their own.
- Negatives are drawn row by row, and each is read from the device.
- Attention keeps its table of probabilities, as transformers' BLIP computes it. CLIP's is PyTorch's
  `scaled_dot_product_attention` in both.

The losses are those of Li et al., 2021 (arXiv 2107.07651) and Li et al., 2022 (arXiv 2201.12086), and equal Aurora's.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aurora_petl.backbones.blip.config import ENC
from aurora_petl.backbones.blip.model import BlipBackbone
from aurora_petl.backbones.temperature import Temperature
from aurora_petl.backbones.wrapper import Backbone
from aurora_petl.data.media import PictureFormat

MOMENTUM, ALPHA = 0.995, 0.4  # BLIP's


class Stock(Backbone):
    """transformers' model as it is, in the wrapper that `baselines.apply_method` takes."""

    def __init__(self, model: Any, heads: tuple[str, ...]) -> None:
        super().__init__(model, None, PictureFormat(model.config.vision_config.image_size), "stock")
        self.heads = heads


def stock_blip(model: Any) -> Stock:
    model.temperature = Temperature().to(next(model.parameters()))
    return Stock(model, BlipBackbone.heads)


class UsualBlip:
    """ITC with a queue and a momentum encoder, and ITM with hard negatives.

    Args:
        backbone: with its adapter injected and its trainable weights marked: the second copy starts as it is.
        image_queue: features (Q, P) of earlier pictures.
        text_queue: features (Q, P) of earlier texts.
    """

    def __init__(self, backbone: Stock, image_queue: Tensor, text_queue: Tensor) -> None:
        self.backbone, self.model = backbone, backbone.model
        module: Any = backbone.module
        self.averaged: Any = deepcopy(module).requires_grad_(False)
        self.momentum: Any = self.averaged.get_base_model() if backbone.adapter is not None else self.averaged
        self.image_queue, self.text_queue = image_queue.clone(), text_queue.clone()
        self.queue_ids = torch.full((len(image_queue),), -100, device=image_queue.device)
        self.next_row = self.steps = 0

    def __call__(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        """The loss of a batch of B pairs: (B, 3, H, W), (B, T) twice, (B,)."""
        model = self.model
        states, image = self._image(model, pixel_values)
        text = self._text(model, input_ids, attention_mask)
        with torch.no_grad():
            for average, weight in zip(self.averaged.parameters(), self.backbone.parameters(), strict=True):
                average.lerp_(weight, 1 - MOMENTUM)
            _, image_m = self._image(self.momentum, pixel_values)
            text_m = self._text(self.momentum, input_ids, attention_mask)
            all_image, all_text = torch.cat([image_m, self.image_queue]), torch.cat([text_m, self.text_queue])
            same = (ids[:, None] == torch.cat([ids, self.queue_ids])[None]).float()
            hard = same / same.sum(1, keepdim=True)
            alpha = ALPHA * min(1.0, self.steps)
            image_target = alpha * F.softmax(image_m @ all_text.t() / model.temperature(), 1) + (1 - alpha) * hard
            text_target = alpha * F.softmax(text_m @ all_image.t() / model.temperature(), 1) + (1 - alpha) * hard
        image_logits = image @ all_text.t() / model.temperature()
        text_logits = text @ all_image.t() / model.temperature()
        image_loss = -(F.log_softmax(image_logits, 1) * image_target).sum(1).mean()
        text_loss = -(F.log_softmax(text_logits, 1) * text_target).sum(1).mean()
        self._enqueue(image_m, text_m, ids)
        self.steps += 1
        matching = self._matching(states, input_ids, attention_mask, ids, image_logits, text_logits)
        return (image_loss + text_loss) / 2 + matching

    @staticmethod
    def _image(model: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        states = model.vision_model(pixel_values=pixel_values).last_hidden_state
        return states, F.normalize(model.vision_proj(states[:, 0]).float(), dim=-1)

    @staticmethod
    def _text(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return F.normalize(model.text_proj(states[:, 0]).float(), dim=-1)

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        if size := len(self.queue_ids):
            rows = slice(self.next_row, self.next_row + len(ids))
            self.image_queue[rows], self.text_queue[rows], self.queue_ids[rows] = image.float(), text.float(), ids
            self.next_row = (self.next_row + len(ids)) % size

    def _matching(
        self, states: Tensor, input_ids: Tensor, mask: Tensor, ids: Tensor, image_logits: Tensor, text_logits: Tensor
    ) -> Tensor:
        model, count = self.model, len(ids)
        begun = torch.cat([torch.full_like(input_ids[:, :1], ENC), input_ids[:, 1:]], 1)
        positive = model.text_encoder(input_ids=begun, attention_mask=mask, encoder_hidden_states=states)
        with torch.no_grad():
            same = ids[:, None] == ids[None]
            of_text = F.softmax(text_logits[:, :count].float(), 1).masked_fill(same, 0)
            of_image = F.softmax(image_logits[:, :count].float(), 1).masked_fill(same, 0)
        images = [states[int(torch.multinomial(of_text[row], 1).item())] for row in range(count)]
        texts = [int(torch.multinomial(of_image[row], 1).item()) for row in range(count)]
        text_negatives = torch.stack([begun[row] for row in texts])
        mask_negatives = torch.stack([mask[row] for row in texts])
        negative = model.text_encoder(
            input_ids=torch.cat([begun, text_negatives]),
            attention_mask=torch.cat([mask, mask_negatives]),
            encoder_hidden_states=torch.cat([torch.stack(images), states]),
        )
        fused = torch.cat([positive.last_hidden_state[:, 0], negative.last_hidden_state[:, 0]])
        labels = torch.cat([torch.ones_like(ids), ids.new_zeros(2 * count)])
        return F.cross_entropy(model.itm_head(fused).float(), labels)


class UsualDual:
    """The contrast of a dual encoder over the batch, as transformers' own class has it.

    Args:
        backbone: with its adapter injected and its trainable weights marked.
    """

    def __init__(self, backbone: Stock) -> None:
        self.backbone = backbone

    def __call__(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        batch = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        loss: Tensor = self.backbone.model(**batch, return_loss=True).loss
        return loss
