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
from .blip_attention import share, use_sdpa

ENC = 30523  # [ENC] of the original; hub tokenizers do not carry it, so it is set by number
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

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_states: Tensor,
        which: Tensor | None = None,
        *,
        context: Tensor | None = None,
        positive: Tensor | None = None,
    ) -> Tensor:
        more: dict[str, Any] = {} if context is None else {"context": context, "positive": positive}
        if which is not None and self.shares:
            more["sharing"] = share(which, len(image_states), image_states.shape[1], input_ids.shape[1])
        elif which is not None:
            image_states = image_states[which]
        fused = self.model.text_encoder(
            input_ids=torch.cat([torch.full_like(input_ids[:, :1], ENC), input_ids[:, 1:]], 1),
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            **more,
        ).last_hidden_state
        return self.model.itm_head(fused[:, 0]).float()

    def temperature(self) -> Tensor:
        return self.model.temperature()


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


def empty(config: Any, name: str, image_size: int | None = None) -> BlipBackbone:
    """The model without weights or tokenizer, on the current default device."""
    if image_size is not None:
        patches_per_side(image_size, config.vision_config.patch_size)
        config.vision_config.image_size = image_size
    return BlipBackbone(BlipForImageTextRetrieval(config), None, name)


def load(path: str, config: Any, name: str, image_size: int | None = None) -> BlipBackbone:
    """Read a BLIP model from a folder or the hub.

    Raises:
        OSError: if files are missing, or single weights.
        AuroraError: if parts that retrieval needs are not in it, or its patches do not fill ``image_size``.
    """
    if name.startswith("Salesforce/"):
        config.vision_config.layer_norm_eps = ORIGINAL_EPSILON
        for part in (config.vision_config, config.text_config):
            part.num_attention_heads = part.hidden_size // ORIGINAL_HEAD_WIDTH
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
        if parts := [part for part, module in loaded.named_children() if _all_of(part, module) <= set(missing)]:
            raise AuroraError(
                f"model {name} has no {', '.join(parts)}, which retrieval needs; take a checkpoint of BLIP's "
                "pretraining or of retrieval, not one of VQA or captioning"
            )
        raise OSError(f"{len(missing)} weights are missing, {missing[0]} among them")
    model = loaded.float()
    if image_size is not None:
        set_image_size(model, image_size)
    model.name_or_path = model.config._name_or_path = name  # what peft writes into an adapter's configuration
    backbone = BlipBackbone(model, tokenizer, name)
    weights = Path(path) / "model.safetensors"
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            if "temperature" in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                model.temperature.value.data.copy_(file.get_tensor("temperature").float())
    return backbone


def _all_of(part: str, module: nn.Module) -> set[str]:
    """Names of a part's weights in the model."""
    return {f"{part}.{name}" for name, _ in module.named_parameters()}
