"""Scenes composed of the corpus's pictures, with captions, captions that are nearly true, questions and answers.

`scene_words` makes a scene and its words; here its things become pictures of the corpus, and a batch of scenes is
pasted on the device that trains.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import sources
import torch
import torch.nn.functional as F
from corpus import Corpus, normalise, token_table
from mini import SIZE
from scene_words import COLOURS, GROUNDS, QUESTIONS, caption, drawn, question, still_scene, twin
from torch import Tensor
from transformers import BertTokenizerFast

THINGS = 8  # places for things in a scene; the words say of no more
ASKED = 2  # questions of a scene
TINTS = torch.tensor([(0, 0, 0), *COLOURS.values()]) / 255  # row 0 leaves a drawing as it is
GROUND = torch.tensor([(255, 255, 255), *GROUNDS.values()]) / 255
STILL = tuple(
    kind for kind in QUESTIONS if kind not in ("mover", "direction", "happens", "does")
)  # the others ask of clips


@dataclass
class Pool:
    """Names that scenes are made of, with the numbers of each one's pictures."""

    names: list[str]
    pictures: dict[str, list[int]]
    ink: bool


@dataclass
class Scenes:
    """Scenes as tensors on the CPU: N scenes, `THINGS` places, texts of L tokens (int16, 0 behind the end)."""

    picture: Tensor  # (N, THINGS) int32, -1 where there is none
    place: Tensor  # (N, THINGS, 3) float32: centre x, y and side, as shares of the picture's
    tint: Tensor  # (N, THINGS) int64, rows of `TINTS`
    ground: Tensor  # (N,) int64, rows of `GROUND`
    captions: Tensor  # (N, 2, L)
    twins: Tensor  # (N, L): captions of a scene that differs in one respect
    questions: Tensor  # (N, ASKED, L)
    answers: Tensor  # (N, ASKED, L)

    def __len__(self) -> int:
        return len(self.picture)


def pools(data: Corpus) -> list[Pool]:
    """Names of one to three words: emoji in colour, other pictures in colour, and black drawings."""
    chosen: list[dict[str, list[int]]] = [{}, {}, {}]
    for number, picture in enumerate(data.pictures):
        said = picture.name.lower()
        if len(said.split()) > 3 or not all(part.isalpha() for part in said.replace("-", " ").split()):
            continue
        emoji = picture.source in sources.EMOJI_STYLES
        if not emoji and (len(said.split()) > 2 or not (picture.tags or picture.source == "game-icons")):
            continue
        kind = 2 if picture.ink else 0 if emoji else 1
        chosen[kind].setdefault(said, []).append(number)
    return [Pool(sorted(names), names, ink) for names, ink in zip(chosen, (False, False, True), strict=True)]


def scenes(data: Corpus, count: int, tokens: BertTokenizerFast, seed: int) -> Scenes:
    """``count`` random scenes; the same for the same seed, however many processors make them."""
    made = pools(data)
    chunk = 2000
    with ProcessPoolExecutor(initializer=_start, initargs=(made,)) as pool:
        jobs = [(seed * 1_000_003 + first, min(chunk, count - first)) for first in range(0, count, chunk)]
        parts = list(pool.map(_make, jobs))
    numbers = [np.concatenate([part[0][field] for part in parts]) for field in range(4)]
    texts = [text for part in parts for text in part[1]]
    table = token_table(texts, tokens).view(count, 3 + 2 * ASKED, -1)
    return Scenes(
        *(torch.from_numpy(array) for array in numbers),
        captions=table[:, :2],
        twins=table[:, 2],
        questions=table[:, 3 : 3 + ASKED],
        answers=table[:, 3 + ASKED :],
    )


_POOLS: list[Pool] = []


def _start(made: list[Pool]) -> None:
    _POOLS[:] = made


def _make(job: tuple[int, int]) -> tuple[tuple[np.ndarray, ...], list[str]]:
    seed, count = job
    rng = random.Random(seed)
    picture = np.full((count, THINGS), -1, np.int32)
    place = np.zeros((count, THINGS, 3), np.float32)
    tint = np.zeros((count, THINGS), np.int64)
    ground = np.zeros(count, np.int64)
    texts: list[str] = []
    colours, grounds = list(COLOURS), list(GROUNDS)
    for row in range(count):
        pool = rng.choices(_POOLS, (0.45, 0.15, 0.4))[0]
        tinted = colours if pool.ink and rng.random() < 0.7 else ()
        scene = still_scene(rng, pool.names, tinted, grounds if rng.random() < 0.3 else ())
        ground[row] = grounds.index(scene.ground) + 1 if scene.ground else 0
        drawings: dict[str, int] = {}
        for number, thing in enumerate(drawn(scene)):
            # all things of a name look alike
            picture[row, number] = drawings.setdefault(thing.name, rng.choice(pool.pictures[thing.name]))
            place[row, number] = thing.place.x, thing.place.y, thing.place.size
            tint[row, number] = colours.index(thing.colour) + 1 if thing.colour else 0
        texts += [caption(rng, scene), caption(rng, scene), caption(rng, twin(rng, scene))]
        asked = []
        for kind in rng.sample(STILL, len(STILL)):
            one = question(rng, scene, pool.names, kind)
            asked += [one] if one is not None else []
            if len(asked) == ASKED:
                break
        texts += [one.question for one in asked]
        texts += [one.answer for one in asked]
    return (picture, place, tint, ground), texts


def compose(pixels: Tensor, place: Tensor, tint: Tensor, ground: Tensor) -> Tensor:
    """Pictures of scenes, (S, 3, SIZE, SIZE), normalised.

    Args:
        pixels: uint8 (S, THINGS, 3, R, R), the drawings on white; what is not there is all white.
        place: (S, THINGS, 3), see `Scenes`.
        tint: (S, THINGS, 3) in [0, 1], the colour that black becomes.
        ground: (S, 3) in [0, 1].
    """
    rows, things = pixels.shape[:2]
    theta = torch.zeros(rows * things, 2, 3, device=pixels.device)
    centre, side = 2 * place.flatten(0, 1)[:, :2] - 1, place.flatten(0, 1)[:, 2:].clamp_min(1e-3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / side[:, 0]
    theta[:, :, 2] = -centre / side
    drawings = 1 - pixels.flatten(0, 1).float() / 255
    # a drawing is made smaller by two before it is sampled: at a quarter of its size plain sampling would skip lines
    drawings = F.avg_pool2d(drawings, 2)
    grid = F.affine_grid(theta, [rows * things, 3, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(drawings, grid, mode="bilinear", align_corners=False)
    covered = 1 - ink * (1 - tint.flatten(0, 1))[:, :, None, None]
    image = covered.view(rows, things, 3, SIZE, SIZE).prod(1) * ground[:, :, None, None]
    return normalise(image)
