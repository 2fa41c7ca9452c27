"""A TCP connection to whichever address of a name answers first: Happy Eyeballs, RFC 8305.

Addresses are tried in the order of the resolver with the families in turn; the next one is begun when the one before
has failed or has not answered for 250 ms. Those that lose are closed.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from .errors import reason

DELAY_SECONDS: Final = 0.25
"""Connection Attempt Delay, as RFC 8305 recommends in its section 5."""
_FAMILIES: Final = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}

_log = logging.getLogger("cronium.connection")


class Place(NamedTuple):
    """One address, as `getaddrinfo` gives it."""

    family: int
    kind: int
    protocol: int
    sockaddr: Any

    def __str__(self) -> str:
        return f"{self.sockaddr[0]} port {self.sockaddr[1]}"


async def connected(
    name: str, address: str, port: int, *, family: str = "any", bind_address: str | None = None
) -> socket.socket:
    """A connected socket to `address`, which logs call `name`. Without a time limit.

    `family` is `any`, `inet` or `inet6`. Raises OSError with what each address said, and UnicodeError for what is no
    name of a host.
    """
    places = in_turn(await _places(address, port, _FAMILIES[family]))
    if len(places) == 1:
        return await _connected_to(places[0], name, bind_address)
    return await _first(places, name, bind_address)


async def _places(address: str, port: int, family: int) -> list[Place]:
    numeric = socket.AI_NUMERICHOST
    try:  # without the thread that a name needs
        found = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM, flags=numeric)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address, port, family=family, type=socket.SOCK_STREAM)
    return [Place(family, kind, protocol, sockaddr) for family, kind, protocol, _, sockaddr in found]


def in_turn(places: Sequence[Place]) -> list[Place]:
    """The addresses with their families in turn, that of the first one first; each once."""
    families: dict[int, deque[Place]] = {}
    for place in dict.fromkeys(places):
        families.setdefault(place.family, deque()).append(place)
    ordered: list[Place] = []
    while any(families.values()):
        ordered += [waiting.popleft() for waiting in families.values() if waiting]
    return ordered


async def _first(places: Sequence[Place], name: str, bind_address: str | None) -> socket.socket:
    waiting, running, failures = deque(places), dict[asyncio.Task[socket.socket], Place](), list[str]()
    try:
        while waiting or running:
            if waiting:
                place = waiting.popleft()
                running[asyncio.ensure_future(_connected_to(place, name, bind_address))] = place
            done, _ = await asyncio.wait(
                running, timeout=DELAY_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    del running[task]
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                failures.append(f"{running.pop(task)}: {reason(error)}")
        raise OSError("; ".join(failures))
    finally:
        await _dropped(running)


async def _dropped(running: dict["asyncio.Task[socket.socket]", Place]) -> None:
    """Ends attempts that nothing waits for; one that has just succeeded is closed."""
    for task in running:
        task.cancel()
    for task in running:
        with contextlib.suppress(asyncio.CancelledError, OSError):
            (await task).close()


async def _connected_to(place: Place, name: str, bind_address: str | None) -> socket.socket:
    began = time.monotonic()
    sock = socket.socket(place.family, place.kind, place.protocol)  # macOS has no flags for its kind
    sock.setblocking(False)
    try:
        if bind_address is not None:
            sock.bind(socket.getaddrinfo(bind_address, 0, place.family, flags=socket.AI_PASSIVE)[0][4])
        await asyncio.get_running_loop().sock_connect(sock, place.sockaddr)
    except BaseException as error:
        sock.close()
        how = reason(error) if isinstance(error, OSError) else "given up"
        _log.info("%s: %s: %s after %.3f s", name, place, how, time.monotonic() - began)
        raise
    _log.info("%s: %s: connected in %.3f s", name, place, time.monotonic() - began)
    return sock
