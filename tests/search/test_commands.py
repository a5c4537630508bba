"""``aurora index``, ``aurora search`` and ``aurora serve``: what they print and write, and how they fail."""

import json
import os
import re
import shutil
import sys

import pytest
from PIL import Image

from aurora_petl.cli import main
from aurora_petl.errors import install
from aurora_petl.search import serve as serving
from aurora_petl.search.query import Searcher
from tests.helpers.pictures import draw


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def aurora(capsys):
    """Runs the command; status, standard output, standard error."""

    def run(*given: object) -> tuple[int, str, str]:
        try:
            status = main(list(map(str, given)))
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


def test_index_then_search(aurora, album, here):
    (album / "images/3.png").write_text("no picture")
    status, out, _ = aurora("index", album, "--model", "blip-mini", "--quiet")
    assert status == 0 and out.splitlines() == [
        "album.index: 9 pictures (9 encoded now, 0 removed), 20 captions",
        "1 skipped; mend or remove them and run aurora index again:",
        "  images/3.png: not a picture that can be read; save it again as JPEG or PNG",
    ]
    status, out, _ = aurora("search", "a red circle", "-k", 3)
    lines = out.splitlines()
    assert status == 0 and lines[:2] == [
        "a red circle",
        "album.index, pictures, untuned model, score: ITC similarity",
    ]
    assert len(lines) == 5
    for rank, line in enumerate(lines[2:], 1):
        assert re.fullmatch(rf" +{rank}   +-?\d\.\d{{3}}  \.\./album/images/\d\.png", line)
        assert os.path.isfile(line.split()[-1])
    (album / "images/3.png").unlink()
    (album / "images/4.png").unlink()
    (album / "captions.jsonl").unlink()
    out = aurora("index", album, "--model", "blip-mini", "--quiet")[1]
    assert out == "album.index: 8 pictures (0 encoded now, 1 removed), 0 captions\n"


def test_json_and_sheet_of_a_reranked_query(aurora, library, here):
    words = ["search", "a blue cross", "--index", library.out, "-k", 4, "--rerank", 6]
    status, out, _ = aurora(*words, "--json", "deep/found.json", "--sheet", "sheet.png")
    expected = Searcher(library).search("a blue cross", 4, rerank=6)
    assert status == 0
    assert out.splitlines()[1].endswith("pictures, tuned model, score: ITM match logit of the 6 best by ITC")
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [
        [str(rank), f"{hit.score:.3f}"] for rank, hit in enumerate(expected, 1)
    ]
    found = json.loads((here / "deep/found.json").read_text())
    assert found["query"] == "a blue cross" and found["view"] == "tuned" and found["folder"] == str(library.folder)
    assert [(row["rank"], row["found"]) for row in found["found"]] == [
        (rank, hit.what) for rank, hit in enumerate(expected, 1)
    ]
    sheet = Image.open(here / "sheet.png")
    left = 12 + 160 // 2  # the middle of the first picture, which is a filled shape or a cross: its own colour
    centre = load(library, expected[0].row).resize((160, 160)).getpixel((80, 80))
    top = sheet.height - (12 + 160 + 12 + 2 * 18) + 80
    assert max(abs(a - b) for a, b in zip(sheet.getpixel((left, top)), centre, strict=True)) < 12


def load(library, row):
    return Image.open(library.path(row)).convert("RGB")


@pytest.mark.parametrize("words", [["search", "צבע 🏖"], ["duplicates"]])
def test_json_for_another_program(words, library, here, capfd):
    assert main([*words, "--index", str(library.out), "--json", "-"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["index"] == str(library.out) and told.get("query", words[-1]) == words[-1]
    assert not list(here.iterdir())


def test_captions_by_picture(aurora, library, here):
    draw("square", "green").save(here / "query.png")
    words = ["search", "--image", "query.png", "--texts", "--index", library.out, "-k", 2, "--sheet", "sheet.png"]
    status, out, _ = aurora(*words)
    expected = Searcher(library).search(draw("square", "green"), 2, texts=True)
    assert status == 0 and out.splitlines()[0] == "query.png"
    assert [line.split(maxsplit=2)[2] for line in out.splitlines()[2:]] == [hit.what for hit in expected]
    assert Image.open(here / "sheet.png").getpixel((12 + 80, 12 + 80)) == (34, 170, 34)  # the query, #2a2


def test_a_picture_given_as_a_text_is_told_so(aurora, library, here):
    draw("square", "green").save(here / "query.png")
    status, _, err = aurora("search", "query.png", "--index", library.out, "-k", 2)
    assert status == 0 and "aurora search --image query.png" in err
    assert "--image" not in aurora("search", "other.png", "--index", library.out, "-k", 2)[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("search x", "no index here; make one with aurora index FOLDER --model MODEL, or name one with --index"),
        (
            "search x --index gone",
            "gone is no index: it has no manifest.json; make one with aurora index FOLDER --model MODEL",
        ),
        ("search", "say what to look for, or give a picture with --image"),
        ("search x --image y", "say what to look for, or give a picture with --image"),
        ("search --index INDEX --image gone.jpg", "gone.jpg: no such picture"),
        ("search x --index INDEX -k 0", "k is 0; it must be at least 1"),
        ("search x --index INDEX --texts", "captions are found by a picture; give one, not words"),
        ("index gone --model blip-mini", "no folder gone; name the one that holds your pictures"),
        ("index LOOP --model blip-mini", "no folder LOOP; name the one that holds your pictures"),
        ("index . --model blip-mini", ". holds no pictures (.jpg, .png, .webp"),
        ("index FOLDER --model gone", "no model 'gone': it is neither embedded (blip-mini), nor a folder"),
        ("serve", "no index here; make one with aurora index FOLDER --model MODEL, or name one with --index"),
        ("serve --index INDEX --port 99999", "port 99999 can't be used"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(given, message, aurora, library, here, folder, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    given, message = given.replace("LOOP", str(loop)), message.replace("LOOP", str(loop))
    filled = given.replace("INDEX", str(library.out)).replace("FOLDER", str(folder))
    status, out, err = aurora(*filled.split())
    assert status == 1 and not out and err.startswith(f"aurora: error: {message}") and err.count("\n") == 1
    assert not list(here.iterdir())


def test_an_empty_query(aurora, library):
    _, out, err = aurora("search", " ", "--index", library.out)
    assert not out and err.startswith("aurora: error: the query is empty; say what to look for")


def test_index_needs_a_model(aurora, album):
    status, _, err = aurora("index", album)
    assert (status, err) == (
        2,
        "aurora index: error: the following arguments are required: --model (see aurora index --help)\n",
    )


def test_serve_says_where_it_is(aurora, library, monkeypatch):
    asked = []
    monkeypatch.setattr(serving.uvicorn.Server, "run", lambda self, sockets: asked.append(sockets[0].getsockname()))
    status, out, _ = aurora("serve", "--index", library.out, "--port", 0)
    address = rf"http://127.0.0.1:{asked[0][1]}/\?token=[0-9a-f]{{48}}  \(stop with Ctrl-C\)\n"
    assert status == 0 and re.fullmatch(address, out)
    assert asked[0][0] == "127.0.0.1"


def test_serve_takes_a_token_of_the_environment(aurora, library, monkeypatch):
    asked = []
    monkeypatch.setattr(serving, "make_app", lambda library, token, hosts: asked.append(token))
    monkeypatch.setattr(serving.uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setenv("AURORA_TOKEN", "of-the-environment")
    for more in ([], ["--token", "of-the-command"]):
        assert aurora("serve", "--index", library.out, "--port", 0, *more)[0] == 0
    monkeypatch.setenv("AURORA_TOKEN", "")
    aurora("serve", "--index", library.out, "--port", 0)
    assert asked[:2] == ["of-the-environment", "of-the-command"] and len(asked[2]) == 48
    status, _, err = aurora("serve", "--index", library.out, "--token", "short")
    assert status == 1 and err.startswith("aurora: error: the token must be 8 to 200 letters")


def test_serve_without_its_packages(aurora, library, monkeypatch):
    monkeypatch.delitem(sys.modules, "aurora_petl.search.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, err = aurora("serve", "--index", library.out)
    message = f"aurora: error: aurora serve needs starlette and uvicorn: {install('serve')}\n"
    assert (status, err) == (1, message)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", "index search serve"),
        ("index", "FOLDER --model --out --quiet"),
        ("search", "TEXT --image --texts --index -k --rerank --sheet --json"),
        ("serve", "--index --port --host --token"),
    ],
)
def test_help_mentions_every_option(command, options, aurora):
    status, out, _ = aurora(*command.split(), "--help")
    assert status == 0 and [option for option in options.split() if option not in out] == []


def test_what_was_left_out_is_said_in_lines(aurora, album, here):
    (album / "photo\x1b[2J.jxl").write_bytes(b"x")
    (album / "two\nlines.png").write_text("no picture")
    for n in range(7):
        (album / f"images/{n}.png").unlink()
    status, out, err = aurora("index", album, "--model", "blip-mini", "--quiet")
    assert (status, err) == (0, "") and out.splitlines() == [
        "album.index: 3 pictures (3 encoded now, 0 removed), 6 captions",
        "1 skipped; mend or remove them and run aurora index again:",
        "  two\\nlines.png: not a picture that can be read; save it again as JPEG or PNG",
        "not indexed, being of kinds that cannot be read here: 1 .jxl; save them as JPEG or PNG",
        "captions of 7 pictures that are not there are left out: images/0.png, images/1.png, images/2.png, "
        "images/3.png, images/4.png, ...",
    ]


def test_pictures_that_are_gone_are_said(aurora, album, here):
    assert aurora("index", album, "--model", "blip-mini", "--quiet")[0] == 0
    for n in range(8):
        (album / f"images/{n}.png").unlink()
    status, out, err = aurora("search", "a red circle", "-k", 5)
    assert status == 0 and len(out.splitlines()) == 4
    assert err == "aurora: 8 more are gone since they were indexed; run aurora index again\n"


def test_names_stay_on_their_lines(aurora, album, here):
    (album / "images/0.png").rename(album / "images/two\nlines\x1b[2J.png")
    (album / "captions.jsonl").unlink()
    aurora("index", album, "--model", "blip-mini", "--quiet")
    out = aurora("search", "a red circle")[1]
    assert len(out.splitlines()) == 12 and "two\\nlines\\x1b[2J.png" in out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--image", "pipe.png"], "pipe.png cannot be read: it is a pipe or a device"),
        (["--image", "."], ". cannot be read: it is a folder"),
        (["--image", "caf\udce9.png"], "caf\\udce9.png: no such picture"),
        (["x", "--sheet", "a.jpg"], "a.jpg would be a .png file; name it a.png"),
        (["x", "-k", "1001", "--sheet", "a.png"], "-k is 1001; a sheet shows at most 1,000"),
    ],
)
def test_queries_that_cannot_be_read(given, message, aurora, library, here):
    os.mkfifo("pipe.png")
    status, out, err = aurora("search", *given, "--index", library.out)
    assert (status, out, err) == (1, "", f"aurora: error: {message}\n")


@pytest.mark.parametrize("option", ["--sheet", "--json"])
@pytest.mark.parametrize("place", ["file/x.png", "/proc/x.png", "folder"])
def test_places_that_cannot_be_written(option, place, aurora, library, here):
    (here / "file").write_text("mine")
    (here / "folder").mkdir()
    status, _, err = aurora("search", "x", "--index", library.out, option, place)
    assert status == 1 and err.startswith("aurora: error: ") and err.count("\n") == 1
    assert (here / "file").read_text() == "mine" and not list((here / "folder").iterdir())
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("place", ["file", "file/x.index", "/proc/x.index", "loop"])
def test_an_index_that_cannot_be_written(place, aurora, album, here):
    (here / "file").write_text("mine")
    (here / "loop").symlink_to("loop")
    status, out, err = aurora("index", album, "--model", "blip-mini", "--quiet", "--out", place)
    assert status == 1 and not out and err.startswith("aurora: error: ") and err.count("\n") == 1
    assert (here / "file").read_text() == "mine"


def test_filters_and_duplicates(aurora, album, here):
    (album / "old").mkdir()
    shutil.copy(album / "images/1.png", album / "old/1.png")
    os.utime(album / "old/1.png", (1e9, 1e9))  # in September 2001
    aurora("index", album, "--model", "blip-mini", "--quiet")
    for words in (["--under", "old"], ["--before", "2001-10"], ["--under", album / "old", "--after", "2001-09"]):
        status, out, _ = aurora("search", "a red circle", *words)
        assert status == 0 and len(out.splitlines()) == 3 and out.splitlines()[2].endswith("../album/old/1.png")
    assert "album.index, pictures under old after 2001-09-01 00:00:00, untuned model" in out.splitlines()[1]
    status, out, _ = aurora("duplicates", "--threshold", 1, "--json", "groups.json")
    assert status == 0 and out.splitlines() == [
        "album.index, pictures: 2 in 1 groups, of the same content (=) or with a cosine of 1 at least",
        "",
        f"    1.000  {(album / 'images/1.png').stat().st_size:>12,}  ../album/images/1.png",
        f"=   1.000  {(album / 'images/1.png').stat().st_size:>12,}  ../album/old/1.png",
    ]
    (group,) = json.loads((here / "groups.json").read_text())["groups"]
    assert [(one["path"], one["same"]) for one in group] == [("images/1.png", True), ("old/1.png", True)]
    status, out, _ = aurora("duplicates", "--threshold", 1, "--under", "old")
    assert status == 0 and out.splitlines() == [
        "album.index, pictures under old: 0 in 0 groups, of the same content (=) or with a cosine of 1 at least"
    ]
    for words, why in {
        ("duplicates", "--threshold", 2): "threshold is 2; it must lie above 0, up to 1",
        ("search", "x", "--after", "yesterday"): "after 'yesterday' is no date; give a year, month or day",
    }.items():
        status, _, error = aurora(*words)
        assert status == 1 and why in error and len(error.splitlines()) == 1


def test_a_store_by_its_address(aurora, album, here, address):
    secret = address.replace("aurora@", "aurora:hush@")
    status, out, error = aurora("index", album, "--model", "blip-mini", "--store", secret, "--quiet")
    shown = re.sub(r"[?]host=.*&", lambda match: match[0], address)
    assert (status, error) == (0, "") and out == f"{shown}: 10 pictures (10 encoded now, 0 removed), 20 captions\n"
    status, out, _ = aurora("search", "a red circle", "-k", 2, "--store", secret, "--json", "found.json")
    assert status == 0 and len(out.splitlines()) == 4 and "hush" not in out + (here / "found.json").read_text()
    assert os.path.isfile(out.splitlines()[-1].split()[-1])
    status, out, _ = aurora("duplicates", "--store", secret, "--threshold", 1)
    assert status == 0 and "hush" not in out


def test_an_address_is_refused_without_its_password(aurora, monkeypatch):
    for words, why in {
        ("search", "x", "--store", "mysql://me:hush@h/d"): "argument --store: the address begins with postgresql://",
        ("search", "x", "--store", "postgresql://me:hush@h/d", "--index", "i"): "not allowed with argument",
        ("search", "x", "--store", "postgresql://me:hu/sh@h/d"): "the address of the store can't be read",
    }.items():
        status, out, error = aurora(*words)
        assert status in (1, 2) and why in error and "hush" not in out + error and "hu/sh" not in out + error
    monkeypatch.setitem(sys.modules, "psycopg", None)
    status, _, error = aurora("search", "x", "--store", "postgresql://me:hush@h/d")
    assert status == 1 and error == f"aurora: error: a library in PostgreSQL needs psycopg: {install('postgres')}\n"
