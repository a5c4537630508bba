"""Who is let in: by which name of the server, with which token, and how a browser carries it."""

import re
import socket

import pytest

from aurora_petl.errors import AuroraError
from aurora_petl.search import serve as module
from aurora_petl.search.guard import Hosts
from aurora_petl.search.serve import answered, listen, serve
from tests.helpers.server import TOKEN, refused, started

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def client(library):
    client, stop = started(library)
    yield client
    stop()


def test_the_address_gives_way_to_a_cookie(client):
    status, headers, body = client(f"/?token={TOKEN}&q=a+red+circle&view=both", known=False)
    assert (status, headers["Location"], body) == (303, "/?q=a+red+circle&view=both", b"")
    name = f"aurora-{client.port}"
    assert headers["Set-Cookie"] == f"{name}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert client(f"/?token={TOKEN}", known=False)[1]["Location"] == "/"
    cookie = {"Cookie": f"other=1; {name}={TOKEN}; aurora-1=x"}
    for path in ("/", "/page.js", "/api/about", "/thumbnail/0", "/picture/0", "/api/search?q=x&k=1"):
        assert client(path, headers=cookie, known=False)[0] == 200
    for wrong in (f"{name}=wrong", f"aurora-1={TOKEN}", f"x{name}={TOKEN}", name, "", "\xff"):
        assert refused(client("/api/about", headers={"Cookie": wrong}, known=False))[0] == 403


def test_a_cookie_is_for_this_page_only(client):
    """Browsers send a cookie of this host along with the requests of pages at its other ports."""
    cookie = {"Cookie": f"aurora-{client.port}={TOKEN}"}
    for site, mode, status in (
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
        ("same-site", "navigate", 200),
        ("same-site", "cors", 403),
        ("same-site", "no-cors", 403),
        ("cross-site", "no-cors", 403),
    ):
        headers = {**cookie, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
        assert client("/api/search?q=x", headers=headers, known=False)[0] == status


def test_a_link_of_another_site_is_sent_on_by_a_page(client):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    status, headers, body = client(f"/?token={TOKEN}&q=%22%3E%3Cscript&k=3", headers=headers, known=False)
    assert status == 200 and headers["Set-Cookie"].startswith(f"aurora-{client.port}={TOKEN};")
    assert b'content="0; url=/?q=%22%3E%3Cscript&amp;k=3"' in body


def test_a_browser_without_the_token_is_asked_for_it(client):
    for address in ("/?q=%22%3E%3Cscript", "/?q=%22%3E%3Cscript&token=wrong"):
        status, headers, body = client(address, headers=HTML, known=False)
        assert status == 403 and headers["Content-Type"].startswith("text/html") and b'name="token"' in body
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert b'<input type="hidden" name="q" value="&quot;&gt;&lt;script">' in body and b"wrong&quot;" not in body
    assert client("/page.css", known=False)[0] == 200  # how it looks, no more
    assert refused(client("/api/about", headers=HTML, known=False))[0] == 403
    assert refused(client("/page.js", headers=HTML, known=False))[0] == 403


def test_no_inline_scripts_or_styles(client):
    status, headers, body = client("/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "unsafe" not in policy and "script-src 'self'" in policy
    assert b"<style" not in body and not re.search(rb"<script(?! src)| style=| on[a-z]+=", body)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        (b"127.0.0.1:7860", "7860"),
        (b"LOCALHOST", "80"),
        (b"[::1]:7860", "7860"),
        (b"photos.example:1", "1"),
        (b"photos.example.evil", None),
        (b"evil", None),
        (b"[::2]", None),
        (b"::1", None),
        (b"[::1", None),
        (b"localhost:x", None),
        (b"localhost:1:2", None),
        (b"a@localhost", None),
        (b"localhost.", None),
        (b"192.168.0.7:7860", None),
        (b"", None),
    ],
)
def test_names_of_a_server(host, port):
    assert Hosts(("127.0.0.1", "localhost", "::1", "photos.example")).port(host) == port


def test_at_all_addresses_every_address_is_a_name():
    hosts = answered("0.0.0.0", socket.socket())
    assert hosts.port(b"192.168.0.7:7860") == hosts.port(b"[fe80::1]:7860") == "7860"
    assert hosts.port(socket.gethostname().encode()) == "80"
    assert hosts.port(b"evil.example") is None and hosts.port(b"192.168.0.7.evil.example") is None
    assert str(hosts).endswith(" and IP addresses")


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("localhost", "localhost"), ("127.0.0.1", "127.0.0.1")])
def test_another_address(host, shown, library, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "make_app", lambda library, token, hosts: asked.append((token, hosts)))
    monkeypatch.setattr(module.uvicorn.Server, "run", lambda self, sockets: asked.append(sockets[0].getsockname()))
    try:
        serve(library, 0, host)
    except AuroraError as error:
        pytest.skip(str(error))  # a machine without IPv6
    (token, hosts), address = asked
    assert capsys.readouterr().out == f"http://{shown}:{address[1]}/?token={token}  (stop with Ctrl-C)\n"
    assert hosts.port(f"{shown}:{address[1]}".encode()) == str(address[1])
    assert re.fullmatch("[0-9a-f]{48}", token)


def test_a_token_of_ones_own(library, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(module, "make_app", lambda library, token, hosts: asked.append(token))
    monkeypatch.setattr(module.uvicorn.Server, "run", lambda self, sockets: None)
    serve(library, 0, token="my-own.token_1~")
    assert asked == ["my-own.token_1~"]
    out = capsys.readouterr().out  # which others may see: on a screen, in a log
    assert "my-own" not in out and out.endswith("(asks for the token that was set; stop with Ctrl-C)\n")
    for wrong in ("short", "with space", "x" * 201, "semi;colon", "ünicode!"):
        with pytest.raises(AuroraError, match="the token must be 8 to 200 letters, digits and"):
            serve(library, 0, token=wrong)


def test_addresses_of_other_machines():
    for host in ("192.0.2.1", "no such name", "2001:db8::1"):
        with pytest.raises(AuroraError, match="is no address of this machine.*; name another --host"):
            listen(host, 0)


def test_all_addresses_are_listened_at(library, monkeypatch, capsys):
    monkeypatch.setattr(module, "make_app", lambda library, token, hosts: None)
    ports = []
    monkeypatch.setattr(module.uvicorn.Server, "run", lambda self, sockets: ports.append(reach(sockets[0])))

    def reach(listener):
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1]), 10):
            return listener.getsockname()[1]

    serve(library, 0, "0.0.0.0")
    assert capsys.readouterr().out.startswith(f"http://{socket.gethostname()}:{ports[0]}/?token=")
