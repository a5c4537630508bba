"""What all of BLIP's tasks share: the vision tower, the text encoder, and texts that meet pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.media import PictureFormat
from ..base import Texts
from ..masks import ready
from ..sharing import share
from ..wrapper import Backbone
from .attention import Meeting, use_sdpa
from .config import ENC

LONGEST = 35  # tokens of a text, as BLIP was fine-tuned


class Blip(Backbone):
    """Vision tower and text encoder, which all of BLIP's tasks have."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__(model, tokenizer, PictureFormat(model.config.vision_config.image_size), name)
        self.longest: int = model.config.text_config.max_position_embeddings
        self.shares = use_sdpa(model)  # whether attention can read one picture for many texts

    def view_key(self) -> str:
        return str(self.image_size)

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        length = longest or LONGEST
        tokens = self.tokenizer(list(words), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return Texts(tokens["input_ids"], tokens["attention_mask"])

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) -> picture states (B, N, D)"""
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def text_states(self, texts: Texts) -> Tensor:
        """B texts -> text-only states (B, T, D)"""
        encoder = self.model.text_encoder
        return encoder(input_ids=texts.ids, attention_mask=ready(texts.mask, encoder)).last_hidden_state

    def _fuse(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None,
        meeting: Meeting | None = None,
        encoder_embeds: Tensor | None = None,
        *,
        certain: int = 0,
        **more: Any,
    ) -> Tensor:
        """Text states (B, T, D) that have met the picture states."""
        encoder = self.model.text_encoder
        return encoder(
            input_ids=begin(texts.ids, ENC) if encoder_embeds is None else None,
            encoder_embeds=encoder_embeds,
            attention_mask=ready(texts.mask, encoder),
            **self._shared(which, texts.ids.shape[1], meeting, certain, encoder_hidden_states=image_states),
            **more,
        ).last_hidden_state

    def _shared(
        self,
        which: Tensor | Sequence[int] | None,
        tokens: int,
        meeting: Meeting | None = None,
        certain: int = 0,
        **read: Tensor,
    ) -> dict[str, Any]:
        """What cross-attention reads, (M, N, ...) each, for texts of so many tokens: once with the seats of the texts,
        or, where attention has not been replaced, with a copy for each text."""
        states = read["encoder_hidden_states"]
        if not self.shares:
            places = None if which is None else torch.as_tensor(which, device=states.device)
            return read if places is None else {name: rows[places] for name, rows in read.items()}
        meeting = meeting or Meeting()
        if which is not None:
            meeting.sharing = share(which, len(states), states.shape[1], tokens, states.device, certain)
        return {**read, "meeting": meeting}


def begin(input_ids: Tensor, token: int) -> Tensor:
    """(B, T) with ``token`` in the first place."""
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], 1)
