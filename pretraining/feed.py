"""Batches of pretraining: which pictures, scenes, words and colours a step sees is fixed by its number."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from compositions import GROUND, THINGS, TINTS, Scenes, compose
from corpus import Corpus, augment
from mini import Batch, Text, Written
from scene_words import COLOURS
from torch import Tensor

TINTED, SAID = 0.3, 0.5  # share of black drawings that are given a colour, and of those whose caption says it


@dataclass
class Draw:
    """What a step sees, as numbers on the CPU."""

    rows: Tensor  # (B,) pictures of the corpus
    tint: Tensor  # (B,) rows of `TINTS`
    keep_colour: Tensor  # (B,) bool
    picture: Tensor  # (S, THINGS), see `compositions.Scenes`
    place: Tensor
    things_tint: Tensor
    ground: Tensor
    concept: Tensor  # (B + S,)
    meaning: Tensor  # (B + S,) rows of the feed's sentence vectors
    texts: Text
    twins: Text
    spoken: Written
    questions: Text
    asked: Tensor
    answers: Written


@dataclass
class Feed:
    """Draws batches and makes them on a device.

    Args:
        captions: token numbers (n, CAPTIONS, LONGEST), see `corpus.captions`.
        meaning: unit sentence vectors, those of the corpus and behind them those of the scenes.
        pixels: the corpus's, where they are read: on the device, if they fit there.
        colours: token numbers of the words of `COLOURS`.
    """

    data: Corpus
    captions: Tensor
    scenes: Scenes
    meaning: Tensor
    pixels: Tensor
    colours: Tensor
    device: torch.device
    seed: int

    def __post_init__(self) -> None:
        self.ink = torch.tensor([picture.ink for picture in self.data.pictures])

    def draw(self, step: int, singles: int, composed: int, spoken: float) -> Draw:
        """What step number ``step`` sees: ``singles`` pictures, ``composed`` scenes, a share ``spoken`` of which is
        captioned."""
        random = torch.Generator().manual_seed(self.seed * 10_000_019 + step)
        chosen = torch.multinomial(self.data.often, singles, replacement=True, generator=random)

        def chance(count: int) -> Tensor:
            return torch.rand(count, generator=random)

        tinted = self.ink[chosen] & (chance(singles) < TINTED)
        tint = torch.randint(1, len(TINTS), (singles,), generator=random) * tinted
        said = (tint > 0) & (chance(singles) < SAID)
        which = torch.randint(self.captions.shape[1], (singles,), generator=random)
        ids = self.captions[chosen, which].long()
        coloured = torch.cat([ids[:, :1], self.colours[tint.clamp_min(1) - 1, None], ids[:, 1:-1]], 1)
        ids = torch.where(said[:, None], coloured, ids)
        scene = torch.randint(len(self.scenes), (composed,), generator=random)
        one = torch.randint(2, (composed,), generator=random)
        ids = torch.cat([ids, self.scenes.captions[scene, one].long()])
        captioned = torch.cat(
            [
                torch.arange(round(spoken * singles)),
                singles + torch.arange(round(2 * spoken * composed)).clamp_max(max(composed - 1, 0)),
            ]
        ).unique()
        both = text(torch.cat([ids, self.scenes.twins[scene].long()]))  # of one width
        asked = torch.randint(self.scenes.questions.shape[1], (composed,), generator=random)
        return Draw(
            chosen,
            tint,
            said,
            self.scenes.picture[scene].long(),
            self.scenes.place[scene],
            self.scenes.tint[scene],
            self.scenes.ground[scene],
            torch.cat([self.data.concept[chosen] * len(TINTS) + tint * said, -1 - torch.arange(composed)]),
            torch.cat([chosen, len(self.data) + scene]),
            Text(both.ids[: len(ids)], both.mask[: len(ids)]),
            Text(both.ids[len(ids) :], both.mask[len(ids) :]),
            written(ids[captioned], captioned),
            text(self.scenes.questions[scene, asked].long()),
            singles + torch.arange(composed),
            written(self.scenes.answers[scene, asked].long(), torch.arange(composed)),
        )

    def batch(self, draw: Draw) -> Batch:
        """The batch of a draw, on the device."""
        draw = moved(draw, self.device)
        place = self.pixels.device
        tints, grounds = TINTS.to(self.device), GROUND.to(self.device)
        pixels = augment(
            self.pixels[draw.rows.to(place)].to(self.device, non_blocking=True), tints[draw.tint], draw.keep_colour
        )
        if len(draw.picture):
            things = self.pixels[draw.picture.clamp_min(0).flatten().to(place)].to(self.device, non_blocking=True)
            things = things.view(-1, THINGS, *things.shape[1:])
            things = torch.where((draw.picture < 0)[:, :, None, None, None], 255, things)
            pixels = torch.cat([pixels, compose(things, draw.place, tints[draw.things_tint], grounds[draw.ground])])
        return Batch(
            pixels,
            draw.texts,
            draw.concept[:, None] == draw.concept,
            self.meaning[draw.meaning].float(),
            draw.twins,
            draw.spoken,
            draw.questions,
            draw.asked,
            draw.answers,
        )


def colour_tokens(tokens: Any) -> Tensor:
    """The token number of each word of `COLOURS`."""
    numbers = tokens.convert_tokens_to_ids(list(COLOURS))
    assert tokens.unk_token_id not in numbers, "every colour is one token"
    return torch.tensor(numbers)


def text(ids: Tensor) -> Text:
    """Texts cut to the longest of them."""
    mask = (ids > 0).long()
    width = int(mask.sum(1).max()) if len(ids) else 1
    return Text(ids[:, :width], mask[:, :width])


def written(ids: Tensor, rows: Tensor) -> Written:
    cut = text(ids)
    return Written(cut.ids, cut.mask, rows, cut.mask[:, 1:].flatten().nonzero()[:, 0])


def moved(value: Any, device: torch.device) -> Any:
    """A dataclass of tensors and of such dataclasses, on another device."""
    if is_dataclass(value):
        return type(value)(*(moved(getattr(value, field.name), device) for field in fields(value)))
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
