"""Folders as people have them: linked, moved, with files that are no pictures, cannot be read or are gone."""

import json
import os
import shlex
import shutil

import pytest
import torch

from aurora_petl.cli import main
from aurora_petl.errors import AuroraError
from aurora_petl.recipe import load_recipe
from aurora_petl.search import lines, reading, scan
from aurora_petl.search.encoder import TUNED, Encoder
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher


def build(album, model="blip-mini", out=None):
    return build_index(album, out or album.with_suffix(".index"), model, progress=False)


def paths(out):
    return [picture.path for picture in Library(out).pictures]


IMAGES = [f"images/{n}.png" for n in range(10)]


def test_linked_folders_are_indexed_and_loops_end(album, tmp_path):
    shutil.move(album / "images", tmp_path / "disk")
    (album / "images").symlink_to("../disk")  # pictures on another disk
    (tmp_path / "disk/self").symlink_to(".")
    (tmp_path / "disk/up").symlink_to("..")
    (album / "root").symlink_to("/")
    (album / "linked.png").symlink_to(tmp_path / "disk/0.png")
    assert build(album).pictures == 11
    assert paths(album.with_suffix(".index")) == [*IMAGES, "linked.png"]
    assert Searcher(Library(album.with_suffix(".index"))).picture(3).size == (96, 96)


def test_a_captioned_picture_that_was_deleted(album):
    build(album)
    out = album.with_suffix(".index")
    (album / "images/0.png").unlink()  # "a red circle"
    best = Searcher(Library(out)).search("a red circle", 10)
    assert sorted(hit.what for hit in best) == IMAGES[1:]  # before the update as well
    update = build(album)
    assert (update.pictures, update.removed, update.texts, update.absent) == (9, 1, 18, ["images/0.png"])
    library = Library(out)
    assert paths(out) == IMAGES[1:] and not {"a red circle", "circle, red"} & set(library.texts)
    (album / "captions.jsonl").write_text('{"image": "images/0.png", "caption": "a red circle"}\n')
    assert (build(album).texts, build(album).absent) == (0, ["images/0.png"])


def test_questions_are_no_captions_whatever_they_hold(album):
    (album / "captions.jsonl").unlink()
    (album / "questions.jsonl").write_text("{")
    assert build(album).texts == 0


def test_what_cannot_be_read_is_named_and_skipped(album, monkeypatch):
    os.mkfifo(album / "pipe.jpg")
    (album / "dangling.jpg").symlink_to("gone.jpg")
    (album / "itself.jpg").symlink_to("itself.jpg")
    (album / "pipe.txt").symlink_to("gone.txt")
    (album / "folder.jpg").mkdir()
    (album / "closed").mkdir()
    (album / "gone.png").write_bytes((album / "images/0.png").read_bytes())
    with open(album / "huge.png", "wb") as file:
        file.truncate(reading.LARGEST + 1)
    name = os.fsencode(album) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(album / "images/1.png"), name)
    scan, read = os.scandir, reading.read_bytes

    def listed(place):
        if os.fspath(place).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    def fetched(path):
        if path.name == "gone.png":  # in the moment between listing and reading
            path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(os, "scandir", listed)
    monkeypatch.setattr(reading, "read_bytes", fetched)
    update = build(album)
    assert update.pictures == 10 and list(update.skipped.values()) == [
        "closed: Permission denied",
        "dangling.jpg: a link to nothing",
        "itself.jpg: Too many levels of symbolic links",
        "pipe.jpg: a pipe or a device, not a file",
        "caf\\udce9.png: the name is not UTF-8; rename it",
        "gone.png: No such file or directory",
        "huge.png: larger than 2 GB; scale it down",
    ]
    assert json.loads((album.with_suffix(".index") / "manifest.json").read_text())["skipped"] == update.skipped


def test_pictures_of_kinds_that_are_not_read_are_said(album, tmp_path):
    for name in ("a.JXL", "b.jxl", "c.cr2", "notes.txt", "clip.mp4"):
        (album / name).write_bytes(b"x")
    shutil.copy(album / "images/0.png", album / "d.jfif")
    shutil.copy(album / "images/1.png", album / "e.JPE")
    update = build(album)
    assert update.pictures == 12 and update.others == {".jxl": 2, ".cr2": 1} and not update.skipped
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone/a.jxl").write_bytes(b"x")
    with pytest.raises(
        AuroraError, match=r"phone holds no pictures \(.jpg, .*\); 1 .jxl are of kinds that are not read"
    ):
        build(tmp_path / "phone")


def test_pictures_of_phones_are_said_to_need_an_extra():
    assert scan.mend_of({".jxl": 1}) == "save them as JPEG or PNG"
    said = lines.summary("x.index", lines.Update(1, 1, 0, 0, {}, {".heic": 2, ".cr2": 1}))
    assert "1 .cr2, 2 .heic; save them as JPEG or PNG, or, for those of phones, " in said and "[heic]" in said


def test_a_model_whose_features_are_no_numbers(album, monkeypatch):
    monkeypatch.setattr(Encoder, "pictures", lambda self, pixels: torch.full((len(pixels), 4), torch.nan))
    with pytest.raises(AuroraError, match="the untuned model gives features that are no numbers; .* another --model"):
        build(album)


def test_index_and_folder_moved_together_and_apart(album, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    out = home / "album.index"
    shutil.move(album, home)
    build(home / "album", out=out)
    before = Searcher(Library(out)).search("a red circle", 3)
    home.rename(tmp_path / "new")  # together
    out = tmp_path / "new/album.index"
    assert Library(out).folder == tmp_path / "new/album" and Searcher(Library(out)).search("a red circle", 3) == before
    assert build(tmp_path / "new/album", out=out).encoded == 0
    (tmp_path / "far/away").mkdir(parents=True)
    moved = shutil.move(out, tmp_path / "far/away/album.index")  # the index alone
    assert Library(moved).folder == tmp_path / "new/album"
    (tmp_path / "new/album").rename(tmp_path / "new/photos")  # the folder alone
    with pytest.raises(AuroraError, match="the pictures of .*album.index are not in .* nor .*new/album; put them back"):
        Library(moved)
    monkeypatch.chdir(tmp_path / "new")
    update = build(tmp_path / "new/photos", out=moved)  # as the message says
    assert update.encoded == 0 and Library(moved).folder == tmp_path / "new/photos"
    assert Searcher(Library(moved)).search("a red circle", 3) == before


def test_from_any_working_folder(album, run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "runs/mine")
    monkeypatch.chdir(tmp_path)
    assert main(["index", "album", "--model", "runs/mine", "--quiet"]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    capsys.readouterr()
    assert main(["search", "a red circle", "-k", "1", "--index", "../album.index"]) == 0
    path = capsys.readouterr().out.split()[-1]
    assert path.startswith("../album/images/") and os.path.isfile(path)
    assert main(["index", "../album", "--model", "../runs/mine", "--out", "../album.index", "--quiet"]) == 0
    assert "(0 encoded now, 0 removed)" in capsys.readouterr().out


def follow(message, capsys, **places):
    """Do what a message says, word for word, with names in the place of those in capitals; what the command prints."""
    words = shlex.split(message[message.index("aurora index") :])[1:]
    capsys.readouterr()
    assert main([*(str(places.get(word, word)) for word in words), "--quiet"]) == 0
    return capsys.readouterr().out


def test_pictures_that_were_moved(album, tmp_path, capsys):
    out = tmp_path / "our album.index"
    build(album, out=out)
    album.rename(tmp_path / "photos")
    with pytest.raises(AuroraError, match="the pictures of .* are not in") as raised:
        Library(out)
    assert "(0 encoded now" in follow(str(raised.value), capsys, FOLDER=tmp_path / "photos")
    assert Library(out).folder == tmp_path / "photos"


def test_a_model_that_was_moved(album, run, tmp_path, capsys):
    mine = shutil.copytree(run, tmp_path / "mine")
    out = tmp_path / "album.index"
    build(album, str(mine), out)
    mine.rename(tmp_path / "away")
    gone = "album.index was made with .*mine, which is gone; put it back or, if it has moved, name where it is now"
    with pytest.raises(AuroraError, match=gone) as raised:
        Library(out).encoder(TUNED)
    assert "(0 encoded now" in follow(str(raised.value), capsys, MODEL=tmp_path / "away")
    assert Library(out).encoder(TUNED)
    (tmp_path / "away").rename(mine)
    build(album, str(mine), out)
    (tmp_path / "new").mkdir()
    for path in (mine, album, out):
        shutil.move(path, tmp_path / "new")
    assert Library(tmp_path / "new/album.index").encoder(TUNED)


def test_a_folder_of_a_models_name_beside_it(album, tmp_path, monkeypatch):
    (tmp_path / "blip-mini").mkdir()
    (tmp_path / "blip-mini/recipe.yaml").write_text("model: gone")
    monkeypatch.chdir(tmp_path)
    build(album)
    monkeypatch.chdir("/")
    assert Searcher(Library(album.with_suffix(".index"))).search("a red circle", 1)


def test_a_run_that_is_not_finished(album, run, tmp_path):
    mine = shutil.copytree(run, tmp_path / "mine")
    shutil.rmtree(mine / "adapter")
    with pytest.raises(AuroraError, match="the run did not finish, continue it with --resume"):
        build(album, str(mine))
    load_recipe(None, ["task.name=vqa"]).save(mine / "recipe.yaml")
    with pytest.raises(AuroraError, match="mine was tuned for vqa; pictures are found by a run of retrieval"):
        build(album, str(mine))
    assert not album.with_suffix(".index").exists()


def test_folders_whose_names_are_not_utf8(album, tmp_path):
    other = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(album, other)
    with pytest.raises(AuroraError, match="the name is not UTF-8; rename the folder") as told:
        build(type(album)(other), out=tmp_path / "x.index")
    str(told.value).encode()
    with pytest.raises(AuroraError, match="the name is not UTF-8; rename the folder"):
        build(album, out=type(album)(other + ".index"))
