"""Pictures: decoding to upright RGB, the evaluation view and the training view. Pillow and NumPy only."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import AuroraError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)  # CLIP's
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
_NORMALISED = ((np.arange(256, dtype=np.float32)[:, None] / 255 - MEAN) / STD).T.copy()  # (3, 256)


def load_image(source: str | Path | bytes | BinaryIO, name: str | None = None) -> Image.Image:
    """A picture as RGB, right side up.

    Greyscale, palette, CMYK and 16-bit pictures are converted, transparent ones laid on white, EXIF orientation is
    applied, and of an animation the first frame is taken.

    Args:
        source: path, encoded bytes or an open binary file.
        name: what messages call it; the path by default.

    Raises:
        AuroraError: if there is no such file, or it does not decode to its end.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "picture")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            return to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as error:
        raise AuroraError(f"{name}: no such picture") from error
    except UnidentifiedImageError as error:
        raise AuroraError(f"{name}: not a picture that can be read; save it again as JPEG or PNG") from error
    except Image.DecompressionBombError as error:
        raise AuroraError(f"{name}: too many pixels ({error}); scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on broken files
        raise AuroraError(f"{name}: the picture is broken ({error}); replace it or remove its row") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit and float pictures scaled, transparent ones laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        if image.mode.startswith("I"):
            values = values / np.float32(257)  # 16 bits to 8; Pillow's own conversion clips instead
        elif values.size and values.min() >= 0 and values.max() <= 1:
            values = values * np.float32(255)
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32, CLIP's mean and deviation taken out."""
    values = np.asarray(image)
    planes = np.empty((3, *values.shape[:2]), dtype=np.float32)
    for channel in range(3):  # a look-up is 20 times faster than arithmetic and gives the same bits
        np.take(_NORMALISED[channel], values[..., channel], out=planes[channel], mode="clip")
    return torch.from_numpy(planes)


class EvalTransform:
    """The whole picture, resized bicubically to ``size`` x ``size``, as BLIP evaluates."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture -> (3, size, size)"""
        return to_tensor(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


class TrainTransform:
    """BLIP's training view: random resized crop, flip, and two operations of RandAugment (arXiv 1909.13719) at
    magnitude 5 of 10.

    Args:
        size: side of the result in pixels.
        scale: smallest share of the picture's area that a crop keeps.
        flip: mirror half of the pictures. Turn it off where left and right carry meaning.
        operations: how many operations a picture meets; 0 switches them off.
        magnitude: their strength, 0 to 10.
        fill: grey level of uncovered corners.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: float = 0.5,
        flip: bool = True,
        operations: int = 2,
        magnitude: float = 5,
        fill: int = 128,
    ) -> None:
        self.size, self.scale, self.flip = size, scale, flip
        self.operations, self.strength, self.fill = operations, magnitude / 10, (fill,) * 3

    def __call__(self, image: Image.Image, rng: random.Random) -> Tensor:
        """RGB picture -> (3, size, size); all chance is drawn from ``rng``."""
        image = image.resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=_crop(image.width, image.height, self.scale, rng)
        )
        if self.flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for _ in range(self.operations):
            image = rng.choice(_OPERATIONS)(image, self.strength, rng.choice((-1, 1)), self.fill)
        return to_tensor(image)


def _crop(width: int, height: int, scale: float, rng: random.Random) -> tuple[float, float, float, float]:
    """Box of a random share of the area, aspect ratio within 3/4 and 4/3 of the picture's own."""
    share = rng.uniform(scale, 1.0)
    stretch = (4 / 3) ** rng.uniform(-0.5, 0.5)
    w, h = width * min(1.0, share**0.5 * stretch), height * min(1.0, share**0.5 / stretch)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, left + w, top + h


def _shear(x: float, y: float):
    def apply(image: Image.Image, strength: float, sign: int, fill: tuple[int, ...]) -> Image.Image:
        a, b = x * strength * sign, y * strength * sign
        # about the centre, so that strength does not move the picture
        full = (1, a, -a * image.height / 2, b, 1, -b * image.width / 2)
        return image.transform(image.size, Image.Transform.AFFINE, full, Image.Resampling.BILINEAR, fillcolor=fill)

    return apply


def _translate(x: float, y: float):
    def apply(image: Image.Image, strength: float, sign: int, fill: tuple[int, ...]) -> Image.Image:
        shifted = Image.new(image.mode, image.size, fill)  # whole pixels: a tenth of the time of a transform
        moved = -strength * sign
        shifted.paste(image, (round(x * moved * image.width), round(y * moved * image.height)))
        return shifted

    return apply


def _enhance(kind: type) -> Callable[..., Image.Image]:
    return lambda image, strength, sign, fill: kind(image).enhance(1 + 0.9 * strength * sign)


_OPERATIONS: list[Callable[..., Image.Image]] = [
    lambda image, strength, sign, fill: image,
    lambda image, strength, sign, fill: ImageOps.autocontrast(image),
    lambda image, strength, sign, fill: ImageOps.equalize(image),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _shear(0.3, 0),
    _shear(0, 0.3),
    _translate(0.3, 0),  # of the width
    _translate(0, 0.3),
    lambda image, strength, sign, fill: image.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=fill),
]
