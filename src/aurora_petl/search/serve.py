"""A page on this machine that searches an index in words or by picture, before and after tuning.

It listens on 127.0.0.1 and answers to that name only, so that no other site can reach it through the browser. A
picture is asked for by its row in the index and goes out as a new, smaller JPEG: no other file, and no metadata, is
ever served.
"""

from __future__ import annotations

import io
import json
import socket
from contextlib import suppress
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..data.media import load_image
from ..errors import AuroraError
from .index import Library
from .query import Searcher

HOSTS = ["127.0.0.1", "localhost"]
SIDES = {"thumbnail": 320, "picture": 1600}  # pixels at most
UPLOAD = 64 * 1024**2  # bytes
MOST = 200  # pictures an answer
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(library: Library) -> Starlette:
    """The page, ``POST /search``, ``GET /thumbnail/ROW`` and ``GET /picture/ROW``.

    Raises:
        AuroraError: if the index or its model can't be used.
    """
    searchers = {view: Searcher(library, view, kind="auto") for view in library.keys}
    about = {
        "pictures": len(library.pictures),
        "folder": library.folder.name,
        "model": Path(library.model).name,
        "views": list(searchers),
    }

    @lru_cache(maxsize=512)
    def encoded(row: int, side: int) -> bytes:
        image = load_image(library.path(row))
        image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    def page(request: Request) -> Response:
        return HTMLResponse(files(__package__).joinpath("page.html").read_text(encoding="utf-8"), headers=HEADERS)

    def tell(request: Request) -> Response:
        return JSONResponse(about, headers=HEADERS)

    def picture(request: Request) -> Response:
        row, side = request.path_params["row"], SIDES[request.url.path.split("/")[1]]
        if row >= len(library.pictures):
            return _refusal(404, f"the index has no row {row}")
        try:
            library.path(row)  # also where the JPEG is kept: the file must still be what was indexed
            return Response(encoded(row, side), media_type="image/jpeg", headers=HEADERS)
        except AuroraError as error:
            return _refusal(410, str(error))

    async def search(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > UPLOAD:
                return _refusal(413, f"the picture is larger than {UPLOAD // 1024**2} MB; send a smaller one")
        try:
            return await run_in_threadpool(answer, request, body)
        except AuroraError as error:
            return _refusal(400, str(error))

    def answer(request: Request, body: bytes) -> Response:
        view, count = request.query_params.get("view", next(iter(searchers))), request.query_params.get("k", "24")
        if view not in searchers:
            raise AuroraError(f"no view {view!r}; choose one of {', '.join(searchers)}")
        if not count.isdecimal() or not 1 <= int(count) <= MOST:
            raise AuroraError(f"k is {count}; it must be a number from 1 to {MOST}")
        if request.headers.get("content-type", "").startswith("image/"):
            found = searchers[view].search(load_image(body, "the picture"), int(count))
        elif request.headers.get("content-type") == "application/json":
            try:
                text = json.loads(body)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise AuroraError('send {"text": "what to look for"}') from error
            if not isinstance(text, str):
                raise AuroraError('send {"text": "what to look for"}')
            found = searchers[view].search(text, int(count))
        else:  # a form of another site can send neither type without this server's leave
            return _refusal(415, "send application/json or a picture")
        hits = [{"row": hit.row, "score": hit.score, "path": hit.what} for hit in found]
        return JSONResponse(
            {"view": view, "score": searchers[view].scored_by(int(count), 0), "found": hits}, headers=HEADERS
        )

    return Starlette(
        routes=[
            Route("/", page),
            Route("/about", tell),
            Route("/search", search, methods=["POST"]),
            *(Route(f"/{name}/{{row:int}}", picture) for name in SIDES),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)],
    )


def serve(library: Library, port: int) -> None:
    """Serve until stopped; port 0 takes a free one.

    Raises:
        AuroraError: if the port is taken, or see `make_app`.
    """
    try:
        listener = socket.create_server((HOSTS[0], port))
    except (OSError, OverflowError) as error:
        raise AuroraError(f"port {port} can't be used ({error}); name another --port") from error
    with listener:
        app = make_app(library)
        print(f"http://{HOSTS[0]}:{listener.getsockname()[1]}  (stop with Ctrl-C)", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listener])


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, headers=HEADERS)
