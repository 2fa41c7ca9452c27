"""All connections of one event loop: the pool over the routes, with what is known of each host asked and told.

The one way to a connection, for jobs, raw commands and copies alike, so that they share it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Final

from .access import Access
from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError
from .hosts import OPENSSH, Host
from .logs import logger
from .memory import Memory
from .pool import Lease, Limits, Pool
from .sessions import Connection
from .transport import Attempt, reach

_log = logger("cronium.connections")
REFUSALS: Final = 5
"""Times that a server may have no room for another session: each teaches the pool how many it has room for."""


class Way(tuple[object, ...]):
    """What a connection leads to and over what: the account, the routes, the key. Who asks may call it by any name."""

    host: Host
    """As it was asked for: a Cloudflare token, timeouts and a name are no reason for another connection."""

    def __str__(self) -> str:
        return self.host.name


def way_to(host: Host) -> Way:
    """What connections to a host go by: hosts for which it is equal share them."""
    way = Way((*host.account, host.identity))
    way.host = host
    return way


class _Naming:
    """`asked_for` as a class: it is entered several times for each job, and a generator would cost twice as much."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ControllerError) and error.host not in (None, self._name):
            raise error.about(self._name) from None


def asked_for(host: Host) -> _Naming:
    """Errors in the block name the host as it was asked for: its connection may have been made under another name."""
    return _Naming(host.name)


async def prepare(host: Host, access: Access) -> Attempt[Connection]:
    """How a host is connected to, over SSH or by OpenSSH's own program. Raises ControllerError."""
    if (access.connection or host.connection) == OPENSSH:
        from . import openssh_connection

        return await openssh_connection.prepare(host, access)
    from . import connection

    return await connection.prepare(host, access)


class Connections:
    """Connections by host, opened over the first route that works. `opened` counts them."""

    def __init__(
        self,
        access: Access,
        memory: Memory,
        *,
        limits: Limits | None = None,
    ) -> None:
        """`limits` None: as `access` says. What a host says of itself counts more than either."""
        self.access = access
        self.memory = memory
        self.opened = 0
        self._limits = limits or Limits(idle=access.idle_seconds, max_age=access.max_age)
        self._pool: Pool[Way, Connection] = Pool(lambda way: self.open(way.host), limits=self._limits_of)
        self._hurried: Counter[Way] = Counter()

    def __repr__(self) -> str:
        return f"<Connections {self._pool!r} opened={self.opened}>"

    @property
    def reused(self) -> int:
        """How many calls went over a connection that was open."""
        return self._pool.reused

    @contextlib.asynccontextmanager
    async def lease(self, host: Host) -> AsyncIterator[Lease[Connection]]:
        """One session's worth of a connection. Raises UnreachableError."""
        with asked_for(host):
            async with self._pool.lease(way_to(host)) as lease:
                yield lease

    async def acquire(self, host: Host, *, is_resident: bool = False) -> Lease[Connection]:
        """The same until it is given back; an agent is resident: nobody shall wait for its end."""
        with asked_for(host):
            return await self._pool.acquire(way_to(host), is_resident=is_resident)

    def log_reuse(self, host: Host) -> None:
        """A call goes over what another has opened, without a session of its own."""
        self._pool.log_reuse(way_to(host), asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def hurried(self, host: Host) -> Iterator[None]:
        """Meanwhile a host that hangs is not tried again: others are there to be got on with."""
        way = way_to(host)
        self._hurried[way] += 1
        try:
            yield
        finally:
            self._hurried[way] -= 1
            if not self._hurried[way]:
                del self._hurried[way]

    async def open(self, host: Host) -> Connection:
        """A connection of its own, which whoever asks closes. Raises UnreachableError."""
        if self.access.ignores_health:
            self.memory.of(host).breaker.allow()
        self.memory.check(host)
        began = time.monotonic()
        try:
            connection = await self._made(host)
        except (HostKeyError, AuthenticationError):  # it is there
            self.memory.of(host).breaker.release()
            raise
        except UnreachableError as error:
            self.memory.note_unreachable(host, error.message)
            raise
        except BaseException:
            self.memory.of(host).breaker.release()
            raise
        self.opened += 1
        self.memory.note_connected(host, connection.transport)
        duration = round(time.monotonic() - began, 3)
        _log.info(
            "ssh_connection_established",
            extra={"host": host.name, "transport": connection.transport, "duration": duration},
        )
        connection.acknowledge_quickly()
        return connection

    async def _made(self, host: Host) -> Connection:
        if host.is_local:
            from .local_connection import LocalConnection

            return LocalConnection(host)
        attempt = await prepare(host, self.access)
        return await reach(
            host,
            attempt.make,
            self.memory.remembered,
            attempts=self.access.attempts,
            retry_seconds=attempt.connect_timeout if way_to(host) in self._hurried else None,
            attempt_seconds=attempt.limit,
        )

    async def leave(self, host: Host) -> None:
        """Closes one host's connections, those that somebody uses excepted."""
        await self._pool.close_idle_connections(way_to(host))

    async def close(self, way: Way) -> None:
        """Closes the connections of one way, in use or not."""
        await self._pool.close_connections(way)

    def _limits_of(self, way: Way) -> Limits:
        host, limits = way.host, self._limits
        if host.idle_seconds is None and host.max_age is None:
            return limits
        return limits._replace(idle=host.idle_seconds or limits.idle, max_age=host.max_age or limits.max_age)

    async def close_all_connections(self) -> None:
        """Closes every connection, in use or not, and writes down how the hosts stand."""
        await self._pool.close_all_connections()
        self.memory.save()
