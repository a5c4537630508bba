"""Files of a dataset in a folder and in a tar: what is listed, what is read, and what is said of the rest."""

import errno
import io
import json
import os
import random
import socket
import tarfile
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from aurora_petl import files
from aurora_petl.data import load_dataset
from aurora_petl.data.folder import read_folder
from aurora_petl.data.places import Folder, Tar
from aurora_petl.errors import AuroraError
from tests.helpers.pictures import draw, make_folder

ROW = {"image": "a.png", "caption": "a red circle"}


def mine(path: Path, *rows) -> Path:
    """A folder of the picture ``a.png`` with captions."""
    made = path / "mine"
    made.mkdir(parents=True)
    draw("circle", "red", 16).save(made / "a.png")
    (made / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW]))
    return made


def refusal(path: Path) -> str:
    with pytest.raises(AuroraError) as caught:
        read_folder(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


def test_links_to_folders_and_files_are_followed(tmp_path):
    disk = make_folder(tmp_path / "disk", 4)
    linked = tmp_path / "mine"
    linked.mkdir()
    (linked / "captions.jsonl").symlink_to(disk / "captions.jsonl")
    (linked / "images").symlink_to(disk / "images")
    (disk / "images/back").symlink_to(linked)  # a loop
    one, other = read_folder(disk), read_folder(linked)
    assert one.items == other.items and one.image(3).tobytes() == other.image(3).tobytes()
    other.check()


@pytest.mark.parametrize("form", ["pipe", "socket", "folder", "link to nothing", "link to itself"])
def test_what_is_no_file_is_said_and_never_opened(tmp_path, form, monkeypatch):
    made = mine(tmp_path, {**ROW, "image": "b.png"})
    monkeypatch.chdir(made)  # names of sockets must be short
    if form == "pipe":
        os.mkfifo("b.png")
    elif form == "socket":
        socket.socket(socket.AF_UNIX).bind("b.png")
    elif form == "folder":
        os.mkdir("b.png")
    else:
        os.symlink("b.png" if form == "link to itself" else "gone.png", "b.png")
    why = {
        "pipe": "it is a pipe or a device",
        "socket": "it is a pipe or a device",
        "folder": "it is a folder",
        "link to nothing": "it is a link to nothing",
        "link to itself": "Too many levels of symbolic links",
    }
    assert refusal(made).endswith(f"line 1: picture b.png is missing from {made}: {why[form]}")


def test_files_and_folders_that_may_not_be_read(tmp_path, monkeypatch):
    made = mine(tmp_path)
    dataset = read_folder(made)
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "a.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)  # root may read all
    said = f"mine/captions.jsonl, line 1: a.png cannot be read from {made}: Permission denied"
    for read in (lambda: dataset.image(0), lambda: list(dataset.content(0)), dataset.check):
        with pytest.raises(AuroraError) as caught:
            read()
        assert str(caught.value) == said
    monkeypatch.setattr(files, "_entries", lambda folder: read_bytes(Path("a.png")))
    assert refusal(made) == f"{made} cannot be listed: Permission denied"


@pytest.mark.parametrize("written", ["composed", "apart"])
def test_accents_match_however_they_are_written(tmp_path, written):
    composed, apart = "caf\u00e9.png", "cafe\u0301.png"
    disk, row = (composed, apart) if written == "composed" else (apart, composed)
    made = mine(tmp_path, {**ROW, "image": f"Gru\u0308n/{row}"}, {**ROW, "image": f"Gr\u00fcn/{row}", "caption": "two"})
    (made / "Gr\u00fcn").mkdir()
    (made / "a.png").rename(made / "Gr\u00fcn" / disk)
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        archive.add(made, ".")
    for source in (made, tmp_path / "mine.tar"):
        (item,) = read_folder(source)
        assert item.image == f"Gr\u00fcn/{disk}" and item.captions == ("a red circle", "two")
        assert item.id == f"Gr\u00fcn/{composed}"  # on which the split depends, on every system the same
        read_folder(source).check()


def test_both_ways_of_writing_are_two_files_where_both_are_there(tmp_path):
    made = mine(tmp_path, *({"image": f"{name}.png", "caption": "x"} for name in ("caf\u00e9", "cafe\u0301")))
    for name in ("caf\u00e9", "cafe\u0301"):
        draw("cross", "blue", 16).save(made / f"{name}.png")
    if len(list(made.iterdir())) < 4:
        pytest.skip("this file system knows one")
    with pytest.raises(AuroraError, match="at least 3 pictures"):
        read_folder(made).split("test")
    assert [item.image for item in read_folder(made)] == ["caf\u00e9.png", "cafe\u0301.png"]


def test_names_that_are_not_utf8_or_not_on_one_line(tmp_path):
    made = mine(tmp_path, ROW, {**ROW, "image": "b\nc\x1b[2J.png"}, {**ROW, "image": "cut.pn"})
    (made / os.fsdecode(b"\xffcut.png")).touch()
    (made / "new\nline.png").touch()
    message = refusal(made)
    assert r"line 2: picture b\nc\x1b[2J.png is missing" in message
    assert r"line 3: picture cut.pn is missing" in message and r"did you mean \udcffcut.png?" in message
    (made / "captions.jsonl").rename(made / os.fsdecode(b"\xff.jsonl"))
    assert r"of which \udcff.jsonl may be meant" in refusal(made)


@pytest.mark.parametrize(
    ("image", "near"),
    [
        ("A.PNG", "a.png"),
        ("elsewhere/a.png", "a.png"),
        ("it/deep.pnj", "in/it/deep.png"),
        ("in/it/dep.png", "in/it/deep.png"),
    ],
)
def test_what_may_be_meant(tmp_path, image, near):
    made = mine(tmp_path, {**ROW, "image": image})
    (made / "in/it").mkdir(parents=True)
    (made / "in/it/deep.png").touch()
    assert refusal(made).endswith(f"; did you mean {near}?")


@pytest.mark.parametrize("image", ["deep.png", "it/deep.png", "deep", "in/it/deep"])
def test_a_name_may_lack_its_folder_and_its_suffix(tmp_path, image):
    made = mine(tmp_path, {**ROW, "image": image})
    (made / "in/it").mkdir(parents=True)
    (made / "in/it/deep.png").write_bytes((made / "a.png").read_bytes())
    assert load_dataset(made)[0].image == "in/it/deep.png"
    (made / "in/deep.png").touch()
    if not image.startswith(("it", "in")):
        assert "lies in several folders (in/deep.png, in/it/deep.png); name the right one" in refusal(made)


@pytest.mark.parametrize("bad", [1, 20_000])
def test_many_names_and_rows_are_quick(tmp_path, bad, monkeypatch):
    """20,000 missing among 20,000: compared with each other they would take hours."""
    names = {f"images/{n:06}.jpg" for n in range(20_000)} | {"captions.jsonl"}
    rows = [{"image": f"images/{n:06}.jpg{'x' * (n < bad)}", "caption": "x"} for n in range(20_000)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setattr(Folder, "names", lambda folder: names)
    monkeypatch.setattr(Folder, "read", lambda folder, name: text)
    start = time.perf_counter()
    message = refusal(tmp_path)
    assert time.perf_counter() - start < 10
    assert "did you mean images/000000.jpg?" in message
    assert bad == 1 or "(and 19,995 more)" in message


def test_messages_are_bounded_whatever_is_named(tmp_path):
    made = mine(
        tmp_path, {**ROW, "image": "x" * 5_000_000}, {**ROW, "id": "y" * 3_000_000}, {**ROW, "split": "z" * 10_000}
    )
    assert len(refusal(made)) < 1500


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", os.fsdecode(b"\xff"), "a\nb"])
def test_data_of_a_name_that_no_system_takes(name):
    with pytest.raises(AuroraError, match="^no dataset ") as caught:
        load_dataset(name)
    assert len(str(caught.value)) < 400 and str(caught.value).encode()


@pytest.mark.parametrize("name", [[1], 3, "gone.jsonl", "x" * 5000])
def test_a_file_of_rows_that_is_not_there(tmp_path, name):
    with pytest.raises(AuroraError, match="files.rows is|has no ") as caught:
        load_dataset(mine(tmp_path), files={"rows": name})
    assert len(str(caught.value)) < 500


def test_what_a_loader_worker_meets_is_one_line(tmp_path):
    made = mine(tmp_path)
    dataset = read_folder(made)
    (made / "a.png").write_bytes(b"no picture")
    images = [0]
    loader = DataLoader(images, batch_size=None, num_workers=1, collate_fn=dataset.image)
    with pytest.raises(AuroraError) as caught:
        next(iter(loader))
    assert str(caught.value).startswith("mine/captions.jsonl, line 1: a.png: not a picture that can be read; save it")
    assert str(caught.value).endswith("JPEG or PNG")


def test_neither_a_folder_nor_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "pipe cannot be listed: Not a directory" in refusal(tmp_path / "pipe")
    assert "gone cannot be listed: No such file" in refusal(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "has no captions.jsonl, captions.csv or questions.jsonl; it holds 0 files" in refusal(tmp_path / "empty")


# Tars


def packed(path: Path, *members: tuple) -> Path:
    """A tar of members: a name, and bytes, or the kind of a link and its target."""
    with tarfile.open(path, "w") as archive:
        for name, content, *target in members:
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = content, target[0]
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def test_links_in_a_tar_are_followed(tmp_path):
    tar = Tar(
        packed(
            tmp_path / "a.tar",
            ("in/a.png", b"A"),
            ("in/hard.png", tarfile.LNKTYPE, "in/a.png"),
            ("soft.png", tarfile.SYMTYPE, "in/a.png"),
            ("in/deep/soft.png", tarfile.SYMTYPE, "../../soft.png"),
            ("loop.png", tarfile.SYMTYPE, "loop.png"),
            ("out.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("images", tarfile.SYMTYPE, "in"),
        )
    )
    assert tar.names() == {"in/a.png", "in/hard.png", "soft.png", "in/deep/soft.png"}
    assert {tar.read(name) for name in tar.names()} == {b"A"}
    for name in ("loop.png", "out.png", "images/a.png"):
        assert "it is a link to what is no file of the tar; pack the folder with tar -chf" in (tar.why(name) or "")
    assert tar.why("gone.png") is None
    with pytest.raises(FileNotFoundError):
        tar.read("out.png")


def test_names_in_a_tar_are_those_that_unpacking_would_give(tmp_path):
    tar = Tar(packed(tmp_path / "a.tar", ("/abs/a.png", b"A"), ("./b.png", b"1"), ("b.png", b"2"), ("../c.png", b"C")))
    assert tar.names() >= {"abs/a.png", "b.png"} and tar.read("abs/a.png") == b"A"
    assert tar.read("b.png") == b"2"  # the last of one name


def test_a_sparse_member_is_not_read_as_if_it_were_whole(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("hole.png")
    info.size, info.pax_headers = (
        512,
        {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,512", "GNU.sparse.size": "4096"},
    )
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x" * 512))
    tar = Tar(path)
    assert tar.names() == set() and "stored sparsely" in (tar.why("hole.png") or "")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "is empty; pack the folder with tar -cf"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs; fetch the tar with"),
        (lambda data: data[:2500], "is not a plain tar (unexpected end of data)"),
        (lambda data: data[:3072] + b"\xff" * 512 + data[3584:], "a member's head is broken at byte 3,072"),
        (lambda data: b"\x1f\x8b" + data, "is not a plain tar"),
    ],
)
def test_a_tar_that_is_not_whole(tmp_path, damage, said):
    path = packed(tmp_path / "a.tar", *((f"{n}.png", b"x" * 700) for n in range(4)))
    assert len(Tar(path).names()) == 4
    path.write_bytes(damage(path.read_bytes()))
    assert said in refusal(path)


def test_damaged_tars_are_one_line_or_read(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(make_folder(tmp_path / "in", 3), ".")
    whole, rng, read = path.read_bytes(), random.Random(1), set()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 5))):
            start = rng.choice([n for n in range(0, len(data), 512) if data[n : n + 2] == b"./" or n == 0])
            data[start + rng.randrange(512)] = rng.choice((0, 0x20, 0x35, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:  # a sum that fits, so that what the head says is believed
            head = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
            data[start + 148 : start + 156] = b"%06o\0 " % sum(head)
        path.write_bytes(data)
        try:
            read_folder(path).check()
            read.add(True)
        except AuroraError as error:
            assert "\n" not in str(error)
            read.add(False)
    assert read == {True, False}
