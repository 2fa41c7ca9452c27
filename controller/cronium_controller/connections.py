"""All connections of one event loop: the pool over the routes, with what is known of each host asked and told.

The one way to a connection, for jobs, raw commands and copies alike, so that they share it.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Final

from .connection import Access, Connection, acknowledge_quickly, connect
from .errors import AuthenticationError, HostKeyError, UnreachableError
from .hosts import Host
from .memory import Memory
from .pool import Lease, Limits, Pool

_log = logging.getLogger("cronium.connections")
REFUSALS: Final = 5
"""Times that a server may have no room for another session: each teaches the pool how many it has room for."""


class Connections:
    """Connections by host, opened over the first route that works. `opened` counts them."""

    def __init__(
        self,
        access: Access,
        memory: Memory,
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        self.access = access
        self.memory = memory
        self.opened = 0
        self._pool: Pool[Host, Connection] = Pool(self.open, limits=limits)
        self._chores: set[asyncio.Task[None]] = set()
        self._hurried: Counter[Host] = Counter()

    def __repr__(self) -> str:
        return f"<Connections {self._pool!r} opened={self.opened}>"

    @property
    def reused(self) -> int:
        """How many calls went over a connection that was open."""
        return self._pool.reused

    @contextlib.asynccontextmanager
    async def lease(self, host: Host) -> AsyncIterator[Lease[Connection]]:
        """One session's worth of a connection. Raises UnreachableError."""
        async with self._pool.lease(host) as lease:
            yield lease

    async def acquire(self, host: Host, *, is_resident: bool = False) -> Lease[Connection]:
        """The same until it is given back; an agent is resident: nobody shall wait for its end."""
        return await self._pool.acquire(host, is_resident=is_resident)

    def log_reuse(self, host: Host) -> None:
        """A call goes over what another has opened, without a session of its own."""
        self._pool.log_reuse(host, asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def hurried(self, host: Host) -> Iterator[None]:
        """Meanwhile a host that hangs is not tried again: others are there to be got on with."""
        self._hurried[host] += 1
        try:
            yield
        finally:
            self._hurried[host] -= 1
            if not self._hurried[host]:
                del self._hurried[host]

    async def open(self, host: Host) -> Connection:
        """A connection of its own, which whoever asks closes. Raises UnreachableError."""
        if self.access.ignores_health:
            self.memory.of(host).breaker.allow()
        self.memory.check(host)
        began = time.monotonic()
        try:
            connection = await connect(host, self.access, self.memory.remembered, is_hurried=host in self._hurried)
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
        chore = asyncio.ensure_future(acknowledge_quickly(connection))
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)
        return connection

    async def leave(self, host: Host) -> None:
        """Closes one host's connections, in use or not."""
        await self._pool.close_connections(host)

    async def close_all_connections(self) -> None:
        """Closes every connection, in use or not, and writes down how the hosts stand."""
        for chore in self._chores:
            chore.cancel()
        await self._pool.close_all_connections()
        self.memory.save()
