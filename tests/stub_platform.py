"""Platforms for tests of API mode, and what may answer in their place.

`StubPlatform` knows the runtime API and nothing else: no Idempotency-Key, no order, whatever status a test wants.
`OriginalPlatform` answers as the public original's server does. `FOREIGN` are answers that no platform gives.
"""

import contextlib
import json
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, NamedTuple, Self
from urllib.parse import unquote

from cronium_runner.wire.changes import ChangeError, appended, incremented

TOKEN = "stub.token.value-0123456789"
_ABSENT: Final = object()


class Seen(NamedTuple):
    """One request that was answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Upset(NamedTuple):
    """What a request gets instead of what it wanted. `cut`: it is done, and the connection ends without an answer.

    `content` is sent as it is, with no headers but `headers`; with a Content-Length among them the connection ends
    behind it. None is an error of the platform's own.
    """

    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    content: bytes | None = None


_HTML: Final = b"<!DOCTYPE html><html><title>Sign in</title></html>"
_PAGE: Final = (("Content-Type", "text/html; charset=utf-8"),)
_JSON: Final = (("Content-Type", "application/json"),)
_DONE: Final = b'{"success":true}'

FOREIGN: Final[dict[str, tuple[Upset, str]]] = {
    "a page": (Upset(200, _PAGE, content=_HTML), "200, which is not the platform's answer: text/html; charset=utf-8"),
    "a page called JSON": (Upset(200, _JSON, content=_HTML), "no JSON, or cut short"),
    "JSON called a page": (Upset(200, _PAGE, content=_DONE), "text/html; charset=utf-8, not JSON"),
    "JSON called text": (Upset(200, (("Content-Type", "text/plain"),), content=_DONE), "text/plain, not JSON"),
    "an empty 204": (Upset(204, content=b""), "204, which is not the platform's answer: an empty one"),
    "an empty 200": (Upset(200, content=b""), "an empty one"),
    "a redirect": (
        Upset(302, (("Location", "http://portal.example/login?to=\x9b1"), *_PAGE), content=_HTML),
        "a redirect to http://portal.example/login?to=\\x9b1",
    ),
    "a redirect that says success": (Upset(307, (("Location", "/x"), *_JSON), content=_DONE), "a redirect to /x"),
    "304": (Upset(304, content=b""), "304, which is not the platform's answer: a redirect"),
    "a server's 404": (Upset(404, (("Content-Type", "text/plain"),), content=b"404 page not found\n"), "404, which is"),
    "a framework's 404": (Upset(404, _JSON, content=b'{"detail":"Not Found"}'), "JSON of another form"),
    "a gateway's 404": (
        Upset(404, _JSON, content=b'{"statusCode":404,"error":"Not Found","message":"Cannot GET /"}'),
        "JSON of another form",
    ),
    "an empty 404": (Upset(404, content=b""), "404, which is not the platform's answer: an empty one"),
    "a proxy's 403": (Upset(403, _PAGE, content=_HTML), "403, which is not the platform's answer"),
    "a proxy's 401": (Upset(401, _PAGE, content=_HTML), "401, which is not the platform's answer"),
    "a proxy's 407": (Upset(407, _PAGE, content=_HTML), "407, which is not the platform's answer"),
    "another service's JSON": (Upset(200, _JSON, content=b'{"status":"ok"}'), "JSON of another form"),
    "JSON that is no object": (Upset(200, _JSON, content=b"true"), "JSON of another form"),
    "success that is a text": (Upset(200, _JSON, content=b'{"success":"true","data":{"value":1}}'), "of another form"),
    "no success without a reason": (Upset(200, _JSON, content=b'{"success":false}'), "JSON of another form"),
    "a body cut short": (Upset(200, (*_JSON, ("Content-Length", "16")), content=_DONE[:9]), "without sending"),
    "gzip that is none": (Upset(200, (*_JSON, ("Content-Encoding", "gzip")), content=_DONE), "decompressing"),
    "an encoding that was not asked for": (
        Upset(200, (*_JSON, ("Content-Encoding", "br")), content=b"\x0b\x07\x80"),
        "no JSON, or cut short",
    ),
    "a proxy's 502": (Upset(502, _PAGE, content=_HTML), "status 502"),
    "a proxy's 503 that asks for time": (Upset(503, (("Retry-After", "1"),), content=b"later"), "status 503"),
}
"""What intermediaries say to every request, and what a message about it has in it."""


class StubPlatform:
    """One execution's platform, on a loopback port or on a unix socket. `upset` may say no to a request."""

    def __init__(self, path: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.asked: list[Seen] = []
        """All requests, in the order in which they came."""
        self.seen: list[Seen] = []
        self.variables: dict[str, Any] = {}
        self.input: Any = None
        self.output: Any = None
        self.condition: bool | None = None
        self.context: dict[str, Any] = {}
        self.has_changes = self.tells_values = True
        """Whether it knows how to delete, increment and append, which the public original doesn't."""
        self.tools: list[Any] = []
        self.tools_answer = threading.Event()
        self.tools_answer.set()
        self.upset: Callable[[Seen], Upset | None] = lambda _: None
        self._path = path
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.up()

    def up(self) -> None:
        """Listens; again on the same port or path."""
        handler = self._handler()
        if self._path is None:
            port = getattr(self, "_port", 0)
            self._server: _TCPServer | _UnixServer = _TCPServer(("127.0.0.1", port), handler)
            self._port = int(self._server.server_address[1])
            self.endpoint = f"http://127.0.0.1:{self._port}"
            if self._tls is not None:
                self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
                self.endpoint = f"https://localhost:{self._port}"
        else:
            self._server = _UnixServer(self._path, handler)
            self.endpoint = f"unix://{self._path}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def down(self) -> None:
        """Listens no more, and ends every connection."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._path is not None:
            os.unlink(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.down()

    def api(self) -> dict[str, str]:
        """The frames' `api`."""
        return {"endpoint": self.endpoint, "token": TOKEN}

    def environment(self, execution: str) -> dict[str, str]:
        """The environment of `cronium-runner run`."""
        return {
            "CRONIUM_EXECUTION_ID": execution, "CRONIUM_API_ENDPOINT": self.endpoint, "CRONIUM_API_TOKEN": TOKEN,
        }  # fmt: skip

    def writes(self) -> list[Seen]:
        """The writes, in the order in which they were answered."""
        return [one for one in self.seen if one.method != "GET" and not one.path.startswith("/tool-actions")]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        platform = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body are two packets, and the second would wait for 40 ms. Unix sockets don't know the option.
            disable_nagle_algorithm = platform._path is None

            def setup(self) -> None:
                super().setup()
                with platform._lock:
                    platform._connections.add(self.connection)

            def finish(self) -> None:
                with platform._lock:
                    platform._connections.discard(self.connection)
                super().finish()

            def handle_any(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(size)) if size else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, self.path, headers, body)
                platform.asked.append(seen)
                upset = platform.upset(seen)
                if upset is not None and upset.content is not None:
                    self.answer(upset.status, upset.headers, upset.content)
                    return
                if upset is not None and not upset.cut:
                    said = json.dumps({"error": "upset", "message": "not now"}).encode()
                    self.answer(upset.status, (*_JSON, *upset.headers), said)
                    return
                status, headers_sent, content = platform._answer(seen)
                platform.seen.append(seen)
                if upset is not None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.answer(status, headers_sent, content)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that http.server looks for

            def answer(self, status: int, headers: tuple[tuple[str, str], ...], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if any(name == "Content-Length" for name, _ in headers):
                    self.close_connection = True
                elif status not in (204, 304):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True

            def address_string(self) -> str:
                return ""

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, seen: Seen) -> "_Answer":
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return _json(401, {"error": "unauthorized", "message": "no"})
        if seen.path == "/tool-actions/execute":
            self.tools_answer.wait(60)
            self.tools.append({name: seen.body[name] for name in ("tool", "action", "params")})
            return _json(200, {"success": True, "data": {"did": seen.body["action"]}})
        _, _, _execution, what, *key = seen.path.split("/")
        name = unquote(key[0]) if key else ""
        match (seen.method, what, *key[1:]):
            case ("GET", "input"):
                return self._data(self.input)
            case ("GET", "context"):
                return self._data(self.context)
            case ("GET", "variables"):
                return self._variable(name)
            case ("PUT", "variables"):
                self.variables[name] = seen.body["value"]
            case ("DELETE", "variables") if self.has_changes:
                if self.variables.pop(name, _ABSENT) is _ABSENT:
                    return _json(404, {"error": "not_found", "message": "none"})
            case ("POST", "variables", change) if self.has_changes:
                before = self.variables.get(name)
                try:
                    self.variables[name] = (
                        incremented(before, seen.body["by"])
                        if change == "increment"
                        else appended(before, seen.body["text"])
                    )
                except ChangeError as error:
                    return _json(400, {"error": "invalid_body", "message": f"the variable {error}"})
                if self.tells_values:
                    return self._variable(name)
            case ("DELETE", "variables"):
                return _json(405, {"error": "method_not_allowed", "message": "no"})
            case ("POST", "output"):
                self.output = seen.body["data"]
            case ("POST", "condition"):
                self.condition = seen.body["condition"]
            case _:
                return _json(404, {"error": "not_found", "message": "no such path"})
        return _json(200, {"success": True})

    def _variable(self, name: str) -> "_Answer":
        if name not in self.variables:
            return _json(404, {"error": "not_found", "message": "none"})
        return self._data({"key": name, "value": self.variables[name]})

    def _data(self, data: Any) -> "_Answer":
        return _json(200, {"success": True, "data": data})


_Answer = tuple[int, tuple[tuple[str, str], ...], bytes]


def _json(status: int, body: Any) -> _Answer:
    return status, _JSON, json.dumps(body).encode()


class OriginalPlatform(StubPlatform):
    """As the public original's server answers, from outside.

    It has no DELETE and no changes of variables; without an input `data` is left out; a variable that isn't there, and
    any other failure to get one, is 500; what it doesn't know of the context is blank; numbers become doubles.
    """

    takes_config = True
    """Whether a tool's parameters are read from `config`, as newer versions do, or from `params`."""
    tool_error: str | None = None
    """Why tools fail."""

    def _answer(self, seen: Seen) -> _Answer:
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return _json(401, {"error": "invalid or expired token"})
        if seen.path == "/tool-actions/execute":
            return self._tool(seen.body)
        _, executions, _execution, what, *key = [*seen.path.split("/"), "", ""]
        methods = {
            "input": "GET", "context": "GET", "output": "POST", "condition": "POST", "variables": "GET PUT",
        }  # fmt: skip
        if executions != "executions" or what not in methods or any(key[1:]):
            return 404, (("Content-Type", "text/plain; charset=utf-8"),), b"404 page not found\n"
        if seen.method not in methods[what].split():
            return 405, (), b""
        if what == "context":
            blank = dict.fromkeys(("executionId", "eventId", "eventName", "eventType", "userId"), "")
            known = {**blank, "startTime": "0001-01-01T00:00:00Z", "metadata": None, **self.context}
            return _json(200, {"success": True, "data": known})
        return super()._answer(seen._replace(body=_as_doubles(seen.body)))

    def _variable(self, name: str) -> _Answer:
        if name not in self.variables:
            return self._failed(500, "failed to get variable")
        return super()._variable(name)

    def _data(self, data: Any) -> _Answer:
        return _json(200, {"success": True} if data is None else {"success": True, "data": data})

    def _tool(self, body: Any) -> _Answer:
        self.tools.append({"tool": body["tool"], "action": body["action"]})
        self.tools[-1]["got"] = body.get("config" if self.takes_config else "params")
        if self.tool_error is None:
            return self._data({"did": body["action"]})
        if self.takes_config:
            return self._failed(502, self.tool_error)
        return _json(200, {"success": False, "data": None, "error": self.tool_error})

    def _failed(self, status: int, message: str) -> _Answer:
        return _json(status, {"error": HTTPStatus(status).phrase, "message": message})


def _as_doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_doubles(item) for item in value]
    return int(float(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class _TCPServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
