"""SigLIP 2 that reads pictures in their own shape (NaFlex; arXiv 2502.14786, section 2.4.2), on transformers' classes.

A picture is scaled so that at most so many patches fill it, with its sides' ratio kept, and what is missing is padding.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import Siglip2Model
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from ..data.media import PictureFormat, TrainTransform
from ..errors import AuroraError, short
from .base import Encoded, View
from .dual import SIGLIP_HEADS, DualBackbone, Kind, check_tokenizer, unit
from .folder import make_config, read_model, read_tokenizer
from .masks import ready
from .picture_format import check_steps, read_channels, read_filter, read_settings

PROCESSOR = "Siglip2ImageProcessor"
KIND = Kind(Siglip2Model, SIGLIP_HEADS, "sigmoid", True, (PROCESSOR,))
HALF = (0.5, 0.5, 0.5)
MOST_PATCHES = 16_384
SMALLEST = 1e-5  # the scale is searched as finely as the image processor does, from a tenth of this to `LARGEST`
LARGEST = 100.0


class PatchView:
    """What makes patches of a picture.

    Args:
        picture: filter, mean and deviation; ``size`` is the side of a square of ``patches`` patches.
        varied: changes training pictures at random; None for evaluation.
    """

    least = 0

    def __init__(self, picture: PictureFormat, patch_size: int, patches: int, varied: TrainTransform | None) -> None:
        self.picture, self.patch_size, self.patches, self.varied = picture, patch_size, patches, varied

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (1, 1 + patches, 3 * patch_size ** 2): a row that begins with how many patches the picture is
        high and wide, the patches by rows of the picture, and rows of 0."""
        if self.varied is not None:
            image = self.varied.varied(image, rng)
        side = self.patch_size
        high, wide = grid_of(image.height, image.width, side, self.patches)
        pixels = self.picture.tensor(image.resize((wide * side, high * side), self.picture.filter))
        rows = torch.zeros(1, 1 + self.patches, 3 * side**2)
        rows[0, 0, 0], rows[0, 0, 1] = high, wide
        cut = pixels.unflatten(1, (high, side)).unflatten(3, (wide, side))  # (3, high, side, wide, side)
        rows[0, 1 : 1 + high * wide] = cut.permute(1, 3, 2, 4, 0).reshape(high * wide, -1)
        return rows


def grid_of(height: int, width: int, patch_size: int, most: int) -> tuple[int, int]:
    """How many patches high and wide a picture of a shape becomes: of the scales with at most ``most`` patches about
    the largest, found by halving as the image processor finds it."""

    def patches(scale: float) -> tuple[int, int]:
        high, wide = (max(1, -int(-(scale * pixels) // patch_size)) for pixels in (height, width))
        return high, wide

    low, high = SMALLEST / 10, LARGEST
    while high - low >= SMALLEST:
        middle = (low + high) / 2
        rows, columns = patches(middle)
        low, high = (middle, high) if rows * columns <= most else (low, middle)
    return patches(low)


class VisionEmbeddings(Siglip2VisionEmbeddings):
    """transformers' embeddings, which read each picture's shape to interpolate its positions. In training on another
    device than the CPU, where to read is to wait, positions are interpolated there for all shapes at once."""

    def resize_positional_embeddings(  # type: ignore[override]
        self, positional_embeddings: Tensor, spatial_shapes: Any, max_length: int
    ) -> Tensor:
        if not self.training or (spatial_shapes.device.type == "cpu" and not torch.compiler.is_compiling()):
            return super().resize_positional_embeddings(positional_embeddings, spatial_shapes, max_length)
        return interpolated(positional_embeddings, spatial_shapes, max_length)


def interpolated(positions: Tensor, shapes: Tensor, most: int) -> Tensor:
    """Position embeddings (H, W, D) for grids of other shapes (B, 2), as ``F.interpolate`` makes them with the mode
    bilinear and antialias, but for rounding -> (B, most, D); behind a grid's last patch its first is repeated."""
    place = torch.arange(most, device=shapes.device)
    place = torch.where(place < shapes.prod(1)[:, None], place, 0)  # (B, most)
    rows, columns = place // shapes[:, 1:], place % shapes[:, 1:]
    high = _shares(rows, shapes[:, :1], positions.shape[0])
    wide = _shares(columns, shapes[:, 1:], positions.shape[1])
    both = (high[..., None] * wide[:, :, None]).flatten(2)  # (B, most, H * W)
    return (both @ positions.flatten(0, 1).float()).to(positions.dtype)


def _shares(place: Tensor, target: Tensor, source: int) -> Tensor:
    """How much each of ``source`` points gives to those at ``place`` (B, N) of ``target`` (B, 1): a triangle as wide as
    one of these, at least as one of those -> (B, N, source)"""
    scale = source / target.float()
    centre = (scale * (place + 0.5))[..., None]
    distance = (torch.arange(source, device=place.device) + 0.5 - centre).abs() / scale.clamp(min=1.0)[..., None]
    shares = (1 - distance).clamp(min=0.0)
    return shares / shares.sum(-1, keepdim=True)


class NaflexBackbone(DualBackbone):
    """SigLIP 2 for pictures of any shape; see `base.DualEncoder`.

    Args:
        picture: how it reads pictures; ``size`` is the side of a square that all its patches fill.
    """

    def __init__(self, model: Any, tokenizer: Any, picture: PictureFormat, name: str) -> None:
        super().__init__(model, tokenizer, picture, name, KIND)
        if type(embeddings := model.vision_model.embeddings) is Siglip2VisionEmbeddings:
            embeddings.__class__ = VisionEmbeddings
        self.patch_size: int = model.config.vision_config.patch_size
        self.patches: int = (picture.size // self.patch_size) ** 2

    def view(self, training: bool = False, *, flip: bool = True) -> View:
        varied = TrainTransform(self.picture, flip=flip) if training else None
        return PatchView(self.picture, self.patch_size, self.patches, varied)

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        """What `PatchView` gives, (B, 1, 1 + patches, 3 * patch_size ** 2) -> features"""
        rows = pixel_values[:, 0]
        shapes = rows[:, 0, :2].round().long()
        mask = torch.arange(rows.shape[1] - 1, device=rows.device) < shapes.prod(1)[:, None]
        output = self.model.get_image_features(
            pixel_values=rows[:, 1:],
            pixel_attention_mask=ready(mask.int(), self.model.vision_model),
            spatial_shapes=shapes,
        )
        return Encoded(unit(output))


def configure(content: dict[str, Any], path: Path) -> Any:
    """The model's configuration from that of a model folder.

    Raises:
        AuroraError: if transformers cannot make one of it.
    """
    return make_config(content, path, ("vision_config", "text_config"), "num_patches")


def empty(config: Any, name: str, task: str = "retrieval", image_size: int | None = None) -> NaflexBackbone:
    """The model without weights or tokenizer, on the current default device."""
    side = round(config.vision_config.num_patches**0.5)
    picture = PictureFormat(image_size or side * config.vision_config.patch_size)
    return NaflexBackbone(Siglip2Model(config), None, picture, name)


def check(folder: Path, config: Any, name: str, image_size: int | None = None) -> None:
    """Look for what would stop `load` beside the weights.

    Raises:
        AuroraError: if the folder lacks a tokenizer or an image processor, or they are another model's.
    """
    _company(folder, config, name, image_size)


def load(
    folder: Path, config: Any, name: str, task: str = "retrieval", image_size: int | None = None
) -> NaflexBackbone:
    """Read a SigLIP 2 for pictures of any shape from a folder.

    Args:
        image_size: side of a square with as many patches as a picture may have; None: as many as its image processor
            makes.

    Raises:
        AuroraError: if its files do not hold one with its tokenizer and image processor.
    """
    tokenizer, picture = _company(folder, config, name, image_size)
    model, _ = read_model(Siglip2Model, config, folder, name, task, "copy the model again")
    return NaflexBackbone(model, tokenizer, picture, name)


def _company(folder: Path, config: Any, name: str, image_size: int | None) -> tuple[Any, PictureFormat]:
    """The tokenizer and the picture format that a model has beside its weights."""
    picture = _read_format(folder, name, config.vision_config.patch_size, image_size)
    tokenizer = read_tokenizer(folder, config, name)
    check_tokenizer(tokenizer, config, name)
    return tokenizer, picture


def _read_format(folder: Path, name: str, patch_size: int, image_size: int | None) -> PictureFormat:
    path, content = read_settings(folder, name, (PROCESSOR,))
    check_steps(content, path)
    most, own = content.get("max_num_patches", 256), content.get("patch_size", patch_size)
    if own != patch_size:
        raise AuroraError(f"{path}: patch_size is {short(own)}, and config.json has {patch_size}; copy the model again")
    if not isinstance(most, int) or not 0 < most <= MOST_PATCHES:
        raise AuroraError(f"{path}: max_num_patches is {short(most)}, not 1 to {MOST_PATCHES:,}; copy the model again")
    side = round(most**0.5) if image_size is None else image_size // patch_size
    if image_size is None and side**2 != most:
        raise AuroraError(
            f"{path}: max_num_patches is {most}, no square; give image_size, the side of a square of so many patches "
            f"as a picture may have, such as {side * patch_size}"
        )
    if image_size is not None and (side < 1 or side * patch_size != image_size):
        raise AuroraError(f"image_size is {image_size}, which patches of {patch_size} pixels do not fill")
    return PictureFormat(
        side * patch_size,
        filter=read_filter(content.get("resample", 2), path),
        mean=read_channels(content.get("image_mean", HALF), "image_mean", path),
        deviation=read_channels(content.get("image_std", HALF), "image_std", path),
    )
