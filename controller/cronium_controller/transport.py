"""Which way leads to a host: Tailscale, then direct, then Cloudflare; only those configured.

A route ends in a connected socket; `connection` uses none where the SSH configuration puts jump hosts in front of the
direct one. SSH is spoken over it to the same host under the same name in every case, so one host key is expected
whichever way was taken. Trying ways in turn is `reach`'s; what is spoken on them is `connection`'s.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

from cronium_runner.wire.text import last_words

from .addresses import connected
from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError, reason
from .hosts import split_port
from .ssh_settings import SSHSettings

TAILSCALE: Final = "tailscale"
DIRECT: Final = "direct"
CLOUDFLARE: Final = "cloudflare"

ATTEMPTS: Final = 3
PAUSES: Final = (1.0, 2.0, 4.0)
"""Seconds after each failed attempt over the whole chain."""
ATTEMPT_SECONDS: Final = 30.0
"""For one attempt over all routes and addresses, so that a call with three attempts ends within two minutes."""
REMEMBERED_SECONDS: Final = 600.0
"""How long the way that worked is tried first: a dead first way is not paid for on every call, and a better one that
came back is found within ten minutes."""
SSH_PORT: Final = 22
"""Where a Tailscale address that names no port is dialled: a port of the host's public address is another machine's."""
CLOUDFLARED: Final = "cloudflared"
LAST_WORDS_SECONDS: Final = 1.0
"""How long a program that carries a route may take to end once its socket is closed, before its words are given up."""
KEPT_WORDS: Final = 400
"""Bytes of them: the reason is in the last line."""

T = TypeVar("T")
Made = TypeVar("Made", covariant=True)


_limits: Final[set[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]]] = set()
"""Deadlines of the attempts that are under way."""


def unhurried(ask: Callable[[str], str]) -> Callable[[str], str]:
    """`ask`, which blocks the event loop while a person types: that time counts for no attempt of this loop."""

    def asked(about: str) -> str:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return ask(about)
        finally:
            for its_loop, limit in _limits:
                if its_loop is loop and not limit.expired() and (when := limit.when()) is not None:
                    limit.reschedule(when + loop.time() - began)

    return asked


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


@dataclass(frozen=True, slots=True)
class Attempt(Generic[Made]):
    """How one kind of connection is made to a host over one route. Times in seconds."""

    make: Callable[[Route], Awaitable[Made]]
    connect_timeout: float
    limit: float = ATTEMPT_SECONDS
    """For one attempt over all routes."""


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
    attempt_seconds: float = ATTEMPT_SECONDS,
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
        way = ways[0]
        try:
            async with _limited(attempt_seconds):
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
        except TimeoutError:
            sentence = f"no connection within the {attempt_seconds:g} s that one attempt over all routes has"
            failures.append((way, _unreachable(host, sentence)))
    raise _all_failed(host, failures, attempts)


@contextlib.asynccontextmanager
async def _limited(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, but `unhurried` extends it. Raises TimeoutError."""
    async with asyncio.timeout(seconds) as limit:
        entry = (asyncio.get_running_loop(), limit)
        _limits.add(entry)
        try:
            yield
        finally:
            _limits.discard(entry)


def _all_failed(host: Routed, failures: list[tuple[Route, UnreachableError]], attempts: int) -> UnreachableError:
    if len(failures) == 1:
        return failures[0][1]
    told = "; ".join(f"{way.transport}: {error.message.removeprefix(f'{host.name}: ')}" for way, error in failures)
    return UnreachableError("host.unreachable", f"no way leads there ({told}); tried {attempts} times", host=host.name)


@contextlib.asynccontextmanager
async def opened(way: Route, host: Routed, settings: SSHSettings, timeout: float) -> AsyncIterator[socket.socket]:
    """A connected socket for the way: by TCP, or carried by a program. The block's caller owns it.

    Closed here only when the block raises. Raises UnreachableError. What the program that carries the way has said is
    put into an UnreachableError of the block, and is a note of any other exception.
    """
    carried: Carried | None = None
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            if way.transport == CLOUDFLARE:
                carried = await _through_cloudflare(way.address, host)
            elif way.transport == DIRECT and settings.proxy_command is not None:
                carried = await _through_command(settings.proxy_command)
            sock = await _connected(way, host, settings) if carried is None else carried.sock
    except TimeoutError:
        raise _unreachable(host, f"no answer from {way.address} within {timeout:g} s") from None
    except (OSError, UnicodeError) as error:  # the latter for what is no name of a host, as a..b
        raise _unreachable(host, f"cannot connect to {way.address}: {reason(error)}{_advice(way, error)}") from None
    try:
        yield sock
    except BaseException as error:
        sock.close()
        said = None if carried is None else await carried.last_words()
        if carried is not None and said and type(error) is UnreachableError:
            raise _unreachable(host, f"{carried.name} said: {said}") from None
        if carried is not None and said:
            error.add_note(f"{carried.name} said: {said}")
        raise


async def _connected(way: Route, host: Routed, settings: SSHSettings) -> socket.socket:
    if way.transport != DIRECT:
        address, port = split_port(way.address, way.address)
        return await connected(host.name, address, port or SSH_PORT)
    return await connected(
        host.name,
        settings.host_name,
        settings.port,
        family=settings.address_family,
        bind_address=settings.bind_address,
    )


def _advice(way: Route, error: OSError | UnicodeError) -> str:
    if way.transport != DIRECT:
        return ""
    if isinstance(error, socket.gaierror):
        return "; check the name; one of your hosts file is given with --on"
    return "; check the address, and that SSH answers there"


async def _through_cloudflare(tunnel: str, host: Routed) -> "Carried":
    """The service token goes into the program's environment: an argument vector is seen by everybody on this machine.

    Raises UnreachableError where cloudflared isn't installed.
    """
    program = shutil.which(CLOUDFLARED)
    if program is None:
        raise _unreachable(host, f"{CLOUDFLARED} is not installed here, and the route needs it; install it")
    environment = dict(os.environ)
    if host.cloudflare_service_token_id and host.cloudflare_service_token_secret:
        environment["TUNNEL_SERVICE_TOKEN_ID"] = host.cloudflare_service_token_id
        environment["TUNNEL_SERVICE_TOKEN_SECRET"] = host.cloudflare_service_token_secret
    return await _started(CLOUDFLARED, [program, "access", "ssh", "--hostname", tunnel], environment)


async def _through_command(command: str) -> "Carried":
    """A ProxyCommand, run as OpenSSH runs it: by the user's shell, which it replaces."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    return await _started("ProxyCommand", [shell, "-c", f"exec {command}"], dict(os.environ))


async def _started(name: str, words: Sequence[str], environment: dict[str, str]) -> "Carried":
    """Our end of a pair of sockets whose other end is a program's standard input and output. Raises OSError."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        carrying, said = await asyncio.get_running_loop().subprocess_exec(
            _LastWords, *words, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=asyncio.subprocess.PIPE,
            env=environment,
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Carried(name, ours, carrying, said)


class Carried:
    """A socket that a program carries, which errors call `name`. It ends with the socket or with our event loop."""

    _watching: ClassVar[set["asyncio.Task[None]"]] = set()
    _by_socket: ClassVar["weakref.WeakKeyDictionary[socket.socket, Carried]"] = weakref.WeakKeyDictionary()

    def __init__(
        self, name: str, sock: socket.socket, program: asyncio.SubprocessTransport, words: "_LastWords"
    ) -> None:
        self.name = name
        self.sock = sock
        self._program = program
        self._words = words
        self._ended = asyncio.ensure_future(self._watch())
        self._watching.add(self._ended)
        self._by_socket[sock] = self
        self._ended.add_done_callback(self._watching.discard)

    @classmethod
    def of(cls, sock: socket.socket) -> "Carried | None":
        """The program that carries a socket."""
        return cls._by_socket.get(sock)

    async def wait_ended(self) -> None:
        """Waits for the program, whose socket was closed, and ends it when it goes on for longer than a moment."""
        for is_last in (False, True):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), LAST_WORDS_SECONDS)
                return
            if not is_last:
                with contextlib.suppress(ProcessLookupError):
                    self._program.kill()

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
