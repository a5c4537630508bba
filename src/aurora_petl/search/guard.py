"""What stands between the page's server and the other programs of this machine."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qs

import h11
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HOSTS = ["127.0.0.1", "localhost"]
REQUEST_SECONDS = 30.0  # that a request may take to arrive
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """An application that answers to the names of this machine and to who knows the token, with the security headers
    on every answer.

    Args:
        token: is asked for as ``Authorization: Bearer TOKEN`` or ``?token=TOKEN``.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def headed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        headers = dict(scope["headers"])
        app: ASGIApp = self.app
        if headers.get(b"host", b"").decode("latin-1").partition(":")[0] not in HOSTS:
            app = refusal(400, f"this server answers to {' and '.join(HOSTS)} only")
        elif not self._knows(scope, headers):
            app = refusal(403, "the token is missing or wrong; open the address that aurora serve printed")
        await app(scope, receive, headed)

    def _knows(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        kind, _, told = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer":
            try:
                told = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)["token"][0].encode()
            except (KeyError, ValueError):
                return False
        return secrets.compare_digest(told.strip(), self.token)


class Protocol(H11Protocol):
    """HTTP whose connections are closed when a request takes long to arrive."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self.conn.their_state is not h11.SEND_BODY:
            self._rest()  # the request is whole

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(REQUEST_SECONDS, self.transport.close)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None


def refusal(status: int, message: str) -> Response:
    """An error as the page reads it."""
    return JSONResponse({"error": message}, status)
