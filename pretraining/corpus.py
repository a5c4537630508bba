"""Pictures with words, rendered once, and the views that training sees of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sources
import torch
import torch.nn.functional as F
from mini import SIZE
from minilm import sentences
from torch import Tensor

from aurora_petl.data.media import PictureFormat

RENDER = 112  # pixels kept in memory; crops of it become `SIZE`


@dataclass
class Corpus:
    """Pictures as uint8 (n, 3, RENDER, RENDER) with their words; ``concept`` numbers what a picture shows."""

    pixels: Tensor
    names: list[str]
    tags: list[list[str]]
    source: list[str]
    concept: Tensor
    meaning: Tensor  # (n, 384) unit sentence vectors of what is said of each


def corpus(pictures: list[sources.Picture], cache: Path) -> Corpus:
    """Render pictures (cached as one array under ``cache``); those that cannot be drawn are left out."""
    # a changed selection of pictures gets a cache of its own
    cache = cache.with_name(f"{cache.name}-{sources.digest(' '.join(picture.key for picture in pictures))[:8]}")
    listing = cache.with_suffix(".json")
    if not listing.exists():
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor() as pool:
            drawn = list(pool.map(_draw, [picture.svg for picture in pictures], chunksize=32))
        kept = [number for number, picture in enumerate(drawn) if picture is not None]
        np.save(cache.with_suffix(".npy"), np.stack([drawn[number] for number in kept]))
        listing.write_text(json.dumps(kept))
    kept = json.loads(listing.read_text())
    pixels = torch.from_numpy(np.load(cache.with_suffix(".npy"))).permute(0, 3, 1, 2).contiguous()
    pictures = [pictures[number] for number in kept]
    numbers: dict[str, int] = {}
    concept = torch.tensor([numbers.setdefault(picture.name.lower(), len(numbers)) for picture in pictures])
    texts = [sources.caption(picture.name, picture.tags) for picture in pictures]
    return Corpus(
        pixels,
        [p.name for p in pictures],
        [p.tags for p in pictures],
        [p.source for p in pictures],
        concept,
        sentences(texts, cache.parent),
    )


def _draw(svg: str) -> np.ndarray | None:
    picture = sources.render(svg, RENDER)
    return None if picture is None else np.asarray(picture)


def words(name: str, tags: list[str], rng: random.Random) -> str:
    """One of the ways to caption a picture: its name, its name with some tags, or tags alone."""
    chosen = rng.sample(tags, min(len(tags), rng.randint(1, 5))) if tags else []
    kind = rng.random()
    if not chosen or kind < 0.2:
        return name
    return ", ".join(chosen) if kind < 0.35 else f"{name}: {', '.join(chosen)}"


def augment(pixels: Tensor) -> Tensor:
    """Random scale, shift, turn, flip and colour of a uint8 batch (n, 3, RENDER, RENDER) to floats of `SIZE`."""
    n, device = len(pixels), pixels.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    angle = (chance(n) - 0.5) * 0.6
    scale = 1.1 - 0.45 * chance(n)  # below 1 crops
    stretch = 1 + (chance(n) - 0.5) * 0.3
    flip = torch.where(chance(n) < 0.3, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * flip * stretch, -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos() / stretch
    theta[:, :, 2] = (chance(n, 2) - 0.5) * 0.35
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    # white outside: the grid is laid over the distance from white
    image = 1 - F.grid_sample(1 - pixels.float() / 255, grid, mode="bilinear", align_corners=False)
    grey = image.mean(1, keepdim=True)
    saturation = torch.where(chance(n) < 0.1, 0.0, 0.6 + 0.8 * chance(n)).view(n, 1, 1, 1)
    image = grey + (image - grey) * saturation
    image = (image - 0.5) * (0.75 + 0.5 * chance(n, 1, 1, 1)) + 0.5 + (chance(n, 3, 1, 1) - 0.5) * 0.2
    return normalise(image.clamp(0, 1))


def normalise(image: Tensor) -> Tensor:
    """CLIP's mean and deviation taken out of a batch with values in [0, 1]."""
    picture = PictureFormat(SIZE)
    mean, deviation = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (picture.mean, picture.deviation))
    return (image - mean) / deviation


def plain(pixels: Tensor) -> Tensor:
    """The evaluation view of a uint8 batch."""
    return normalise(F.interpolate(pixels.float() / 255, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1))
