"""BLIP (Li et al., 2022, arXiv 2201.12086) on transformers' classes: ``blip-mini`` and ``Salesforce/blip-*``.

transformers 5 has BLIP's parts but no retrieval objective, and averages the loss of answers over a batch: the [ENC] and
[DEC] tokens, the temperature, the loss of each answer and the epsilon of the original vision tower are put right here,
attention and its padding masks in `blip_attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipForQuestionAnswering
from transformers.utils import logging

from ..errors import AuroraError
from .blip_attention import Meeting, share, use_sdpa

DEC, ENC = 30522, 30523  # [DEC] and [ENC] of the original; hub tokenizers do not carry them, so numbers it is
ORIGINAL_EPSILON = 1e-6  # of the original ViT; hub configs say 1e-5
ORIGINAL_HEAD_WIDTH = 64  # of all attention heads, base and large; transformers' default for texts is 8 heads of 96


class Temperature(nn.Module):
    """The learned ITC temperature, a module so that peft saves it with the heads."""

    def __init__(self, value: float = 0.07) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self) -> Tensor:
        """Scalar in [0.001, 0.5]."""
        return self.value.clamp(0.001, 0.5)[0]


class _Blip:
    """Vision tower and text encoder, which all of BLIP's tasks have."""

    heads: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.image_size: int = model.config.vision_config.image_size
        self.longest: int = model.config.text_config.max_position_embeddings
        self.shares = use_sdpa(model)  # whether attention can read one picture for many texts
        self.adapter: PeftModel | None = None

    @property
    def module(self) -> nn.Module:
        return self.adapter if self.adapter is not None else self.model

    def parameters(self):
        return self.module.parameters()

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def _fuse(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None,
        meeting: Meeting | None = None,
        encoder_embeds: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Text states (B, T, D) that have met the picture states."""
        return self.model.text_encoder(
            input_ids=_begin(input_ids, ENC) if encoder_embeds is None else None,
            encoder_embeds=encoder_embeds,
            attention_mask=attention_mask,
            **self._shared(which, input_ids.shape[1], meeting, encoder_hidden_states=image_states),
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
    """BLIP for retrieval, with its projections and ITM head; see `base.Backbone` for the shapes."""

    heads = ("vision_proj", "text_proj", "itm_head", "temperature")

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        super().__init__(model, tokenizer, name)
        self.joint_width: int = model.config.image_text_hidden_size
        if not hasattr(model, "temperature"):
            model.temperature = Temperature()

    def project_image(self, image_states: Tensor) -> Tensor:
        return F.normalize(self.model.vision_proj(image_states[:, 0]).float(), dim=-1)

    def project_text(self, text_states: Tensor) -> Tensor:
        return F.normalize(self.model.text_proj(text_states[:, 0]).float(), dim=-1)

    def begin_match(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        if not self.shares:
            return None
        encoder = self.model.text_encoder
        states = encoder.embeddings(input_ids=_begin(input_ids, ENC))
        padding = (1.0 - attention_mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min
        return encoder.encoder.layer[0].attention(states, padding)[0]

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
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
        fused = self._fuse(input_ids, attention_mask, image_states, which, meeting, encoder_embeds=begun, **more)
        return self.model.itm_head(fused[:, 0]).float()

    def temperature(self) -> Tensor:
        return self.model.temperature()


class BlipAnswering(_Blip):
    """BLIP for questions, with its answer decoder; see `base.AnsweringBackbone` for the shapes."""

    def encode_question(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        more: dict[str, Any] = {} if context is None else {"context": context}
        return self._fuse(input_ids, attention_mask, image_states, which, **more)

    def answer_logits(
        self,
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        states = self._decode(answer_ids, answer_mask, question_states, question_mask, which)
        return self.model.text_decoder.cls(states).float()

    def answer_loss(
        self,
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        states = self._decode(answer_ids, answer_mask, question_states, question_mask, which)
        lengths = answer_mask.sum(1).tolist() if lengths is None else lengths
        answers, longest = len(answer_ids), answer_ids.shape[1] - 1  # the decoder reads a token and writes the next
        numbers = [row * longest + place for row, length in enumerate(lengths) for place in range(length - 1)]
        written = torch.tensor(numbers, dtype=torch.long, device=states.device)  # none of padding
        read = states[:, :-1].flatten(0, 1).index_select(0, written)
        logits = self.model.text_decoder.cls(read).float()  # (tokens, words)
        labels = answer_ids[:, 1:].flatten().index_select(0, written)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return losses.new_zeros(answers * longest).index_copy(0, written, losses).view(answers, longest).sum(1)

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
        answer_ids: Tensor,
        answer_mask: Tensor,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None,
    ) -> Tensor:
        """States (A, T, D) of answers that have read their questions."""
        return self.model.text_decoder.bert(
            input_ids=_begin(answer_ids, DEC),
            attention_mask=answer_mask,
            is_decoder=True,  # each token sees those before it only
            use_cache=False,
            **self._shared(
                which,
                answer_ids.shape[1],
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


def _kind(task: str) -> tuple[Any, type[_Blip]]:
    if task not in KINDS:
        raise AuroraError(f"BLIP has no part for task {task!r}; choose one of {', '.join(KINDS)}")
    return KINDS[task]


def patches_per_side(image_size: int, patch_size: int) -> int:
    """Patches along a side of a picture.

    Raises:
        AuroraError: if they do not fill it.
    """
    side, rest = divmod(image_size, patch_size)
    if side < 1 or rest:
        sizes = [size for size in (side * patch_size, (side + 1) * patch_size) if size > 0]
        raise AuroraError(
            f"image_size is {image_size}, which patches of {patch_size} pixels do not fill; "
            f"the next that fit: {' and '.join(map(str, sizes or [patch_size]))}"
        )
    return side


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + n * n, D) -> (1, 1 + side * side, D): [CLS]'s as it is, those of the patches
    interpolated bicubically, as the original does when it loads."""
    if positions.shape[1] == 1 + side * side:
        return positions
    first, grid = positions[:, :1], positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    grid = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


def set_image_size(model: Any, image_size: int) -> None:
    """Give a loaded BLIP position embeddings for pictures of ``image_size`` x ``image_size``, in place.

    Raises:
        AuroraError: if its patches do not fill that.
    """
    vision, embeddings = model.config.vision_config, model.vision_model.embeddings
    side = patches_per_side(image_size, vision.patch_size)
    embeddings.position_embedding = nn.Parameter(resize_positions(embeddings.position_embedding.data, side))
    embeddings.image_size = vision.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = side**2, side**2 + 1


def empty(config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Any:
    """The model without weights or tokenizer, on the current default device."""
    if image_size is not None:
        patches_per_side(image_size, config.vision_config.patch_size)
        config.vision_config.image_size = image_size
    kind, backbone = _kind(task)
    return backbone(kind(config), None, name)


def load(path: str, config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> Any:
    """Read a BLIP model from a folder or the hub.

    Raises:
        OSError: if files are missing, or single weights.
        AuroraError: if parts that the task needs are not in it, or its patches do not fill ``image_size``.
    """
    if name.startswith("Salesforce/"):
        config.vision_config.layer_norm_eps = ORIGINAL_EPSILON
        for part in (config.vision_config, config.text_config):
            part.num_attention_heads = part.hidden_size // ORIGINAL_HEAD_WIDTH
    if config.text_config.vocab_size <= ENC:
        raise OSError(f"its vocabulary of {config.text_config.vocab_size} has no [ENC] token ({ENC})")
    kind, made = _kind(task)
    shown, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # weights of BLIP's other tasks in the file are no cause for a warning
    logging.disable_progress_bar()
    try:
        loaded, report = kind.from_pretrained(path, config=config, use_safetensors=True, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    finally:
        logging.set_verbosity(shown)
        if bar:
            logging.enable_progress_bar()
    missing = set(report["missing_keys"])
    if task == "vqa":
        missing -= _share_embeddings(loaded, missing)
    if missing:
        if parts := [part for part, module in loaded.named_children() if _all_of(part, module) <= missing]:
            raise AuroraError(f"model {name} has no {', '.join(parts)}, which {task} needs; {FITTING[task]}")
        raise OSError(f"{len(missing)} weights are missing, {min(missing)} among them; {FITTING[task]}")
    model = loaded.float()
    if image_size is not None:
        set_image_size(model, image_size)
    model.name_or_path = model.config._name_or_path = name  # what peft writes into an adapter's configuration
    backbone = made(model, tokenizer, name)
    weights = Path(path) / "model.safetensors"
    if task == "retrieval" and weights.is_file():
        with safe_open(weights, "pt") as file:
            if "temperature" in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                model.temperature.value.data.copy_(file.get_tensor("temperature").float())
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


def _all_of(part: str, module: nn.Module) -> set[str]:
    """Names of a part's weights in the model."""
    return {f"{part}.{name}" for name, _ in module.named_parameters()}
