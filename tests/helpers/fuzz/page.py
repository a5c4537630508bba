"""Bad requests to the page, handed to its application without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .case import Case, Draw, accept
from .damage import DEEP, DIGITS, HARMS, ODD, cut
from .pictures import FORMATS, NO_PICTURES, encoded

TOKEN = "0123abc"
HOST = (b"host", b"127.0.0.1:7860")
KNOWN = (b"authorization", f"Bearer {TOKEN}".encode())
JSON = (b"content-type", b"application/json")
PNG = (b"content-type", b"image/png")


@dataclass
class Request:
    """One request, as a server hands it over."""

    method: str = "GET"
    path: str = "/"
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [HOST, KNOWN])
    body: bytes = b""
    parts: int = 1  # that the body comes in
    gone: bool = False  # whether the client goes away after the first part
    kind: str = "http"


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def _ask(app: Any, request: Request) -> Answer:
    scope = {
        "type": request.kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode("latin-1", "replace"),
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 7860),
        "state": {},
    }
    size = max(1, -(-len(request.body) // request.parts))
    chunks = [request.body[n : n + size] for n in range(0, len(request.body), size)] or [b""]
    if request.gone:
        chunks = chunks[:1]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": request.gone or n + 1 < len(chunks)}
        for n, chunk in enumerate(chunks)
    ]
    answer = Answer()

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in message["headers"]}
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def _app(draw: Draw) -> Any:
    if not hasattr(draw.ground, "app"):
        from aurora_petl.search.library import Library
        from aurora_petl.search.serve import make_app

        draw.ground.app = make_app(Library(draw.ground.index), TOKEN)  # type: ignore[attr-defined]
    return draw.ground.app  # type: ignore[attr-defined]


Wrong = Callable[[Answer], str | None]


def _case(draw: Draw, about: str, request: Request, statuses: tuple[int, ...], more: Wrong | None = None) -> Case:
    answers: list[Answer] = []
    app = _app(draw)

    def call() -> int:
        answers.append(asyncio.run(_ask(app, request)))
        return 0

    def check(outcome: Any) -> str | None:
        answer = answers[0]
        if outcome.err:
            return f"printed {outcome.err[:300]!r}"
        if answer.status not in statuses:
            return f"status {answer.status}, not {statuses}: {answer.body[:200]!r}"
        if answer.status and "content-security-policy" not in answer.headers:
            return "no security headers"
        if str(draw.ground.root).encode() in answer.body or b"Traceback" in answer.body:
            return f"tells of this machine: {answer.body[:300]!r}"
        if answer.status >= 400 and request.method != "HEAD":
            message = json.loads(answer.body)["error"]
            if not message or len(message) > 300 or any(ord(letter) < 32 for letter in message):
                return f"an error of {len(message)} characters: {message[:300]!r}"
        return more(answer) if more else None

    return Case(about[:120], [], accept(check), (), {}, call)


def _found(count: int) -> Wrong:
    def check(answer: Answer) -> str | None:
        if answer.status != 200:
            return None
        rows = json.loads(answer.body)["views"][0]["found"]
        right = len(rows) == count and all(-1.01 <= row["score"] <= 1.01 for row in rows)
        return None if right else f"{len(rows)} hits: {answer.body[:200]!r}"

    return check


BODIES: list[tuple[bytes, tuple[int, ...]]] = [
    (b"", (400,)),
    (b"{", (400,)),
    (b"[1]", (400,)),
    (b"null", (400,)),
    (b'"x"', (400,)),
    (b"{}", (400,)),
    (b'{"text": ""}', (400,)),
    (b'{"text": " \\n "}', (400,)),
    (b'{"text": "x"}{"text": "y"}', (400,)),
    (b'{"Text": "x"}', (400,)),
    (b"\xff\xfe{\0", (400,)),
    (b'{"text": "caf\xe9"}', (400,)),
    (b'{"text": "\\ud83d"}', (400,)),
    (b'{"\\ud83d": 1, "text": "x"}', (400,)),
    (b'{"text": "a\0b"}', (400,)),
    (DEEP.encode()[:60_000], (400,)),
    (b'{"text": "x", "y": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", (400,)),
    (b'{"text": ' + DIGITS.encode() + b"}", (400,)),
    (b'{"text": "x", "n": ' + DIGITS.encode() + b"}", (400,)),
    (b'{"text": "' + b"y" * 100_000 + b'"}', (413,)),
    (b"x" * 1_000_000, (413,)),
    (b'{"text": "' + b"y" * 30_000 + b'"}', (200,)),
    (b'{"text": "a circle\\u0000"}', (200, 400)),
    (b'{"text": "\\u001b[31m"}', (200, 400)),
    ('{"text": "圆 🔴"}'.encode(), (200,)),
    (b'\xef\xbb\xbf{"text": "x"}', (200, 400)),
    (b'{"text": "x", "text": "y"}', (200, 400)),
]
QUERIES: list[tuple[bytes, tuple[int, ...]]] = [
    *(
        (b"k=" + value, (400,))
        for value in (b"0", b"-1", b"x", b"", b"1.5", b"1e2", b"201", DIGITS.encode(), b"+5x", b"%00")
    ),
    *((b"k=" + value, (400,)) for value in ("٣".encode(), b"%D9%A3", b"%C2%B2", b"\xff", b"0x10", b"_1", b"1_0")),
    *(
        (b"view=" + value, (400,))
        for value in (b"", b"x", b"TUNED", b"..%2F", b"%00", b"%ff", b"y" * 5000, b"%0d%0aX: y")
    ),
    *((value, (200,)) for value in (b"k=3&k=x&k=3", b"zzz=1", b"&&&&", b"k=3&view=tuned", b"%ff=%ff", b"?")),
    (b"&".join([b"a=1"] * 5000), (200, 400, 403)),
]
ASKED: list[tuple[bytes, tuple[int, ...]]] = [
    *(
        (value, (400,))
        for value in (b"", b"q=", b"q=%20", b"q=a&like=1", b"like=", b"like=-1", b"like=24", b"like=%00")
    ),
    *((b"like=" + value, (400,)) for value in (DIGITS.encode(), "٣".encode(), b"1e1", b"x", b"0x1")),
    *((b"picture=" + value, (400,)) for value in (b"", b"x", b"..%2F..%2Fetc", b"%00", b"%ff", b"y" * 5000)),
    *((b"q=a&rerank=" + value, (400,)) for value in (b"", b"-1", b"201", DIGITS.encode(), b"x", b"%C2%B2")),
    *((b"q=a&page=" + value, (400,)) for value in (b"", b"0", b"84", DIGITS.encode(), b"x", b"1.0")),
    *((b"q=a&find=" + value, (400,)) for value in (b"", b"x", b"captions", b"%0d%0aX: y")),
    (b"like=0&rerank=5", (400,)),
    *((value, (200,)) for value in (b"q=%ff", b"q=a&page=83", b"q=a&rerank=3&k=2&page=2", b"like=0", b"q=a&q=b")),
    *(
        (value, (200,))
        for value in (b"like=1&find=captions&rerank=2", b"q=%F0%9F%94%B4&view=both", b"q=" + b"y" * 9000)
    ),
    *((value, (200, 400)) for value in (b"q=%00", b"q=%1b[31m", b"q=%ed%a0%bd")),
]
PATHS = [
    *(
        "/picture/24",
        "/picture/-1",
        "/picture/x",
        "/picture/",
        "/picture",
        "/picture/1.0",
        "/picture/0x1",
        "/picture/ 1",
    ),
    *(
        f"/picture/{DIGITS}",
        "/picture/٣",
        "/picture/²",
        "/picture/0/0",
        "/picture/../api/about",
        "/picture/%30",
        "/thumbnail/99",
    ),
    *(
        "//",
        "/..",
        "/../../etc/passwd",
        "/etc/passwd",
        "/manifest.json",
        "/api/search/x",
        "/api/about/",
        "/static/x",
        "/\0",
    ),
    *(
        "/picture/0\0",
        "/picture/\n",
        "/favicon.ico",
        "/" + "y" * 20_000,
        "/picture/1e1",
        "/picture/True",
        "/.env",
        "",
        "*",
    ),
]
HEADERS: list[tuple[list[tuple[bytes, bytes]], tuple[int, ...]]] = [
    ([KNOWN], (400,)),
    *(
        ([(b"host", name), KNOWN], (400,))
        for name in (b"evil.example", b"", b"127.0.0.1.evil.example", b"[::1]", b"0.0.0.0")
    ),
    *(
        ([(b"host", name), KNOWN], (400,))
        for name in (b"\xff", b"localhost.", b"LOCALHOST@evil", b"127.1", b"y" * 9999)
    ),
    ([(b"host", b"localhost"), KNOWN], (200,)),
    ([HOST], (403,)),
    *(
        ([HOST, (b"authorization", told)], (403,))
        for told in (b"", b"Bearer", b"Bearer ", b"Bearer x", b"Basic 0123abc")
    ),
    *(
        ([HOST, (b"authorization", told)], (403,))
        for told in (b"Bearer \xff", b"Bearer 0123abcd", b"Bearer 0123AB", b"0123abc")
    ),
    ([HOST, KNOWN, (b"cookie", b"\xff" * 5000), (b"x", b"\0"), (b"range", b"bytes=0-99999999999")], (200,)),
    ([HOST, KNOWN, (b"transfer-encoding", b"chunked"), (b"content-length", b"5")], (200,)),
]
KINDS = [
    b"",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"image",
    b"\xff",
    b"application/jsonx",
]
LENGTHS = [DIGITS.encode(), b"99999999999", b"5", b"0"]  # no digits never come so far


def requests(draw: Draw) -> Case:
    rng, way = draw.rng, draw.number % 10
    post = Request("POST", "/api/search", headers=[HOST, KNOWN, JSON], body=b'{"text": "a circle"}')
    if way == 0:
        post.body, statuses = draw.one_of(BODIES, 10, "body")
        post.parts = rng.choice([1, 3, 50])
        return _case(draw, f"body {post.body[:60]!r}", post, statuses, _found(24))
    if way == 1:
        post.query, statuses = draw.one_of(QUERIES, 10, "query")
        return _case(draw, f"query {post.query[:60]!r}", post, statuses)
    if way == 2:
        path = draw.one_of(PATHS, 10, "path")
        return _case(draw, f"path {path[:60]!r}", Request(path=path), (400, 404, 405, 307), None)
    if way == 3:
        headers, statuses = draw.one_of(HEADERS, 10, "headers")
        return _case(draw, f"headers {headers!r}", Request(path="/api/about", headers=headers), statuses)
    if way == 4:
        kind = draw.one_of([*FORMATS.items()], 10, "format")
        harm = draw.one_of([*HARMS, "cut"], 10, "harm")
        whole = encoded(kind[1])
        post.body = cut(whole, rng) if harm == "cut" else HARMS[harm](whole, rng)
        post.headers, post.parts = [HOST, KNOWN, (b"content-type", b"image/" + kind[0].encode())], rng.choice([1, 9])
        return _case(draw, f"picture {kind[0]}, {harm}", post, (200, 400), _found(24))
    if way == 5:
        about = draw.one_of(list(NO_PICTURES), 10, "none")
        post.body, post.headers = NO_PICTURES[about](), [HOST, KNOWN, PNG]
        return _case(draw, f"picture {about}", post, (400,))
    if way == 6:
        method = draw.one_of(
            ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH", "get", "GET\n", "", "CONNECT", "y" * 999],
            10,
            "method",
        )
        path = rng.choice(["/", "/api/about", "/api/search", "/picture/0"])
        statuses = (200, 400, 405) if method == "HEAD" else (405,)
        return _case(draw, f"method {method[:20]!r} {path}", Request(method, path), statuses)
    if way == 7:
        which = draw.one_of(["gone", "gone early", "kind", "length", "websocket", "odd JSON"], 10, "how")
        if which == "gone":
            post.gone, post.parts = True, 4
            return _case(draw, which, post, (0, 400))
        if which == "gone early":
            post.gone, post.body = True, b""
            return _case(draw, which, post, (0, 400))
        if which == "kind":
            post.headers = [HOST, KNOWN, (b"content-type", rng.choice(KINDS))]
            return _case(draw, f"kind {post.headers[2]!r}", post, (415,))
        if which == "websocket":
            return _case(draw, which, Request(kind="websocket"), (0, 400, 403, 404))
        if which == "odd JSON":
            text = rng.choice(ODD)
            post.body = b'{"text": ' + text.encode() + b"}"
            return _case(
                draw,
                f"text {text[:40]}",
                post,
                (200,) if text.startswith('"') and len(text) > 4 and "ud8" not in text else (400, 413),
            )
        post.headers = [HOST, KNOWN, JSON, (b"content-length", rng.choice(LENGTHS))]
        return _case(draw, f"length {post.headers[3]!r}", post, (200, 400, 413))
    if way == 8:
        query, statuses = draw.one_of(ASKED, 10, "asked")
        return _case(draw, f"asked {query[:60]!r}", Request(path="/api/search", query=query), statuses)
    post.headers = [HOST, JSON]
    post.query = rng.choice(
        [b"token=", b"token=x", b"token=%ff", b"token=0123abcd", b"token", b"token=x&token=0123abc", b"Token=0123abc"]
    )
    return _case(draw, f"token {post.query!r}", post, (403,))
