"""The model side of search: pictures and texts to features, and pairs to ITM logits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import selection
from ..backbones import Backbone, load_backbone
from ..backbones.base import embedded_models
from ..data.media import EvalTransform
from ..devices import choose
from ..errors import AuroraError
from ..evaluation.features import tokenize
from ..recipe import load_recipe
from ..tasks.settings import RetrievalSettings
from ..training import load_run

TUNED, UNTUNED = "tuned", "untuned"


class Encoder:
    """A backbone in evaluation mode, on the device that `devices.choose` gives.

    Args:
        beta: weight of the ITC similarity beside the match logit in a reranked score, as the model's recipe has it.
    """

    def __init__(self, backbone: Backbone, max_tokens: int, beta: float = 0.0) -> None:
        self.device = choose()
        self.backbone, self.max_tokens, self.beta = backbone, max_tokens, beta
        self.backbone.module.to(self.device).eval()
        self.transform = EvalTransform(backbone.image_size)

    def key(self) -> str:
        """A digest of every weight, adapter included, and of the picture size: features of two models whose keys
        differ must not meet."""
        digest = hashlib.sha256(f"{self.backbone.image_size}/{self.max_tokens}".encode())
        for name, weight in sorted(self.backbone.module.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> unit vectors (B, P) on the CPU"""
        return self.backbone.project_image(self.backbone.encode_image(pixels.to(self.device))).cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors (B, P) on the CPU"""
        return self.backbone.project_text(self.backbone.encode_text(*self._tokens(texts))).cpu()

    @torch.inference_mode()
    def match(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """ITM match logits: of the one text with each picture, or of the one picture with each text.

        Args:
            pixels: (M, 3, S, S)
            texts: T of them; M or T is 1.

        Returns:
            (max(M, T),) on the CPU
        """
        states = self.backbone.encode_image(pixels.to(self.device))
        ids, mask = self._tokens(texts)
        if len(states) > 1:
            ids, mask = ids.expand(len(states), -1), mask.expand(len(states), -1)
        return self.backbone.match(ids, mask, states)[:, 1].cpu()

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenize(self.backbone, list(texts), self.max_tokens)
        return tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)


def model_folder(model: str) -> Path | None:
    """The folder of a model, if it has one that is not the package's own."""
    return Path(model) if model not in embedded_models() and Path(model).is_dir() else None


def views_of(model: str) -> tuple[str, ...]:
    """The forms in which ``model`` can be asked: a finished run's tuned and untuned, any other model's untuned."""
    folder = model_folder(model)
    return (TUNED, UNTUNED) if folder and (folder / "recipe.yaml").is_file() else (UNTUNED,)


def load_encoder(model: str, view: str) -> Encoder:
    """One view of a finished run's folder, or of a backbone by name or folder.

    Raises:
        AuroraError: if there is no such model, its run did not finish, or it is of another task.
    """
    if TUNED not in views_of(model):
        return Encoder(load_backbone(model), RetrievalSettings.max_tokens)
    recipe = load_recipe(Path(model) / "recipe.yaml")
    if not isinstance(recipe.task, RetrievalSettings):
        raise AuroraError(f"{model} was tuned for {recipe.task.name}; pictures are found by a run of retrieval")
    if view == TUNED:
        recipe, backbone = load_run(Path(model))
    else:
        recipe = selection.settled(recipe, Path(model), selection.UNTUNED)
        backbone = load_backbone(recipe.model, image_size=recipe.image_size or None)
    task = recipe.task
    assert isinstance(task, RetrievalSettings)
    return Encoder(backbone, task.max_tokens, task.beta)
