"""How decoder models read pictures: what their image processors give, and the marks of a picture in a text.

transformers' own processors want torchvision for videos, which are not read here, or a package that spells numbers. So
the image processor and the tokenizer of a model are used apart, and the marks that a processor would put between them
are written here. How many marks a picture has follows from the model's configuration and from the picture's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import AuroraError, first_line


@dataclass(frozen=True)
class Read:
    """M pictures, or clips of several frames, as a model's vision tower reads them."""

    tensors: dict[str, Any]  # arguments of the model's ``get_image_features``; tuples of what stays on the CPU
    marks: list[list[str]]  # of each frame of each picture, what stands for it in a text
    parts: list[int]  # how many of the tower's features belong to each picture


class Pictures:
    """The pictures of one family; see the classes below for the others' ways.

    Args:
        processor: the model's image processor, of Pillow and NumPy; None for a model without weights.
        config: of the model.
        mark: the token that stands for a picture's features in a text.
    """

    names: tuple[str, ...] = ()  # class names of image processors that fit, without Fast or Pil behind them
    options: dict[str, Any] = {}  # of the image processor, where its own defaults differ from the model's processor
    gridded = False  # whether pictures are grids, which the model reads beside the features
    decides_by_values = False  # whether the vision tower's code depends on values of tensors, not on shapes alone

    def __init__(self, processor: Any, config: Any, mark: str) -> None:
        self.processor, self.config, self.mark = processor, config, mark

    @property
    def size(self) -> int:
        """Pixels a side of the largest picture that is not shrunk."""
        raise NotImplementedError

    def resize(self, size: int) -> None:
        """Shrink pictures that are larger than ``size`` pixels a side, which is another than `size`.

        Raises:
            AuroraError: if the model reads pictures of one size only.
        """
        raise AuroraError(
            f"image_size is {size}, but this model reads pictures of {self.size} pixels a side; leave it out"
        )

    def read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        """Pictures, each a list of its frames.

        Raises:
            AuroraError: if the image processor takes no picture of such a shape.
        """
        try:
            return self._read(media)
        except ValueError as error:
            sizes = sorted({frame.size for frames in media for frame in frames})
            shown = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
            raise AuroraError(
                f"a picture of {shown} pixels cannot be read by this model: {first_line(error)}; remove its row"
            ) from error

    def _read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        raise NotImplementedError

    def _processed(self, images: Any) -> Any:
        return self.processor(images=images, return_tensors="pt", **self.options)


def _flat(media: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    return [frame for frames in media for frame in frames]


def _by_medium(marks: list[str], media: Sequence[Sequence[Image.Image]]) -> list[list[str]]:
    given = iter(marks)
    return [[next(given) for _ in frames] for frames in media]


class Grids(Pictures):
    """Qwen-VL: a picture keeps its shape, and is a grid of patches of which neighbours are merged."""

    names = ("Qwen2VLImageProcessor",)
    gridded = True
    decides_by_values = True

    @property
    def size(self) -> int:
        return round(self.processor.size["longest_edge"] ** 0.5)

    def resize(self, size: int) -> None:
        most = size * size
        least = min(self.processor.size["shortest_edge"], most)
        self.processor.size = {"shortest_edge": least, "longest_edge": most}

    def _read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        found = self._processed(_flat(media))
        grids: Tensor = found["image_grid_thw"]
        counts = (grids.prod(1) // self.processor.merge_size**2).tolist()
        tensors = {"pixel_values": found["pixel_values"], "image_grid_thw": tuple(map(tuple, grids.tolist()))}
        return Read(tensors, _by_medium([self.mark * count for count in counts], media), [len(each) for each in media])


class Tiles(Pictures):
    """Idefics3 and SmolVLM: a large picture is cut into rows and columns of tiles, with the whole one behind them."""

    names = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
    options = {"return_row_col_info": True}
    decides_by_values = True

    @property
    def size(self) -> int:
        edge: int = self.processor.size["longest_edge"]
        return edge

    def resize(self, size: int) -> None:
        self.processor.size = {"longest_edge": size}

    def _read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        found = self._processed([list(frames) for frames in media])
        marks = [
            [self._marks(rows, columns) for rows, columns in zip(*both, strict=True)]
            for both in zip(found["rows"], found["cols"], strict=True)
        ]
        tensors = {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}
        return Read(tensors, marks, [1] * len(marks))

    def _marks(self, rows: int, columns: int) -> str:
        vision, edge = self.config.vision_config, "<fake_token_around_image>"
        tile = self.mark * ((vision.image_size // vision.patch_size) ** 2 // self.config.scale_factor**2)
        lines = [
            "".join(f"{edge}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
            for row in range(1, rows + 1)
        ]
        return "".join(lines) + ("\n" if lines else "") + f"{edge}<global-img>{tile}{edge}"


class Patches(Pictures):
    """InternVL: a picture is cut into the squares that fit its shape best, with the whole one behind them."""

    names = ("GotOcr2ImageProcessor",)
    options = {"crop_to_patches": True}

    @property
    def size(self) -> int:
        return int(self.processor.size["height"] * self.processor.max_patches**0.5)

    def resize(self, size: int) -> None:
        self.processor.max_patches = max(1, round((size / self.processor.size["height"]) ** 2))
        self.processor.min_patches = min(self.processor.min_patches, self.processor.max_patches)

    def _read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        found = self._processed(_flat(media))
        squares = [int(count) for count in found["num_patches"]]
        marks = [f"<img>{self.mark * (self.config.image_seq_length * count)}</img>" for count in squares]
        given = iter(squares)
        parts = [sum(next(given) for _ in frames) for frames in media]
        return Read({"pixel_values": found["pixel_values"]}, _by_medium(marks, media), parts)


class Squares(Pictures):
    """LLaVA and PaliGemma: a picture is one square."""

    names = ("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor")

    @property
    def size(self) -> int:
        side: int = self.config.vision_config.image_size
        return side

    def _read(self, media: Sequence[Sequence[Image.Image]]) -> Read:
        pixels: Tensor = self._processed(_flat(media))["pixel_values"]
        vision = self.config.vision_config
        count = (pixels.shape[-2] // vision.patch_size) * (pixels.shape[-1] // vision.patch_size)
        count += vision.model_type == "clip_vision_model"  # [CLS]
        count -= getattr(self.config, "vision_feature_select_strategy", "full") == "default"  # without the first
        marks = [self.mark * count for _ in range(len(pixels))]
        return Read({"pixel_values": pixels}, _by_medium(marks, media), [len(frames) for frames in media])


def spread(features: Any, order: Tensor | Sequence[int]) -> Any:
    """The tower's output for M pictures -> for texts, each about one of them, by `places`."""
    more = {"pooler_output": _chosen(features.pooler_output, order)}
    if getattr(features, "deepstack_features", None) is not None:
        more["deepstack_features"] = [_chosen(layer, order) for layer in features.deepstack_features]
    return type(features)(**more)


def places(parts: Sequence[int], which: Sequence[int]) -> tuple[int, ...]:
    """Places of the features of the picture of each text, one text behind the other.

    Args:
        parts: see `Read`.
        which: the picture of each text.
    """
    starts = [sum(parts[:place]) for place in range(len(parts))]
    return tuple(starts[place] + part for place in which for part in range(parts[place]))


def _chosen(rows: Any, order: Tensor | Sequence[int]) -> Any:
    if not isinstance(order, Tensor):
        return [rows[place] for place in order]
    if isinstance(rows, Tensor):
        return rows[order]
    return list(torch.stack(list(rows))[order])
