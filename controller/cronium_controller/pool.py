"""Which connection a caller gets: one that is open, one that is being opened, a new one, or a place in the queue.

`assign` decides, in plain values; `Pool` acts on what it says. How a connection is opened, and over which route, is
the caller's `open`. A lease is one session's worth of a connection: an agent holds one for as long as it runs, a raw
command for as long as it takes.

Numbers are those of contracts §8.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from .errors import UnreachableError

MAX_CONNECTIONS: Final = 10
"""Open connections to one account over one route: what OpenSSH's MaxStartups lets in at once without refusing any."""
IDLE_SECONDS: Final = 300.0
MAX_SESSIONS: Final = 10
"""Sessions on one connection until the server has shown that it allows fewer: OpenSSH's default."""

_log = logging.getLogger("cronium.pool")


class Poolable(Protocol):
    """What the pool needs of a connection."""

    def is_closed(self) -> bool:
        """Whether it can be used no longer."""

    async def close(self) -> None:
        """Ends it."""


C = TypeVar("C", bound=Poolable)


@dataclass(eq=False, slots=True)
class Entry(Generic[C]):
    """One open connection and who uses it. Times are seconds of a monotonic clock."""

    connection: C
    opened_at: float
    idle_since: float
    leases: int = 0
    capacity: int = MAX_SESSIONS
    """Sessions that it takes: the server's MaxSessions, learned from its first refusal."""
    is_retiring: bool = False
    """Too old, or suspected: it takes no further lease and is closed with its last one."""

    def __repr__(self) -> str:
        return f"<Entry {self.connection!r} leases={self.leases}/{self.capacity}>"


class Limits(NamedTuple):
    """How many and how long. Seconds; `max_age` None keeps a connection however old it is."""

    connections: int = MAX_CONNECTIONS
    idle: float = IDLE_SECONDS
    max_age: float | None = None


class Assignment(NamedTuple, Generic[C]):
    """What is to be done for one caller. With neither `use` nor `must_open` it waits for a lease to end."""

    use: Entry[C] | None
    must_open: bool
    close: list[Entry[C]]


def assign(entries: Iterable[Entry[C]], opening: int, now: float, limits: Limits) -> Assignment[C]:
    """Decides for one caller, given the connections of its key and how many are being opened right now.

    One in use is never closed. Of those with room the fullest is taken, so that others become idle and end.
    """
    close, usable = [], []
    for entry in entries:
        if entry.connection.is_closed() or (entry.leases == 0 and _is_over(entry, now, limits)):
            close.append(entry)
        elif not entry.is_retiring and not _is_too_old(entry, now, limits):
            usable.append(entry)
    with_room = [entry for entry in usable if entry.leases < entry.capacity]
    if with_room:
        return Assignment(max(with_room, key=lambda entry: entry.leases), False, close)
    # Whoever comes while one is being opened waits for it: parallel first calls open one connection.
    return Assignment(None, opening == 0 and len(usable) < limits.connections, close)


def _is_over(entry: Entry[C], now: float, limits: Limits) -> bool:
    return entry.is_retiring or now - entry.idle_since >= limits.idle or _is_too_old(entry, now, limits)


def _is_too_old(entry: Entry[C], now: float, limits: Limits) -> bool:
    return limits.max_age is not None and now - entry.opened_at >= limits.max_age


@dataclass(eq=False, slots=True)
class _Shelf(Generic[C]):
    """All connections of one key."""

    entries: list[Entry[C]] = field(default_factory=list)
    opening: "asyncio.Task[None] | None" = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever somebody who waits should look again."""

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Lease(Generic[C]):
    """One session's worth of a connection."""

    def __init__(self, entry: Entry[C]) -> None:
        self._entry = entry

    @property
    def connection(self) -> C:
        """The connection."""
        return self._entry.connection

    def note_refused(self) -> None:
        """The server opened no further session on it: that many, without this one, are what it takes."""
        self._entry.capacity = max(1, min(self._entry.capacity, self._entry.leases - 1))

    def retire(self) -> None:
        """Nobody else shall get this connection: it behaved in a way that can't be trusted."""
        self._entry.is_retiring = True


class Pool(Generic[C]):
    """Connections by key. `open` makes one for a key; what it raises, every caller that waited for it gets."""

    def __init__(
        self,
        open: Callable[[str], Awaitable[C]],
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._open = open
        self._limits = limits
        self._clock = clock or asyncio.get_running_loop().time
        self._shelves: dict[str, _Shelf[C]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        entries = [entry for shelf in self._shelves.values() for entry in shelf.entries]
        return f"<Pool keys={len(self._shelves)} connections={len(entries)} leases={sum(e.leases for e in entries)}>"

    @contextlib.asynccontextmanager
    async def lease(self, key: str) -> AsyncIterator[Lease[C]]:
        """A session's worth of a connection for this key, for the duration of the block."""
        entry = await self._acquire(key)
        try:
            yield Lease(entry)
        finally:
            self._give_back(key, entry)

    async def close_all_connections(self) -> None:
        """Closes every connection, in use or not, and waits until they are closed. The pool stays usable."""
        for key, shelf in list(self._shelves.items()):
            if shelf.opening is not None:
                shelf.opening.cancel()
            for entry in list(shelf.entries):
                self._drop(key, shelf, entry)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _acquire(self, key: str) -> Entry[C]:
        shelf = self._shelves.setdefault(key, _Shelf())
        while True:
            decided = assign(shelf.entries, shelf.opening is not None, self._clock(), self._limits)
            for entry in decided.close:
                self._drop(key, shelf, entry)
            if decided.use is not None:
                decided.use.leases += 1
                _log.debug("reusing_ssh_connection", extra={"host": key, "leases": decided.use.leases})
                return decided.use
            if decided.must_open:
                shelf.opening = asyncio.ensure_future(self._add(key, shelf))
                shelf.opening.add_done_callback(_retrieve)
            if shelf.opening is None:
                await shelf.changed.wait()
                continue
            opening = shelf.opening
            await asyncio.wait([opening])  # whoever stops waiting doesn't stop the others' connection
            if opening.cancelled():
                raise UnreachableError(
                    "host.unreachable", "all connections were closed while this one was opened", host=key
                )
            opening.result()  # its failure is everybody's who waited

    async def _add(self, key: str, shelf: _Shelf[C]) -> None:
        try:
            connection = await self._open(key)
            now = self._clock()
            shelf.entries.append(Entry(connection, opened_at=now, idle_since=now))
        finally:
            shelf.opening = None
            shelf.wake()

    def _give_back(self, key: str, entry: Entry[C]) -> None:
        entry.leases -= 1
        entry.idle_since = self._clock()
        shelf = self._shelves.get(key)
        if shelf is None:
            return
        if entry.leases == 0 and (entry.is_retiring or entry.connection.is_closed()):
            self._drop(key, shelf, entry)
        shelf.wake()
        self._sweep_later()

    def _drop(self, key: str, shelf: _Shelf[C], entry: Entry[C]) -> None:
        if entry in shelf.entries:
            shelf.entries.remove(entry)
            closing = asyncio.ensure_future(self._close(key, entry))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _close(self, key: str, entry: Entry[C]) -> None:
        await entry.connection.close()
        _log.info("ssh_connection_closed", extra={"host": key, "duration": round(self._clock() - entry.opened_at, 3)})

    def _sweep_later(self) -> None:
        """Idle connections end by themselves, also when nobody asks for one of their key again."""
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(self._limits.idle, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        for key, shelf in list(self._shelves.items()):
            for entry in assign(shelf.entries, 0, self._clock(), self._limits).close:
                self._drop(key, shelf, entry)
            if not shelf.entries and shelf.opening is None:
                del self._shelves[key]
        if self._shelves:
            self._sweep_later()


def _retrieve(opening: "asyncio.Task[None]") -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not opening.cancelled():
        opening.exception()
