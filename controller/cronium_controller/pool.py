"""Which connection a caller gets: one that is open, one that is being opened, a new one, or a place in the queue.

`assign` decides, in plain values; `Pool` acts on what it says. How a connection is opened, and over which route, is
the caller's `open`. A lease is one session's worth of a connection: an agent holds one for as long as it runs, a raw
command for as long as it takes. Whoever finds every session taken queues while others keep ending, and gets a further
connection when they don't.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from .alarm import Alarm
from .errors import UnreachableError
from .logs import logger

MAX_CONNECTIONS: Final = 10
"""Open connections to one account over one route: what OpenSSH's MaxStartups lets in at once without refusing any."""
MAX_SESSIONS: Final = 10
"""Sessions on one connection until the server has shown that it allows fewer: OpenSSH's default."""

QUEUE_SECONDS: Final = 1.0
"""How long a full queue may stand still before a further connection is opened: longer than short commands take, and
little against what a person waits for long ones."""

_log = logger("cronium.pool")


class Poolable(Protocol):
    """What the pool needs of a connection."""

    def is_closed(self) -> bool:
        """Whether it can be used no longer."""

    async def close(self) -> None:
        """Ends it."""


K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=Poolable)


@dataclass(eq=False, slots=True)
class Entry(Generic[C]):
    """One open connection and who uses it. Times are seconds of a monotonic clock."""

    connection: C
    opened_at: float
    idle_since: float
    leases: int = 0
    residents: int = 0
    """Those of the leases that stay until somebody ends them: it would be no use to wait for one."""
    is_fresh: bool = True
    """Whoever takes it first has made it, and reuses nothing."""
    capacity: int = MAX_SESSIONS
    """Sessions that it takes: the server's MaxSessions, learned from its first refusal."""
    is_retiring: bool = False
    """Too old, or suspected: it takes no further lease and is closed with its last one."""

    def __repr__(self) -> str:
        return f"<Entry {self.connection!r} leases={self.leases}/{self.capacity}>"


class Limits(NamedTuple):
    """How many and how long. Seconds; `max_age` None keeps a connection however old it is.

    One that is older gets no further lease, and ends with its last one.
    """

    connections: int = MAX_CONNECTIONS
    idle: float = 300.0
    max_age: float | None = None
    queue: float = QUEUE_SECONDS


class Assignment(NamedTuple, Generic[C]):
    """What is to be done for one caller. With neither `use` nor `must_open` it waits for a lease to end."""

    use: Entry[C] | None
    must_open: bool
    close: list[Entry[C]]


def assign(
    entries: Iterable[Entry[C]], opening: int, now: float, limits: Limits, moved_at: float = float("-inf")
) -> Assignment[C]:
    """Decides for one caller, given the connections of its key and how many are being opened right now.

    One in use is never closed. Of those with room the fullest is taken, so that others become idle and end. `moved_at`
    is when a lease ended last, or a connection was made: while that goes on, whoever finds no room queues.
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
    is_moving = now - moved_at < limits.queue and any(entry.leases > entry.residents for entry in usable)
    return Assignment(None, opening == 0 and len(usable) < limits.connections and not is_moving, close)


def _is_over(entry: Entry[C], now: float, limits: Limits) -> bool:
    return entry.is_retiring or now >= _ends_at(entry, limits, entry.idle_since)


def _is_too_old(entry: Entry[C], now: float, limits: Limits) -> bool:
    return limits.max_age is not None and now - entry.opened_at >= limits.max_age


def _ends_at(entry: Entry[C], limits: Limits, idle_since: float) -> float:
    """When one that nobody has used since then is to be closed."""
    oldest = float("inf") if limits.max_age is None else entry.opened_at + limits.max_age
    return min(idle_since + limits.idle, oldest)


@dataclass(eq=False, slots=True)
class _Shelf(Generic[C]):
    """All connections of one key."""

    limits: Limits
    """As whoever asked last wants them."""
    entries: list[Entry[C]] = field(default_factory=list)
    opening: "asyncio.Task[None] | None" = None
    waiting: int = 0
    """Callers that have no lease yet."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, whenever somebody who waits should look again."""
    moved_at: float = float("-inf")
    """When a lease ended last, or a connection was made."""

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Lease(Generic[C]):
    """One session's worth of a connection. `was_reused`: it was open before."""

    def __init__(
        self,
        shelf: _Shelf[C],
        entry: Entry[C],
        taken_at: float,
        give_back: Callable[[float | None], None],
        *,
        was_reused: bool,
    ) -> None:
        self._shelf = shelf
        self._entry = entry
        self._taken_at = taken_at
        self._give_back: Callable[[float | None], None] | None = give_back
        self.was_reused = was_reused

    @property
    def connection(self) -> C:
        """The connection."""
        return self._entry.connection

    @property
    def is_alone(self) -> bool:
        """Whether nobody else uses the connection."""
        return self._entry.leases == 1

    def is_over_age(self, now: float) -> bool:
        """Whether whoever comes now is to get another connection: this one is too old, or can't be trusted."""
        return self._entry.is_retiring or _is_too_old(self._entry, now, self._shelf.limits)

    def ends_at(self, idle_since: float) -> float:
        """When it is to be given back by somebody who has not used it since then, but keeps it."""
        return _ends_at(self._entry, self._shelf.limits, idle_since)

    def note_refused(self) -> None:
        """The server opened no further session on it: that many, without this one, are what it takes."""
        self._entry.capacity = max(1, min(self._entry.capacity, self._entry.leases - 1))

    def retire(self) -> None:
        """Nobody else shall get this connection: it behaved in a way that can't be trusted."""
        self._entry.is_retiring = True

    def suspect(self) -> None:
        """It is dead without having been closed: nobody shall find that out of those beside it one by one."""
        for entry in self._shelf.entries:
            if entry is self._entry or entry.opened_at <= self._taken_at:
                entry.is_retiring = True

    def give_back(self, idle_since: float | None = None) -> None:
        """Ends it. Once is enough. `idle_since` is when it was used last, for one that was kept for a while after."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(idle_since)


class Pool(Generic[K, C]):
    """Connections by key. `open` makes one for a key; what it raises, every caller that waited for it gets.

    `limits` are the same for every key, or what a function says of one.
    """

    def __init__(
        self,
        open: Callable[[K], Awaitable[C]],
        *,
        limits: Limits | Callable[[K], Limits] = Limits(),  # noqa: B008 - immutable
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._open = open
        self._limits = limits
        """Of a key; see `_limits_of`."""
        self._clock = clock or asyncio.get_running_loop().time
        self._shelves: dict[K, _Shelf[C]] = {}
        self._closing: dict[asyncio.Task[None], K] = {}
        self._sweeper = Alarm(self._sweep, self._clock)
        self.reused = 0
        """How many calls went over a connection that was made for another."""

    def __repr__(self) -> str:
        entries = [entry for shelf in self._shelves.values() for entry in shelf.entries]
        return f"<Pool keys={len(self._shelves)} connections={len(entries)} leases={sum(e.leases for e in entries)}>"

    @contextlib.asynccontextmanager
    async def lease(self, key: K) -> AsyncIterator[Lease[C]]:
        """A session's worth of a connection for this key, for the duration of the block."""
        lease = await self.acquire(key)
        try:
            yield lease
        finally:
            lease.give_back()

    async def acquire(self, key: K, *, is_resident: bool = False) -> Lease[C]:
        """The same until it is given back; `is_resident` for one that nobody shall wait for."""
        began = self._clock()
        limits = self._limits if isinstance(self._limits, Limits) else self._limits(key)
        shelf = self._shelves.setdefault(key, _Shelf(limits))
        shelf.limits = limits
        shelf.waiting += 1
        try:
            entry = await self._entry(key, shelf)
        finally:
            shelf.waiting -= 1
        was_reused, entry.is_fresh = not entry.is_fresh, False
        entry.leases += 1
        entry.residents += is_resident
        if was_reused:
            self.log_reuse(key, began)
        return Lease(
            shelf,
            entry,
            self._clock(),
            lambda idle_since: self._take_back(key, shelf, entry, is_resident, idle_since),
            was_reused=was_reused,
        )

    def log_reuse(self, key: K, began: float) -> None:
        """A call goes over a connection that was made for another."""
        self.reused += 1
        told = {"host": str(key), "duration": round(self._clock() - began, 3)}
        _log.info("reusing_ssh_connection", extra=told)

    async def close_connections(self, key: K) -> None:
        """Closes every connection of a key, in use or not, and waits until they are closed."""
        shelf = self._shelves.get(key)
        if shelf is None:
            return
        if shelf.opening is not None:
            shelf.opening.cancel()
        for entry in list(shelf.entries):
            self._drop(key, shelf, entry)
        await self._closed(key)

    async def close_idle_connections(self, key: K) -> None:
        """Closes those connections of a key that nobody uses and nobody waits for, and waits until they are closed."""
        shelf = self._shelves.get(key)
        if shelf is None:
            return
        if shelf.opening is not None and not shelf.waiting:
            shelf.opening.cancel()
        for entry in [entry for entry in shelf.entries if not entry.leases]:
            self._drop(key, shelf, entry)
        await self._closed(key)

    async def close_all_connections(self) -> None:
        """Closes every connection, in use or not, and waits until they are closed. The pool stays usable."""
        for key in list(self._shelves):
            await self.close_connections(key)
        self._sweeper.stop()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _closed(self, key: K) -> None:
        """Waits for those of one key: another host may hang, and take long to be closed."""
        await asyncio.gather(*[task for task, of in self._closing.items() if of == key], return_exceptions=True)

    async def _entry(self, key: K, shelf: _Shelf[C]) -> Entry[C]:
        while True:
            now = self._clock()
            decided = assign(shelf.entries, shelf.opening is not None, now, shelf.limits, shelf.moved_at)
            for entry in decided.close:
                self._drop(key, shelf, entry)
            if decided.use is not None:
                return decided.use
            if decided.must_open:
                shelf.opening = asyncio.ensure_future(self._add(key, shelf))
                shelf.opening.add_done_callback(_retrieve)
            if shelf.opening is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(shelf.changed.wait(), shelf.limits.queue)
                continue
            opening, changed = shelf.opening, asyncio.ensure_future(shelf.changed.wait())
            # Whoever stops waiting doesn't stop the others' connection; who gets room meanwhile needs none.
            try:
                await asyncio.wait([opening, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if opening.done():
                if opening.cancelled():
                    raise UnreachableError(
                        "host.unreachable", "all connections were closed while this one was opened", host=str(key)
                    )
                if not _is_worth_waiting(shelf):
                    opening.result()  # its failure is everybody's who waited

    async def _add(self, key: K, shelf: _Shelf[C]) -> None:
        try:
            connection = await self._open(key)
            now = self._clock()
            entry = Entry(connection, opened_at=now, idle_since=now)
            shelf.entries.append(entry)
            self._sweeper.ring_by(
                _ends_at(entry, shelf.limits, entry.idle_since)
            )  # nobody may be left who waits for it
        finally:
            shelf.opening = None
            shelf.moved_at = self._clock()  # also after a failure: whoever can queue does, and tries again later
            shelf.wake()

    def _take_back(
        self, key: K, shelf: _Shelf[C], entry: Entry[C], is_resident: bool, idle_since: float | None
    ) -> None:
        entry.leases -= 1
        entry.residents -= is_resident
        now = shelf.moved_at = self._clock()
        entry.idle_since = now if idle_since is None else max(entry.idle_since, idle_since)
        if entry.leases == 0 and (entry.connection.is_closed() or _is_over(entry, now, shelf.limits)):
            self._drop(key, shelf, entry)
        elif entry.leases == 0:
            self._sweeper.ring_by(_ends_at(entry, shelf.limits, entry.idle_since))
        shelf.wake()

    def _drop(self, key: K, shelf: _Shelf[C], entry: Entry[C]) -> None:
        if entry in shelf.entries:
            shelf.entries.remove(entry)
            closing = asyncio.ensure_future(self._close(key, entry))
            self._closing[closing] = key
            closing.add_done_callback(self._closing.pop)

    async def _close(self, key: K, entry: Entry[C]) -> None:
        await entry.connection.close()
        _log.info(
            "ssh_connection_closed", extra={"host": str(key), "duration": round(self._clock() - entry.opened_at, 3)}
        )

    def _sweep(self) -> None:
        """Idle connections end by themselves, also when nobody asks for one of their key again."""
        for key, shelf in list(self._shelves.items()):
            for entry in assign(shelf.entries, 0, self._clock(), shelf.limits).close:
                self._drop(key, shelf, entry)
            if not shelf.entries and shelf.opening is None and not shelf.waiting:
                del self._shelves[key]
        idle = ((entry, shelf) for shelf in self._shelves.values() for entry in shelf.entries if not entry.leases)
        first = min((_ends_at(entry, shelf.limits, entry.idle_since) for entry, shelf in idle), default=None)
        if first is not None:
            self._sweeper.ring_by(first)


def _is_worth_waiting(shelf: _Shelf[C]) -> bool:
    """Whether a connection has room, or will have some by itself."""
    usable = [entry for entry in shelf.entries if not entry.connection.is_closed() and not entry.is_retiring]
    return any(entry.leases < entry.capacity or entry.leases > entry.residents for entry in usable)


def _retrieve(opening: "asyncio.Task[None]") -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not opening.cancelled():
        opening.exception()
