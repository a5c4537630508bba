"""A page, and an API for programs, that search an index in words or by picture, before and after tuning.

The server listens on 127.0.0.1 unless it is told another address, answers to its own names only, so that no other site
can reach it through the browser, and to who knows the token in the address that it prints, so that no other user of the
machine can. A picture is asked for by its row in the index and goes out as a new, smaller JPEG of the very bytes that
were indexed: no other file, and no metadata, is ever served.
"""

from __future__ import annotations

import asyncio
import errno
import io
import re
import secrets
import socket
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..data.media import load_image
from ..errors import AuroraError, first_line, short
from ..files import parse_json
from .guard import LOOPBACK, REQUEST_SECONDS, Guard, Hosts, Protocol, refusal
from .results import Results
from .store import Store

SIDES = {"thumbnail": 320, "picture": 1600}  # pixels at most
ASSETS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
UPLOAD = 64 * 1024**2  # bytes of a picture
WORDS = 64 * 1024  # bytes of a query in words
EVERY = ("0.0.0.0", "::")  # all addresses of this machine
PATIENCE = 5  # seconds that answers may take to go out when the server is stopped
TOKEN = re.compile(r"[A-Za-z0-9._~-]{8,200}")  # what an address and a cookie hold as it is


def make_app(library: Store, token: str, hosts: Hosts | None = None) -> Guard:
    """The page and its API, for who knows ``token``; docs/search.md lists the routes.

    Raises:
        AuroraError: if the index or its model can't be used.
    """
    results = Results(library)
    model = Path(library.model_name).name

    @lru_cache(maxsize=512)
    def encoded(row: int, side: int, size: int, mtime_ns: int) -> bytes:
        return _jpeg(library.picture(row, side))

    def asset(request: Request) -> Response:
        name, kind = ASSETS[request.scope["path"]]
        return Response(files(__package__).joinpath("page", name).read_bytes(), media_type=kind)

    def about(request: Request) -> Response:
        return JSONResponse({"model": model, **results.about(), "largest": UPLOAD})

    def picture(request: Request) -> Response:
        asked, side = request.path_params["row"], SIDES[request.scope["path"].split("/")[1]]
        if not (asked.isascii() and asked.isdecimal()):
            return refusal(404, f"no row {short(asked)}")
        if len(asked) > 18:
            return refusal(400, f"row is a number of {len(asked):,} digits")
        row = int(asked)
        try:
            status = library.path(row).stat()
            return Response(encoded(row, side, status.st_size, status.st_mtime_ns), media_type="image/jpeg")
        except IndexError:
            return refusal(404, f"the index has no row {row}")
        except OSError:
            return refusal(410, f"{library.pictures[row].path} is gone since it was indexed; run aurora index again")
        except AuroraError as error:
            return refusal(410, str(error))

    def sent(request: Request) -> Response:
        try:
            image = load_image(
                results.upload(request.path_params["name"]), "the picture", SIDES["thumbnail"], exact=False
            )
        except AuroraError as error:
            return refusal(404, str(error))
        image.thumbnail((SIDES["thumbnail"],) * 2)
        return Response(_jpeg(image), media_type="image/jpeg")

    def search(request: Request) -> Response:
        try:
            return JSONResponse(results.answer(results.asked(request.query_params)))
        except AuroraError as error:
            return refusal(400, str(error))

    async def post(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        other = "application/json or " if request.scope["path"] == "/api/search" else ""
        words = kind == "application/json" and other != ""
        if not (words or kind.startswith("image/")):
            # a form of another site can send neither type without this server's leave
            return refusal(415, f"send {other}a picture")
        most = WORDS if words else UPLOAD
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await _body(request, most)
            if body is None:
                what = "query" if words else "picture"
                return refusal(413, f"the {what} is larger than {_size(most)}; send a smaller one")
            return await run_in_threadpool(answer, request, kind, body)
        except TimeoutError:
            return refusal(408, f"the request took more than {REQUEST_SECONDS:g} s to arrive; send it again")
        except ClientDisconnect:
            return refusal(400, "the request broke off")  # nobody is there to read it
        except AuroraError as error:
            return refusal(400, str(error))

    def answer(request: Request, kind: str, body: bytes) -> Response:
        if kind.startswith("image/"):
            load_image(body, "the picture")  # what is none is not kept
            name = results.keep(body)
            if request.scope["path"] == "/api/pictures":
                return JSONResponse({"picture": name})
            asked = results.asked(request.query_params, picture=name)
        else:
            query = parse_json(body, "the query")
            if not (isinstance(query, dict) and isinstance(query.get("text"), str)):
                raise AuroraError('send {"text": "what to look for"}')
            asked = results.asked(request.query_params, text=query["text"])
        return JSONResponse(results.answer(asked))

    app = Starlette(
        routes=[
            *(Route(path, asset) for path in ASSETS),
            Route("/api/about", about),
            Route("/api/search", search, methods=["GET"]),
            Route("/api/search", post, methods=["POST"]),
            Route("/api/pictures", post, methods=["POST"]),
            Route("/sent/{name}", sent),
            *(Route(f"/{name}/{{row}}", picture) for name in SIDES),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    return Guard(app, token, hosts)


def serve(library: Store, port: int, host: str = LOOPBACK[0], token: str | None = None) -> None:
    """Serve until stopped.

    Args:
        port: 0 takes a free one.
        host: the name or address of this machine to listen at; ``0.0.0.0`` and ``::`` are all its addresses.
        token: None draws one.

    Raises:
        AuroraError: if the address can't be listened at, the token can't be one, or see `make_app`.
    """
    if token is not None and not TOKEN.fullmatch(token):
        raise AuroraError("the token must be 8 to 200 letters, digits and . _ ~ -; choose another, or leave it out")
    with listen(host, port) as listener:
        drawn = token or secrets.token_hex(24)
        server = make_server(make_app(library, drawn, answered(host, listener)))
        name = host if host not in EVERY else socket.gethostname()
        address = f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"
        told = f"{address}  (asks for the token that was set; " if token else f"{address}?token={drawn}  ("
        print(f"{told}stop with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine.

    Raises:
        AuroraError: if there is no such address, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise AuroraError(
            f"host {short(host)} is no address of this machine ({first_line(error)}); name another --host"
        ) from error
    dual = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((address[0], port), family=family, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise AuroraError(f"host {short(host)} is no address of this machine; name another --host") from error
        raise AuroraError(f"port {port} can't be used ({error}); name another --port") from error


def answered(host: str, listener: socket.socket) -> Hosts:
    """The names that a server at ``host`` answers to: that name, its address, and those that this machine has for
    itself, as a tunnel (``ssh -L``) brings them along; at all addresses, each of them and this machine's name."""
    every = host in EVERY
    more = (socket.gethostname(), socket.getfqdn()) if every else (host, str(listener.getsockname()[0]))
    return Hosts(tuple(dict.fromkeys((*LOOPBACK, *map(str.lower, more)))), addresses=every)


def make_server(app: Guard) -> uvicorn.Server:
    """What runs the application of `make_app` on a socket."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            proxy_headers=False,
            lifespan="off",
            log_level="warning",
            timeout_graceful_shutdown=PATIENCE,
        )
    )


async def _body(request: Request, most: int) -> bytes | None:
    """What was sent; None if it is larger than ``most`` bytes."""
    told = request.headers.get("content-length", "0")
    if len(told) > 18 or int(told) > most:  # digits, or the request would not have come so far
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _jpeg(image: Image.Image) -> bytes:
    """A picture as a new JPEG, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _size(count: int) -> str:
    return f"{count // 1024**2} MB" if count >= 1024**2 else f"{count // 1024} KB"


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


def _failed(request: Request, error: Exception) -> Response:
    return refusal(500, "the server failed; what went wrong stands where aurora serve runs")
