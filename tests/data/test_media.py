"""Pictures of every kind become upright RGB; the views that models see."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_petl.data import media
from aurora_petl.data.media import EvalTransform, PictureFormat, TrainTransform, load_image
from aurora_petl.errors import AuroraError
from tests.helpers.pictures import draw


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source):
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def over_white(colour, alpha):
    """Colour of each channel, in [0, 255], laid on white."""
    share = alpha[..., None].astype(float) / 255
    return colour * share + 255 * (1 - share)


def test_rgb_is_kept():
    values = noise(5, 7, 3)
    assert np.array_equal(pixels(encoded(Image.fromarray(values))), values)


def test_greyscale_is_repeated():
    values = noise(5, 7)
    assert np.array_equal(pixels(encoded(Image.fromarray(values))), np.stack([values] * 3, -1))


def test_one_bit_is_black_and_white():
    values = noise(5, 7) > 127
    expected = np.stack([values * 255] * 3, -1)
    assert np.array_equal(pixels(encoded(Image.fromarray(values))), expected)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_on_white(mode):
    values = noise(6, 6, len(mode))
    values[0, :, -1], values[1, :, -1] = 0, 255
    colour = np.stack([values[..., 0]] * 3, -1) if mode == "LA" else values[..., :3]
    found = pixels(encoded(Image.fromarray(values, mode)))
    assert np.abs(found - over_white(colour, values[..., -1])).max() <= 1
    assert (found[0] == 255).all() and np.array_equal(found[1], colour[1])


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(transparent):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    picture.putpalette([200, 0, 0, 0, 150, 0, 0, 0, 100])
    found = pixels(encoded(picture, **({"transparency": 1} if transparent else {})))
    green = [255, 255, 255] if transparent else [0, 150, 0]
    assert found.tolist() == [[[200, 0, 0], green], [[0, 0, 100], green]]


def test_a_transparent_colour_of_rgb_is_white():
    values = np.array([[[10, 20, 30], [40, 50, 60]]], dtype=np.uint8)
    found = pixels(encoded(Image.fromarray(values), transparency=(10, 20, 30)))
    assert found.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    found = pixels(encoded(picture, "JPEG", quality=100))
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 25_700], [32_896, 65_278, 65_535]], dtype=np.uint16)
    found = pixels(encoded(Image.fromarray(values)))
    assert found[..., 0].tolist() == [[0, 1, 100], [128, 254, 255]]
    assert (found == found[..., :1]).all()


def test_thirty_two_bit_integers_hold_sixteen():
    values = np.array([[0, 25_700, 65_535, 70_000]], dtype=np.int32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[..., 0].tolist() == [[0, 100, 255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.4, 1.0], [0, 102, 255]), ([-5.0, 0.4, 100.0, 300.0], [0, 0, 100, 255])]
)
def test_floats_of_either_range(values, expected):
    picture = Image.fromarray(np.array([values], dtype=np.float32))
    assert pixels(encoded(picture, "TIFF"))[..., 0].tolist() == [expected]


# How each EXIF orientation was stored, by the standard: where row 0 and column 0 of the upright picture lie
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(orientation, kind):
    upright = np.full((24, 40, 3), 255, dtype=np.uint8)
    upright[:8, :8] = (200, 0, 0)  # no mirror or turn of this picture is the same
    upright[:8, 32:] = (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    found = pixels(encoded(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]).all()


def test_path_bytes_and_open_file_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    draw("circle", "red").save(path)
    with path.open("rb") as file:
        assert load_image(path).tobytes() == load_image(path.read_bytes()).tobytes() == load_image(file).tobytes()
    assert load_image(str(path)).size == (96, 96)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_picture_is_broken(tmp_path, kind):
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AuroraError, match=r"cut\.img: .*(replace it|save it again)"):
        load_image(path)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"hello, not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture(data):
    with pytest.raises(AuroraError, match="^row 3: "):
        load_image(data, "row 3")


def test_a_missing_picture(tmp_path):
    with pytest.raises(AuroraError, match=r"gone\.png: no such picture$"):
        load_image(tmp_path / "gone.png")


def test_a_picture_of_too_many_pixels(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(AuroraError, match="too many pixels .*scale it down"):
        load_image(encoded(Image.new("L", (40, 40))), "huge.png")


def test_evaluation_sees_the_whole_picture_normalised():
    image = Image.fromarray(noise(30, 50, 3))
    found = EvalTransform(PictureFormat(24))(image)
    small = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC), dtype=float)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    assert found.shape == (3, 24, 24) and found.dtype == torch.float32
    for channel in range(3):
        expected = (small[..., channel] / 255 - mean[channel]) / std[channel]
        assert np.allclose(found[channel].numpy(), expected, atol=1e-5)


def test_training_views_follow_their_seed():
    image, view = draw("triangle", "blue"), TrainTransform(PictureFormat(32))
    views = [view(image, random.Random(seed)) for seed in (1, 1, 2, 3)]
    assert torch.equal(views[0], views[1])
    assert not any(torch.equal(a, b) for a, b in ((views[0], views[2]), (views[0], views[3]), (views[2], views[3])))
    assert all(v.shape == (3, 32, 32) and v.dtype == torch.float32 and v.isfinite().all() for v in views)


def test_the_order_of_draws_is_fixed():
    """A checkpoint resumes with the views that it would have seen."""
    rng, again = random.Random(5), random.Random(5)
    TrainTransform(PictureFormat(32))(Image.new("RGB", (90, 60)), rng)
    media._crop(90, 60, 0.5, again)
    again.random()  # mirrored or not
    for _ in range(2):
        again.choice(media._OPERATIONS), again.choice((-1, 1))
    assert rng.getstate() == again.getstate()


def test_training_leaves_the_global_generator_alone():
    state = random.getstate()
    TrainTransform(PictureFormat(16))(draw("cross", "red"), random.Random(0))
    assert random.getstate() == state


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0])
def test_crops_lie_inside_and_keep_their_share(scale):
    shares = []
    for seed in range(50):
        left, top, right, bottom = media._crop(40, 30, scale, random.Random(seed))
        assert 0 <= left < right <= 40 + 1e-9 and 0 <= top < bottom <= 30 + 1e-9
        shares.append((right - left) * (bottom - top) / 1200)
        stretch = (right - left) / (bottom - top) / (40 / 30)
        assert 3 / 4 - 1e-9 <= stretch <= 4 / 3 + 1e-9
    # a stretched crop that does not fit loses at most (4/3) ** 0.5 of its area
    assert scale * (3 / 4) ** 0.5 - 1e-9 <= min(shares) and max(shares) <= 1 + 1e-9


def test_flip_mirrors_half_of_the_views(monkeypatch):
    monkeypatch.setattr(media, "_crop", lambda width, height, scale, rng: (0, 0, width, height))
    image = Image.fromarray(noise(20, 20, 3))
    whole = EvalTransform(PictureFormat(20))(image)
    found = [TrainTransform(PictureFormat(20), operations=0)(image, random.Random(seed)) for seed in range(40)]
    assert all(torch.equal(view, whole) or torch.equal(view, whole.flip(-1)) for view in found)
    assert 8 < sum(torch.equal(view, whole) for view in found) < 32
    straight = TrainTransform(PictureFormat(20), flip=False, operations=0)
    assert all(torch.equal(straight(image, random.Random(seed)), whole) for seed in range(20))


def test_magnitude_zero_moves_and_shades_nothing():
    image = Image.fromarray(noise(20, 20, 3))
    for number, operation in enumerate(media._OPERATIONS):
        if number in (1, 2):  # autocontrast and equalize have no magnitude
            continue
        for sign in (-1, 1):
            found = np.asarray(operation(image, 0.0, sign, (128,) * 3), dtype=int)
            assert np.abs(found - np.asarray(image)).max() <= 1, number


def test_translation_moves_by_its_share_and_fills_with_grey():
    image = Image.new("RGB", (100, 100), "white")
    translate_x = media._OPERATIONS[7]
    found = np.asarray(translate_x(image, 0.5, 1, (128,) * 3))
    assert (found[:, :84] == 255).all() and (found[:, 86:] == 128).all()  # 0.3 * 0.5 of 100 pixels
