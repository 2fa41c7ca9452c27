"""Which way leads to a host: Tailscale, then direct, then Cloudflare; only those configured (contracts §8).

A route ends in a connected socket, or in nothing where it is direct: `connection` then connects by itself, through
whatever jump hosts ~/.ssh/config asks for. SSH is spoken over it to the same host under the same name in every case, so
one host key is expected whichever way was taken. Trying ways in turn is `reach`'s; what is spoken on them is
`connection`'s.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import ClassVar, Final, NamedTuple, Protocol, TypeVar

from cronium_runner.wire.text import last_words

from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError, reason

TAILSCALE: Final = "tailscale"
DIRECT: Final = "direct"
CLOUDFLARE: Final = "cloudflare"

ATTEMPTS: Final = 3
PAUSES: Final = (1.0, 2.0, 4.0)
"""Seconds after each failed attempt over the whole chain (contracts §8)."""
REMEMBERED_SECONDS: Final = 600.0
"""How long the way that worked is tried first: a dead first way is not paid for on every call, and a better one that
came back is found within ten minutes."""
CLOUDFLARED: Final = "cloudflared"
LAST_WORDS_SECONDS: Final = 1.0
"""How long a program that carries a route may take to end once its socket is closed, before its words are given up."""
KEPT_WORDS: Final = 400
"""Bytes of them: the reason is in the last line."""

T = TypeVar("T")


class Routed(Protocol):
    """What a host says about the ways to it. An empty address has no direct one."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def tailscale_ip(self) -> str | None: ...
    @property
    def cloudflare_tunnel(self) -> str | None: ...
    @property
    def cloudflare_service_token_id(self) -> str | None: ...
    @property
    def cloudflare_service_token_secret(self) -> str | None: ...


class Route(NamedTuple):
    """One way: `transport` names it; `address` is what is connected to."""

    transport: str
    address: str


def routes(host: Routed) -> list[Route]:
    """The ways to a host, the preferred one first."""
    found = [
        (TAILSCALE, host.tailscale_ip),
        (DIRECT, host.address),
        (CLOUDFLARE, host.cloudflare_tunnel),
    ]
    return [Route(transport, address) for transport, address in found if address]


class Remembered:
    """Which way worked last, by host name. Seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[str, float]] = {}

    def learn(self, name: str, transport: str, age: float) -> None:
        """Another process knows that this way worked `age` seconds ago; none of a clock that was set back."""
        if age >= 0:
            self._last.setdefault(name, (transport, self._clock() - age))

    def order(self, name: str, ways: Sequence[Route]) -> list[Route]:
        """The ways, the one that worked lately first."""
        transport, when = self._last.get(name, ("", float("-inf")))
        if self._clock() - when > REMEMBERED_SECONDS:
            return list(ways)
        return sorted(ways, key=lambda way: way.transport != transport)  # stable: the rest keeps its order

    def note(self, name: str, transport: str) -> None:
        """This way worked now."""
        known = self._last.get(name)
        if known is None or known[0] != transport or self._clock() - known[1] > REMEMBERED_SECONDS:
            self._last[name] = (transport, self._clock())


async def reach(
    host: Routed,
    attempt: Callable[[Route], Awaitable[T]],
    remembered: Remembered,
    *,
    attempts: int = ATTEMPTS,
    retry_seconds: float | None = None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """What `attempt` returns for the first way that works; the whole chain is tried `attempts` times.

    With `retry_seconds` a further attempt begins only so many seconds after the first one began: one that was refused
    is made again, one that hung is not (docs/decisions/0015).

    Goes on only where no connection was made. A refused key or a refused login is final: another way leads to the same
    host. Raises the last way's UnreachableError with what each way said.
    """
    ways = routes(host)
    if not ways:
        raise ControllerError("host.config", "the host has no address to connect to; give it one", host=host.name)
    began = clock()
    failures: list[tuple[Route, UnreachableError]] = []
    for number in range(attempts):
        if number:
            wait = PAUSES[min(number, len(PAUSES)) - 1]
            if retry_seconds is not None and clock() - began + wait > retry_seconds:
                raise _all_failed(host, failures, number)
            await pause(wait)
        failures.clear()
        for way in remembered.order(host.name, ways):
            try:
                reached = await attempt(way)
            except (HostKeyError, AuthenticationError):
                raise
            except UnreachableError as error:
                failures.append((way, error))
                continue
            remembered.note(host.name, way.transport)
            return reached
    raise _all_failed(host, failures, attempts)


def _all_failed(host: Routed, failures: list[tuple[Route, UnreachableError]], attempts: int) -> UnreachableError:
    if len(failures) == 1:
        return failures[0][1]
    told = "; ".join(f"{way.transport}: {error.message.removeprefix(f'{host.name}: ')}" for way, error in failures)
    return UnreachableError("host.unreachable", f"no way leads there ({told}); tried {attempts} times", host=host.name)


@contextlib.asynccontextmanager
async def opened(way: Route, host: Routed, port: int, timeout: float) -> AsyncIterator[socket.socket | None]:
    """A connected socket for the way, or None where asyncssh is to connect by itself. Whoever uses it owns it.

    Closed here only when the block raises. Raises UnreachableError, and puts into one that the block raises what the
    program that carries the way has said.
    """
    carried: _Carried | None = None
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            if way.transport == TAILSCALE:
                sock = await _connected(way.address, port)
            elif way.transport == CLOUDFLARE:
                carried = await _through_cloudflare(way.address, host)
                sock = carried.sock
    except TimeoutError:
        raise _unreachable(host, f"no answer from {way.address} within {timeout:g} s") from None
    except (OSError, UnicodeError) as error:  # the latter for what is no name of a host, as a..b
        raise _unreachable(host, f"cannot connect to {way.address}: {reason(error)}") from None
    try:
        yield sock
    except BaseException as error:
        if sock is not None:
            sock.close()
        said = None if carried is None else await carried.last_words()
        if said and type(error) is UnreachableError:
            raise _unreachable(host, f"{CLOUDFLARED} said: {said}") from None
        raise


async def _connected(address: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    [(family, kind, protocol, _, place), *_] = await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        await loop.sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


async def _through_cloudflare(tunnel: str, host: Routed) -> "_Carried":
    """Our end of a pair whose other end is cloudflared's standard input and output.

    The service token goes into its environment: an argument vector is seen by everybody on this machine.
    """
    program = shutil.which(CLOUDFLARED)
    if program is None:
        raise _unreachable(host, f"{CLOUDFLARED} is not installed here, and the route needs it; install it")
    environment = dict(os.environ)
    if host.cloudflare_service_token_id and host.cloudflare_service_token_secret:
        environment["TUNNEL_SERVICE_TOKEN_ID"] = host.cloudflare_service_token_id
        environment["TUNNEL_SERVICE_TOKEN_SECRET"] = host.cloudflare_service_token_secret
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        carrying, words = await asyncio.get_running_loop().subprocess_exec(
            _LastWords, program, "access", "ssh", "--hostname", tunnel,
            stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=asyncio.subprocess.PIPE, env=environment,
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Carried(ours, carrying, words)


class _Carried:
    """A socket that a program carries. The program ends with the socket, and at the latest with our event loop."""

    _watching: ClassVar[set["asyncio.Task[None]"]] = set()

    def __init__(self, sock: socket.socket, program: asyncio.SubprocessTransport, words: "_LastWords") -> None:
        self.sock = sock
        self._program = program
        self._words = words
        self._ended = asyncio.ensure_future(self._watch())
        self._watching.add(self._ended)
        self._ended.add_done_callback(self._watching.discard)

    async def last_words(self) -> str:
        """What it has said on standard error, in one line, once it has ended; empty when it goes on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), LAST_WORDS_SECONDS)
        return last_words(bytes(self._words.said))

    async def _watch(self) -> None:
        try:
            await self._words.ended
        finally:
            process: subprocess.Popen[bytes] | None = self._program.get_extra_info("subprocess")
            self._program.close()  # ends it, should it still be there: our event loop ends
            if process is not None and process.returncode is None:
                process.returncode = -signal.SIGKILL  # asyncio waits for it, and has no event loop left to tell that to


class _LastWords(asyncio.SubprocessProtocol):
    """What a program says on standard error, and its end. asyncio's streams would leave its transport open."""

    def __init__(self) -> None:
        self.said = bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        del fd  # there is one
        self.said += data
        del self.said[:-KEPT_WORDS]

    def connection_lost(self, _exc: Exception | None) -> None:
        """It has ended, and all it said was heard."""
        if not self.ended.done():
            self.ended.set_result(None)


def _unreachable(host: Routed, sentence: str) -> UnreachableError:
    return UnreachableError("host.unreachable", sentence, host=host.name)
