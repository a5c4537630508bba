"""How a model reads a picture, from the preprocessor_config.json of its folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.media import PictureFormat
from ..errors import AuroraError, short
from ..files import read_json, write_json

FILES = ("preprocessor_config.json", "processor_config.json")


def read_picture_format(folder: Path, name: str, processors: tuple[str, ...], image_size: int) -> PictureFormat:
    """The format that a folder's image processor makes.

    Args:
        processors: class names of image processors that fit the model, without Fast or Pil behind them.
        image_size: of the model's configuration, pixels a side.

    Raises:
        AuroraError: if there is no such file, it is of another model, or it asks for what is not done here.
    """
    path, content = read_settings(folder, name, processors)
    check_steps(content, path)
    size = content.get("size", image_size)
    size = {"shortest_edge": size} if isinstance(size, int) and not isinstance(size, bool) else size
    cropped = content.get("do_center_crop", "shortest_edge" in size) if isinstance(size, dict) else None
    crop = content.get("crop_size", image_size)
    crop = {"height": crop, "width": crop} if isinstance(crop, int) and not isinstance(crop, bool) else crop
    sides = crop if cropped else size
    if not isinstance(size, dict) or not isinstance(sides, dict) or not _is_square(sides, image_size):
        raise AuroraError(
            f"{path}: size {short(size)} does not make squares of {image_size} pixels, which config.json has; the two "
            "are of different models"
        )
    edge = size.get("shortest_edge", image_size) if cropped else 0
    if not isinstance(edge, int) or not 0 <= edge <= 16_384:
        raise AuroraError(f"{path}: size.shortest_edge is {short(edge)}, no number of pixels; copy the model again")
    defaults = PictureFormat(image_size)
    half = (0.5, 0.5, 0.5)
    siglip = "SiglipImageProcessor" in processors
    return PictureFormat(
        image_size,
        crop=bool(cropped),
        edge=edge,
        filter=read_filter(content.get("resample", 3), path),
        mean=read_channels(content.get("image_mean", half if siglip else defaults.mean), "image_mean", path),
        deviation=read_channels(content.get("image_std", half if siglip else defaults.deviation), "image_std", path),
    )


def read_settings(folder: Path, name: str, processors: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """The file of an image processor, and what it says.

    Raises:
        AuroraError: if there is none, or it is of a processor that is not among ``processors``.
    """
    path, content = _content(folder, name)
    kind = content.get("image_processor_type", content.get("feature_extractor_type"))
    plain = str(kind).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if kind is not None and plain not in processors:
        raise AuroraError(f"{path} is of a {short(kind)}, the model wants {' or '.join(processors)}; copy it again")
    return path, content


def check_steps(content: dict[str, Any], path: Path) -> None:
    """Make sure that an image processor does what is done here.

    Raises:
        AuroraError: if it leaves a step out, or scales values by another factor.
    """
    for field in ("do_resize", "do_rescale", "do_normalize"):
        if content.get(field, True) is not True:
            raise AuroraError(f"{path}: {field} is {short(content[field])}, which is not done here; set it to true")
    factor = content.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise AuroraError(f"{path}: rescale_factor is {short(factor)}, which is not done here; it must be 1/255")


def write_picture_format(folder: Path, picture: PictureFormat, processor: str) -> None:
    """Make a model's folder say that it reads pictures in this format, as `read_picture_format` reads it.

    Args:
        processor: class name of the image processor, without Fast or Pil behind it.
    """
    square = {"height": picture.size, "width": picture.size}
    content = {
        "image_processor_type": processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": picture.edge or picture.size} if picture.crop else square,
        "do_center_crop": picture.crop,
        **({"crop_size": square} if picture.crop else {}),
        "resample": int(picture.filter),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(picture.mean),
        "image_std": list(picture.deviation),
    }
    write_json(folder / FILES[0], content)
    if (other := folder / FILES[1]).is_file():
        write_json(other, {name: part for name, part in read_json(other).items() if name != "image_processor"})


def _content(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    for file in FILES:
        path = folder / file
        if not path.is_file():
            continue
        content = read_json(path)
        if isinstance(content, dict) and file == FILES[1]:
            content = content.get("image_processor", content)
        if not isinstance(content, dict):
            raise AuroraError(f"{path} holds {short(content)}, not the settings of an image processor; copy it again")
        return path, content
    raise AuroraError(
        f"model {name} has no {FILES[0]}, which says how it reads pictures; put it into {folder}, as the image "
        "processor's save_pretrained writes it"
    )


def _is_square(sides: dict[str, Any], image_size: int) -> bool:
    return sides.get("height") == sides.get("width") == image_size


def read_filter(value: Any, path: Path) -> Image.Resampling:
    """Pillow's filter of that number."""
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise AuroraError(f"{path}: resample is {short(value)}, no filter of Pillow; it must be 0 to 5") from error


def read_channels(values: Any, field: str, path: Path) -> tuple[float, float, float]:
    """A number for each of red, green and blue."""
    fits = isinstance(values, (list, tuple)) and len(values) == 3
    if not fits or not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in values):
        raise AuroraError(f"{path}: {field} is {short(values)}, not three numbers; copy the model again")
    if field == "image_std" and not all(values):
        raise AuroraError(f"{path}: image_std has a 0, which pixels cannot be divided by; copy the model again")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
