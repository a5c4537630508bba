"""BLIP (Li et al., 2022, arXiv 2201.12086) on transformers' classes: ``blip-mini`` and ``Salesforce/blip-*``.

transformers 5 has BLIP's parts but no retrieval objective, and averages the loss of answers over a batch: the [ENC] and
[DEC] tokens, the temperature, the loss of each answer and the epsilon of the original vision tower are put right here,
attention and its padding masks in `attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering
from transformers.models.blip.modeling_blip_text import BlipTextModel

from ...errors import AuroraError
from ..base import Encoded, Texts
from ..folder import read_model, read_tokenizer
from ..positions import patches_per_side, set_image_size
from ..sharing import pack, packed_states, share_tokens
from ..temperature import Temperature
from .answering import BlipAnswering
from .attention import Meeting
from .config import ENC, ORIGINAL_EPSILON, check_tokenizer
from .convert import Momentum, read_momentum
from .towers import LONGEST, Blip, begin

ORIGINAL_HEAD_WIDTH = 64  # of all attention heads, base and large; transformers' default for texts is 8 heads of 96


# settings of retrieval that are the model's own: those that BLIP was fine-tuned with
DEFAULTS: dict[str, Any] = {
    "queue_size": 57_600,
    "momentum": 0.995,
    "alpha": 0.4,
    "max_tokens": LONGEST,
    "ranking": "itm",
    "k_test": 128,
}

# Whether the encoder takes a mask of four dimensions. transformers before 5.9 refuses it; the mask that it then makes
# itself is not read, since attention to packed texts has its own.
TAKES_MASKS = "get_extended_attention_mask" not in vars(BlipTextModel)


class BlipBackbone(Blip):
    """BLIP for retrieval, with its projections and ITM head; a `base.Matcher`."""

    heads = ("vision_proj", "text_proj", "itm_head", "temperature")
    contrast = "softmax"
    defaults = DEFAULTS

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__(model, tokenizer, name)
        self.feature_shape: tuple[int, ...] = (model.config.image_text_hidden_size,)
        if not hasattr(model, "temperature"):
            model.temperature = Temperature()

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        states = self.image_states(pixel_values)
        return Encoded(F.normalize(self.model.vision_proj(states[:, 0]).float(), dim=-1), states)

    def encode_text(self, texts: Texts) -> Encoded:
        states = self.text_states(texts)
        return Encoded(F.normalize(self.model.text_proj(states[:, 0]).float(), dim=-1), states)

    def logits(self, similarities: Tensor) -> Tensor:
        return similarities / self.model.temperature()

    def momentum_state(self, names: Iterable[str]) -> Momentum:
        """The momentum encoder's state in the original checkpoint, see `convert.read_momentum`."""
        return read_momentum(self.name, names, self.image_size)

    def context(self, texts: Encoded) -> Tensor | None:
        assert texts.states is not None
        return texts.states[:, 0]

    def begin_match(self, texts: Texts) -> Tensor | None:
        if not self.shares:
            return None
        encoder = self.model.text_encoder
        states = encoder.embeddings(input_ids=begin(texts.ids, ENC))
        padding = (1.0 - texts.mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min
        return encoder.encoder.layer[0].attention(states, padding)[0]

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
        if frames is not None and not self.shares:
            raise AuroraError(
                "frame-aware attention needs Aurora's attention, which does not fit the installed transformers: "
                "set task.frame_attention=false"
            )
        more: dict[str, Any] = {} if context is None else {"context": context, "positive": positive}
        meeting = Meeting(kept=kept, begun=begun is not None, first_only=True, frames=frames)
        if lengths is not None and self.shares:
            return self._match_packed(texts, image_states, which, meeting, begun, lengths)
        fused = self._fuse(texts, image_states, which, meeting, begun, certain=certain, **more)
        return self.model.itm_head(fused[:, 0]).float()

    def _match_packed(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None,
        meeting: Meeting,
        begun: Tensor | None,
        lengths: Tensor,
    ) -> Tensor:
        """`match` of texts without their padding, so that no layer computes any."""
        pictures, picture_tokens, _ = image_states.shape
        if which is None:
            which = torch.arange(len(texts)) if pictures > 1 else torch.zeros(len(texts), dtype=torch.long)
        which = torch.as_tensor(which)
        if begun is None:
            states = self.begin_match(texts)
            assert states is not None
            begun = packed_states(states, lengths)
        meeting.packed = packed = pack(lengths, which, pictures, picture_tokens, begun)
        meeting.sharing = share_tokens(which, pictures, picture_tokens, begun.device)  # of the last layer
        meeting.begun, meeting.kept = True, {} if meeting.kept is None else meeting.kept
        encoder = self.model.text_encoder
        fused = encoder(
            encoder_embeds=begun[None],
            attention_mask=packed.mask if TAKES_MASKS else None,
            encoder_hidden_states=image_states,
            meeting=meeting,
        ).last_hidden_state
        return self.model.itm_head(fused[:, 0]).float()


KINDS: dict[str, tuple[Any, type[Blip]]] = {  # by task
    "retrieval": (BlipForImageTextRetrieval, BlipBackbone),
    "vqa": (BlipForQuestionAnswering, BlipAnswering),
}


FITTING = {  # what to take where parts are missing
    "retrieval": "take a checkpoint of BLIP's pretraining or of retrieval, not one of VQA or captioning",
    "vqa": "take a model with an answer decoder, like Salesforce/blip-vqa-base",
}


def empty(config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Any:
    """The model without weights or tokenizer, on the current default device."""
    if image_size is not None:
        patches_per_side(image_size, config.vision_config.patch_size)
        config.vision_config.image_size = image_size
    kind, backbone = KINDS[task]
    return backbone(kind(config), None, name)


def check(folder: Path, config: Any, name: str, image_size: int | None = None) -> None:
    """Look for what would stop `load` beside the weights.

    Raises:
        AuroraError: if the folder lacks a tokenizer, or it is another model's.
    """
    check_tokenizer(read_tokenizer(folder, config, name), config, name)


def load(folder: Path, config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Any:
    """Read a BLIP model from a folder.

    Raises:
        AuroraError: if its files do not hold a BLIP with its tokenizer, parts that the task needs are not in it, or its
            patches do not fill ``image_size``.
    """
    if name.startswith("Salesforce/"):
        config.vision_config.layer_norm_eps = ORIGINAL_EPSILON
        for part in (config.vision_config, config.text_config):
            part.num_attention_heads = part.hidden_size // ORIGINAL_HEAD_WIDTH
    kind, made = KINDS[task]
    tokenizer = read_tokenizer(folder, config, name)
    check_tokenizer(tokenizer, config, name)
    put = _share_embeddings if task == "vqa" else None
    model, stored = read_model(kind, config, folder, name, task, FITTING[task], put)
    if image_size is not None:
        set_image_size(model, image_size)
    backbone = made(model, tokenizer, name)
    if task == "retrieval":
        model.temperature.read(stored)
    return backbone


def _share_embeddings(model: Any, missing: set[str]) -> set[str]:
    """Give the decoder the text encoder's embeddings if the file has none of its own, as after BLIP's pretraining,
    where the two are one. Returns the weights that this puts in place."""
    decoder, encoder = model.text_decoder, model.text_encoder.embeddings
    given = {f"text_decoder.bert.embeddings.{name}" for name in encoder.state_dict()}
    if not given <= missing:
        return set()
    decoder.bert.embeddings.load_state_dict(encoder.state_dict())
    decoder.cls.predictions.decoder.weight = decoder.bert.embeddings.word_embeddings.weight
    return given | {"text_decoder.cls.predictions.decoder.weight"}
