"""Files are written whole, read with one line on what is wrong, locked and listed."""

import errno
import json
import math
import multiprocessing
import os
import stat

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from aurora_petl import files, locks, yaml_files
from aurora_petl.errors import AuroraError, first_line, short


def test_json_replaces_what_is_not_finite_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    files.write_json(path, {"a": [math.nan, 1.5, (True, -math.inf)], "b": "héé", "c": None, "d": np.float64("nan")})
    assert json.loads(path.read_text("utf-8")) == {"a": [None, 1.5, [True, None]], "b": "héé", "c": None, "d": None}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(OSError), files.whole(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_tensors(tmp_path / "w.safetensors", {"x": torch.ones(2)})
        files.write_json(tmp_path / "m.json", {})
        with files.whole_folder(tmp_path / "adapter") as partial:
            files.write_tensors(partial / "w.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    for name in ("w.safetensors", "m.json", "adapter/w.safetensors"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "adapter").stat().st_mode) == 0o777 & ~umask
    assert torch.equal(load_file(tmp_path / "adapter/w.safetensors")["x"], torch.ones(2))


def test_a_planted_link_is_replaced_not_written_through(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    for name in ("m.json", "m.json.part"):
        (tmp_path / name).symlink_to(target)
    files.write_json(tmp_path / "m.json", {"a": 1})
    assert target.read_text() == "precious" and json.loads((tmp_path / "m.json").read_text()) == {"a": 1}


def test_old_leftovers_are_removed_and_new_ones_are_not(tmp_path):
    old, new = tmp_path / ".m.json.0123.part", tmp_path / ".m.json.4567.part"
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (0, 0))
    files.write_json(tmp_path / "m.json", {})
    assert not old.exists() and new.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (
            RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: file write failed"),
            errno.ENOSPC,
        ),
        (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (RuntimeError("shapes do not fit"), None),
    ],
)
def test_errors_of_a_full_disk(error, code, tmp_path):
    told = files.disk_error(error, tmp_path / "w")
    assert (told is None) if code is None else (told.errno == code and "w" in str(told))


BAD_JSON = {
    "cut": ('{"a": 1', "not JSON"),
    "digits": ("9" * 5000, "Exceeds the limit"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "surrogate": (r'{"a": "x \ud83d"}', "surrogate"),
    "empty": ("", "not JSON"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_json_that_is_wrong_is_one_line(case, tmp_path):
    text, words = BAD_JSON[case]
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(AuroraError, match=words) as told:
        files.read_json(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_text_that_is_not_utf8_names_its_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"[1,\n\xff]")
    with pytest.raises(AuroraError, match="line 2: not UTF-8"):
        files.read_json(path)
    with pytest.raises(AuroraError, match="cannot be read: No such file"):
        files.read_json(tmp_path / "gone")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "d: 2024-13-45",
        "i: !!int foo",
        "f: !!float x",
        BOMB * 2,
        "[" * 5000,
        "a: !!python/name:os.system",
        "? [a]\n: b",
        "\x00",
    ],
)
def test_yaml_that_is_wrong_is_one_line(text):
    with pytest.raises(AuroraError) as told:
        yaml_files.parse_yaml(text, "recipe.yaml")
    assert str(told.value).startswith("recipe.yaml") and len(str(told.value)) < 400 and "\n" not in str(told.value)


def test_a_value_is_quoted_within_bounds():
    nested = ["x"]
    for _ in range(20):
        nested = [nested] * 10
    assert short(nested) == "a list of 10" and short("x" * 10**6).endswith("...") and short(3) == "3"
    assert first_line(ValueError("two\nlines.")) == "two" and first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x10\0\0\0\0\0\0\0{}", "is broken"),
        (b"\xff" * 100, "is broken"),
        (None, "cannot be read"),
    ],
)
def test_weights_that_are_no_safetensors(data, words, tmp_path):
    path = tmp_path / "w.safetensors"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(AuroraError, match=words), files.open_tensors(path):
        pass


def hold(folder, ready, done):
    with locks.lock(folder, "being trained"):
        ready.set()
        done.wait(60)


def test_a_lock_is_held_against_other_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.2)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(AuroraError, match="is being trained by another process"),
            locks.lock(tmp_path, "being trained"),
        ):
            pass
    finally:
        done.set()
        other.join()
    with locks.lock(tmp_path):
        pass


def test_a_lock_is_never_opened_through_a_link(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").symlink_to(target)
    with pytest.raises((AuroraError, OSError)), locks.lock(folder):
        pass
    assert target.read_text() == "precious"


def test_links_are_followed_and_loops_end(tmp_path):
    disk, folder = tmp_path / "disk", tmp_path / "mine"
    (disk / "deep").mkdir(parents=True)
    (disk / "deep/b.png").touch()
    folder.mkdir()
    (folder / "a.png").touch()
    (folder / ".hidden").touch()
    (folder / "images").symlink_to(disk)
    (disk / "back").symlink_to(folder)
    (disk / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    names = list(files.walk(folder))
    assert names[:2] == [".hidden", "a.png"] and "images/deep/b.png" in names and len(names) < 20
    assert ".hidden" not in list(files.walk(folder, hidden=False))


def test_a_web_of_links_is_not_unrolled(tmp_path):
    for n in range(12):
        (tmp_path / f"d{n}").mkdir()
        (tmp_path / f"d{n}/{n}.png").touch()
        for other in range(12):
            (tmp_path / f"d{n}/to{other}").symlink_to(tmp_path / f"d{other}")
    names = list(files.walk(tmp_path))
    assert {f"d{n}/{n}.png" for n in range(12)} <= set(names) and "d3/to4/4.png" in names
    assert len(names) < 12 * 13 + 1  # 12! paths lead through it


def test_a_folder_that_cannot_be_listed_is_named_and_one_inside_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may list all
    assert list(files.walk(tmp_path)) == ["a.png"]
    for place, why in (("closed", "Permission denied"), ("gone", "No such file"), ("a.png", "Not a directory")):
        with pytest.raises(AuroraError, match=f"{place} cannot be listed: {why}"):
            list(files.walk(tmp_path / place))


def test_names_that_are_not_utf8_are_listed(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    assert list(files.walk(tmp_path)) == [os.fsdecode(b"\xff.png")]


def test_pipes_and_folders_are_not_opened_as_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path, why in ((tmp_path / "pipe.json", "it is a pipe or a device"), (tmp_path, "it is a folder")):
        with pytest.raises(AuroraError, match=f"cannot be read: {why}"):
            files.read_json(path)
    assert list(files.walk(tmp_path)) == []
    with pytest.raises(OSError):
        files.read_bytes(tmp_path / "a\0b")


def test_a_pointer_of_git_lfs_is_no_text(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(AuroraError, match="is a pointer of git-lfs, not the file; fetch it with git lfs pull"):
        files.read_json(path)


def test_an_error_stays_on_one_line_whatever_names_it_holds():
    error = AuroraError(f"a\nb\r\x1b[2Jc\u2028d{os.fsdecode(bytes([255]))}: größe 猫")
    assert str(error) == r"a\nb\r\x1b[2Jc\u2028d\udcff: größe 猫" and str(error).encode()


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_pipe_for_weights_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(AuroraError, match="a pipe or a device"), files.open_tensors(tmp_path / "w.safetensors"):
        pass


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe"])
def test_what_is_no_file_stays_what_it_is(kind, tmp_path):
    """As root, a device such as /dev/null would be replaced as well."""
    path = tmp_path / "out.json"
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to("pipe") if kind != "pipe" else (tmp_path / "pipe").rename(path)
    with pytest.raises(OSError, match="a device or a pipe, not a file"):
        files.write_json(path, 1)
    assert stat.S_ISFIFO(path.stat().st_mode) and len(list(tmp_path.iterdir())) == (1 if kind == "pipe" else 2)


def test_an_output_that_cannot_be_written_is_told_beforehand(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, words in (("pipe", "is a device or a pipe"), (".", "is a folder")):
        with pytest.raises(AuroraError, match=words):
            files.check_output(tmp_path / name)
    with pytest.raises(OSError):
        files.check_output(tmp_path / "file" / "x.json")
    files.check_output(tmp_path / "deep" / "x.json")
    assert (tmp_path / "deep").is_dir()
