"""What is known of each host from earlier calls, also of earlier processes: how they went, and which route worked.

Kept in the store where there is one. Nothing here talks to a host; `connections` asks before it knocks and tells how it
went.
"""

import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from .errors import StoreError, UnreachableError
from .health import HostHealth
from .hosts import Host
from .logs import logger
from .transport import Remembered

WRITTEN_AFTER: Final = 2.0
"""Seconds between two writes of mere counts: a warm job must not pay for a commit each. What the breaker decides is
written at once, and everything at the end."""
_LONGEST_ERROR: Final = 500
_log = logger("cronium.health")


def account(host: Host) -> str:
    """What two names of one machine and account have in common: health is theirs, not the name's."""
    if host.is_local:
        return "local:"
    user = f"{host.user}@" if host.user else ""
    return f"{user}{host.address}{f':{host.port}' if host.port else ''}"


class HealthStore(Protocol):
    """Where it is kept. Its calls raise StoreError."""

    def health(self, account: str) -> HostHealth | None:
        """What is known of an account; None when nothing is."""

    def note_health(self, account: str, known: HostHealth, successes: int, failures: int) -> None:
        """Writes it down; of calls it adds so many to those of other processes."""


class Memory:
    """The hosts of one controller or client. `remembered` has their routes."""

    def __init__(self, store: "HealthStore | None" = None, *, clock: Callable[[], float] = time.time) -> None:
        self.remembered = Remembered()
        self._store = store
        self._clock = clock
        self._known: dict[str, HostHealth] = {}
        self._written: dict[str, tuple[int, int, float]] = {}
        """Successes and failures that the store knows of, and when it was told."""

    def of(self, host: Host) -> HostHealth:
        """How a host stands."""
        key = account(host)
        if key not in self._known:
            known = self._load(key)
            self._known[key] = known
            self._written[key] = (known.calls.total_successes, known.calls.total_failures, self._clock())
            if known.transport is not None and known.transport_at is not None:
                self.remembered.learn(host.name, known.transport, self._clock() - known.transport_at)
        return self._known[key]

    def check(self, host: Host) -> None:
        """Before a connection is opened. Raises UnreachableError while a host that is away is left alone."""
        known, now = self.of(host), self._clock()
        left = known.breaker.wait(now)
        if left > 0:
            raise UnreachableError(
                "host.paused",
                f"not tried: {known.breaker.unreachable} times in a row no way led there, and it is left alone for "
                f"{left:.0f} s more ({known.last_error}); "
                f"try at once with --ignore-health, or forget it with: cronium hosts --reset",
                host=host.name,
            )
        known.breaker.begin(now)

    def note_connected(self, host: Host, transport: str) -> None:
        """A route led there."""
        known = self.of(host)
        was_open = known.breaker.unreachable > 0
        known.breaker.record_reached()
        known.transport, known.transport_at = transport, self._clock()
        self._write(host, now=was_open)

    def note_unreachable(self, host: Host, error: str) -> None:
        """No route led there."""
        known = self.of(host)
        known.breaker.record_unreachable(self._clock(), random.random)
        known.last_error = error[:_LONGEST_ERROR]
        self._write(host, now=True)

    def note_call(self, host: Host, error: str | None) -> None:
        """A call went well, or failed for this reason."""
        known = self.of(host)
        if error is None:
            known.calls.record_success(self._clock())
        else:
            known.calls.record_failure(self._clock())
            known.last_error = error[:_LONGEST_ERROR]
        self._write(host)

    def save(self) -> None:
        """Writes down all that was not yet."""
        for key, known in self._known.items():
            if (known.calls.total_successes, known.calls.total_failures) != self._written[key][:2]:
                self._write_key(key)

    def _load(self, key: str) -> HostHealth:
        if self._store is not None:
            try:
                return self._store.health(key) or HostHealth()
            except StoreError as error:
                _log.warning("health_not_read", extra={"reason": error.message})
        return HostHealth()

    def _write(self, host: Host, *, now: bool = False) -> None:
        key = account(host)
        if now or self._clock() - self._written[key][2] >= WRITTEN_AFTER:
            self._write_key(key)

    def _write_key(self, key: str) -> None:
        known = self._known[key]
        successes, failures = known.calls.total_successes, known.calls.total_failures
        before = self._written[key]
        self._written[key] = (successes, failures, self._clock())
        if self._store is None:
            return
        try:
            self._store.note_health(key, known, successes - before[0], failures - before[1])
        except StoreError as error:  # counts are no reason for a job to fail
            _log.warning("health_not_written", extra={"reason": error.message})
