"""Dual encoders on transformers' classes: CLIP (Radford et al., 2021, arXiv 2103.00020), MetaCLIP 2 (arXiv 2507.22062),
SigLIP (arXiv 2303.15343) and the SigLIP 2 (arXiv 2502.14786) of fixed size, which has SigLIP's classes.

How a picture and a text are read is taken from the model's own folder: preprocessor_config.json and the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, MetaClip2Model, SiglipModel

from ..data.media import PictureFormat
from ..errors import AuroraError
from .base import Encoded, Texts
from .folder import make_config, read_model, read_tokenizer
from .masks import ready
from .picture_format import read_picture_format
from .positions import patches_per_side
from .words import MEND, check_words
from .wrapper import Backbone

MOST_SCALE = 100.0  # of CLIP's logits, as in its training


@dataclass(frozen=True)
class Kind:
    """What tells one model type from another."""

    model: Any
    heads: tuple[str, ...]
    contrast: str  # softmax or sigmoid
    padded: bool  # whether all texts are padded to the model's length, as the last token is what it reads
    processors: tuple[str, ...]  # names of image processors that are its own, without Fast or Pil behind them


_CLIP_HEADS = ("visual_projection", "text_projection", "logit_scale")
SIGLIP_HEADS = ("text_model.head", "logit_scale", "logit_bias")  # that of pictures is a layer of 7 million weights
KINDS: dict[str, Kind] = {
    "clip": Kind(CLIPModel, _CLIP_HEADS, "softmax", False, ("CLIPImageProcessor",)),
    "metaclip_2": Kind(MetaClip2Model, _CLIP_HEADS, "softmax", False, ("CLIPImageProcessor",)),
    "siglip": Kind(SiglipModel, SIGLIP_HEADS, "sigmoid", True, ("SiglipImageProcessor",)),
}


class DualBackbone(Backbone):
    """A dual encoder; see `base.DualEncoder`.

    Args:
        model: of one of `KINDS`.
        tokenizer: the model's own; None for a model without weights.
        picture: how it reads pictures.
        name: what messages call it.
        kind: what tells it from others.
    """

    def __init__(self, model: Any, tokenizer: Any, picture: PictureFormat, name: str, kind: Kind) -> None:
        super().__init__(model, tokenizer, picture, name)
        self.heads, self.contrast, self._padded = kind.heads, kind.contrast, kind.padded
        self.longest: int = model.config.text_config.max_position_embeddings
        self.feature_shape: tuple[int, ...] = (_width(model),)
        self.defaults: Mapping[str, Any] = {
            "queue_size": 0,
            "momentum": 0.0,
            "alpha": 0.0,
            "max_tokens": self.longest,
            "ranking": "itc",
            "k_test": 0,
        }

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        length = min(longest or self.longest, self.longest)
        tokens = self.tokenizer(list(words), truncation=True, max_length=length, padding=True, return_tensors="pt")
        if self._padded:
            tokens = self.tokenizer.pad(tokens, padding="max_length", max_length=self.longest, return_tensors="pt")
        ids = tokens["input_ids"]
        # a model whose tokenizer makes no mask reads its padding
        masked = "attention_mask" in self.tokenizer.model_input_names
        return Texts(ids, tokens["attention_mask"] if masked else ids.new_ones(ids.shape), fixed=self._padded)

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        # another size than the model's needs its position embeddings interpolated, which is done at every pass
        resized = {"interpolate_pos_encoding": True} if self.image_size != _own_size(self.model.config) else {}
        return Encoded(unit(self.model.get_image_features(pixel_values=pixel_values, **resized)))

    def encode_text(self, texts: Texts) -> Encoded:
        mask = ready(texts.mask, self.model.text_model, causal=self.contrast == "softmax")
        return Encoded(unit(self.model.get_text_features(input_ids=texts.ids, attention_mask=mask)))

    def logits(self, similarities: Tensor) -> Tensor:
        if self.contrast == "sigmoid":
            return similarities * self.model.logit_scale.exp() + self.model.logit_bias
        return similarities * self.model.logit_scale.exp().clamp(max=MOST_SCALE)


def unit(output: Any) -> Tensor:
    """(B, P) of length 1 from what transformers gives."""
    return F.normalize(output.pooler_output.float(), dim=-1)


def _width(model: Any) -> int:
    config = model.config
    return config.vision_config.hidden_size if config.model_type in ("siglip", "siglip2") else config.projection_dim


def _own_size(config: Any) -> int:
    size: int = config.vision_config.image_size
    return size


def configure(content: dict[str, Any], path: Path) -> Any:
    """A dual encoder's configuration from that of a model folder.

    Raises:
        AuroraError: if transformers cannot make one of it.
    """
    return make_config(content, path, ("vision_config", "text_config"))


def empty(config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> DualBackbone:
    """The model without weights or tokenizer, on the current default device."""
    picture = PictureFormat(_own_size(config))
    kind = KINDS[config.model_type]
    return DualBackbone(kind.model(config), None, _sized(picture, config, image_size), name, kind)


def load(folder: Path, config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> DualBackbone:
    """Read a dual encoder from a folder.

    Raises:
        AuroraError: if its files do not hold one with its tokenizer and image processor, or its patches do not fill
            ``image_size``.
    """
    tokenizer, picture = _company(folder, config, name)
    kind = KINDS[config.model_type]
    model, _ = read_model(kind.model, config, folder, name, task, "copy the model again")
    return DualBackbone(model, tokenizer, _sized(picture, config, image_size), name, kind)


def check(folder: Path, config: Any, name: str, image_size: int | None = None) -> None:
    """Look for what would stop `load` beside the weights.

    Raises:
        AuroraError: if the folder lacks a tokenizer or an image processor, or they are another model's.
    """
    _company(folder, config, name)


def _company(folder: Path, config: Any, name: str) -> tuple[Any, PictureFormat]:
    """The tokenizer and the picture format that a model has beside its weights."""
    picture = read_picture_format(folder, name, KINDS[config.model_type].processors, _own_size(config))
    tokenizer = read_tokenizer(folder, config, name)
    check_tokenizer(tokenizer, config, name)
    return tokenizer, picture


def _sized(picture: PictureFormat, config: Any, image_size: int | None) -> PictureFormat:
    if image_size is None:
        return picture
    patches_per_side(image_size, config.vision_config.patch_size)
    return picture.of_size(image_size)


def check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """Make sure that a tokenizer is the text tower's.

    Raises:
        AuroraError: if it gives numbers beyond the tower's words, lacks the token that the tower reads, or knows next
            to no word.
    """
    text = config.text_config
    check_words(tokenizer, text.vocab_size, name)
    end = text.eos_token_id
    if config.model_type not in ("siglip", "siglip2") and end != 2 and tokenizer("a dog").input_ids[-1] != end:
        raise AuroraError(
            f"model {name}: its tokenizer does not end a text with token {end}, which its text tower reads; {MEND}"
        )
