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
from peft import PeftModel
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval, BlipForQuestionAnswering

from ...data.media import EvalTransform, PictureFormat, TrainTransform
from ...errors import AuroraError
from ..base import Encoded, Texts, View
from ..folder import read_model, read_tokenizer
from ..positions import patches_per_side, set_image_size
from ..sharing import share
from ..temperature import Temperature
from .attention import Meeting, use_sdpa
from .config import DEC, ENC, ORIGINAL_EPSILON, check_tokenizer
from .convert import Momentum, read_momentum

ORIGINAL_HEAD_WIDTH = 64  # of all attention heads, base and large; transformers' default for texts is 8 heads of 96


# settings of retrieval that are the model's own: those that BLIP was fine-tuned with
DEFAULTS: dict[str, Any] = {
    "queue_size": 57_600,
    "momentum": 0.995,
    "alpha": 0.4,
    "max_tokens": 35,
    "ranking": "itm",
    "k_test": 128,
}


class _Blip:
    """Vision tower and text encoder, which all of BLIP's tasks have."""

    heads: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.longest: int = model.config.text_config.max_position_embeddings
        self.shares = use_sdpa(model)  # whether attention can read one picture for many texts
        self.adapter: PeftModel | None = None

    @property
    def module(self) -> nn.Module:
        return self.adapter if self.adapter is not None else self.model

    @property
    def image_size(self) -> int:
        return self.model.config.vision_config.image_size

    def parameters(self):
        return self.module.parameters()

    def view(self, training: bool = False, *, flip: bool = True) -> View:
        picture = PictureFormat(self.image_size)
        return TrainTransform(picture, flip=flip) if training else EvalTransform(picture)

    def view_key(self) -> str:
        return str(self.image_size)

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        length = longest or DEFAULTS["max_tokens"]
        tokens = self.tokenizer(list(words), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return Texts(tokens["input_ids"], tokens["attention_mask"])

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) -> picture states (B, N, D)"""
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def text_states(self, texts: Texts) -> Tensor:
        """B texts -> text-only states (B, T, D)"""
        return self.model.text_encoder(input_ids=texts.ids, attention_mask=texts.mask).last_hidden_state

    def _fuse(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None,
        meeting: Meeting | None = None,
        encoder_embeds: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Text states (B, T, D) that have met the picture states."""
        return self.model.text_encoder(
            input_ids=_begin(texts.ids, ENC) if encoder_embeds is None else None,
            encoder_embeds=encoder_embeds,
            attention_mask=texts.mask,
            **self._shared(which, texts.ids.shape[1], meeting, encoder_hidden_states=image_states),
            **more,
        ).last_hidden_state

    def _shared(
        self, which: Tensor | Sequence[int] | None, tokens: int, meeting: Meeting | None = None, **read: Tensor
    ) -> dict[str, Any]:
        """What cross-attention reads, (M, N, ...) each, for texts of so many tokens: once with the seats of the texts,
        or, where attention has not been replaced, with a copy for each text."""
        states = read["encoder_hidden_states"]
        if not self.shares:
            places = None if which is None else torch.as_tensor(which, device=states.device)
            return read if places is None else {name: rows[places] for name, rows in read.items()}
        meeting = meeting or Meeting()
        if which is not None:
            meeting.sharing = share(which, len(states), states.shape[1], tokens, states.device)
        return {**read, "meeting": meeting}


def _begin(input_ids: Tensor, token: int) -> Tensor:
    """(B, T) with ``token`` in the first place."""
    return torch.cat([torch.full_like(input_ids[:, :1], token), input_ids[:, 1:]], 1)


class BlipBackbone(_Blip):
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
        states = encoder.embeddings(input_ids=_begin(texts.ids, ENC))
        padding = (1.0 - texts.mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min
        return encoder.encoder.layer[0].attention(states, padding)[0]

    def match(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        positive: Tensor | None = None,
        begun: Tensor | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        frames: Tensor | None = None,
    ) -> Tensor:
        if frames is not None and not self.shares:
            raise AuroraError(
                "frame-aware attention needs Aurora's attention, which does not fit the installed transformers: "
                "set task.frame_attention=false"
            )
        more: dict[str, Any] = {} if context is None else {"context": context, "positive": positive}
        meeting = Meeting(kept=kept, begun=begun is not None, first_only=True, frames=frames)
        fused = self._fuse(texts, image_states, which, meeting, encoder_embeds=begun, **more)
        return self.model.itm_head(fused[:, 0]).float()


class BlipAnswering(_Blip):
    """BLIP for questions, with its answer decoder; see `base.AnsweringBackbone` for the shapes."""

    def question_context(self, questions: Texts) -> Tensor:
        return self.text_states(questions)[:, 0]

    def encode_question(
        self,
        questions: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        more: dict[str, Any] = {} if context is None else {"context": context}
        return self._fuse(questions, image_states, which, **more)

    def answer_logits(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        states = self._decode(answers, question_states, question_mask, which)
        return self.model.text_decoder.cls(states).float()

    def answer_loss(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        states = self._decode(answers, question_states, question_mask, which)
        lengths = answers.lengths().tolist() if lengths is None else lengths
        longest = answers.ids.shape[1] - 1  # the decoder reads a token and writes the next
        numbers = [row * longest + place for row, length in enumerate(lengths) for place in range(length - 1)]
        written = torch.tensor(numbers, dtype=torch.long, device=states.device)  # none of padding
        read = states[:, :-1].flatten(0, 1).index_select(0, written)
        logits = self.model.text_decoder.cls(read).float()  # (tokens, words)
        labels = answers.ids[:, 1:].flatten().index_select(0, written)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return losses.new_zeros(len(answers) * longest).index_copy(0, written, losses).view(-1, longest).sum(1)

    def generate_answers(
        self, question_states: Tensor, question_mask: Tensor, *, num_beams: int, max_tokens: int
    ) -> list[str]:
        text = self.model.config.text_config
        found = self.model.text_decoder.generate(
            input_ids=torch.full_like(question_mask[:, :1], DEC),
            encoder_hidden_states=question_states,
            encoder_attention_mask=question_mask,
            bos_token_id=DEC,
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            do_sample=False,
            num_beams=num_beams,
            max_length=max_tokens,
        )
        return self.tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)

    def _decode(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None,
    ) -> Tensor:
        """States (A, T, D) of answers that have read their questions."""
        return self.model.text_decoder.bert(
            input_ids=_begin(answers.ids, DEC),
            attention_mask=answers.mask,
            is_decoder=True,  # each token sees those before it only
            use_cache=False,
            **self._shared(
                which,
                answers.ids.shape[1],
                encoder_hidden_states=question_states,
                encoder_attention_mask=question_mask,
            ),
        ).last_hidden_state


KINDS: dict[str, tuple[Any, type[_Blip]]] = {  # by task
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
