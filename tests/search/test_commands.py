"""``aurora index``, ``aurora search`` and ``aurora serve``: what they print and write, and how they fail."""

import json
import os
import re
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


def test_captions_by_picture(aurora, library, here):
    draw("square", "green").save(here / "query.png")
    words = ["search", "--image", "query.png", "--texts", "--index", library.out, "-k", 2, "--sheet", "sheet.png"]
    status, out, _ = aurora(*words)
    expected = Searcher(library).search(draw("square", "green"), 2, texts=True)
    assert status == 0 and out.splitlines()[0] == "query.png"
    assert [line.split(maxsplit=2)[2] for line in out.splitlines()[2:]] == [hit.what for hit in expected]
    assert Image.open(here / "sheet.png").getpixel((12 + 80, 12 + 80)) == (34, 170, 34)  # the query, #2a2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("search x", "no index here; make one with aurora index FOLDER, or name one with --index"),
        ("search x --index gone", "gone is no index: it has no manifest.json; make one with aurora index FOLDER"),
        ("search", "say what to look for, or give a picture with --image"),
        ("search x --image y", "say what to look for, or give a picture with --image"),
        ("search --index INDEX --image gone.jpg", "gone.jpg: no such picture"),
        ("search x --index INDEX -k 0", "-k is 0; it must be at least 1"),
        ("search x --index INDEX --texts", "captions are found by a picture; give one with --image"),
        ("index gone --model blip-mini", "no folder gone; name the one that holds your pictures"),
        ("index . --model blip-mini", ". holds no pictures (.avif, .bmp"),
        ("index FOLDER --model gone", "no model 'gone': it is neither embedded (blip-mini), nor a folder"),
        ("serve", "no index here; make one with aurora index FOLDER, or name one with --index"),
        ("serve --index INDEX --port 99999", "port 99999 can't be used"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(given, message, aurora, library, here, folder):
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
        ("serve", "--index --port"),
    ],
)
def test_help_mentions_every_option(command, options, aurora):
    status, out, _ = aurora(*command.split(), "--help")
    assert status == 0 and [option for option in options.split() if option not in out] == []
