"""A page on this machine that searches an index in words or by picture, before and after tuning.

It listens on 127.0.0.1, answers to that name only, so that no other site can reach it through the browser, and to who
knows the token in the address that it prints, so that no other user of the machine can. A picture is asked for by its
row in the index and goes out as a new, smaller JPEG of the very bytes that were indexed: no other file, and no
metadata, is ever served.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import socket
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..data.media import load_image
from ..errors import AuroraError, short
from ..files import parse_json
from .guard import HOSTS, REQUEST_SECONDS, Guard, Protocol, refusal
from .query import Searcher
from .store import Store

SIDES = {"thumbnail": 320, "picture": 1600}  # pixels at most
UPLOAD = 64 * 1024**2  # bytes of a picture
WORDS = 64 * 1024  # bytes of a query in words
MOST = 200  # pictures an answer
PATIENCE = 5  # seconds that answers may take to go out when the server is stopped


def make_app(library: Store, token: str) -> Guard:
    """The page, ``POST /search``, ``GET /thumbnail/ROW`` and ``GET /picture/ROW``, for who knows ``token``.

    Raises:
        AuroraError: if the index or its model can't be used.
    """
    searchers = {view: Searcher(library, view, kind="auto") for view in library.keys}
    about = {
        "pictures": len(library.pictures),
        "folder": library.folder.name,
        "model": Path(library.model_name).name,
        "views": list(searchers),
    }

    @lru_cache(maxsize=512)
    def encoded(row: int, side: int, size: int, mtime_ns: int) -> bytes:
        image = library.picture(row, side)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def page(request: Request) -> Response:
        return HTMLResponse(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))

    def tell(request: Request) -> Response:
        return JSONResponse(about)

    def picture(request: Request) -> Response:
        asked, side = request.path_params["row"], SIDES[request.url.path.split("/")[1]]
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

    async def search(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not (kind == "application/json" or kind.startswith("image/")):
            # a form of another site can send neither type without this server's leave
            return refusal(415, "send application/json or a picture")
        most = WORDS if kind == "application/json" else UPLOAD
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await _body(request, most)
            if body is None:
                what = "query" if most == WORDS else "picture"
                return refusal(413, f"the {what} is larger than {_size(most)}; send a smaller one")
            return await run_in_threadpool(answer, request, kind, body)
        except TimeoutError:
            return refusal(408, f"the request took more than {REQUEST_SECONDS:g} s to arrive; send it again")
        except ClientDisconnect:
            return refusal(400, "the request broke off")  # nobody is there to read it
        except AuroraError as error:
            return refusal(400, str(error))

    def answer(request: Request, kind: str, body: bytes) -> Response:
        view, count = request.query_params.get("view", next(iter(searchers))), request.query_params.get("k", "24")
        if view not in searchers:
            raise AuroraError(f"no view {short(view)}; choose one of {', '.join(searchers)}")
        if not (count.isascii() and count.isdecimal() and len(count) < 10 and 1 <= int(count) <= MOST):
            raise AuroraError(f"k is {short(count).strip(chr(39))}; it must be a number from 1 to {MOST}")
        if kind.startswith("image/"):
            found = searchers[view].search(load_image(body, "the picture"), int(count))
        else:
            asked = parse_json(body, "the query")
            if not (isinstance(asked, dict) and isinstance(asked.get("text"), str)):
                raise AuroraError('send {"text": "what to look for"}')
            found = searchers[view].search(asked["text"], int(count))
        hits = [{"row": hit.row, "score": hit.score, "path": hit.what} for hit in found]
        return JSONResponse({"view": view, "score": searchers[view].scored_by(int(count), 0), "found": hits})

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/about", tell),
            Route("/search", search, methods=["POST"]),
            *(Route(f"/{name}/{{row}}", picture) for name in SIDES),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    return Guard(app, token)


def serve(library: Store, port: int) -> None:
    """Serve until stopped; port 0 takes a free one.

    Raises:
        AuroraError: if the port is taken, or see `make_app`.
    """
    try:
        listener = socket.create_server((HOSTS[0], port))
    except (OSError, OverflowError) as error:
        raise AuroraError(f"port {port} can't be used ({error}); name another --port") from error
    with listener:
        token = secrets.token_hex(24)
        server = make_server(make_app(library, token))
        print(f"http://{HOSTS[0]}:{listener.getsockname()[1]}/?token={token}  (stop with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


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


def _size(count: int) -> str:
    return f"{count // 1024**2} MB" if count >= 1024**2 else f"{count // 1024} KB"


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


def _failed(request: Request, error: Exception) -> Response:
    return refusal(500, "the server failed; what went wrong stands where aurora serve runs")
