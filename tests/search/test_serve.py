"""The page on this machine, over HTTP: what it finds, and that it gives out nothing else."""

import io
import json
import re
import socket
from urllib.parse import quote

import pytest
from PIL import Image

from aurora_petl.data.media import load_image
from aurora_petl.errors import AuroraError
from aurora_petl.search import guard
from aurora_petl.search import serve as module
from aurora_petl.search.index import build_index
from aurora_petl.search.library import Library
from aurora_petl.search.query import Searcher
from aurora_petl.search.serve import serve
from tests.helpers.pictures import draw
from tests.helpers.server import JSON, TOKEN, png, refused, started, words


@pytest.fixture(scope="module")
def client(library):
    client, stop = started(library)
    yield client
    stop()


@pytest.mark.parametrize("view", ["tuned", "untuned"])
def test_words_and_pictures_find_what_the_searcher_finds(view, client, library):
    searcher = Searcher(library, view)
    for query, body, headers in (
        ("a red circle", words("a red circle"), JSON),
        (draw("cross", "blue"), png(draw("cross", "blue")), {"Content-Type": "image/png"}),
    ):
        status, answer = client.found(body, headers, f"?view={view}&k=7")
        expected = searcher.search(query, 7)
        (column,) = answer["views"]
        assert status == 200 and column["view"] == view and column["score"] == "ITC similarity"
        assert [(hit["row"], hit["path"]) for hit in column["found"]] == [(hit.row, hit.what) for hit in expected]
        assert [hit["score"] for hit in column["found"]] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_the_page_and_what_it_says_of_itself(client, library):
    status, headers, body = client("/")
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"<title>Aurora" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"] and not re.search(rb"https?://", body)
    about = json.loads(client("/api/about")[2])
    views = ["tuned", "untuned", "both"]
    expected = {"pictures": 24, "captions": 48, "folder": "shapes", "model": "run", "views": views}
    assert about == {**expected, "rerank": 200, "notes": [], "largest": 64 * 1024**2}
    for path, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = client(path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and not re.search(rb"https?://|@import", body)


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
        draw("circle", "red", 40).save(tmp_path / "secret.jpg")
        (album / "0.jpg").rename(tmp_path / "moved.jpg")
        (album / "0.jpg").symlink_to(tmp_path / "secret.jpg")
        message = "0.jpg has changed since it was indexed; run aurora index again"  # although it was served before
        assert refused(client("/thumbnail/0")) == (410, message)
        (album / "0.jpg").unlink()
        (album / "0.jpg").symlink_to(tmp_path / "moved.jpg")  # the same bytes
        assert client("/thumbnail/0")[0] == 200
        (album / "0.jpg").unlink()
        message = "0.jpg is gone since it was indexed; run aurora index again"  # and no path of this machine
        assert refused(client("/thumbnail/0")) == (410, message)
    finally:
        stop()


def test_rows_are_the_pictures_of_the_index(client, library):
    for row in (0, 23):
        shown = Image.open(io.BytesIO(client(f"/thumbnail/{row}")[2])).convert("L")
        expected = load_image(library.path(row)).convert("L")
        difference = [abs(a - b) for a, b in zip(shown.tobytes(), expected.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 3
    assert client("/thumbnail/24")[0] == client("/picture/99999999999")[0] == 404


def test_no_message_says_where_the_folder_lies(album, tmp_path):
    build_index(album, album.with_suffix(".index"), "blip-mini", progress=False)
    (album / "captions.jsonl").write_text("no JSON")
    client, stop = started(Library(album.with_suffix(".index")))
    try:
        for fields in ("under=..", "under=/etc", "after=2999", "before=0001-01-02"):
            status, message = refused(client(f"/api/search?q=x&{fields}"))
            assert status == 400 and "album" in message and str(tmp_path) not in message
        about = client("/api/about")[2].decode()
        assert "captions are left out: album/captions.jsonl" in about and str(tmp_path) not in about
        for path in (album / "images").iterdir():
            path.unlink()
        status, message = refused(client("/api/search?q=x"))
        assert (status, message) == (400, "album holds none of the pictures any more; put them back")
    finally:
        stop()


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
    assert client("/api/about", host=host)[0] == client("/thumbnail/0", host=host)[0] == 400
    assert client("/api/about", host=f"localhost:{client.port}")[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "query", "status", "message"),
    [
        (words(" "), JSON, "", 400, "the query is empty"),
        (b"{", JSON, "", 400, "the query: not JSON"),
        (b"\xff", JSON, "", 400, "the query: not UTF-8"),
        (b'{"text": "a circle \\ud83d"}', JSON, "", 400, "the query: holds half of a surrogate pair"),
        (b'{"text": %s}' % (b"[" * 20_000), JSON, "", 400, "the query: nested too deeply"),
        (b'{"text": %s}' % (b"9" * 5_000), JSON, "", 400, "the query: Exceeds the limit"),
        (b" " * 66_000, JSON, "", 413, "the query is larger than 64 KB; send a smaller one"),
        (b"[1]", JSON, "", 400, 'send {"text": "what to look for"}'),
        (b'{"text": 1}', JSON, "", 400, 'send {"text": "what to look for"}'),
        (b"no picture", {"Content-Type": "image/png"}, "", 400, "the picture: not a picture that can be read"),
        (words("x"), JSON, "?view=other", 400, "no view 'other'; choose one of tuned, untuned"),
        (words("x"), JSON, "?k=0", 400, "k is 0; it must be a number from 1 to 200"),
        (words("x"), JSON, "?k=-1", 400, "k is -1; it must be a number from 1 to 200"),
        (words("x"), JSON, "?k=" + "9" * 5_000, 400, "k is 999"),
        (words("x"), JSON, "?k=\u0663", 400, "k is "),
        (words("x"), {"Content-Type": "text/plain"}, "", 415, "send application/json or a picture"),
        (b"text=x", {"Content-Type": "application/x-www-form-urlencoded"}, "", 415, "send application/json"),
    ],
)
def test_wrong_queries(body, headers, query, status, message, client):
    found, text = refused(client(f"/api/search{quote(query, safe='?=')}", body, headers))
    assert found == status and text.startswith(message)


def test_a_picture_is_held_for_its_pages(client):
    picture, kind = png(draw("cross", "blue")), {"Content-Type": "image/png"}
    status, _, body = client("/api/pictures", picture, kind)
    name = json.loads(body)["picture"]
    sent = client.found(picture, kind, "?k=5")[1]
    assert status == 200 and sent["query"] == {"text": None, "like": None, "picture": name}
    assert json.loads(client(f"/api/search?picture={name}&k=5")[2]) == sent
    status, headers, body = client(f"/sent/{name}")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and Image.open(io.BytesIO(body)).size == (96, 96)
    message = "the picture that was asked with is not held any more; give it again"
    assert refused(client("/sent/0123")) == (404, message)
    assert refused(client("/api/pictures", b"no picture", kind))[1].startswith("the picture: not a picture")
    for body, kind in ((words("x"), JSON), (b"%PDF", {"Content-Type": "application/pdf"})):
        assert refused(client("/api/pictures", body, kind)) == (415, "send a picture")


def test_words_in_the_address(client):
    found = json.loads(client("/api/search?q=a+red+circle&k=5&page=2&view=both")[2])
    assert found["page"] == 2 and [len(view["found"]) for view in found["views"]] == [5, 5]
    assert client.found(words("a red circle"), JSON, "?k=5&page=2&view=both")[1] == found
    assert refused(client("/api/search?q=x&page=0")) == (400, "page is 0; it must be a number from 1 to 83")
    assert refused(client("/api/search"))[1].startswith("nothing is asked; give one of q")


def test_words_may_name_their_coding(client):
    for kind in ("application/json; charset=utf-8", "Application/JSON;charset=utf-8"):
        assert client.found(words("a red circle"), {"Content-Type": kind})[0] == 200


def test_what_no_decoder_takes_is_a_wrong_query(client, monkeypatch):
    for error in (RuntimeError, TypeError, IndexError, NotImplementedError, MemoryError):

        def fail(*given, error=error):
            raise error("deep inside a decoder")

        monkeypatch.setattr(Image, "open", fail)
        status, message = refused(client("/api/search", b"x", {"Content-Type": "image/png"}))
        assert status == 400 and message.startswith("the picture: ")


def test_an_upload_has_a_limit(client, monkeypatch):
    monkeypatch.setattr(module, "UPLOAD", 1024**2)
    message = "the picture is larger than 1 MB; send a smaller one"
    big, kind = b"x" * (1024**2 + 1), {"Content-Type": "image/png"}
    assert refused(client("/api/search", big, kind)) == (413, message)
    with socket.create_connection(("127.0.0.1", client.port)) as sender:  # in chunks, which do not say how many
        lines = f"POST /api/search?token={TOKEN} HTTP/1.1", "Host: localhost", "Content-Type: image/png"
        sender.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
        sender.sendall(b"%x\r\n%s\r\n" % (len(big), big))
        assert sender.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_errors_of_the_framework_are_refusals_too(client):
    assert refused(client("/nothing")) == (404, "Not Found")
    assert refused(client("/api/pictures")) == (405, "Method Not Allowed")
    assert refused(client("/", b"x")) == (405, "Method Not Allowed")
    assert refused(client("/thumbnail/" + "9" * 5_000)) == (400, "row is a number of 5,000 digits")
    assert refused(client("/api/about", host="evil.example"))[0] == 400


def test_a_failure_of_the_server_is_a_refusal_too(client, monkeypatch):
    def fail(*given):
        raise ZeroDivisionError

    monkeypatch.setattr(Searcher, "search", fail)
    message = "the server failed; what went wrong stands where aurora serve runs"
    assert refused(client("/api/search", words("x"), JSON)) == (500, message)


@pytest.mark.parametrize("path", ["/", "/api/about", "/thumbnail/0", "/picture/0", "/nothing"])
def test_who_does_not_know_the_token_gets_nothing(path, client):
    message = "the token is missing or wrong; open the address that aurora serve printed"
    for end, headers in (
        ("", {}),
        ("?token=", {}),
        (f"?token={TOKEN[:-1]}", {}),
        (f"?token=wrong&token={TOKEN}", {}),
        ("?token=%ed%a0%bd", {}),
        ("", {"Authorization": f"Basic {TOKEN}"}),
        ("", {"Authorization": "Bearer "}),
        (f"?token={TOKEN}", {"Authorization": "Bearer wrong"}),
    ):
        assert refused(client(path + end, headers=headers, known=False)) == (403, message)
    status = {"/nothing": 404}.get(path, 200)
    assert client(path)[0] == status
    assert client(f"{path}?token={TOKEN}", known=False)[0] == (303 if path == "/" else status)
    assert refused(client("/api/search", words("x"), JSON, known=False))[0] == 403


def test_a_client_that_goes_away_or_is_slow(library, monkeypatch, capfd):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 1.5)
    client, stop = started(library)
    lines = (
        f"POST /api/search?token={TOKEN} HTTP/1.1",
        "Host: localhost",
        "Content-Type: image/png",
        "Content-Length: 99",
    )
    begun = "\r\n".join([*lines, ""])
    try:
        with socket.create_connection(("127.0.0.1", client.port)) as sender:
            sender.sendall(f"{begun}\r\nabc".encode())
        for sent in ("", "GET / HT", begun):  # no whole header ever comes
            with socket.create_connection(("127.0.0.1", client.port)) as sender:
                sender.settimeout(10)
                sender.sendall(sent.encode())
                assert sender.recv(1) == b""
        with socket.create_connection(("127.0.0.1", client.port)) as sender:
            sender.settimeout(10)
            sender.sendall(f"{begun}\r\nabc".encode())
            assert sender.recv(1 << 16).startswith(b"HTTP/1.1 408")
            while sender.recv(1 << 16):
                pass  # until the server closes the connection
        assert client("/api/about")[0] == 200
    finally:
        stop()
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken(client, library):
    with pytest.raises(AuroraError, match=f"port {client.port} can't be used .*; name another --port"):
        serve(library, client.port)
    with pytest.raises(AuroraError, match="port 99999 can't be used"):
        serve(library, 99999)
