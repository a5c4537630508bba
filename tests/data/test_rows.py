"""How the picture or the clip of a row is loaded."""

import random

import pytest
import torch

from aurora_petl.data.media import EvalTransform, PictureFormat
from aurora_petl.data.rows import ImageTextDataset, Item, load_media, need_frames
from aurora_petl.errors import AuroraError
from tests.helpers.pictures import draw

COLOURS = ("red", "green", "blue", "yellow")
VIEW = EvalTransform(PictureFormat(16))


class Clips(ImageTextDataset):
    """A clip of four colours; frames are drawn, or the first ones."""

    def frames(self, index, count, rng=None, least=0):
        return [draw("circle", colour) for colour in (rng.sample(COLOURS, count) if rng else COLOURS[:count])]


@pytest.fixture
def clips():
    return Clips("clips", [Item("0.mp4", ("a circle",), "0", "test", 1)], None, clips=True)


def test_a_picture_goes_through_the_view(pictures):
    assert torch.equal(load_media(pictures, 3, VIEW, 0), VIEW(pictures.image(3)))
    assert torch.equal(load_media(pictures, 3, VIEW, 5, random.Random(0)), VIEW(pictures.image(3)))


def test_every_frame_of_a_clip_goes_through_the_view(clips):
    assert torch.equal(load_media(clips, 0, VIEW, 2), torch.stack([VIEW(draw("circle", c)) for c in COLOURS[:2]]))
    drawn = random.Random(7).sample(COLOURS, 3)
    found = load_media(clips, 0, VIEW, 3, random.Random(7))
    assert torch.equal(found, torch.stack([VIEW(draw("circle", colour)) for colour in drawn]))


def test_clips_need_frames_and_pictures_do_not(clips, pictures):
    need_frames(pictures, 0)
    need_frames(clips, 1)
    with pytest.raises(AuroraError, match=r"^clips holds clips; say how many frames to take .*, like task\.frames=8$"):
        load_media(clips, 0, VIEW, 0)
