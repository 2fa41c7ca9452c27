"""How many connections may be open at once: of one token, one tunnel, one address, and without a valid token.

Only counting: what a connection is, `protocol` knows. Where there is no more room a new connection takes the place of
one on which nothing is being answered; where some have not shown a token, of one of those. Else it waits unread:
clients open many connections at one instant and need each for some milliseconds. The newest is next, so that those who
wait for nothing don't shut others out.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from .limits import Limits
from .metrics import Metrics

TUNNEL: Final = "tunnel"
ADDRESS: Final = "address"
SOCKET: Final = "socket"

_TOKEN: Final = "token"  # noqa: S105 - a kind of group
_WITHOUT_TOKEN: Final = "without_token"  # noqa: S105
_DIRECT: Final = "direct"

_LOG_SECONDS: Final = 1.0

WAITING: Final = 3
"""Times as many connections as may be open may wait."""
_PUMP_SECONDS: Final = 0.1

IDLE_SECONDS: Final = 0.5
"""A connection that has been idle for this long may be closed for another. Before that its next request may be on its
way, and would be lost."""
HURRY_SECONDS: Final = 1.0
"""One that has waited for this long takes the place of any idle one: where all are used again and again, none would be
idle for long."""

_log = logging.getLogger("cronium.api")


class Origin(NamedTuple):
    """Where a connection comes from: through the tunnel of a host, from an address, or over a unix socket."""

    kind: str
    name: str


class Connection(Protocol):
    """What is counted."""

    @property
    def idle_seconds(self) -> float | None:
        """For how long it has had nothing to be answered; None while it has, or while a request is on its way."""

    def begin(self) -> None:
        """It may be read now. Called once."""

    def refuse(self) -> None:
        """Answers that there are too many, and closes it. It was not read."""

    def drop(self) -> None:
        """Closes it."""


_Group = tuple[str, str]


class _Waiting(NamedTuple):
    connection: Connection
    origin: Origin
    since: float


class Connections:
    """The open connections of one service."""

    def __init__(self, limits: Limits, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._groups: dict[_Group, dict[Connection, None]] = {}
        self._memberships: dict[Connection, set[_Group]] = {}
        self._waiting: dict[Origin, list[_Waiting]] = {}
        self._pumping: asyncio.TimerHandle | None = None
        self._refused = 0
        self._last_refusal: tuple[str, str] = ("", "")
        self._logged_at = -_LOG_SECONDS
        self._later: asyncio.TimerHandle | None = None

    def admit(self, connection: Connection, origin: Origin) -> None:
        """Counts a new connection, which begins now or later, or is refused."""
        if self._place(connection, origin, IDLE_SECONDS):
            return
        queue = self._waiting.setdefault(origin, [])
        queue.append(_Waiting(connection, origin, self._clock()))
        _, most = next(self._groups_of(origin))
        if len(queue) > WAITING * most:
            self._refuse(queue.pop(0))
        self._schedule_pump()

    def pump(self) -> None:
        """Lets those begin for whom there is room now, the newest first, and refuses those who have waited too long."""
        now = self._clock()
        for origin, queue in list(self._waiting.items()):
            while queue:
                newest = queue.pop()  # before it begins, which may lead here again
                oldest = queue[0] if queue else newest
                if not self._place(newest.connection, origin, _idle_enough(now - oldest.since)):
                    queue.append(newest)
                    break
            while queue and now - queue[0].since > self._limits.header_seconds:
                self._refuse(queue.pop(0))
            if not queue:
                self._waiting.pop(origin, None)
        self._schedule_pump()

    def _place(self, connection: Connection, origin: Origin, idle: float) -> bool:
        groups = list(self._groups_of(origin))
        if not all(self._has_room(group, most, idle) for group, most in groups):
            return False
        self._memberships[connection] = set()
        for group, _ in groups:
            self._join(connection, group)
        self._metrics.connections.set(len(self._memberships))
        connection.begin()
        return True

    def _refuse(self, waiting: _Waiting) -> None:
        self.note_refusal("too_many", waiting.origin.name)
        waiting.connection.refuse()

    def _schedule_pump(self) -> None:
        if self._waiting and self._pumping is None:
            self._pumping = asyncio.get_running_loop().call_later(_PUMP_SECONDS, self._pump_later)

    def _pump_later(self) -> None:
        self._pumping = None
        self.pump()

    def identify(self, connection: Connection, token: str, waited: float = 0.0) -> bool:
        """The connection has shown a valid token, of which `token` is the name, and waited so many seconds; whether it
        may go on with it now."""
        groups = self._memberships.get(connection)
        mine = (_TOKEN, token)
        if groups is None or mine in groups:
            return True
        if not self._has_room(mine, self._limits.connections, _idle_enough(waited)):
            return False
        for group in [group for group in groups if group[0] in (_TOKEN, _WITHOUT_TOKEN)]:
            self._leave(connection, group)
        self._join(connection, mine)
        self.pump()
        return True

    def discard(self, connection: Connection) -> None:
        """The connection is closed."""
        self._forget(connection)
        for queue in self._waiting.values():
            queue[:] = [each for each in queue if each.connection is not connection]
        self.pump()

    def _forget(self, connection: Connection) -> None:
        for group in list(self._memberships.get(connection, ())):
            self._leave(connection, group)
        self._memberships.pop(connection, None)
        self._metrics.connections.set(len(self._memberships))

    def note_refusal(self, reason: str, of: str) -> None:
        """Counts a connection that was refused or closed, and logs it: at most one line a second."""
        self._metrics.refused.labels(reason).inc()
        self._refused += 1
        self._last_refusal = (reason, of)
        wait = self._logged_at + _LOG_SECONDS - self._clock()
        if wait <= 0:
            self._log_refusals()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(wait, self._log_refusals)

    def close(self) -> None:
        """Lets no other begin, and logs what has not been logged."""
        self._waiting.clear()
        if self._pumping is not None:
            self._pumping.cancel()
        if self._refused:
            self._log_refusals()

    def _log_refusals(self) -> None:
        if self._later is not None:
            self._later.cancel()
        reason, of = self._last_refusal
        _log.warning("connections_refused", extra={"count": self._refused, "reason": reason, "of": of})
        self._refused, self._later, self._logged_at = 0, None, self._clock()

    def _groups_of(self, origin: Origin) -> Iterator[tuple[_Group, int]]:
        limits = self._limits
        if origin.kind == TUNNEL:
            yield (TUNNEL, origin.name), limits.connections
        elif origin.kind == ADDRESS:
            yield (ADDRESS, origin.name), limits.connections_per_address
        # A tunnel's are counted apart: one host must not shut out the others.
        area = f"{TUNNEL} {origin.name}" if origin.kind == TUNNEL else _DIRECT
        yield (_WITHOUT_TOKEN, area), limits.connections_without_token

    def _has_room(self, group: _Group, most: int, idle_seconds: float) -> bool:
        members = self._groups.get(group, {})
        if len(members) < most:
            return True
        # A new connection has shown no token itself. So it takes the place of one that has only where all have.
        strangers = [each for each in members if not self._has_token(each)]
        waits = ((each, each.idle_seconds) for each in strangers or members)  # the oldest first
        idle = [each for each, seconds in waits if seconds is not None and seconds >= idle_seconds]
        if not idle:
            return False
        if self._has_token(idle[0]):
            self._metrics.refused.labels("idle").inc()
        else:
            self.note_refusal("late", group[1])
        self._forget(idle[0])
        idle[0].drop()
        return True

    def _has_token(self, connection: Connection) -> bool:
        return any(kind == _TOKEN for kind, _ in self._memberships[connection])

    def _join(self, connection: Connection, group: _Group) -> None:
        self._groups.setdefault(group, {})[connection] = None
        self._memberships[connection].add(group)

    def _leave(self, connection: Connection, group: _Group) -> None:
        members = self._groups[group]
        del members[connection]
        self._memberships[connection].discard(group)
        if not members:
            del self._groups[group]


def _idle_enough(waited: float) -> float:
    """For how long a connection has to be idle to be closed for another that has waited for `waited` seconds."""
    return IDLE_SECONDS if waited < HURRY_SECONDS else 0.0
