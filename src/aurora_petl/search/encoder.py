"""The model side of search: pictures and texts to features, and pairs to ITM logits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import selection
from ..backbones import DualEncoder, Texts, embedded_models, is_matcher, load_backbone
from ..backbones.hub import RUN, fetch_run, is_hub_id
from ..devices import choose
from ..errors import AuroraError
from ..recipe import load_saved
from ..tasks.settings import RetrievalSettings
from ..training import load_run

TUNED, UNTUNED = "tuned", "untuned"


class Encoder:
    """A backbone in evaluation mode.

    Args:
        device: where it computes; None takes the one that `devices.choose` gives.
        beta: weight of the ITC similarity beside the match logit in a reranked score, as the model's recipe has it.
    """

    def __init__(
        self, backbone: DualEncoder, max_tokens: int = 0, beta: float = 0.0, device: torch.device | None = None
    ) -> None:
        self.device = device or choose()
        self.backbone, self.max_tokens, self.beta = backbone, max_tokens, beta
        self.backbone.module.to(self.device).eval()
        self.transform = backbone.view()
        self.matches = is_matcher(backbone)  # whether there is a second stage

    def key(self) -> str:
        """A digest of every weight, adapter included, and of the picture size: features of two models whose keys
        differ must not meet."""
        digest = hashlib.sha256(
            f"{self.backbone.view_key()}/{self.max_tokens or self.backbone.defaults['max_tokens']}".encode()
        )
        for name, weight in sorted(self.backbone.module.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> unit vectors on the CPU, (B, P), or (B, V, P) where the model gives a picture V vectors"""
        return self.backbone.encode_image(pixels.to(self.device)).feature.cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> unit vectors (B, P) on the CPU"""
        return self.backbone.encode_text(self._tokens(texts)).feature.cpu()

    @torch.inference_mode()
    def match(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """ITM match logits: of the one text with each picture, or of the one picture with each text.

        Args:
            pixels: (M, 3, S, S)
            texts: T of them; M or T is 1.

        Returns:
            (max(M, T),) on the CPU

        Raises:
            AuroraError: if the model has no second stage.
        """
        if not is_matcher(self.backbone):
            raise AuroraError(f"{self.backbone.name} has no second stage to rerank with; leave out rerank")
        states = self.backbone.encode_image(pixels.to(self.device)).states
        assert states is not None
        tokens = self._tokens(texts)
        if len(states) > 1:
            tokens = Texts(tokens.ids.expand(len(states), -1), tokens.mask.expand(len(states), -1))
        return self.backbone.match(tokens, states)[:, 1].cpu()

    def _tokens(self, texts: Sequence[str]) -> Texts:
        return self.backbone.texts(texts, self.max_tokens).to(self.device)


def model_folder(model: str) -> Path | None:
    """The folder of a model, if it has one that is not the package's own."""
    return Path(model) if model not in embedded_models() and Path(model).is_dir() else None


def run_folder(model: str) -> Path | None:
    """The folder of a run, on this machine or fetched from the hub; None if the name is that of a model.

    Raises:
        AuroraError: if the hub has neither a run nor a model under the name.
    """
    if (folder := model_folder(model)) is not None:
        return folder if (folder / RUN).is_file() else None
    return fetch_run(model) if model not in embedded_models() and is_hub_id(model) else None


def views_of(model: str) -> tuple[str, ...]:
    """The forms in which ``model`` can be asked: a finished run's tuned and untuned, any other model's untuned."""
    folder = model_folder(model)
    return (TUNED, UNTUNED) if folder and (folder / RUN).is_file() else (UNTUNED,)


def load_encoder(model: str, view: str) -> Encoder:
    """One view of a finished run's folder, or of a backbone by name or folder.

    Raises:
        AuroraError: if there is no such model, its run did not finish, or it is of another task.
    """
    if TUNED not in views_of(model):
        return Encoder(load_backbone(model))
    recipe = load_saved(Path(model) / RUN)
    if not isinstance(recipe.task, RetrievalSettings):
        raise AuroraError(f"{model} was tuned for {recipe.task.name}; pictures are found by a run of retrieval")
    if view == TUNED:
        recipe, backbone = load_run(Path(model))
    else:
        recipe = selection.settled(recipe, Path(model), selection.UNTUNED)
        backbone = load_backbone(recipe.model, image_size=recipe.image_size or None)
    task = recipe.task
    assert isinstance(task, RetrievalSettings)
    return Encoder(backbone, task.longest_text, task.beta)
