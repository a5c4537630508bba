"""BLIP (Li et al., 2022, arXiv 2201.12086) on transformers' classes: ``blip-mini`` and ``Salesforce/blip-*``.

transformers 5 has BLIP's parts but no retrieval objective: the [ENC] token, the temperature and the epsilon of the
original vision tower are put right here, its attention in `blip_attention.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipForImageTextRetrieval
from transformers.utils import logging

from ..errors import AuroraError
from .blip_attention import Meeting, share, use_sdpa

ENC = 30523  # [ENC] of the original; hub tokenizers do not carry it, so it is set by number
ORIGINAL_EPSILON = 1e-6  # of the original ViT; hub configs say 1e-5


class Temperature(nn.Module):
    """The learned ITC temperature, a module so that peft saves it with the heads."""

    def __init__(self, value: float = 0.07) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self) -> Tensor:
        """Scalar in [0.001, 0.5]."""
        return self.value.clamp(0.001, 0.5)[0]


class BlipBackbone:
    """BLIP's vision tower, text encoder, projections and ITM head; see `base.Backbone` for the shapes."""

    heads = ("vision_proj", "text_proj", "itm_head", "temperature")

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.image_size: int = model.config.vision_config.image_size
        self.joint_width: int = model.config.image_text_hidden_size
        if not hasattr(model, "temperature"):
            model.temperature = Temperature()
        self.shares = use_sdpa(model)  # whether attention can read one picture for many texts
        self.adapter: PeftModel | None = None

    @property
    def module(self) -> nn.Module:
        return self.adapter if self.adapter is not None else self.model

    def parameters(self):
        return self.module.parameters()

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def project_image(self, image_states: Tensor) -> Tensor:
        return F.normalize(self.model.vision_proj(image_states[:, 0]).float(), dim=-1)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def project_text(self, text_states: Tensor) -> Tensor:
        return F.normalize(self.model.text_proj(text_states[:, 0]).float(), dim=-1)

    def begin_match(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        if not self.shares:
            return None
        encoder = self.model.text_encoder
        states = encoder.embeddings(input_ids=_fused(input_ids))
        padding = (1.0 - attention_mask[:, None, None].to(states.dtype)) * torch.finfo(states.dtype).min
        return encoder.encoder.layer[0].attention(states, padding)[0]

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | None = None,
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
        if self.shares:
            meeting = Meeting(kept=kept, begun=begun is not None, first_only=True, frames=frames)
            if which is not None:
                meeting.sharing = share(which, len(image_states), image_states.shape[1], input_ids.shape[1])
            more["meeting"] = meeting
        elif which is not None:
            image_states = image_states[which]
        fused = self.model.text_encoder(
            input_ids=_fused(input_ids) if begun is None else None,
            encoder_embeds=begun,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            **more,
        ).last_hidden_state
        return self.model.itm_head(fused[:, 0]).float()

    def temperature(self) -> Tensor:
        return self.model.temperature()


def _fused(input_ids: Tensor) -> Tensor:
    """(B, T) with [ENC] as token 0, the mark of a text that meets a picture."""
    return torch.cat([torch.full_like(input_ids[:, :1], ENC), input_ids[:, 1:]], 1)


def empty(config: Any, name: str) -> BlipBackbone:
    """The model without weights or tokenizer, on the current default device."""
    return BlipBackbone(BlipForImageTextRetrieval(config), None, name)


def load(path: str, config: Any, name: str) -> BlipBackbone:
    """Read a BLIP model from a folder or the hub.

    Raises:
        OSError: if files are missing, or weights that retrieval needs are not among them.
    """
    if name.startswith("Salesforce/"):
        config.vision_config.layer_norm_eps = ORIGINAL_EPSILON
    if config.text_config.vocab_size <= ENC:
        raise OSError(f"its vocabulary of {config.text_config.vocab_size} has no [ENC] token ({ENC})")
    shown, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # weights of BLIP's other tasks in the file are no cause for a warning
    logging.disable_progress_bar()
    try:
        loaded, report = cast(Any, BlipForImageTextRetrieval).from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    finally:
        logging.set_verbosity(shown)
        if bar:
            logging.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        raise OSError(f"{len(missing)} weights are missing, {missing[0]} among them")
    model = loaded.float()
    model.name_or_path = model.config._name_or_path = name  # what peft writes into an adapter's configuration
    backbone = BlipBackbone(model, tokenizer, name)
    weights = Path(path) / "model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            if "temperature" in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                model.temperature.value.data.copy_(file.get_tensor("temperature").float())
    return backbone
