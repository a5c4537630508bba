"""Damaged pictures and clips: whatever the bytes are, a picture comes out or one line, and nothing else."""

import io
import os
import random
import struct
import subprocess
import warnings
import zlib
from contextlib import suppress
from importlib.util import find_spec

import numpy as np
import PIL
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin, features

from aurora_petl.data import media
from aurora_petl.data.kinds import FORMATS, PICTURE_SUFFIXES
from aurora_petl.data.media import load_image
from aurora_petl.data.video import load_frames
from aurora_petl.errors import AuroraError
from tests.helpers.clips import encode, numbered

UPRIGHT = Image.new("RGB", (30, 40), "white")
UPRIGHT.paste((200, 0, 0), (0, 0, 15, 10))  # no turn or mirror of this picture is the same
TRIES = 40
WRITTEN = [name for name in FORMATS if name != "AVIF" or features.check("avif")]


def encoded(kind, picture=UPRIGHT, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sample(kind):
    """A small file of a format, with metadata where it has some, and with frames where it moves."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") else {}
    if kind == "PNG":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        info.add_itxt("note", "text " * 20, zip=True)
    if kind in ("GIF", "WEBP"):
        options |= {"save_all": True, "append_images": [UPRIGHT.rotate(90, expand=True).resize(UPRIGHT.size)] * 3}
    if kind == "TIFF":
        options["compression"] = "tiff_lzw"
    return encoded(kind, UPRIGHT.convert("RGBA") if kind in ("ICO", "DDS") else UPRIGHT, **options)


def damaged(data, rng):
    """``data`` with a few bytes changed, near the head more often, or a part cut, left out or repeated."""
    changed = bytearray(data)
    reach = rng.choice((64, 400, len(data)))
    for _ in range(rng.choice((1, 1, 3, 12))):
        place = rng.randrange(min(reach, len(changed)))
        changed[place] = rng.choice((0, 1, 0x7F, 0xFF, changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
    how, place, length = rng.randrange(6), rng.randrange(len(changed)), rng.randrange(1, 64)
    if how == 0:
        del changed[place:]
    elif how == 1:
        del changed[place : place + length]
    elif how == 2:
        changed[place:place] = changed[place : place + length]
    return bytes(changed)


def outcomes(data, name):
    """What reading as a picture and as a clip comes to: sizes, or messages."""
    for read in (lambda: [load_image(data, name)], lambda: load_frames(data, 3, name=name)):
        try:
            found = read()
        except AuroraError as error:
            assert str(error).startswith(f"{name}: ") and "\n" not in str(error) and len(str(error)) < 400
            yield str(error)
        else:
            assert all(picture.mode == "RGB" and np.asarray(picture).size for picture in found)
            yield found[0].size


@pytest.mark.parametrize("kind", [*WRITTEN, "mp4", "avi", "matroska"])
def test_damaged_bytes_give_a_picture_or_one_line(kind, capfd):
    if kind in WRITTEN:
        data, tries = sample(kind), TRIES
    else:
        pytest.importorskip("av")
        data, tries = encode(numbered(8, (32, 32)), kind, "mpeg4"), TRIES
    rng = random.Random(kind)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        whole = list(outcomes(data, "whole"))
        assert isinstance(whole[0] if kind in WRITTEN else whole[1], tuple)
        kinds = {type(outcome) for n in range(tries) for outcome in outcomes(damaged(data, rng), f"try {n}")}
    assert kinds == {str, tuple}  # the damage is neither always mortal nor always harmless
    assert not shown, shown[0]
    if kind != "TIFF":  # whose C library writes to the terminal by itself
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_picture_cut_in_half_is_broken(kind):
    mode = "RGBA" if kind in ("ICO", "DDS") else "RGB"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    data = encoded(kind, Image.fromarray(noise).convert(mode))
    assert load_image(data).mode == "RGB"
    if kind == "DDS" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("older releases of Pillow fill the rest of such a picture in silence")
    with pytest.raises(AuroraError, match="^row 3: "):
        load_image(data[: len(data) // 2], "row 3")


# Metadata

ORIENTED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))  # tag, type, count, value: stored on its side


def jpeg(*entries, tail=b""):
    """A JPEG whose EXIF holds these entries, as its standard lays them out; ``tail`` lies behind them, at 8 + 2 + 12
    times their number + 4."""
    table = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + tail
    data = encoded("JPEG", UPRIGHT.transpose(Image.Transpose.ROTATE_90), quality=100, subsampling=0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


ODD = {
    "resolution of bytes": (0x011A, 7, 4, b"abcd"),
    "resolution of text": (0x011A, 2, 4, b"abc\0"),
    "signed fraction by zero": (0x011A, 10, 1, struct.pack("<I", 38)),
    "pointer past the end": (0x8769, 4, 1, struct.pack("<I", 0xFFFFFF)),
    "pointer of text": (0x8769, 2, 4, b"abc\0"),
    "pointer to itself": (0x8769, 4, 1, struct.pack("<I", 8)),
    "place of bytes": (0x8825, 7, 4, b"abcd"),
    "other make of bytes": (0xA005, 7, 4, b"abcd"),
    "unknown type": (0x9000, 77, 9, b"abcd"),
    "double that is cut": (0x9001, 12, 5000, struct.pack("<I", 38)),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("read", ["picture", "clip"])
def test_odd_metadata_beside_an_orientation(name, read):
    data = jpeg(ORIENTED, ODD[name], tail=struct.pack("<ii", -5, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_image(data) if read == "picture" else load_frames(data, 1)[0]
    assert np.abs(np.asarray(found, dtype=int) - np.asarray(UPRIGHT)).max() <= 4


@pytest.mark.parametrize(
    "orientation",
    [
        (0x0112, 2, 4, b"abc\0"),
        (0x0112, 7, 4, b"\6\0\0\0"),
        (0x0112, 3, 1, struct.pack("<HH", 9, 0)),
        (0x0112, 77, 1, b"abcd"),
    ],
)
def test_an_orientation_that_cannot_be_read_is_ignored(orientation):
    assert load_image(jpeg(orientation)).size == (40, 30)


def test_an_orientation_of_another_number_type_is_read():
    assert load_image(jpeg((0x0112, 12, 1, struct.pack("<I", 26)), tail=struct.pack("<d", 6.0))).size == (30, 40)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "PNG", "AVIF"])
def test_every_format_with_an_orientation_is_upright(kind):
    if kind not in WRITTEN:
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, UPRIGHT.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert load_image(data).size == (30, 40)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LONG = zlib.compress(bytes(80 << 20), 1)  # more than Pillow reads, however it is asked
TEXTS = {
    "profile": chunk(b"iCCP", b"x\0\0" + LONG),
    "compressed text": chunk(b"zTXt", b"x\0\0" + LONG),
    "text": chunk(b"tEXt", b"x\0" + b"y" * (65 << 20)),
    "international text": chunk(b"iTXt", b"x\0\1\0\0\0" + LONG),
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_long_texts_and_profiles_of_a_png_do_not_matter(name, behind):
    data = encoded("PNG")
    place = len(data) - 12 if behind else 33  # before the end, or behind the head
    data = data[:place] + TEXTS[name] + data[place:]
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(UPRIGHT))
    assert np.array_equal(np.asarray(load_frames(data, 1)[0]), np.asarray(UPRIGHT))
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20  # Pillow's own limits stay


def test_the_orientation_in_a_png_s_text_is_read():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded("PNG", UPRIGHT.transpose(Image.Transpose.ROTATE_90))
    data = data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]
    assert load_image(data).size == (30, 40)


# What is no picture


def test_no_other_program_runs(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("a program was started")

    for place, name in ((subprocess, "Popen"), (os, "system"), (EpsImagePlugin, "Ghostscript")):
        monkeypatch.setattr(place, name, never)
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
    wmf = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 40, 30, 72) + bytes(6) + b"\1\0\t\0" + bytes(60)
    for data in (drawing, wmf):
        with pytest.raises(AuroraError, match="^a.jpg: not a picture that can be read; save it again as JPEG or PNG"):
            load_image(data, "a.jpg")
        with pytest.raises(AuroraError, match="^a.gif: the clip is broken"):
            load_frames(data, 1, name="a.gif")


def test_formats_are_known_to_pillow_and_their_suffixes_count():
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN) and "EPS" not in FORMATS
    mine = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert mine - {".jpc", ".pfm", ".icb", ".vda", ".vst"} <= set(PICTURE_SUFFIXES)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "broken (it is empty); replace it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_files_that_are_not_whole(data, said, tmp_path):
    for read in (lambda source: load_image(source), lambda source: load_frames(source, 2)):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(AuroraError) as told:
            read(tmp_path / "a.png")
        assert said in str(told.value) and "a.png" in str(told.value)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def test_heic_says_what_reads_it(monkeypatch):
    monkeypatch.setattr(media, "_reads_heif", lambda: False)
    with pytest.raises(
        AuroraError, match=r"^a.heic: a HEIC picture needs pillow-heif: .*\[heic\]'; or save it as JPEG$"
    ):
        load_image(HEIC, "a.heic")


@pytest.mark.skipif(not find_spec("pillow_heif"), reason="needs pillow-heif")
def test_heic_is_read_where_pillow_heif_is_installed():
    assert media._reads_heif()
    buffer = io.BytesIO()
    drawn = Image.new("RGB", (64, 48), "red")
    drawn.paste("blue", (32, 0, 64, 48))
    drawn.save(buffer, "HEIF", quality=95)
    data = buffer.getvalue()
    read = load_image(data, "a.heic")
    assert read.size == (64, 48) and read.mode == "RGB"
    assert np.allclose([read.getpixel(place) for place in ((10, 20), (50, 20))], [(255, 0, 0), (0, 0, 255)], atol=12)
    for broken in (HEIC, data[: len(data) // 2]):
        with pytest.raises(AuroraError, match=r"^a.heic: (the picture is broken|not a picture)"):
            load_image(broken, "a.heic")


def test_what_is_not_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, why in (("pipe.jpg", "it is a pipe or a device"), ("folder.jpg", "it is a folder")):
        with pytest.raises(AuroraError, match=f"{name} cannot be read: {why}"):
            load_image(tmp_path / name)
    with pytest.raises(AuroraError, match="pipe.jpg cannot be read"):
        load_frames(tmp_path / "pipe.jpg", 2)


def test_frames_are_files(tmp_path):
    os.mkfifo(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").mkdir()
    UPRIGHT.save(tmp_path / "3.jpg")
    assert [frame.size for frame in load_frames(tmp_path, 2)] == [(30, 40)] * 2


# Size


def test_bombs_are_one_line_and_large_photographs_are_read(monkeypatch):
    data = encoded("PNG", Image.new("L", (30, 30)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # of twice as many Pillow only warns
        assert load_image(data).size == (30, 30)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
        for read in (lambda: load_image(data, "a.png"), lambda: load_frames(data, 1, name="a.png")):
            with pytest.raises(AuroraError, match="^a.png: too many pixels .*; scale it down$"):
                read()


def test_clips_have_the_same_limit(monkeypatch):
    pytest.importorskip("av")
    data = encode(numbered(2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(AuroraError, match="^a.mp4: too many pixels .64 x 48.; scale it down$"):
        load_frames(data, 1, name="a.mp4")


@pytest.mark.parametrize("error", [MemoryError, OSError(24, "Too many open files"), KeyboardInterrupt])
def test_what_is_not_the_file_s_fault(monkeypatch, error):
    def fails(picture):
        raise error

    monkeypatch.setattr(media, "to_rgb", fails)
    told = AuroraError if error is MemoryError else error if isinstance(error, type) else OSError
    with pytest.raises(told, match="a.png: too large to be decoded" if told is AuroraError else None):
        load_image(encoded("PNG"), "a.png")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux")
def test_no_file_stays_open(tmp_path):
    for name, data in (("good.jpg", encoded("JPEG")), ("cut.jpg", encoded("JPEG")[:300]), ("none.jpg", b"no picture")):
        (tmp_path / name).write_bytes(data)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for path in tmp_path.iterdir():
            for read in (lambda path: load_image(path), lambda path: load_frames(path, 1)):
                with suppress(AuroraError):
                    read(path)
    assert sorted(os.listdir("/proc/self/fd")) == before
