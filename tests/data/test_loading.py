"""Pictures read ahead by worker processes: the same, in the same order, and bad ones named as without."""

import io
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aurora_petl.data import load_dataset, loading
from aurora_petl.data.media import EvalTransform, PictureFormat, TrainTransform, load_image
from aurora_petl.errors import AuroraError
from aurora_petl.evaluation.features import extract
from aurora_petl.search.index import build_index

ORIENTATION = 0x0112


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(loading, "EACH", 2)
    with loading.using(2):
        yield


def process_of(item):
    if item == 7:
        raise AuroraError("row 7 is bad")
    return item, os.getpid()


def test_workers_give_items_in_their_order_and_errors_in_their_place(two, monkeypatch):
    monkeypatch.setattr(loading, "AHEAD", 4)
    seen = []
    with pytest.raises(AuroraError, match=r"^row 7 is bad$"):
        for item, process in loading.made_ahead(process_of, range(20)):
            seen.append(item)
            assert process != os.getpid()
    assert seen == [*range(7)]


def test_a_setting_holds_for_its_block_and_few_rows_start_no_worker():
    assert loading.chosen() == 0  # on a CPU
    with loading.using(3):
        with loading.using(None):
            assert loading.chosen() == 3
        assert next(loading.made_ahead(process_of, range(5)))[1] == os.getpid()
    assert loading.chosen() == 0


@pytest.mark.parametrize(
    ("cores", "local", "free", "expected"), [(16, 1, 2**33, 8), (4, 1, 2**33, 3), (16, 8, 2**33, 0), (16, 1, 2**26, 0)]
)
def test_a_gpu_gets_workers_by_the_cores_and_the_shared_memory(monkeypatch, cores, local, free, expected):
    monkeypatch.setattr(loading, "choose", lambda: torch.device("cuda"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setattr(loading, "_shared_memory", lambda: free)
    assert loading.automatic() == expected


def test_features_do_not_depend_on_workers(backbone, pictures, two):
    split = pictures.split("validation")
    read = extract(backbone, split, batch_size=4)
    with loading.using(0):
        expected = extract(backbone, split, batch_size=4)
    assert torch.equal(read.image, expected.image) and torch.equal(read.states(0, 2), expected.states(0, 2))


@pytest.fixture
def own(folder, tmp_path):
    """A copy of the folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def test_a_broken_picture_of_a_worker_is_named_as_without(backbone, own, two):
    split = load_dataset(own).split("validation")
    (own / split.items[3].image).write_bytes(b"no picture")
    messages = []
    for workers in (0, 2):
        with loading.using(workers), pytest.raises(AuroraError) as raised:
            extract(backbone, split)
        messages.append(str(raised.value))
    assert messages[0] == messages[1] and split.items[3].image in messages[0]


def test_an_index_is_the_same_bytes_whatever_the_workers(own, tmp_path, two):
    broken = min(own.rglob("*.png"))
    broken.write_bytes(b"no picture")
    held = []
    for workers in (0, 2):
        out = tmp_path / f"{workers}.index"
        with loading.using(workers):
            update = build_index(own, out, "blip-mini", progress=False)
        assert list(update.skipped) == [broken.relative_to(own).as_posix()]
        held.append({path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".safetensors"})
    assert held[0] == held[1] and held[0]


def photo(width, height):
    """Smooth shapes with edges and a little noise, as JPEG."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(width, height)
    planes = [np.sin(9 * x + 4 * n) * np.cos(7 * y + n) + (np.hypot(x - 0.4, y - 0.3) < 0.2) for n in range(3)]
    values = 110 + 55 * np.stack(planes, -1) + rng.normal(0, 3, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(picture, orientation=1):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    picture.save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("crop", [False, True])
def test_a_large_jpeg_is_decoded_smaller_and_seen_the_same(orientation, crop):
    data = encoded(photo(1600, 1200), orientation)
    view = EvalTransform(PictureFormat(224, crop=crop))
    whole, small = load_image(data), load_image(data, least=view.least)
    assert whole.size == ((1200, 1600) if orientation == 6 else (1600, 1200))
    assert small.size == tuple(side // 4 for side in whole.size)
    difference = (view(small) - view(whole)).abs() * 0.27 * 255  # in levels of a pixel
    assert difference.mean() < 1.0 and difference.quantile(0.99) < 6


def test_a_training_view_never_sees_fewer_pixels_than_it_shows():
    view = TrainTransform(PictureFormat(96), operations=0)
    data = encoded(photo(1600, 1200))
    whole, small = load_image(data), load_image(data, least=view.least)
    assert small.size == (400, 300)  # an eighth would be 150 high, and the narrowest crop shows three fifths of that
    for seed in range(5):
        seen = [view(image, random.Random(seed)) for image in (small, whole)]
        assert (seen[0] - seen[1]).abs().mean() * 0.27 * 255 < 1.0


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((1600, 1200), 601, (1600, 1200)),
        ((1602, 1200), 100, (801, 600)),
        ((1601, 1200), 100, (1601, 1200)),
        ((1600, 1200), 0, (1600, 1200)),
    ],
)
def test_what_cannot_be_divided_or_would_be_too_small_is_decoded_whole(size, least, expected):
    assert load_image(encoded(photo(*size)), least=least).size == expected
