"""How well a host has answered, and whether it is worth asking now. Numbers in, decisions out: no clock, no network.

Two things are kept apart. `SSHHealth` counts every call, a command that failed on the host included: what an operator
looks at. `Breaker` counts only calls that could not connect on any route, and keeps us from knocking at a host that is
down; it opens for a while, lets one call try, and closes with the first that gets through.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

UNHEALTHY_FAILURES: Final = 3
"""Failed calls in a row."""
OPENING_FAILURES: Final = 3
"""Unreachable calls in a row before the breaker opens: one lost packet must not close a host off."""
FIRST_PAUSE: Final = 5.0
"""Seconds that a host is left alone first: about what a restarted sshd needs."""
LONGEST_PAUSE: Final = 300.0
"""Seconds between tries of a host that stays away: a machine that came back is found within five minutes."""
TRIAL_SECONDS: Final = 120.0
"""How long one trial keeps others waiting: longer than all routes' connect timeouts with their retries. Whoever makes
it may vanish without telling how it went, and the breaker must not stick."""


@dataclass(slots=True)
class SSHHealth:
    """What became of the calls to one host. Times are seconds since the epoch."""

    last_success: float | None = None
    last_failure: float | None = None
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    total_successes: int = 0
    total_failures: int = 0

    @property
    def is_healthy(self) -> bool:
        """False from three failed calls in a row on; a command that ended with another status than 0 is one."""
        return self.consecutive_failures < UNHEALTHY_FAILURES

    @property
    def success_rate(self) -> float:
        """Between 0 and 1; 0 while nothing has been tried."""
        calls = self.total_successes + self.total_failures
        return self.total_successes / calls if calls else 0.0

    def record_success(self, now: float) -> None:
        """A call went well."""
        self.last_success = now
        self.total_successes += 1
        self.consecutive_successes += 1
        self.consecutive_failures = 0

    def record_failure(self, now: float) -> None:
        """A call failed: no connection, a dropped one, a timeout, or an exit status that isn't 0."""
        self.last_failure = now
        self.total_failures += 1
        self.consecutive_failures += 1
        self.consecutive_successes = 0


@dataclass(slots=True)
class Breaker:
    """Whether a host that could not be reached is to be tried again. Times are seconds since the epoch."""

    unreachable: int = 0
    """Calls in a row that could not connect on any route."""
    next_try: float = 0.0
    """Nobody knocks before. 0 while the breaker is closed."""
    trial_until: float = 0.0
    """While one call tries, others are turned away until then at the latest."""

    def wait(self, now: float) -> float:
        """Seconds until a call may be made; 0 when it may be made now.

        The clock may have been set back since: a pause that is longer than there can be is over.
        """
        due = max(self.next_try, self.trial_until)
        left = due - now
        return left if 0 < left <= max(LONGEST_PAUSE, TRIAL_SECONDS) else 0.0

    def allow(self) -> None:
        """Somebody wants to know now: the next call is made whatever was, and a failed one is counted as before."""
        self.next_try = self.trial_until = 0.0

    def begin(self, now: float) -> None:
        """A call is made. With the breaker open it is the one trial."""
        if self.next_try:
            self.trial_until = now + TRIAL_SECONDS

    def record_reached(self) -> None:
        """The call got through to the host, whatever came of it there."""
        self.unreachable = 0
        self.next_try = self.trial_until = 0.0

    def record_unreachable(self, now: float, random: Callable[[], float]) -> None:
        """No route led to the host. `random` gives numbers between 0 and 1: not all controllers come back at once."""
        self.unreachable += 1
        self.trial_until = 0.0
        rounds = self.unreachable - OPENING_FAILURES
        if rounds >= 0:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(rounds, 16))
            self.next_try = now + pause * (0.5 + random() / 2)

    def release(self) -> None:
        """The call ended without telling anything about the host: it was given up, or a key was refused."""
        self.trial_until = 0.0


@dataclass(slots=True)
class HostHealth:
    """All that is remembered of one host between calls, and between processes."""

    calls: SSHHealth = field(default_factory=SSHHealth)
    breaker: Breaker = field(default_factory=Breaker)
    transport: str | None = None
    """The route that the last connection took, and when it was made, in seconds since the epoch."""
    transport_at: float | None = None
    last_error: str | None = None
    """What the last failed call said; none of a command's output."""
