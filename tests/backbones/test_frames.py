"""Clips: what their features are, and frame-aware attention against keys weighted one text at a time."""

import numpy as np
import pytest
import torch

from aurora_petl.backbones.frames import encode_media, frame_weights, media_states, pool
from aurora_petl.backbones.sharing import attend, share
from aurora_petl.data.rows import ImageTextDataset, Item
from aurora_petl.evaluation import rerank as engine
from aurora_petl.evaluation.features import extract
from aurora_petl.evaluation.rerank import rerank
from aurora_petl.tasks.retrieval import Retrieval, RetrievalSettings
from tests.helpers.pictures import draw

FRAMES = 3


class Clips(ImageTextDataset):
    """Clips of drawn frames: a shape that takes on three colours."""

    def frames(self, index, count, rng=None, least=0):
        shape = self.items[index].image
        return [draw(shape, colour, 96) for colour in ("red", "green", "blue")[:count]]


@pytest.fixture
def clips():
    rows = [Item(shape, (f"a {shape}",), shape, "test", n) for n, shape in enumerate(("circle", "square", "triangle"))]
    return Clips("clips", rows, None, clips=True)


def test_a_still_clip_is_its_picture(backbone):
    backbone.model.eval()
    picture = torch.randn(2, 3, 96, 96)
    still = picture[:, None].expand(-1, FRAMES, -1, -1, -1)
    with torch.no_grad():
        one, other = (encode_media(backbone, pixels) for pixels in (picture, still))
    assert torch.allclose(one.feature, other.feature, atol=1e-5)
    assert torch.allclose(other.frames, one.feature[:, None].expand(-1, FRAMES, -1), atol=1e-5)


@torch.no_grad()
def test_states_of_a_clip_are_those_of_its_frames_one_after_the_other(backbone):
    backbone.model.eval()
    clips = torch.randn(2, FRAMES, 3, 96, 96)
    media = encode_media(backbone, clips)
    for clip, states, features in zip(clips, media.states, media.frames, strict=True):
        alone = [backbone.encode_image(frame[None]) for frame in clip]
        assert torch.allclose(states, torch.cat([frame.states[0] for frame in alone]), atol=1e-5)
        assert torch.allclose(features, torch.cat([frame.feature for frame in alone]), atol=1e-5)
    assert torch.equal(media_states(backbone, clips), media.states)
    picture = encode_media(backbone, clips[:, 0])
    assert torch.equal(picture.frames[:, 0], picture.feature)
    assert torch.equal(media_states(backbone, clips[:, 0]), picture.states)


def test_a_clip_is_the_mean_of_its_frames():
    frames = torch.nn.functional.normalize(torch.randn(2, FRAMES, 5), dim=-1)
    mean = frames.sum(1)
    assert torch.allclose(pool(frames), mean / mean.norm(dim=1, keepdim=True), atol=1e-6)


def test_frame_weights():
    text, frames = torch.eye(2)[:1], torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    likelier = np.exp(1 / 4) / (np.exp(1 / 4) + 1)
    assert torch.allclose(frame_weights(text, frames), torch.tensor([[2 * likelier, 2 - 2 * likelier]]).float())
    assert frame_weights(text, frames[:, :1]) is None
    several = torch.stack([frames, torch.tensor([[[0.5, 0.0], [0.6, 0.8]]])], 2)  # two vectors a frame: the nearest
    likelier = np.exp(1 / 4) / (np.exp(1 / 4) + np.exp(0.6 / 4))
    assert torch.allclose(frame_weights(text, several), torch.tensor([[2 * likelier, 2 - 2 * likelier]]).float())


@pytest.mark.parametrize("which", [[0, 1, 0, 1], [1, 1, 0, 1]])
def test_shared_keys_weighted_by_frame(which):
    torch.manual_seed(0)
    texts, tokens, width, patches = 4, 2, 8, 5
    which = torch.tensor(which)
    query, key, value = torch.randn(texts, tokens, width), *torch.randn(2, 2, FRAMES * patches, width)
    frames = torch.rand(texts, FRAMES) * 2
    found = attend(query, key, value, 2, sharing=share(which, 2, FRAMES * patches, tokens), frames=frames)
    for text in range(texts):
        own = key[which[text]].clone()
        for frame in range(FRAMES):
            own[frame * patches + 1 : (frame + 1) * patches] *= frames[text, frame]
        alone = attend(query[text, None], own[None], value[which[text], None], 2)
        assert torch.allclose(found[text], alone[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("aware", [True, False])
def test_reranked_clips_equal_pairs_alone(backbone, clips, aware, monkeypatch):
    monkeypatch.setattr(engine, "CALL_TOKENS", 8)
    backbone.model.eval()
    features = extract(backbone, clips, frames=FRAMES)
    assert features.frames.shape == (3, FRAMES, *backbone.feature_shape)
    scores = rerank(backbone, features, k_test=3, frame_attention=aware).image_to_text
    for image in range(3):
        for text in range(3):
            words = backbone.texts([features.texts[text]], 35)
            weights = frame_weights(features.text[text, None], features.frames[image, None]) if aware else None
            states = features.states.anew(image, image + 1)
            alone = backbone.match(words, states, frames=weights)
            assert scores[image, text] == pytest.approx(alone[0, 1].item(), abs=1e-4)


def test_loss_of_clips_reaches_the_frames(backbone):
    task = Retrieval(backbone, RetrievalSettings(queue_size=0)).train()
    pixels = torch.randn(3, FRAMES, 3, 96, 96, requires_grad=True)
    words = backbone.texts(["a circle", "a square", "a star"], 35)
    torch.manual_seed(0)
    loss = task(pixels, words.ids, words.mask, torch.arange(3))["loss"]
    loss.backward()
    assert (pixels.grad.flatten(2).abs().sum(2) > 0).all()
    torch.manual_seed(0)
    plain = Retrieval(backbone, RetrievalSettings(queue_size=0, frame_attention=False)).train()
    assert plain(pixels, words.ids, words.mask, torch.arange(3))["loss"].item() != loss.item()
