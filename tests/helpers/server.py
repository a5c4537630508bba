"""The page's server in a thread, and one who asks it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from contextlib import closing

from aurora_petl.search.serve import make_app, make_server

JSON = {"Content-Type": "application/json"}
TOKEN = "0123abc"


class Client:
    """One request at a time, its path sent as it is, by who knows the token; status, headers and body."""

    def __init__(self, port):
        self.port = port

    def __call__(self, path, body=None, headers=None, host=None, method=None, known=True):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method or ("POST" if body is not None else "GET"), path, skip_host=True)
        told = {"Authorization": f"Bearer {TOKEN}"} if known else {}
        sent = {"Host": host or f"127.0.0.1:{self.port}", **told, **(headers or {})}
        for name, value in ({**sent, "Content-Length": str(len(body))} if body is not None else sent).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        with closing(connection):
            return answer.status, answer.headers, answer.read()

    def found(self, body, headers, query=""):
        status, _, answer = self(f"/api/search{query}", body, headers)
        return status, json.loads(answer)


def started(library):
    """A running server of ``library`` and what stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(make_app(library, TOKEN))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def stop():
        server.should_exit = True
        thread.join(30)
        listener.close()

    return Client(listener.getsockname()[1]), stop


def refused(answer):
    """Status and message of an error, which carries the security headers."""
    status, headers, body = answer
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    message = json.loads(body)["error"]
    assert "\n" not in message and len(message) < 300
    return status, message


def words(text):
    return json.dumps({"text": text}).encode()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
