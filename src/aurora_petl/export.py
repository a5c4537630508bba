"""A tuned model as a folder that transformers reads alone: the adapter folded into its weights."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .adapter.additions import additions
from .backbones import Tunable
from .backbones.hub import COMPANY, quiet
from .backbones.load import folder_of
from .backbones.picture_format import FILES, write_picture_format
from .data.media import PictureFormat
from .errors import AuroraError
from .files import as_os_error, whole_folder
from .training import load_run

TEMPERATURE = "temperature"  # what `backbones.temperature` reads
DUAL = ("clip", "metaclip_2", "siglip")  # their position embeddings are interpolated at every pass
PROCESSORS = {  # of pictures, by model type
    "blip": "BlipImageProcessor",
    "blip-2": "BlipImageProcessor",
    "clip": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}


@dataclass(frozen=True)
class Export:
    """What `export` wrote."""

    folder: Path
    kind: str  # transformers' class
    notes: tuple[str, ...]  # what the class does otherwise than the run, a line each


def export(run: Path, out: Path) -> Export:
    """Write a finished run's model to ``out``, which appears whole or not at all: weights, configuration, tokenizer and
    image processor, for the class of transformers that the model is of.

    Raises:
        AuroraError: if ``run`` holds no finished run, or ``out`` exists.
    """
    if out.exists():
        raise AuroraError(f"{out} exists already; name another folder")
    recipe, backbone = load_run(run)
    notes = [
        f"{field} is left out: transformers has no place for what it adds where texts meet pictures"
        for field in sorted({part.field for _, _, part in additions(backbone.module)})
    ]
    model = _folded(backbone)
    notes += _notes(backbone, model)
    weights = _weights(model)
    company = folder_of(recipe.model, weights=False, company=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as partial, as_os_error(out), quiet():
        model.save_pretrained(partial, state_dict=weights)
        for name in COMPANY:
            if (company / name).is_file():
                shutil.copyfile(company / name, partial / name)
        picture, processor = getattr(backbone, "picture", None), PROCESSORS.get(model.config.model_type)
        if isinstance(picture, PictureFormat) and processor:
            if recipe.image_size or not any((partial / name).is_file() for name in FILES):
                write_picture_format(partial, picture, processor)
        elif recipe.image_size:
            notes.append(f"image_size: the image processor keeps the model's own, the run's is {recipe.image_size}")
    return Export(out, type(model).__name__, tuple(notes))


def _folded(backbone: Tunable) -> Any:
    """transformers' model with the adapter in its weights and the trained heads in their places."""
    if backbone.adapter is None:
        return backbone.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be folded is told otherwise
        return backbone.adapter.merge_and_unload()


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that transformers' class has, and the temperature under the name that a model folder has it by."""
    with torch.device("meta"):
        names = type(model)(model.config).state_dict()
    weights = {name: value for name, value in model.state_dict().items() if name in names}
    if hasattr(model, TEMPERATURE):
        weights[TEMPERATURE] = model.temperature.weight.detach()
    return weights


def _notes(backbone: Tunable, model: Any) -> list[str]:
    """What transformers' class does otherwise than the run."""
    kind, notes = type(model).__name__, []
    if hasattr(model, TEMPERATURE):
        notes.append(f"temperature: {kind} has none and says so; Aurora reads it from the folder")
    if model.config.model_type == "blip":
        notes.append("[ENC]: where a text reads a picture, give transformers token 30523 in the place of its first")
    if model.config.model_type in DUAL and model.config.vision_config.image_size != backbone.image_size:
        notes.append(f"image_size: give transformers interpolate_pos_encoding=True with {backbone.image_size} pixels")
    return notes
