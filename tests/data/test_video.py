"""Which frames of a clip are read, from every container and layout; what broken clips say."""

import io
import random
import struct
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from aurora_petl.data import video
from aurora_petl.data.places import Folder, Tar
from aurora_petl.data.rows import ImageTextDataset, Item
from aurora_petl.data.video import frame_names, load_frames, sample
from aurora_petl.errors import AuroraError
from tests.helpers.clips import encode, number, numbered

pytest.importorskip("av")


def numbers(frames):
    assert all(frame.mode == "RGB" for frame in frames)
    return [number(frame) for frame in frames]


# Sampling


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [
        (16, 4, [2, 6, 10, 14]),
        (8, 8, list(range(8))),
        (10, 3, [1, 5, 8]),  # middles at 1.67, 5, 8.33
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (9, 1, [4]),
    ],
)
def test_middles_of_equal_spans(frames, count, expected):
    assert sample(range(frames), frames, count) == expected


def test_spans_count_time_not_frames():
    # ten frames in the first second, then one that stands for nine
    times = [*range(0, 1000, 100), 1000]
    assert sample(times, 10_000, 5) == [10] * 5  # middles at 1 s, 3 s ...: the last frame
    assert sample(times, 10_000, 10) == [5] + [10] * 9  # the first middle is 0.5 s
    assert sample([700, 800, 900], 1000, 3) == [0, 1, 2]  # a clip need not start at 0


def test_training_takes_one_frame_of_each_span_and_repeats_itself():
    seen = set()
    for seed in range(200):
        chosen = sample(range(40), 40, 8, random.Random(seed))
        assert all(5 * span <= frame < 5 * span + 5 for span, frame in enumerate(chosen))
        assert chosen == sample(range(40), 40, 8, random.Random(seed))
        seen.update(chosen)
    assert seen == set(range(40))
    assert sample(range(3), 3, 8, random.Random(1)) == sorted(sample(range(3), 3, 8, random.Random(1)))


# Containers


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "mpeg4", {}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("matroska", "libx264", {}),
        ("webm", "libvpx", {}),
        ("avi", "mpeg4", {}),
        ("avi", "libx264", {}),  # whose packets carry the order of decoding, not of showing
        ("mpegts", "libx264", {}),
        ("h264", "libx264", {}),  # no times at all
    ],
)
def test_every_container_gives_the_frames_that_were_put_in(kind, codec, options):
    data = encode(numbered(30), kind, codec, **options)
    assert numbers(load_frames(data, 30)) == list(range(30))
    assert numbers(load_frames(data, 5)) == [3, 9, 15, 21, 27]
    assert numbers(load_frames(data, 2)) == [7, 22]
    rng = random.Random(3)
    expected = sample(range(30), 30, 6, random.Random(3))
    assert numbers(load_frames(data, 6, rng)) == expected


def test_a_variable_frame_rate_is_sampled_by_time():
    times = [*range(10), 20, 30, 40, 50, 60, 70, 80, 90]  # a burst, then one frame a second
    data = encode(numbered(18), "matroska", times=times, rate=10)
    # 9.1 s, as the last frame's own length is 0.1: middles at 0.455 s, 1.365 s ... 8.645 s
    assert numbers(load_frames(data, 10)) == [4, 9, 10, 11, 12, 13, 13, 14, 15, 16]


def test_only_what_is_needed_is_decoded(monkeypatch):
    data = encode(numbered(60), key_every=10)
    converted = []
    real = video._upright
    monkeypatch.setattr(video, "_upright", lambda frame: converted.append(frame.pts) or real(frame))
    load_frames(data, 4)
    assert len(converted) == 4
    load_frames(encode(numbered(2)), 8)
    assert len(converted) == 6  # a frame that stands for several spans is converted once


def test_a_path_is_read_too(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(numbered(8)))
    assert (
        numbers(load_frames(tmp_path / "a.mp4", 4)) == numbers(load_frames(str(tmp_path / "a.mp4"), 4)) == [1, 3, 5, 7]
    )
    with pytest.raises(AuroraError, match=r"gone\.mp4: no such clip"):
        load_frames(tmp_path / "gone.mp4", 4)


# The display matrix in a track header, ISO/IEC 14496-12: how a point of the stored frame moves when shown
MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise


@pytest.mark.parametrize("degrees", MATRICES)
def test_rotated_clips_stand_upright(degrees):
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste((200, 0, 0), (0, 0, 16, 16))
    upright.paste((0, 0, 200), (48, 0, 64, 16))
    stored = upright.rotate(degrees, expand=True)  # PIL turns counterclockwise; the player turns it back
    data = bytearray(encode([stored] * 4))
    place = data.index(b"tkhd") + 4 + 40  # past version, times, ids, layer and volume of a version 0 box
    a, b, c, d = (value << 16 for value in MATRICES[degrees])
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (found,) = load_frames(bytes(data), 1)
    assert found.size == (64, 32)
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # they need no PyAV
    buffer = io.BytesIO()
    first, *rest = numbered(12)
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(buffer, kind, save_all=True, append_images=rest, duration=[50] * 11 + [550], **options)
    # 1.1 s: the first eleven frames fill half of it, the last the other
    assert numbers(load_frames(buffer.getvalue(), 4)) == [2, 8, 11, 11]
    assert numbers(load_frames(buffer.getvalue(), 22))[:12] == list(range(12))


def test_a_single_picture_is_a_clip_of_one_frame(tmp_path):
    numbered(8)[5].save(tmp_path / "a.png")
    assert numbers(load_frames(tmp_path / "a.png", 3)) == [5, 5, 5]


def frames_folder(path, count=12):
    path.mkdir(parents=True)
    for n, picture in enumerate(numbered(count)):
        picture.save(path / f"frame{n}.jpg", quality=95)
    (path / "notes.txt").write_text("not a frame")
    (path / "._frame3.jpg").write_text("what another system leaves")
    return path


def test_a_folder_of_frames_is_a_clip(tmp_path):
    frames_folder(tmp_path / "v")
    assert numbers(load_frames(tmp_path / "v", 12)) == list(range(12))  # frame10 comes after frame9
    assert numbers(load_frames(tmp_path / "v", 3)) == [2, 6, 10]
    (tmp_path / "empty").mkdir()
    with pytest.raises(AuroraError, match="empty: a folder without frames; it must hold pictures"):
        load_frames(tmp_path / "empty", 3)


def test_frames_sort_by_number():
    assert frame_names(["b2.jpg", "b10.PNG", "b1.jpg", "x.txt"]) == ["b1.jpg", "b2.jpg", "b10.PNG"]


# Broken clips


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "frag"])
def test_a_clip_that_breaks_off(tmp_path, kind):
    options = {"movflags": "frag_keyframe+empty_moov"} if kind == "frag" else {}
    data = encode(numbered(40), "mp4" if kind == "frag" else kind, "mpeg4", **options)
    with pytest.raises(AuroraError, match=r"row 7: the clip is broken \(.+\); replace it, or .*broken=skip"):
        load_frames(data[: len(data) // 2], 4, name="row 7")


def test_a_clip_whose_index_comes_first_and_breaks_off(tmp_path):
    """Its header promises all frames, and decoding would stop in silence where the file does."""
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in numbered(40):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    assert len(load_frames(path, 4)) == 4
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AuroraError, match=r"a\.mp4: the clip is broken \(it breaks off"):
        load_frames(path, 4)


@pytest.mark.parametrize("data", [b"", b"no video at all", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 200])
def test_what_is_no_clip(data):
    with pytest.raises(AuroraError, match="^row 3: the clip is broken"):
        load_frames(data, 4, name="row 3")


def sound(kind="mp4", codec="aac"):
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def jpeg(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_clip_of_sound_alone():
    with pytest.raises(AuroraError, match="it has no video stream"):
        load_frames(sound(), 4)


def test_a_cover_is_no_clip():
    cover = b"\0image/jpeg\0\3\0" + jpeg(numbered(8)[5])
    frame = b"APIC" + struct.pack(">IH", len(cover), 0) + cover
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    with pytest.raises(AuroraError, match="it has no video stream, only a cover picture"):
        load_frames(b"ID3\3\0\0" + size + frame + sound("adts"), 4)


def test_raw_mjpeg_gives_all_its_frames():
    data = b"".join(jpeg(frame) for frame in numbered(12))
    assert numbers(load_frames(data, 12)) == list(range(12))
    assert numbers(load_frames(data, 3)) == [2, 6, 10]
    with pytest.raises(AuroraError, match="the clip is broken"):
        load_frames(data[:300], 3)


def test_pictures_behind_a_photograph_are_no_frames(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # a photograph needs no PyAV
    buffer = io.BytesIO()
    first, *rest = numbered(3)
    first.save(buffer, "MPO", save_all=True, append_images=rest, quality=95)
    assert numbers(load_frames(buffer.getvalue(), 3)) == [0, 0, 0]
    assert numbers(load_frames(jpeg(first) + b"what a telephone adds", 2)) == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile a.mp4\n",
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\na.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_playlists_open_no_other_file(tmp_path, monkeypatch, text):
    (tmp_path / "a.mp4").write_bytes(encode(numbered(4)))
    (tmp_path / "a.ts").write_bytes(encode(numbered(4), "mpegts"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AuroraError, match="the clip is broken"):
        load_frames(text.encode(), 2)


def test_whatever_the_decoder_raises_is_the_clip_s_fault(monkeypatch):
    def fails(frame):
        raise RuntimeError("no such pixel format\nat all")

    monkeypatch.setattr(video, "_upright", fails)
    with pytest.raises(AuroraError, match=r"^row 7: the clip is broken \(no such pixel format\); replace it"):
        load_frames(encode(numbered(2)), 1, name="row 7")


def test_without_pyav_the_extra_is_named(monkeypatch):
    data = encode(numbered(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AuroraError, match=r"pip install -e '\.\[video\]'"):
        load_frames(data, 2)


# In a dataset


def dataset(path, *names, files=None, **options):
    items = [Item(name, ("a clip",), name, "train", line) for line, name in enumerate(names, 1)]
    return ImageTextDataset("clips", items, files or Folder(path), clips=True, **options)


def test_rows_of_clips_and_of_frame_folders(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(numbered(9)))
    frames_folder(tmp_path / "b", 9)
    rows = dataset(tmp_path, "a.mp4", "b")
    for index in range(2):
        assert numbers(rows.frames(index, 3)) == [1, 4, 7]
        assert number(rows.image(index)) == 4  # the middle
        assert numbers(rows.frames(index, 3, random.Random(2))) == sample(range(9), 9, 3, random.Random(2))
    rows.check()


def test_a_tar_holds_clips_and_frame_folders_as_well(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(encode(numbered(6)))
    frames_folder(tmp_path / "in/b", 6)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(tmp_path / "in", ".")  # names begin with ./, as of tar -cf in.tar .
    rows = dataset(tmp_path, "a.mp4", "b", files=Tar(tmp_path / "in.tar"))
    assert numbers(rows.frames(0, 3)) == numbers(rows.frames(1, 3)) == [1, 3, 5]


def broken_folder(path):
    (path / "good.mp4").write_bytes(encode(numbered(4)))
    (path / "cut.mp4").write_bytes(encode(numbered(4))[:300])
    return "good.mp4", "cut.mp4", "gone.mp4", "cut.mp4"


def test_broken_clips_stop_by_default(tmp_path):
    with pytest.raises(AuroraError) as caught:
        dataset(tmp_path, *broken_folder(tmp_path)).check()
    assert "captions.jsonl, line 2: cut.mp4: the clip is broken" in str(caught.value)
    assert "captions.jsonl, line 3: gone.mp4: no such clip" in str(caught.value)


def test_broken_clips_are_skipped_on_demand_and_named(tmp_path, capsys):
    rows = dataset(tmp_path, *broken_folder(tmp_path), broken="skip")
    rows.check()
    assert [item.image for item in rows] == ["good.mp4"]
    printed = capsys.readouterr().out
    assert printed.startswith("clips: 2 of 3 clips left out, 3 rows: ")
    assert "cut.mp4" in printed and "gone.mp4" in printed and printed.count("\n") == 1


def test_nothing_but_broken_clips_stops_in_any_case(tmp_path):
    with pytest.raises(AuroraError, match="cut.mp4"):
        dataset(tmp_path, *broken_folder(tmp_path)[1:], broken="skip").check()


def test_no_third_policy(tmp_path):
    with pytest.raises(AuroraError, match="broken is 'ignore'; choose stop or skip"):
        dataset(tmp_path, broken="ignore")
