"""A tuned model as a folder that transformers or sentence-transformers reads alone: the adapter is in the weights."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import sentences
from .adapter.additions import additions
from .backbones import Tunable
from .backbones.hub import COMPANY, quiet
from .backbones.load import folder_of
from .backbones.picture_format import FILES, write_picture_format
from .data.media import PictureFormat
from .errors import AuroraError, short
from .files import as_os_error, whole_folder
from .run_model import load_run, saved_recipe

TEMPERATURE = "temperature"  # what `backbones.temperature` reads
DUAL = ("clip", "metaclip_2", "siglip")  # their position embeddings are interpolated at every pass
TRANSFORMERS, SENTENCES = "transformers", "sentence-transformers"  # what reads the folder
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
    form: str = TRANSFORMERS

    @property
    def loading(self) -> str:
        """The Python expression that loads the folder."""
        if self.form == SENTENCES:
            return f"sentence_transformers.SentenceTransformer({str(self.folder)!r})"
        return f"transformers.{self.kind}.from_pretrained({str(self.folder)!r})"


def export(run: str | Path, out: str | Path, form: str = TRANSFORMERS) -> Export:
    """Write a finished run's model to ``out``, which appears whole or not at all: weights, configuration, tokenizer and
    image processor, for the class of transformers that the model is of.

    Args:
        form: ``transformers``; or ``sentence-transformers``, which reads the same folder by some files more, for dual
            encoders alone.

    Raises:
        AuroraError: if ``run`` holds no finished run, ``out`` exists, or sentence-transformers has no class for the
            model.
    """
    run, out = Path(run), Path(out)
    if form not in (TRANSFORMERS, SENTENCES):
        raise AuroraError(f"form is {short(form)}; choose {TRANSFORMERS} or {SENTENCES}")
    if out.exists():
        raise AuroraError(f"{out} exists already; name another folder")
    if form == SENTENCES:
        sentences.check(saved_recipe(run))
    recipe, backbone = load_run(run)
    notes = [
        f"{field} is left out: transformers has no place for what it adds where texts meet pictures"
        for field in sorted({part.field for _, _, part in additions(backbone.module)})
    ]
    model = _folded(backbone)
    if model.config.model_type in DUAL:
        _fold_positions(model, backbone.image_size)
    notes += _notes(model)
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
        if form == SENTENCES:
            notes += sentences.write(partial, recipe, backbone)
    return Export(out, type(model).__name__, tuple(notes), form)


def _folded(backbone: Tunable) -> Any:
    """transformers' model with the adapter in its weights and the trained heads in their places."""
    if backbone.adapter is None:
        return backbone.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be folded is told otherwise
        return backbone.adapter.merge_and_unload()


def _fold_positions(model: Any, image_size: int) -> None:
    """Give a dual encoder position embeddings for pictures of a size, as transformers interpolates them at a pass."""
    vision, embeddings = model.config.vision_config, model.vision_model.embeddings
    if image_size == vision.image_size:
        return
    old, side = embeddings.position_embedding.weight, image_size // vision.patch_size
    first = embeddings.num_positions - embeddings.num_patches  # one of the class token, or none
    with torch.no_grad():
        places = embeddings.interpolate_pos_encoding(
            old.new_zeros(1, first + side**2, old.shape[1]), image_size, image_size
        )[0]
    embeddings.position_embedding = torch.nn.Embedding.from_pretrained(places)
    embeddings.num_patches, embeddings.num_positions = side**2, first + side**2
    embeddings.image_size = vision.image_size = image_size


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that transformers' class has, and the temperature under the name that a model folder has it by."""
    with torch.device("meta"):
        names = type(model)(model.config).state_dict()
    weights = {name: value for name, value in model.state_dict().items() if name in names}
    if hasattr(model, TEMPERATURE):
        weights[TEMPERATURE] = model.temperature.weight.detach()
    return weights


def _notes(model: Any) -> list[str]:
    """What transformers' class does otherwise than the run."""
    kind, notes = type(model).__name__, []
    if hasattr(model, TEMPERATURE):
        notes.append(f"temperature: {kind} has none and says so; Aurora reads it from the folder")
    if model.config.model_type == "blip":
        notes.append("[ENC]: where a text reads a picture, give transformers token 30523 in the place of its first")
    return notes
