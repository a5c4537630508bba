"""Pictures: decoding to upright RGB, the evaluation view and the training view. Pillow and NumPy only."""

from __future__ import annotations

import io
import logging
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import AuroraError, first_line, install
from ..files import LFS_POINTER, read_bytes
from .kinds import FORMATS, HEIF

_XMP = b"XML:com.adobe.xmp\0\0"  # the text of a PNG that may hold its orientation, not compressed
_MOST_XMP = 1 << 20  # bytes
_HEIF = re.compile(rb"....ftyp(....)*?(hei[cmsx]|hev[cmsx])", re.DOTALL)  # among the brands that a file names first
_MOST_BRANDS = 128  # bytes
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_quiet: object = None  # the filter of warnings that `opened` has set
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of broken files goes nowhere by default


def load_image(
    source: str | Path | bytes | BinaryIO, name: str | None = None, least: int = 0, *, exact: bool = True
) -> Image.Image:
    """A picture as RGB, right side up.

    Greyscale, palette, CMYK and 16-bit pictures are converted, transparent ones laid on white, an EXIF orientation
    that can be read is applied, and of an animation the first frame is taken.

    Args:
        source: path, encoded bytes or an open binary file.
        name: what messages call it; the path by default.
        least: pixels a side that are needed of a picture, whatever its other side. A JPEG is then decoded to a half, a
            fourth or an eighth of its size if that leaves as many. 0 decodes all.
        exact: whether a JPEG is decoded smaller only if both sides can be divided so that nothing moves.

    Raises:
        AuroraError: if there is no such file, it is of none of `kinds.FORMATS`, or it does not decode to its end.
    """
    name = name or (str(source) if isinstance(source, (str, Path)) else "picture")
    if isinstance(source, (str, Path)):
        try:
            data = read_bytes(Path(source))
        except FileNotFoundError as error:
            web = "; it lies on the web, so download it first" if re.match("https?:/", name) else ""
            raise AuroraError(f"{name}: no such picture{web}") from error
        except OSError as error:
            raise AuroraError(f"{name} cannot be read: {error.strerror or first_line(error)}") from error
    else:
        data = source if isinstance(source, bytes) else source.read()
    with faults(data, name, _broken), opened(data, name) as picture:
        _draft(picture, least, exact)
        picture.load()
        return upright(picture)


def pixels(data: bytes, name: str, least: int = 0, *, exact: bool = True) -> int:
    """How many pixels of a picture `load_image` decodes.

    Raises:
        AuroraError: as it does.
    """
    with faults(data, name, _broken), opened(data, name) as picture:
        _draft(picture, least, exact)
        return picture.width * picture.height


def _draft(picture: Image.Image, least: int, exact: bool) -> None:
    """Have a JPEG decoded to as small a size as `load_image` allows: fewer frequencies of each block are computed."""
    if not least or picture.format != "JPEG":
        return
    width, height = picture.size
    for part in (8, 4, 2):
        if min(width, height) >= part * least and not (exact and (width % part or height % part)):
            picture.draft(None, (width // part, height // part))
            return


def _broken(name: str, why: str) -> AuroraError:
    return AuroraError(f"{name}: the picture is broken ({why}); replace it or remove its row")


@contextmanager
def faults(data: bytes, name: str, broken: Callable[[str, str], AuroraError]) -> Iterator[None]:
    """Whatever a decoder raises on ``data`` is the file's fault, and becomes one line: decoders raise all kinds of
    errors on files that are damaged.

    Args:
        name: what messages call the file.
        broken: makes an error of the name and of what is wrong.

    Raises:
        AuroraError: as well if there are no data, they stand for others, or do not fit into memory.
    """
    if not data:
        raise broken(name, "it is empty")
    if data.startswith(LFS_POINTER):
        raise AuroraError(f"{name}: a pointer of git-lfs, not the file; fetch it with git lfs pull")
    try:
        yield
    except AuroraError:
        raise
    except MemoryError as error:
        raise AuroraError(f"{name}: too large to be decoded in the memory that is free; scale it down") from error
    except Image.DecompressionBombError as error:
        raise AuroraError(f"{name}: too many pixels ({first_line(error)}); scale it down") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine, such as too many open files: decoders of bytes give no number
        raise broken(name, first_line(error)) from error


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """A picture as Pillow opens it, its pixels not decoded yet, of one of `kinds.FORMATS`.

    From the first call on, Pillow's warnings are not shown: what they say of is read nevertheless.

    Raises:
        AuroraError: if it is of no such format.
    """
    global _quiet
    if not warnings.filters or warnings.filters[0] is not _quiet:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        _quiet = warnings.filters[0]
    formats = HEIF if (is_heif := _is_heif(data)) and _reads_heif() else tuple(FORMATS)
    try:
        picture = Image.open(io.BytesIO(_without_texts(data)), formats=formats)
    except UnidentifiedImageError as error:
        if is_heif and formats is not HEIF:
            raise AuroraError(
                f"{name}: a HEIC picture needs pillow-heif: {install('heic')}; or save it as JPEG"
            ) from error
        raise AuroraError(f"{name}: not a picture that can be read; save it again as JPEG or PNG") from error
    with picture:
        yield picture


def _is_heif(data: bytes) -> bool:
    size = min(int.from_bytes(data[:4]), _MOST_BRANDS)
    return bool(_HEIF.match(data[:size]))


@cache
def _reads_heif() -> bool:
    """Whether Pillow, from here on, reads HEIC pictures, by the package pillow-heif."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, on which no pixel depends and of which Pillow refuses long ones."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, start, place = [], 0, 8
    while place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4])
        oriented = data.startswith(_XMP, place + 8) and end - place <= _MOST_XMP
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and end <= len(data) and not oriented:
            parts.append(data[start:place])
            start = end
        place = end
    return b"".join((*parts, data[start:])) if parts else data


def upright(picture: Image.Image) -> Image.Image:
    """A decoded picture, or the frame of an animation that it stands at, as RGB, turned by its EXIF orientation."""
    try:
        turn = _TURNS.get(picture.getexif()[ExifTags.Base.Orientation])
    except MemoryError:
        raise
    except Exception:  # there may be none; metadata may hold anything; and the pixels are whole
        turn = None
    image = to_rgb(picture)
    return image if turn is None else image.transpose(turn)


def taken(data: bytes) -> datetime | None:
    """When an encoded picture was taken, by its EXIF data, in the camera's time; None if they do not say. No pixel is
    decoded for it."""
    try:
        with opened(data, "picture") as picture:
            exif = Image.Exif()
            exif.load(picture.info.get("exif", b""))
            said = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal]
        return datetime.strptime(said.strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except MemoryError:
        raise
    except Exception:  # metadata may hold anything
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit and float pictures scaled, transparent ones laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
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


@dataclass(frozen=True)
class PictureFormat:
    """How a model reads a picture: as pixels of which size, by which filter, with which mean and deviation.

    The defaults are BLIP's.
    """

    size: int  # pixels a side
    crop: bool = False  # whether the shorter side becomes ``edge`` and a square is cut out of the middle; else squeezed
    edge: int = 0  # pixels of the shorter side before the cut; 0: ``size``
    filter: Image.Resampling = Image.Resampling.BICUBIC
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
    deviation: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def of_size(self, size: int) -> PictureFormat:
        """The same for pictures of another size."""
        return replace(self, size=size, edge=round(self.edge * size / self.size))

    @cached_property
    def _normalised(self) -> np.ndarray:
        """(3, 256), of every value of a channel what the model reads"""
        values = np.arange(256, dtype=np.float32)[:, None] / 255
        mean, deviation = np.array(self.mean, dtype=np.float32), np.array(self.deviation, dtype=np.float32)
        return ((values - mean) / deviation).T.copy()

    def tensor(self, image: Image.Image) -> Tensor:
        """RGB picture -> (3, H, W) float32, mean and deviation taken out"""
        values = np.asarray(image)
        planes = np.empty((3, *values.shape[:2]), dtype=np.float32)
        for channel in range(3):  # a look-up is 20 times faster than arithmetic and gives the same bits
            np.take(self._normalised[channel], values[..., channel], out=planes[channel], mode="clip")
        return torch.from_numpy(planes)


class EvalTransform:
    """The whole picture squeezed into a square, or its middle, as the model evaluates."""

    def __init__(self, picture: PictureFormat) -> None:
        self.picture = picture
        self.least = picture.edge or picture.size

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (3, size, size)"""
        size, edge = self.picture.size, self.picture.edge or self.picture.size
        if not self.picture.crop:
            return self.picture.tensor(image.resize((size, size), self.picture.filter))
        width, height = image.size
        scale = edge / min(width, height)
        scaled = (edge, int(height * scale)) if width <= height else (int(width * scale), edge)
        image = image.resize(scaled, self.picture.filter)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        return self.picture.tensor(image.crop((left, top, left + size, top + size)))  # black where it is too small


class TrainTransform:
    """BLIP's training view: random resized crop, flip, and two operations of RandAugment (arXiv 1909.13719) at
    magnitude 5 of 10.

    Args:
        picture: what the model reads.
        scale: smallest share of the picture's area that a crop keeps.
        flip: mirror half of the pictures. Turn it off where left and right carry meaning.
        operations: how many operations a picture meets; 0 switches them off.
        magnitude: their strength, 0 to 10.
        fill: grey level of uncovered corners.
    """

    def __init__(
        self,
        picture: PictureFormat,
        *,
        scale: float = 0.5,
        flip: bool = True,
        operations: int = 2,
        magnitude: float = 5,
        fill: int = 128,
    ) -> None:
        self.picture, self.scale, self.flip = picture, scale, flip
        self.operations, self.strength, self.fill = operations, magnitude / 10, (fill,) * 3
        self.least = math.ceil(picture.size / math.sqrt(scale * 3 / 4))  # of the narrowest crop; see `_crop`

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (3, size, size); all chance is drawn from ``rng``."""
        return self.picture.tensor(self.varied(image, rng, (self.picture.size, self.picture.size)))

    def varied(
        self, image: Image.Image, rng: random.Random | None = None, size: tuple[int, int] | None = None
    ) -> Image.Image:
        """The picture that the model is shown, of ``size``, by default that of the crop."""
        rng = rng or random.Random()
        box = _crop(image.width, image.height, self.scale, rng)
        own = (max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1])))
        image = image.resize(size or own, self.picture.filter, box=box)
        if self.flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        for _ in range(self.operations):
            image = rng.choice(_OPERATIONS)(image, self.strength, rng.choice((-1, 1)), self.fill)
        return image


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
