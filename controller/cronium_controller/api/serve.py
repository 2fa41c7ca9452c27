"""Listening: the runtime API on a TCP port or a unix socket, in the event loop that is running.

uvicorn's HTTP without its process: the controller embeds this, so no signal handlers, no logging set-up and no polling.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from ..errors import ControllerError
from ..own_files import LONGEST_SOCKET_PATH
from .app import RuntimeApi
from .protocol import HttpProtocol
from .requests import LARGEST_HEADER

# Seconds that an idle connection stays open: longer than a script usually thinks between two helpers.
_KEEP_ALIVE_SECONDS: Final = 120

# Seconds for answers that are being made when we are told to stop: a write takes milliseconds.
_CLOSE_SECONDS: Final = 5.0


def tcp_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 is any. Raises ControllerError (`api.address_unusable`)."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise _unusable(f"{host}:{port}", error) from None
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return listener.family == socket.AF_UNIX or ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def unix_listener(path: str) -> socket.socket:
    """A listening unix socket, 0600 from its first moment on. A stale one of that name is replaced.

    Raises ControllerError (`api.address_unusable`).
    """
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise ControllerError(
            "api.address_unusable",
            f"the socket's path has more than {LONGEST_SOCKET_PATH} bytes, choose a shorter one: {path}",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file of a bound socket the mode that the socket has
        listener.bind(path)
        if stat.S_IMODE(os.lstat(path).st_mode) & 0o077:
            raise OSError(0, "its permissions cannot be set")
        listener.listen()
    except OSError as error:
        listener.close()
        raise _unusable(path, error) from None
    return listener


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(0, "there is a file of that name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(0, "another service listens there")


@contextlib.asynccontextmanager
async def serving(app: RuntimeApi, listener: socket.socket) -> AsyncIterator[None]:
    """Answers requests on `listener` while the block runs; then closes it, and removes a unix socket's file."""
    async with answering(app) as protocol, listening(protocol, listener):
        yield


@contextlib.asynccontextmanager
async def listening(protocol: Callable[[], asyncio.Protocol], listener: socket.socket) -> AsyncIterator[None]:
    """Has connections to `listener` answered by what `answering` gives, while the block runs."""
    path = listener.getsockname() if listener.family == socket.AF_UNIX else None
    loop = asyncio.get_running_loop()
    if path is None:
        server = await loop.create_server(protocol, sock=listener)
    else:
        server = await loop.create_unix_server(protocol, sock=listener)
    try:
        yield
    finally:
        server.close()
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)


@contextlib.asynccontextmanager
async def answering(app: RuntimeApi) -> AsyncIterator[Callable[[], asyncio.Protocol]]:
    """What makes a protocol that answers requests, one for each connection, wherever that comes from.

    When the block ends, answers that are being made are sent, and the connections are closed.
    """
    state = ServerState()
    config = _config(app)
    loop = asyncio.get_running_loop()
    try:
        yield lambda: HttpProtocol(config, state, loop, app.limits, app.connections)
    finally:
        await _finish(state)
        app.connections.close()


async def _finish(state: ServerState) -> None:
    """Lets answers that are being made be sent, and closes what is idle."""
    for connection in list(state.connections):
        if isinstance(connection, HttpProtocol):
            connection.shutdown()
    if state.tasks:
        _, left = await asyncio.wait(set(state.tasks), timeout=_CLOSE_SECONDS)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CLOSE_SECONDS)
    for connection in list(state.connections):
        connection.transport.close()
    await asyncio.sleep(0)  # for the transports' own last callbacks


def _config(app: Any) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        loop="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=LARGEST_HEADER,
    )
    config.load()
    return config


def _unusable(where: str, error: OSError) -> ControllerError:
    return ControllerError(
        "api.address_unusable",
        f"cannot listen on {where}: {error.strerror or error}; choose another place "
        "(--port, --unix), or end what is there",
    )
