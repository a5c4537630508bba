"""BLIP-2 (Li et al., 2023, arXiv 2301.12597) for retrieval, on transformers' `Blip2ForImageTextRetrieval`.

A Q-Former of query tokens and BERT's layers reads the states of a vision tower. Its output at V query tokens makes V
vectors of a picture, of which the one most like a text counts; a text's vector is that of its first token. For ITM the
query tokens and a text pass the Q-Former together, and the head's logits are averaged over the query tokens.

transformers' class has no temperature. The original learns one from 0.07, which is put beside the heads here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval
from transformers.models.blip_2.modeling_blip_2 import (
    Blip2QFormerLayer,
    Blip2QFormerMultiHeadAttention,
    Blip2TextEmbeddings,
)

from ..adapter.together import project
from ..data.media import PictureFormat
from ..errors import AuroraError
from .base import Encoded, Texts
from .folder import make_config, read_model, read_tokenizer
from .masks import ready
from .picture_format import read_picture_format
from .positions import patches_per_side, set_image_size
from .sharing import Sharing, attend, share
from .temperature import Temperature
from .words import MEND, check_words
from .wrapper import Backbone

FITTING = "take a BLIP-2 for retrieval, like Salesforce/blip2-itm-vit-g"
PICTURE_TOKEN = "<image>"
KNOWN = ["hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask"]


@dataclass(frozen=True)
class Meeting:
    """How texts meet pictures in a pass of the Q-Former; it travels to its layers as the keyword ``meeting``.

    Args:
        sharing: which picture each text meets; None: text i meets picture i, or all meet the only one.
        kept: keys and values of the pictures by layer, (M, N, D) both: filled by the first pass that is given it, read
            by those that follow.
        frames: see `sharing.attend`.
    """

    sharing: Sharing | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    frames: Tensor | None = None


class CrossAttention(Blip2QFormerMultiHeadAttention):
    """Attention of query tokens to pictures that several texts share: keys and values are projected once a picture.

    Passes without a `Meeting` go to transformers' own attention.
    """

    layer_idx: int

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        meeting: Meeting | None = kwargs.pop("meeting", None)
        if meeting is None or encoder_hidden_states is None:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs
            )
        if meeting.kept is not None and self.layer_idx in meeting.kept:
            key, value = meeting.kept[self.layer_idx]
        else:
            key, value = project(encoder_hidden_states, self.key, self.value)
            if meeting.kept is not None:
                meeting.kept[self.layer_idx] = key, value
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        query, heads = self.query(hidden_states.contiguous()), self.num_attention_heads  # see `QFormerLayer`
        context = attend(query, key, value, heads, None, dropout, meeting.sharing, meeting.frames)
        return context, None


class QFormerLayer(Blip2QFormerLayer):
    """transformers' layer, which gives its MLPs parts of a tensor: the states of query tokens, and those of texts. How
    PyTorch rounds products of a part depends on whether the weights want gradients, so that a frozen model would differ
    from the pretrained one. Copies are rounded alike."""

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        output: Tensor = super().feed_forward_chunk(attention_output.contiguous())
        return output

    def feed_forward_chunk_query(self, attention_output: Tensor) -> Tensor:
        output: Tensor = super().feed_forward_chunk_query(attention_output.contiguous())
        return output


class TextEmbeddings(Blip2TextEmbeddings):
    """transformers' embeddings add positions in place, which PyTorch refuses where gradient checkpointing has made the
    words a leaf that requires gradients. Here they are added to a new tensor."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, query_embeds: Any = None) -> Tensor:
        if input_ids is None:
            return query_embeds
        places = self.position_ids[:, : input_ids.shape[1]] if position_ids is None else position_ids
        states = self.word_embeddings(input_ids) + self.position_embeddings(places)
        return states if query_embeds is None else torch.cat([query_embeds.to(states.dtype), states], 1)


class Blip2Backbone(Backbone):
    """BLIP-2 for retrieval; a `base.Matcher`.

    Args:
        model: transformers' `Blip2ForImageTextRetrieval`, whose modules are changed in place.
        tokenizer: the model's own; None for a model without weights.
        picture: how it reads pictures.
        name: what messages call it.
    """

    heads = ("vision_projection", "text_projection", "itm_head", "temperature")
    contrast: ClassVar[str] = "softmax"
    # the original is trained without queue and momentum encoder, on texts of 32 tokens, and reranks 128
    defaults: ClassVar[Mapping[str, Any]] = {
        "queue_size": 0,
        "momentum": 0.0,
        "alpha": 0.0,
        "max_tokens": 32,
        "ranking": "itm",
        "k_test": 128,
    }

    def __init__(self, model: Any, tokenizer: Any, picture: PictureFormat, name: str) -> None:
        super().__init__(model, tokenizer, picture, name)
        self.longest: int = model.config.qformer_config.max_position_embeddings
        self.vectors: int = model.config.num_query_tokens
        self.feature_shape: tuple[int, ...] = (self.vectors, model.config.image_text_hidden_size)
        self.shares = _adjust(model)  # whether attention can read one picture for many texts
        if not hasattr(model, "temperature"):
            model.temperature = Temperature()

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        length = min(longest or self.defaults["max_tokens"], self.longest)
        tokens = self.tokenizer(
            list(words), truncation=True, max_length=length, padding=True, padding_side="right", return_tensors="pt"
        )
        ids = tokens["input_ids"]
        known = ids < self.model.config.qformer_config.vocab_size  # not so if a text says <image>
        return Texts(ids.where(known, self.tokenizer.unk_token_id), tokens["attention_mask"])

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        states = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        queries = self.model.query_tokens.expand(len(states), -1, -1)
        output = self.model.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
        return Encoded(F.normalize(self.model.vision_projection(output).float(), dim=-1), states)

    def encode_text(self, texts: Texts) -> Encoded:
        embedded = self.model.embeddings(input_ids=texts.ids)
        mask = ready(texts.mask, self.model.qformer)
        output = self.model.qformer(query_embeds=embedded, query_length=0, attention_mask=mask).last_hidden_state
        return Encoded(F.normalize(self.model.text_projection(output[:, 0]).float(), dim=-1))

    def logits(self, similarities: Tensor) -> Tensor:
        return similarities / self.model.temperature()

    def context(self, texts: Encoded) -> Tensor | None:
        return None

    def begin_match(self, texts: Texts) -> Tensor | None:
        return None  # from the first layer on, a text is read by the query tokens and reads them

    def match(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        certain: int = 0,
        context: Tensor | None = None,
        positive: Tensor | None = None,
        begun: Tensor | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        frames: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See `base.Matcher.match`; ``context``, ``positive``, ``begun`` and ``lengths`` change nothing here.

        Raises:
            AuroraError: for ``frames``, if the attention of the installed transformers is not as known here.
        """
        count, model = len(texts), self.model
        queries = model.query_tokens.expand(count, -1, -1)
        more: dict[str, Any] = {}
        if self.shares:
            sharing = None
            if which is not None:
                pictures, tokens, _ = image_states.shape
                sharing = share(which, pictures, tokens, self.vectors, image_states.device, certain)
            more["meeting"] = Meeting(sharing, kept, frames)
        elif frames is not None:
            raise AuroraError(
                "frame-aware attention needs Aurora's attention, which does not fit the installed transformers: "
                "set task.frame_attention=false"
            )
        elif which is not None:
            image_states = image_states[torch.as_tensor(which, device=image_states.device)]
        else:
            image_states = image_states.expand(count, -1, -1)
        output = model.qformer(
            query_embeds=model.embeddings(input_ids=texts.ids, query_embeds=queries),
            query_length=self.vectors,
            attention_mask=ready(torch.cat([texts.mask.new_ones(count, self.vectors), texts.mask], 1), model.qformer),
            encoder_hidden_states=image_states,
            **more,
        ).last_hidden_state
        return model.itm_head(output[:, : self.vectors]).mean(1).float()


def _adjust(model: Any) -> bool:
    """Turn modules into the subclasses above, in place, `CrossAttention` where transformers' is called as known here.

    Returns:
        whether it is.
    """
    model.embeddings.__class__ = TextEmbeddings
    for layer in model.qformer.encoder.layer:
        layer.__class__ = QFormerLayer
    theirs = signature(Blip2QFormerMultiHeadAttention.forward).parameters
    if [name for name in theirs if name not in ("self", "kwargs")] != KNOWN or "kwargs" not in theirs:
        return False
    for number, layer in enumerate(model.qformer.encoder.layer):
        if layer.has_cross_attention:
            layer.crossattention.attention.__class__ = CrossAttention
            layer.crossattention.attention.layer_idx = number
    return True


def configure(content: dict[str, Any], path: Path) -> Any:
    """BLIP-2's configuration from that of a model folder.

    Raises:
        AuroraError: if transformers cannot make one of it, or it is of a BLIP-2 that writes texts.
    """
    config = make_config(content, path, ("vision_config", "qformer_config"))
    if not config.qformer_config.use_qformer_text_input:
        raise AuroraError(
            f"{path} is of a BLIP-2 that writes texts: its Q-Former reads none, and it has no ITM head, which "
            f"retrieval needs; {FITTING}"
        )
    if config.num_query_tokens < 1:
        raise AuroraError(f"{path}: num_query_tokens is {config.num_query_tokens}, not above 0; copy the model again")
    return config


def empty(config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Blip2Backbone:
    """The model without weights or tokenizer, on the current default device."""
    vision = config.vision_config
    if image_size is not None:
        patches_per_side(image_size, vision.patch_size)
        vision.image_size = image_size
    return Blip2Backbone(Blip2ForImageTextRetrieval(config), None, PictureFormat(vision.image_size), name)


def load(folder: Path, config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Blip2Backbone:
    """Read a BLIP-2 from a folder.

    Raises:
        AuroraError: if its files do not hold one with Q-Former for texts, ITM head, tokenizer and image processor, or
            its patches do not fill ``image_size``.
    """
    tokenizer, picture = _company(folder, config, name)
    model, stored = read_model(Blip2ForImageTextRetrieval, config, folder, name, task, FITTING)
    if image_size is not None:
        set_image_size(model, image_size)
        picture = picture.of_size(image_size)
    backbone = Blip2Backbone(model, tokenizer, picture, name)
    model.temperature.read(stored)
    return backbone


def check(folder: Path, config: Any, name: str, image_size: int | None = None) -> None:
    """Look for what would stop `load` beside the weights.

    Raises:
        AuroraError: if the folder lacks a tokenizer or an image processor, or they are another model's.
    """
    _company(folder, config, name)


def _company(folder: Path, config: Any, name: str) -> tuple[Any, PictureFormat]:
    """The tokenizer and the picture format that a model has beside its weights."""
    picture = read_picture_format(folder, name, ("BlipImageProcessor",), config.vision_config.image_size)
    tokenizer = read_tokenizer(folder, config, name)
    _check_tokenizer(tokenizer, config, name)
    return tokenizer, picture


def _check_tokenizer(tokenizer: Any, config: Any, name: str) -> None:
    """Make sure that a tokenizer is the Q-Former's.

    Raises:
        AuroraError: if it gives numbers beyond the Q-Former's words, knows next to no word, or does not begin a text
            with [CLS], whose place the Q-Former's text vector is read at.
    """
    check_words(tokenizer, config.qformer_config.vocab_size, name, besides=(PICTURE_TOKEN,))
    made = tokenizer("a dog").input_ids
    if tokenizer.cls_token_id is None or tokenizer.unk_token_id is None or made[0] != tokenizer.cls_token_id:
        raise AuroraError(f"model {name}: its tokenizer does not put [CLS] before a text; {MEND}")
