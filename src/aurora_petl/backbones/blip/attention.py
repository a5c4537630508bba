"""BLIP's attention through PyTorch's `scaled_dot_product_attention`, and pictures that several texts share.

transformers computes BLIP's attention eagerly: it keeps every (heads, queries, keys) table of probabilities for the
backward pass. `use_sdpa` turns its modules into the subclasses below, which have the same weights under the same names.
They also apply the padding mask of cross-attention, which transformers drops (4.54 to 5.24 at least: it passes the mask
under a name that is not read). Calls that ask for the probabilities or a cache go to transformers' own attention, mask
included. The cache is called ``past_key_values`` up to transformers 5.23 and ``cache`` since: it is taken by both names
and passed on by place.

A picture's keys and values, most of the work of a text that meets it (68% at 577 picture and 35 text tokens), are
projected once for all its texts (`backbones/sharing.py`). What else a `Meeting` says of a fused pass saves work that
does not depend on the picture, or that nobody reads.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from inspect import signature
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.blip.modeling_blip import BlipAttention, BlipEncoderLayer
from transformers.models.blip.modeling_blip_text import (
    BlipTextAttention,
    BlipTextEmbeddings,
    BlipTextLayer,
    BlipTextSelfAttention,
)
from transformers.pytorch_utils import apply_chunking_to_forward

from ...adapter.norm import RecomputableLayerNorm
from ...adapter.together import project
from ...errors import AuroraWarning
from ..sharing import Packed, Sharing, attend, finite_mask, seat
from .crossing import cross, crossing_of


@dataclass
class Meeting:
    """What a fused pass knows beside its tensors; it travels to the text layers as the keyword argument ``meeting``.

    Args:
        sharing: where texts sit if pictures are shared.
        kept: keys and values of the pictures by text layer, (M, N, D) both: filled by the first pass that is given it,
            read by those that follow.
        begun: the states that enter have passed the first layer's self-attention.
        first_only: of the last layer's output only token 0 is wanted, (B, 1, D).
        frames: how much each text weighs the keys of each frame's patches, (B, F), see `sharing.attend`.
        packed: how the texts lie if they come without padding, (1, n, D). Then ``begun`` and ``first_only`` hold.
    """

    sharing: Sharing | None = None
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    begun: bool = False
    first_only: bool = False
    frames: Tensor | None = None
    packed: Packed | None = None


class VisionAttention(BlipAttention):
    """Self-attention of the picture's tokens, projections fused."""

    def forward(self, hidden_states, **kwargs):
        if _wants_probabilities(self.config, kwargs):
            return super().forward(hidden_states, **kwargs)
        query, key, value = project(hidden_states, self.qkv, chunks=3)
        context = attend(query, key, value, self.num_heads, dropout=_rate(self.dropout))
        return self.projection(context), None


class TextAttention(BlipTextAttention):
    """Self-attention, or cross-attention to ``encoder_hidden_states``, with the residual that follows."""

    def forward(  # type: ignore[override]  # see `KNOWN`
        self, hidden_states, attention_mask=None, encoder_hidden_states=None, cache=None, **kwargs
    ):
        inner, states, meeting = self.self, encoder_hidden_states, kwargs.get("meeting") or Meeting()
        cache = _cache(cache, kwargs)
        if cache is not None or _wants_probabilities(inner.config, kwargs):
            if states is not None and meeting.sharing is not None:
                states = states[meeting.sharing.which]
                attention_mask = None if attention_mask is None else attention_mask[meeting.sharing.which]
            # the mask twice: self-attention reads the first, cross-attention the second
            context, probabilities = inner(hidden_states, attention_mask, states, attention_mask, cache)
            return self.output(context, hidden_states), probabilities
        if states is not None:
            if meeting.kept is None:
                if (context := self._cross(hidden_states, states, attention_mask, meeting)) is not None:
                    return self.output(context, hidden_states), None
                key, value = project(states, inner.key, inner.value)
            else:
                if inner.layer_idx not in meeting.kept:
                    key, value = project(states, inner.key, inner.value)
                    meeting.kept[inner.layer_idx] = key, value
                key, value = meeting.kept[inner.layer_idx]
            (query,) = project(hidden_states, inner.query)
            if meeting.packed is not None:
                return self.output(self._cross_packed(query, key, value, meeting), hidden_states), None
        else:
            last = meeting.first_only and inner.layer_idx == inner.config.num_hidden_layers - 1
            if meeting.packed is not None:
                return self._packed(hidden_states, meeting.packed, last), None
            query, key, value = project(hidden_states, inner.query, inner.key, inner.value)
            if last:
                query, hidden_states = query[:, :1], hidden_states[:, :1]
        context = attend(
            query,
            key,
            value,
            inner.num_attention_heads,
            attention_mask,
            _rate(inner.dropout),
            None if states is None else meeting.sharing,
            None if states is None else meeting.frames,
        )
        return self.output(context, hidden_states), None

    def _packed(self, hidden_states, packed, last):
        """Self-attention of texts without padding, which is put between them for the attention itself alone."""
        inner = self.self
        if last:
            key, value = project(hidden_states, inner.key, inner.value)
            hidden_states = hidden_states[0].index_select(0, packed.first)[:, None]
            (query,) = project(hidden_states, inner.query)
        else:
            query, key, value = project(hidden_states, inner.query, inner.key, inner.value)
            query = packed.pad(query)
        context = attend(query, packed.pad(key), packed.pad(value), inner.num_attention_heads, packed.mask)
        return self.output(context if last else packed.unpad(context), hidden_states)

    def _cross_packed(self, query, key, value, meeting):
        """Cross-attention of texts without padding, (1, n, D), or of their first tokens alone, (B, 1, D): each token is
        a text by itself."""
        packed, sharing, frames, heads = meeting.packed, meeting.sharing, meeting.frames, self.self.num_attention_heads
        if whole := len(query) == 1 and query.shape[1] == len(packed.texts):
            sharing, query = packed.sharing, query.transpose(0, 1)
            frames = None if frames is None else frames[packed.texts]
        context = attend(query, key, value, heads, sharing=sharing, frames=frames)
        return context.transpose(0, 1) if whole else context

    def _cross(self, hidden_states, states, mask, meeting):
        """What cross-attention to pictures that are read once gives, by `crossing.py`; None if that does not fit."""
        inner, sharing, (texts, tokens, width) = self.self, meeting.sharing, hidden_states.shape
        one_row_each = len(states) == texts if sharing is None else sharing.rows is None
        if not one_row_each or meeting.frames is not None or _rate(inner.dropout):
            return None
        heads, size = inner.num_attention_heads, 1 if sharing is None else sharing.size
        first = inner.layer_idx == 0  # all layers read them
        parts = crossing_of(inner.key, inner.value, states, size * tokens, heads, first)
        if parts is None:
            return None
        (query,) = project(hidden_states, inner.query)
        if sharing is not None:
            query = seat(query, sharing, len(states)).view(len(states), -1, width)
        mask = None if mask is None else finite_mask(mask[:, :, :1], query.dtype)
        context = cross(query, parts, heads, mask).view(-1, tokens, width)
        return context if sharing is None else context.index_select(0, sharing.seats)


class TextLayer(BlipTextLayer):
    """transformers' layer, which drops the keyword arguments on the way to attention. ``meeting`` travels among them,
    and not by the side, so that gradient checkpointing has it again when it recomputes the layer."""

    def forward(  # type: ignore[override]  # see `KNOWN`
        self,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        encoder_attention_mask=None,
        cache=None,
        **kwargs,
    ):
        meeting, cache = kwargs.get("meeting"), _cache(cache, kwargs)
        if not (meeting is not None and meeting.begun and self.layer_num == 0):
            hidden_states, _ = self.attention(hidden_states, attention_mask, None, cache, **kwargs)
        if encoder_hidden_states is not None:
            hidden_states, _ = self.crossattention(
                hidden_states, encoder_attention_mask, encoder_hidden_states, cache, **kwargs
            )
        return apply_chunking_to_forward(
            self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, hidden_states
        )


class TextEmbeddings(BlipTextEmbeddings):
    """transformers' embeddings add positions in place, to a leaf that requires gradients once the hook of gradient
    checkpointing (`enable_input_require_grads`) has been at the word embeddings: PyTorch refuses. A copy is none."""

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, *length, **named_length):
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return super().forward(None, position_ids, words.clone(), *length, **named_length)


def _cache(cache: Any, kwargs: dict[str, Any]) -> Any:
    """The cache by its new name or its old one, which is taken out of the keyword arguments."""
    old = kwargs.pop("past_key_values", None)
    return old if cache is None else cache


REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    BlipAttention: VisionAttention,
    BlipTextAttention: TextAttention,
    BlipTextLayer: TextLayer,
    BlipTextEmbeddings: TextEmbeddings,
}


# Parameters of their forward methods in order, as the classes above take them; `_cache` and `TextEmbeddings` take both
# names of the last ones.
KNOWN: dict[type[nn.Module], list[str]] = {
    BlipAttention: ["hidden_states"],
    BlipTextSelfAttention: [
        *("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "cache"),
    ],
    BlipTextAttention: ["hidden_states", "attention_mask", "encoder_hidden_states", "cache"],
    BlipTextLayer: ["hidden_states", "encoder_hidden_states", "attention_mask", "encoder_attention_mask", "cache"],
    BlipTextEmbeddings: ["input_ids", "position_ids", "inputs_embeds", "cache_length"],
}


def use_sdpa(model: nn.Module) -> bool:
    """Give a BLIP model the attention above, in place, and norms whose output adapted layers need not keep.

    Returns:
        False, after a warning and with nothing but the embeddings changed, if the classes of the installed transformers
        are not those that this file stands in for.
    """
    for module in model.modules():
        if type(module) is BlipTextEmbeddings:
            module.__class__ = TextEmbeddings
    present = {type(module) for module in model.modules()}
    strange = [theirs for theirs in KNOWN if not _is_known(theirs)]
    strange += [theirs for theirs, ours in REPLACED.items() if not present & {theirs, ours}]
    if strange:
        warnings.warn(
            f"{strange[0].__name__} of transformers {transformers.__version__} is not as known here: BLIP runs with "
            "transformers' own attention, which is slower and may ignore the padding of what cross-attention reads",
            AuroraWarning,
            stacklevel=2,
        )
        return False
    for module in model.modules():
        if type(module) in REPLACED:
            module.__class__ = REPLACED[type(module)]
        if isinstance(module, (BlipEncoderLayer, BlipTextLayer)):  # the vision tower's last norm has many readers
            for part in module.modules():
                if type(part) is nn.LayerNorm:
                    part.__class__ = RecomputableLayerNorm
    return True


def _is_known(theirs: type[nn.Module]) -> bool:
    """Whether a class of transformers is called as the classes above expect."""
    names = [name for name in signature(theirs.forward).parameters if name not in ("self", "kwargs")]
    return [name.replace("past_key_values", "cache") for name in names] == KNOWN[theirs]


def _wants_probabilities(config: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the caller asked for attention probabilities, by argument or configuration."""
    names = ("output_attentions", "output_cross_attentions")
    return any(kwargs.get(name, getattr(config, name, False)) for name in names)


def _rate(dropout: nn.Dropout) -> float:
    return dropout.p if dropout.training else 0.0
