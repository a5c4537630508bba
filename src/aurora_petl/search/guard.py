"""What stands between the page's server and the other programs of this machine and its network."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import h11
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

LOOPBACK = ("127.0.0.1", "localhost")
REQUEST_SECONDS = 30.0  # that a request may take to arrive
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'self'; "
    "script-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:@/\[\]]*)(?::([0-9]{1,5}))?", re.ASCII)
_OPEN = ("/page.css",)  # what the page that asks for the token needs; it is the same on every machine


@dataclass(frozen=True)
class Hosts:
    """The names that a server answers to, as requests carry them in ``Host``. A page of another site can reach a server
    through the browser only under that site's own name (DNS rebinding), which is none of these.

    Args:
        names: in lower case, IPv6 addresses without brackets.
        addresses: whether any IP address is answered to as well: no site can have one for a name.
    """

    names: tuple[str, ...] = LOOPBACK
    addresses: bool = False

    def port(self, header: bytes) -> str | None:
        """The port that a ``Host`` header names, 80 if none; None if this server does not answer to its name."""
        match = _HOST.fullmatch(header.decode("latin-1").lower())
        if match is None:
            return None
        name = match[1].strip("[]")
        known = name in self.names or (self.addresses and _is_address(name))
        return (match[2] or "80") if known else None

    def __str__(self) -> str:
        names = [*self.names, "IP addresses"] if self.addresses else self.names
        return f"{', '.join(names[:-1])} and {names[-1]}"


class Guard:
    """An application that answers to the names of its server and to who knows the token, with the security headers on
    every answer.

    Who opens the page with the token in its address is sent on to the address without it, and given a cookie that
    carries the token from then on. A cookie belongs to a host, not to a port, so its name holds the port: two servers
    of one machine keep out of each other's way.

    Args:
        token: is asked for as ``Authorization: Bearer TOKEN``, as ``?token=TOKEN`` or in the cookie.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Hosts | None = None) -> None:
        self.app, self.token, self.hosts = app, token.encode(), hosts or Hosts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def headed(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._answer(scope)(scope, receive, headed)

    def _answer(self, scope: Scope) -> ASGIApp:
        headers, query = dict(scope["headers"]), scope["query_string"].decode("latin-1")
        port = self.hosts.port(headers.get(b"host", b""))
        if port is None:
            return refusal(400, f"this server answers to {self.hosts} only")
        if scope["path"] in _OPEN:
            return self.app
        kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer":
            return self.app if self._is(bearer) else self._stranger(scope, headers)
        told = _token(query)
        if told is None:
            cookie = _cookie(headers.get(b"cookie", b""), f"aurora-{port}") if _own(headers) else b""
            return self.app if self._is(cookie) else self._stranger(scope, headers)
        if not self._is(told):
            return self._stranger(scope, headers)
        return self._welcome(port, query, headers) if _is_page(scope) else self.app

    def _is(self, told: bytes) -> bool:
        return secrets.compare_digest(told.strip(), self.token)

    def _welcome(self, port: str, query: str, headers: dict[bytes, bytes]) -> Response:
        """The page's address without the token, which a cookie carries from here on."""
        rest = urlencode([pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "token"])
        address = f"/?{rest}" if rest else "/"
        response: Response = RedirectResponse(address, 303)
        if headers.get(b"sec-fetch-site") == b"cross-site":
            # A browser that follows a link of another site sends no strict cookie along a redirect; a page of our own
            # that leads on is no link of that site.
            response = HTMLResponse(_text("forward.html").replace("ADDRESS", escape(address)))
        token = self.token.decode()
        response.headers["Set-Cookie"] = f"aurora-{port}={token}; Path=/; HttpOnly; SameSite=Strict"
        return response

    def _stranger(self, scope: Scope, headers: dict[bytes, bytes]) -> Response:
        if _is_page(scope) and b"text/html" in headers.get(b"accept", b""):
            pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            fields = "".join(
                f'<input type="hidden" name="{escape(key)}" value="{escape(value)}">'
                for key, value in pairs
                if key != "token"
            )
            return HTMLResponse(_text("token.html").replace("<!-- fields -->", fields), 403)
        return refusal(403, "the token is missing or wrong; open the address that aurora serve printed")


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
    """An error as the page and programs read it."""
    return JSONResponse({"error": message}, status)


def _is_page(scope: Scope) -> bool:
    return scope["path"] == "/" and scope["method"] in ("GET", "HEAD")


def _token(query: str) -> bytes | None:
    """What a query string gives as the token; None if it names none, or has too many fields to be one of ours."""
    try:
        told = parse_qs(query, keep_blank_values=True, max_num_fields=20).get("token")
    except ValueError:
        return b""
    return None if told is None else told[0].encode()


def _cookie(header: bytes, name: str) -> bytes:
    for part in header.split(b";"):
        key, _, value = part.strip().partition(b"=")
        if key == name.encode():
            return value
    return b""


def _own(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser asks for this server's own page, or a person for the page itself: a page of another port of
    this machine has the cookie sent along, too."""
    site = headers.get(b"sec-fetch-site", b"none")
    return site in (b"none", b"same-origin") or headers.get(b"sec-fetch-mode") == b"navigate"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _text(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")
