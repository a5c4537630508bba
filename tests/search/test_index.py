"""The index on disk: what it holds, how it follows its folder, and what it refuses."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from aurora_petl import locks
from aurora_petl.data.media import EvalTransform, PictureFormat, load_image
from aurora_petl.errors import AuroraError
from aurora_petl.search import index as module
from aurora_petl.search import shards
from aurora_petl.search.encoder import TUNED, UNTUNED, Encoder
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.training import load_run
from tests.helpers.pictures import draw

ROUNDING = 1e-3  # of float16, for entries of unit vectors


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of pictures that were encoded, batch by batch."""
    counts, encode = [], Encoder.pictures
    monkeypatch.setattr(Encoder, "pictures", lambda self, pixels: counts.append(len(pixels)) or encode(self, pixels))
    return counts


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of four pictures in batches of two."""
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(shards, "SHARD", 4)


def build(album, model="blip-mini", out=None):
    return build_index(album, out or album.with_suffix(".index"), model, progress=False)


def paths(library):
    return [picture.path for picture in library.pictures]


def held(library):
    """Features by path."""
    return dict(zip(paths(library), library.picture_features(UNTUNED), strict=True))


def contents(out):
    """Bytes of every file of an index."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@torch.no_grad()
def test_features_are_those_of_each_picture_and_caption_alone(library, folder, run, backbone):
    _, tuned = load_run(run)
    for view, model in ((TUNED, tuned), (UNTUNED, backbone)):
        model.module.eval()
        transform = EvalTransform(PictureFormat(96))
        pictures, texts = library.picture_features(view).float(), library.text_features(view).float()
        assert len(pictures) == 24 and len(texts) == 48
        for row in (0, 9, 23):
            pixels = transform(load_image(folder / library.pictures[row].path))[None]
            alone = model.encode_image(pixels).feature[0]
            assert torch.allclose(pictures[row], alone, atol=ROUNDING)
        for row in (0, 31, 47):
            alone = model.encode_text(model.texts([library.texts[row]], 35)).feature[0]
            assert torch.allclose(texts[row], alone, atol=ROUNDING)
    assert (library.picture_features(TUNED) - library.picture_features(UNTUNED)).abs().max() > 0.05


def test_the_manifest_names_each_file_as_it_was(library, folder):
    manifest = json.loads((library.out / "manifest.json").read_text())
    assert paths(library) == sorted(f"images/{n}.png" for n in range(24))
    row = manifest["pictures"][3]
    file = folder / row["path"]
    assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (row["size"], row["mtime_ns"]) == (file.stat().st_size, file.stat().st_mtime_ns)
    assert set(manifest["keys"]) == {TUNED, UNTUNED} and len(set(manifest["keys"].values())) == 2
    assert library.folder == folder.resolve()


def test_nothing_is_encoded_twice(album, encoded):
    first = build(album)
    before = contents(album.with_suffix(".index"))
    again = build(album)
    assert (first.pictures, first.encoded, again.pictures, again.encoded) == (10, 10, 10, 0)
    assert encoded == [10] and contents(album.with_suffix(".index")) == before


def test_new_changed_moved_touched_copied_and_removed_files(album, encoded):
    build(album)
    old = held(Library(album.with_suffix(".index")))
    draw("cross", "purple").save(album / "new.jpg")
    draw("cross", "yellow").save(album / "images/0.png")  # changed
    (album / "images/1.png").rename(album / "moved.png")
    os.utime(album / "images/2.png", ns=(1, 1))
    shutil.copy(album / "images/3.png", album / "copied.PNG")
    (album / "images/4.png").unlink()
    (album / "captions.jsonl").unlink()
    encoded.clear()
    update = build(album)
    library = Library(album.with_suffix(".index"))
    new = held(library)
    assert encoded == [2] and (update.encoded, update.removed) == (2, 2)
    kept = [f"images/{n}.png" for n in (0, 2, 3, 5, 6, 7, 8, 9)]
    assert paths(library) == ["copied.PNG", *kept, "moved.png", "new.jpg"]
    same = {**{name: name for name in kept[1:]}, "moved.png": "images/1.png", "copied.PNG": "images/3.png"}
    assert all(torch.equal(new[now], old[then]) for now, then in same.items())
    assert not torch.allclose(new["images/0.png"], old["images/0.png"], atol=0.01)
    assert library.texts == []


def test_a_shard_goes_when_nothing_needs_it(album, small_shards):
    build(album)
    out = album.with_suffix(".index")
    assert [len(load_file(path)[UNTUNED]) for path in sorted(out.glob("pictures-*"))] == [4, 4, 2]
    for n in (0, 1, 2, 3, 4):
        (album / f"images/{n}.png").unlink()
    (album / "captions.jsonl").unlink()
    build(album)
    assert [path.name[9:14] for path in sorted(out.glob("pictures-*"))] == ["00001", "00002"]
    assert paths(Library(out)) == [f"images/{n}.png" for n in (5, 6, 7, 8, 9)]
    assert len(Library(out).picture_features(UNTUNED)) == 5


def test_hidden_and_other_files_are_left_out(album):
    (album / ".thumbnails").mkdir()
    draw("circle", "red").save(album / ".thumbnails/a.png")
    draw("circle", "red").save(album / ".b.png")
    for folder in ("@eaDir/1.png", "images/__MACOSX"):  # of a NAS, of macOS
        (album / folder).mkdir(parents=True)
        draw("circle", "red").save(album / folder / "thumb.png")
    (album / "notes.txt").write_text("x")
    assert build(album).pictures == 10


def test_a_broken_picture_is_named_skipped_and_tried_again(album):
    broken = album / "images/1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    (album / "a.png").write_text("no picture")
    out = album.with_suffix(".index")
    update = build(album)
    assert update.pictures == 9 and list(update.skipped) == ["a.png", "images/1.png"]
    assert "broken" in update.skipped["images/1.png"] and "not a picture" in update.skipped["a.png"]
    assert json.loads((out / "manifest.json").read_text())["skipped"] == update.skipped
    assert "images/1.png" not in paths(Library(out)) and build(album).skipped == update.skipped
    draw("circle", "red").save(broken)
    (album / "a.png").unlink()
    update = build(album)
    assert (update.pictures, update.skipped, "images/1.png" in paths(Library(out))) == (10, {}, True)


def test_killed_and_started_again_it_ends_the_same(album, small_shards, monkeypatch):
    (album / "images/2.png").write_text("no picture")
    shutil.copy(album / "images/0.png", album / "images/7.png")
    whole, killed = album.with_suffix(".whole"), album.with_suffix(".killed")
    build(album, out=whole)
    child = os.fork()
    if not child:  # dies in its fourth batch of two, the first shard of four being written
        calls, encode = [], Encoder.pictures
        Encoder.pictures = lambda self, pixels: (
            os._exit(9) if len(calls) == 3 else calls.append(0) or encode(self, pixels)
        )
        build(album, out=killed)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.name for path in killed.glob("*-*")] == ["pictures-00000.safetensors"]
    with pytest.raises(AuroraError, match="is unfinished; run aurora index again"):
        Library(killed)
    assert build(album, out=killed).encoded == 4
    assert contents(killed) == contents(whole)


def test_two_at_once(album, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    out = album.with_suffix(".index")
    build(album)
    with locks.lock(out), pytest.raises(AuroraError, match="album.index is being updated by another process; wait"):
        build(album)
    assert build(album).encoded == 0


def test_an_index_of_another_model_or_folder_is_refused(album, run, folder):
    out = album.with_suffix(".index")
    build(album)
    before = contents(out)
    with pytest.raises(AuroraError, match=r"was made with another model than .*run is \(blip-mini\)"):
        build(album, str(run))
    with pytest.raises(AuroraError, match="is the index of another folder"):
        build(folder, out=out)
    assert contents(out) == before


def test_a_model_that_was_trained_anew_is_refused(album, run, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")
    build(album, str(mine))
    weights = bytearray((mine / "adapter/adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (mine / "adapter/adapter_model.safetensors").write_bytes(weights)
    library = Library(album.with_suffix(".index"))
    assert library.encoder(UNTUNED)
    with pytest.raises(AuroraError, match="was made with other weights than .*mine has now"):
        library.encoder(TUNED)
    with pytest.raises(AuroraError, match="was made with another model"):
        build(album, str(mine))


def test_places_that_hold_no_pictures_or_no_index(album, tmp_path):
    with pytest.raises(AuroraError, match="no folder .*gone"):
        build(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AuroraError, match=r"empty holds no pictures \(.jpg, .png, .webp"):
        build(tmp_path / "empty")
    with pytest.raises(AuroraError, match="album is no index; name another --out"):
        build(album, out=album)
    with pytest.raises(AuroraError, match="gone.index is no index"):
        Library(tmp_path / "gone.index")


def test_the_model_computes_on_the_chosen_device(backbone, monkeypatch):
    monkeypatch.setattr("aurora_petl.search.encoder.choose", lambda: torch.device("meta"))
    encoder = Encoder(backbone, 35)
    assert encoder.device.type == "meta" and {weight.device.type for weight in backbone.parameters()} == {"meta"}
