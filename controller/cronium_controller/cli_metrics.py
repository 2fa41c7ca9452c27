"""`cronium metrics`: the database's figures as Prometheus' text, once or for each scrape."""

import signal
import socket
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from .cli_reaching import HELP
from .errors import ControllerError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_SLOWEST: Final = 10.0
"""Seconds in which a scraper must have sent its request; Prometheus itself gives a scrape 10 s by default."""
_ENDING: Final = (signal.SIGINT, signal.SIGTERM)


@click.command(context_settings=HELP)
@click.option("--listen", metavar="[ADDR:]PORT", help="Serve them at /metrics instead; on 127.0.0.1 without ADDR.")
def metrics(listen: str | None) -> None:
    """Print figures of all executions, deployments and hosts so far, as Prometheus reads them.

    They are those of the database, so of every `cronium` and program that uses it. Anybody who can connect can read
    them, the names of hosts among them: listen on 127.0.0.1, or behind what asks for a password.

    \b
    Examples:
      cronium metrics
      cronium metrics --listen 9091
    """
    from . import store_metrics

    try:
        if listen is None:
            click.echo(store_metrics.text(), nl=False)
        else:
            _serve(*_address(listen))
    except ControllerError as error:
        click.echo(f"cronium: {error.message} [{error.code}]", err=True)
        sys.exit(error.exit_status)


def _address(given: str) -> tuple[str, int]:
    address, _, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port[:6]) < 1 << 16):
        raise ControllerError("usage.invalid", f"--listen {given[:100]!r}: write PORT, ADDR:PORT or [ADDR]:PORT")
    return address.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _serve(address: str, port: int) -> None:
    """Answers scrapes until it is told to end. Port 0 is any free one; which, is said on standard error."""
    server = _server(address, port)
    name = f"[{address}]" if ":" in address else address
    with server:
        # Whoever reads the sentence may end us at once: one that is cut off in the middle of it is said twice.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        for number in _ENDING:
            signal.signal(number, _leave)
        click.echo(f"cronium: metrics at http://{name}:{server.server_port}/metrics", err=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        server.serve_forever()


def _leave(_number: int, _frame: object) -> None:
    """A server that is asked to end has done what it should."""
    sys.exit(0)


def _server(address: str, port: int) -> "WSGIServer":
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Request(WSGIRequestHandler):
        timeout = _SLOWEST

        def log_message(self, *_: Any) -> None:
            """A scrape every few seconds is not worth a line."""

        def address_string(self) -> str:
            """No name is looked up for what is not logged."""
            return str(self.client_address[0])

    class Server(ThreadingMixIn, WSGIServer):
        # Who sends nothing keeps nobody else waiting, and does not keep us from ending.
        daemon_threads = True
        block_on_close = False
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        def server_bind(self) -> None:
            """Without the look-up of our own name that the one above does."""
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()

    try:
        server = Server((address, port), Request)
    except OSError as error:
        raise ControllerError(
            "usage.invalid", f"--listen: cannot listen on {address}, port {port}: {error.strerror}; choose another"
        ) from None
    server.set_app(_answer)
    return server


def _answer(asked: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """One scrape, in a thread and with a connection to the database of its own."""
    from . import store_metrics

    plain = "text/plain; charset=utf-8"
    if asked["PATH_INFO"] != "/metrics":
        status, kind, body = "404 Not Found", plain, b"look at /metrics\n"
    elif asked["REQUEST_METHOD"] not in ("GET", "HEAD"):
        status, kind, body = "405 Method Not Allowed", plain, b"only GET\n"
    else:
        try:
            status, kind, body = "200 OK", store_metrics.CONTENT_TYPE, store_metrics.text()
        except ControllerError as error:
            click.echo(f"cronium: {error.message} [{error.code}]", err=True)
            status, kind, body = "503 Service Unavailable", plain, b"the database cannot be read\n"
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [] if asked["REQUEST_METHOD"] == "HEAD" else [body]
