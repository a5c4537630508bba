"""Pictures with words, rendered once, and the views that training sees of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sources
import torch
import torch.nn.functional as F
from mini import SIZE
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertTokenizerFast

from aurora_petl.data.media import PictureFormat

RENDER = 112  # pixels of a stored picture; crops of it become `SIZE`
CAPTIONS = 6  # ways to caption a picture that training draws from
LONGEST = 35  # tokens of a text
# how often a picture of a source is drawn, before its share of what is named alike; icons are 1
OFTEN = {**dict.fromkeys(sources.EMOJI_STYLES, 5.0), "clipart": 2.0}


@dataclass
class Corpus:
    """Pictures as uint8 (n, 3, RENDER, RENDER), perhaps mapped from a file, and what is known of each."""

    pixels: Tensor
    pictures: list[sources.Picture]
    concept: Tensor  # (n,): pictures of one name have one number
    often: Tensor  # (n,): weights of drawing at random

    def __len__(self) -> int:
        return len(self.pictures)


def corpus(pictures: list[sources.Picture], cache: Path) -> Corpus:
    """Render pictures (cached as one file at ``cache``); those that cannot be drawn are left out."""
    # another selection of pictures gets a cache of its own
    cache = cache.with_name(f"{cache.name}-{sources.digest(' '.join(picture.key for picture in pictures))[:8]}")
    listing = cache.with_suffix(".json")
    if not listing.exists():
        drawable = []
        partial = cache.with_suffix(".part")
        with partial.open("wb") as file, ProcessPoolExecutor() as pool:
            for number, drawn in enumerate(pool.map(_draw, [picture.svg for picture in pictures], chunksize=64)):
                if drawn is not None:
                    drawable.append(number)
                    file.write(drawn)
        partial.replace(cache.with_suffix(".raw"))
        listing.write_text(json.dumps(drawable))
    drawable = json.loads(listing.read_text())
    shape = (len(drawable), 3, RENDER, RENDER)
    pixels = torch.from_numpy(np.memmap(cache.with_suffix(".raw"), np.uint8, "c", shape=shape))
    pictures = [pictures[number] for number in drawable]
    names: dict[str, int] = {}
    concept = [names.setdefault(picture.name.lower(), len(names)) for picture in pictures]
    alike = Counter(concept)
    often = [
        OFTEN.get(picture.source, 1.0) / alike[number] ** 0.5 for picture, number in zip(pictures, concept, strict=True)
    ]
    return Corpus(pixels, pictures, torch.tensor(concept), torch.tensor(often))


def _draw(svg: str) -> bytes | None:
    picture = sources.render(svg, RENDER)
    return None if picture is None else np.asarray(picture).transpose(2, 0, 1).tobytes()


def captions(pictures: Sequence[sources.Picture], tokens: BertTokenizerFast, seed: int) -> Tensor:
    """`CAPTIONS` captions of each picture as token numbers, (n, CAPTIONS, LONGEST) int16, 0 behind the end."""
    rng = random.Random(seed)
    texts = [words(picture.name, picture.tags, rng) for picture in pictures for _ in range(CAPTIONS)]
    return token_table(texts, tokens).view(len(pictures), CAPTIONS, LONGEST)


def token_table(texts: Sequence[str], tokens: BertTokenizerFast) -> Tensor:
    """Token numbers (texts, LONGEST) int16, 0 behind the end of each."""
    quick = Tokenizer.from_str(tokens.backend_tokenizer.to_str())  # a copy, whose padding is its own
    quick.enable_truncation(LONGEST)
    quick.enable_padding(length=LONGEST)
    table = np.zeros((len(texts), LONGEST), np.int16)
    for first in range(0, len(texts), 20_000):
        part = list(texts[first : first + 20_000])
        table[first : first + len(part)] = [encoded.ids for encoded in quick.encode_batch_fast(part)]
    return torch.from_numpy(table)


def words(name: str, tags: list[str], rng: random.Random) -> str:
    """One of the ways to caption a picture: its name, its name with some tags, or tags alone."""
    chosen = rng.sample(tags, min(len(tags), rng.randint(1, 5))) if tags else []
    kind = rng.random()
    if not chosen or kind < 0.2:
        return name
    return ", ".join(chosen) if kind < 0.35 else f"{name}: {', '.join(chosen)}"


def augment(pixels: Tensor, tint: Tensor, keep_colour: Tensor) -> Tensor:
    """Random scale, shift, turn, flip and colour of a uint8 batch (n, 3, RENDER, RENDER) to floats of `SIZE`.

    Args:
        tint: (n, 3) in [0, 1], the colour that black becomes; black itself leaves a picture as it is.
        keep_colour: (n,) bool, pictures whose caption says their colour, which stays what it is.
    """
    n, device = len(pixels), pixels.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(shape, device=device)

    angle = (chance(n) - 0.5) * 0.6
    scale = 1.1 - 0.45 * chance(n)  # below 1 crops
    scale = torch.where(chance(n) < 0.15, 1.3 + 0.9 * chance(n), scale)  # small in its picture, as in a scene
    stretch = 1 + (chance(n) - 0.5) * 0.3
    flip = torch.where(chance(n) < 0.3, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = scale * angle.cos() * flip * stretch, -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos() / stretch
    theta[:, :, 2] = (chance(n, 2) - 0.5) * 0.35
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    # white outside: the grid is laid over the distance from white
    ink = F.grid_sample(1 - pixels.float() / 255, grid, mode="bilinear", align_corners=False)
    image = 1 - ink * (1 - tint)[:, :, None, None]
    grey = image.mean(1, keepdim=True)
    saturation = torch.where((chance(n) < 0.1) & ~keep_colour, 0.0, 0.6 + 0.8 * chance(n)).view(n, 1, 1, 1)
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
