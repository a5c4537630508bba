"""What backbones have in common: transformers' model within, peft's wrapper around it, one view of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from torch import nn

from ..data.media import EvalTransform, PictureFormat, TrainTransform
from .base import View


class Backbone:
    """A model with its tokenizer, as `base.Tunable` asks for it, but for how texts become tokens.

    Args:
        model: transformers' model, which peft adapts in place.
        tokenizer: the model's own; None for a model without weights.
        picture: how the model reads pictures.
        name: what messages call it.
    """

    heads: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, picture: PictureFormat, name: str) -> None:
        self.model, self.tokenizer, self.picture, self.name = model, tokenizer, picture, name
        self.adapter: PeftModel | None = None

    @property
    def module(self) -> nn.Module:
        return self.adapter if self.adapter is not None else self.model

    @property
    def image_size(self) -> int:
        return self.picture.size

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def view(self, training: bool = False, *, flip: bool = True) -> View:
        return TrainTransform(self.picture, flip=flip) if training else EvalTransform(self.picture)

    def view_key(self) -> str:
        return repr(self.picture)

    def before_graph(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch
