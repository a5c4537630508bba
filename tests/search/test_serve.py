"""The page on this machine, over HTTP: what it finds, and that it gives out nothing else."""

import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from contextlib import closing

import pytest
import uvicorn
from PIL import Image

from aurora_petl.data.media import load_image
from aurora_petl.errors import AuroraError
from aurora_petl.search import serve as module
from aurora_petl.search.index import Library, build_index
from aurora_petl.search.query import Searcher
from aurora_petl.search.serve import make_app, serve
from tests.helpers.pictures import draw

JSON = {"Content-Type": "application/json"}


class Client:
    """One request at a time, its path sent as it is; status, headers and body."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, body=None, headers=None, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest("POST" if body is not None else "GET", path, skip_host=True)
        sent = {"Host": host or f"127.0.0.1:{self.port}", **(headers or {})}
        for name, value in ({**sent, "Content-Length": str(len(body))} if body is not None else sent).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        with closing(connection):
            return answer.status, answer.headers, answer.read()

    def found(self, body, headers, query=""):
        status, _, answer = self(f"/search{query}", body, headers)
        return status, json.loads(answer)


def started(library):
    """A running server of ``library`` and what stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(library), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop():
        server.should_exit = True
        thread.join(30)
        listener.close()

    return Client(listener.getsockname()[1]), stop


@pytest.fixture(scope="module")
def client(library):
    client, stop = started(library)
    yield client
    stop()


def words(text):
    return json.dumps({"text": text}).encode()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("view", ["tuned", "untuned"])
def test_words_and_pictures_find_what_the_searcher_finds(view, client, library):
    searcher = Searcher(library, view)
    for query, body, headers in (
        ("a red circle", words("a red circle"), JSON),
        (draw("cross", "blue"), png(draw("cross", "blue")), {"Content-Type": "image/png"}),
    ):
        status, answer = client.found(body, headers, f"?view={view}&k=7")
        expected = searcher.search(query, 7)
        assert status == 200 and answer["view"] == view and answer["score"] == "ITC similarity"
        assert [(hit["row"], hit["path"]) for hit in answer["found"]] == [(hit.row, hit.what) for hit in expected]
        assert [hit["score"] for hit in answer["found"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_the_page_and_what_it_says_of_itself(client, library):
    status, headers, body = client("/")
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"<title>Aurora" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"] and not re.search(rb"https?://", body)
    about = json.loads(client("/about")[2])
    assert about == {"pictures": 24, "folder": "shapes", "model": "run", "views": ["tuned", "untuned"]}


def test_a_picture_goes_out_small_and_without_metadata(album, tmp_path):
    image = draw("circle", "red", 2000)
    exif = image.getexif()
    exif[0x010E] = "where I live"
    image.save(album / "0.jpg", exif=exif)
    build_index(album, album.with_suffix(".index"), "blip-mini", progress=False)
    client, stop = started(Library(album.with_suffix(".index")))
    try:
        for path, side in (("/thumbnail/0", 320), ("/picture/0", 1600)):
            status, headers, body = client(path)
            assert status == 200 and headers["Content-Type"] == "image/jpeg" and b"where I live" not in body
            assert Image.open(io.BytesIO(body)).size == (side, side)
        shutil.copy(album / "0.jpg", tmp_path / "secret.jpg")
        (album / "0.jpg").unlink()
        (album / "0.jpg").symlink_to(tmp_path / "secret.jpg")
        assert client("/thumbnail/0")[0] == 410  # although it was served before
        (album / "0.jpg").unlink()
        status, _, body = client("/thumbnail/0")
        assert status == 410 and "is gone since it was indexed" in json.loads(body)["error"]
    finally:
        stop()


def test_rows_are_the_pictures_of_the_index(client, library):
    for row in (0, 23):
        shown = Image.open(io.BytesIO(client(f"/thumbnail/{row}")[2])).convert("L")
        expected = load_image(library.path(row)).convert("L")
        difference = [abs(a - b) for a, b in zip(shown.tobytes(), expected.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 3
    assert client("/thumbnail/24")[0] == client("/picture/99999999999")[0] == 404


@pytest.mark.parametrize("end", ["-1", "1.0", "x", "", "images/0.png", "0/../../manifest.json", "%2e%2e/manifest.json"])
@pytest.mark.parametrize("start", ["/picture/", "/thumbnail/", "/", "//", "/../"])
def test_no_path_leads_to_a_file(start, end, client):
    status, _, body = client(start + end)
    assert status in (404, 405) or (status, b"<title>Aurora" in body) == (200, True)
    assert not body.startswith((b"\x89PNG", b"\xff\xd8")) and b"sha256" not in body


def test_absolute_and_climbing_paths(client, library):
    for path in (library.out / "manifest.json", library.path(0), "/etc/passwd"):
        for start in ("/picture", "/picture/..", "/thumbnail/../../../../../..", "/picture/%2e%2e%2f%2e%2e"):
            assert client(f"{start}{path}")[0] == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "192.168.0.1"])
def test_another_host_name_is_refused(host, client):
    assert client("/about", host=host)[0] == client("/thumbnail/0", host=host)[0] == 400
    assert client("/about", host=f"localhost:{client.port}")[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "query", "status", "message"),
    [
        (words(" "), JSON, "", 400, "the query is empty"),
        (b"{", JSON, "", 400, 'send {"text": "what to look for"}'),
        (b"[1]", JSON, "", 400, 'send {"text": "what to look for"}'),
        (b'{"text": 1}', JSON, "", 400, 'send {"text": "what to look for"}'),
        (b"no picture", {"Content-Type": "image/png"}, "", 400, "the picture: not a picture that can be read"),
        (words("x"), JSON, "?view=other", 400, "no view 'other'; choose one of tuned, untuned"),
        (words("x"), JSON, "?k=0", 400, "k is 0; it must be a number from 1 to 200"),
        (words("x"), JSON, "?k=-1", 400, "k is -1; it must be a number from 1 to 200"),
        (words("x"), {"Content-Type": "text/plain"}, "", 415, "send application/json or a picture"),
        (b"text=x", {"Content-Type": "application/x-www-form-urlencoded"}, "", 415, "send application/json"),
    ],
)
def test_wrong_queries(body, headers, query, status, message, client):
    found, answer = client.found(body, headers, query)
    assert found == status and answer["error"].startswith(message)


def test_an_upload_has_a_limit(client, monkeypatch):
    monkeypatch.setattr(module, "UPLOAD", 1024**2)
    status, answer = client.found(b"x" * (1024**2 + 1), {"Content-Type": "image/png"})
    assert (status, answer["error"]) == (413, "the picture is larger than 1 MB; send a smaller one")


def test_a_port_that_is_taken(client, library):
    with pytest.raises(AuroraError, match=f"port {client.port} can't be used .*; name another --port"):
        serve(library, client.port)
    with pytest.raises(AuroraError, match="port 99999 can't be used"):
        serve(library, 99999)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(client, folder, *how):
    """Let Chromium open a search; what it prints."""
    return subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--disable-quic", "--virtual-time-budget=20000"),
            f"--user-data-dir={folder}",
            *how,
            f"http://127.0.0.1:{client.port}/#a%20red%20circle",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HOME": str(folder)},
    ).stdout


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_browser_shows_what_was_found(client, library, tmp_path):
    """The page runs, asks for the words behind its #, and lists the pictures with their scores, for the eye too."""
    page = browse(client, tmp_path, "--dump-dom")
    answer = client.found(words("a red circle"), JSON)[1]["found"]
    shown = re.findall(r'<img src="/thumbnail/(\d+)"', page)
    assert shown == [str(hit["row"]) for hit in answer]
    assert f"{answer[0]['score']:.3f}" in page and "After tuning" in page

    browse(client, tmp_path, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1240,900")
    with Image.open(tmp_path / "page.png") as file:
        colours = {colour for _, colour in file.convert("RGB").getcolors(1 << 20)}
    for hit in answer[:4]:  # the first row of the page has the colours of its pictures
        picture = load_image(library.path(hit["row"]))
        wanted = picture.getpixel((picture.width // 2, picture.height // 2))
        assert any(max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) < 12 for colour in colours)
