"""A platform that knows contracts §7 and nothing else: no Idempotency-Key, no order, whatever status a test wants."""

import contextlib
import json
import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

TOKEN = "stub.token.value-0123456789"


class Seen(NamedTuple):
    """One request that was answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Upset(NamedTuple):
    """What a request gets instead of what it wanted. `cut`: it is done, and the connection ends without an answer."""

    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


class StubPlatform:
    """One execution's platform, on a loopback port or on a unix socket. `upset` may say no to a request."""

    def __init__(self, path: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self.variables: dict[str, Any] = {}
        self.input: Any = None
        self.output: Any = None
        self.condition: bool | None = None
        self.context: dict[str, Any] = {}
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
                upset = platform.upset(seen)
                if upset is not None and not upset.cut:
                    self.answer(upset.status, {"error": "upset", "message": "not now"}, dict(upset.headers))
                    return
                status, answer = platform._answer(seen)
                platform.seen.append(seen)
                if upset is not None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self.answer(status, answer, {})

            do_GET = do_PUT = do_POST = handle_any  # noqa: N815 - the names that http.server looks for

            def answer(self, status: int, body: Any, headers: dict[str, str]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
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

    def _answer(self, seen: Seen) -> tuple[int, Any]:
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "unauthorized", "message": "no"}
        if seen.path == "/tool-actions/execute":
            self.tools_answer.wait(60)
            self.tools.append(seen.body)
            return 200, {"success": True, "data": {"did": seen.body["action"]}}
        _, _, _execution, what, *key = seen.path.split("/")
        match (seen.method, what):
            case ("GET", "input"):
                return 200, {"success": True, "data": self.input}
            case ("GET", "context"):
                return 200, {"success": True, "data": self.context}
            case ("GET", "variables"):
                name = unquote(key[0])
                if name not in self.variables:
                    return 404, {"error": "not_found", "message": "none"}
                return 200, {"success": True, "data": {"key": name, "value": self.variables[name]}}
            case ("PUT", "variables"):
                self.variables[unquote(key[0])] = seen.body["value"]
            case ("POST", "output"):
                self.output = seen.body["data"]
            case ("POST", "condition"):
                self.condition = seen.body["condition"]
            case _:
                return 404, {"error": "not_found", "message": "no such path"}
        return 200, {"success": True}


class _TCPServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
