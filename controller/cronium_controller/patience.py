"""The controller's own deadlines: the longest that an execution can take. After it the outcome is `unknown`.

Without them a host that answers pings and never reports an end would block its caller, and a whole fan-out. The numbers
before `margin` are the runner's own limits for the same phases.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LONGEST_TIMEOUT: Final = 24 * 3600.0
"""Seconds: the longest timeout that a job can have, for jobs whose timeout is not known here."""
COUNTED_OUTPUT: Final = 2 << 30
"""Bytes of output that can put a deadline off: the caps of both spools."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds for each phase of an execution; `slowest` is the bytes of output a second that a connection brings."""

    set_up: float = 300.0
    grace: float = 5.0
    drain: float = 2.0
    clean_up: float = 60.0
    delivery: float = 60.0
    """In API mode, for what the platform has not confirmed yet."""
    margin: float = 30.0
    """For everything without a limit of its own: a slow disk, a busy machine, the network."""
    slowest: float = 128 * 1024
    answer: float = 60.0
    """For an answer to a question or to an acknowledgement."""
    collection: float = 900.0
    """For a collection, which removes thousands of records on a slow disk."""

    def until_answer(self) -> float:
        """Seconds from the last byte of a submission to its acceptance or refusal."""
        return self.set_up + self.margin

    def until_end(self, timeout: float, *, has_api: bool = False) -> float:
        """Seconds from the acceptance of a submission to its end; `timeout` is the script's."""
        return self.set_up + timeout + self.until_cancelled(has_api=has_api)

    def until_cancelled(self, *, has_api: bool = False) -> float:
        """Seconds from a cancel to the end."""
        return self.grace + self.drain + self.clean_up + (self.delivery if has_api else 0.0) + self.margin


class _Timer:
    """The one timer of an event loop's deadlines. It rings when the first is up, or before: then all are looked at."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.running: set[Deadline] = set()
        self._handle: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def watch(self, deadline: "Deadline", at: float) -> None:
        """Has the deadline looked at by then."""
        self.running.add(deadline)
        if at < self._rings_at:
            if self._handle is not None:
                self._handle.cancel()
            self._handle, self._rings_at = self._loop.call_at(at, self._ring), at

    def _ring(self) -> None:
        self._handle, self._rings_at = None, math.inf
        now = self._loop.time()
        for deadline in list(self.running):
            at = deadline.look(now)
            if at is None:
                self.running.discard(deadline)
            else:
                self.watch(deadline, at)


_timers: dict[asyncio.AbstractEventLoop, _Timer] = {}


def _timer_of(loop: asyncio.AbstractEventLoop) -> _Timer:
    timer = _timers.get(loop)
    if timer is None:
        for other in [other for other in _timers if other.is_closed()]:
            del _timers[other]
        timer = _timers[loop] = _Timer(loop)
    return timer


class Deadline:
    """Calls `expired` once, when its time is up. Only the time between `go_on` and `hold` counts, in which the host is
    waited for: a slow reader of the output uses up none of it."""

    def __init__(self, expired: Callable[[], object], loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop` keeps the time; without one it is the running event loop."""
        self._expired = expired
        self._loop = loop or asyncio.get_running_loop()
        self._at: float | None = None
        self._held_since: float | None = 0.0
        self._due: float | None = None
        """When it expires, had no output put it off."""
        self._late = 0
        """Bytes of output since `margin` seconds before `_due`."""
        self._timer = _timer_of(self._loop)

    def __repr__(self) -> str:
        return f"<Deadline {'none' if self._at is None else f'{self._at:.1f}'}>"

    def set(self, seconds: float) -> None:
        """Expires in so many seconds."""
        now = self._loop.time()
        self._at = self._due = now + seconds
        self._late = 0
        if self._held_since is not None:
            self._held_since = now
        else:
            self._timer.watch(self, self._at)

    def shorten(self, seconds: float) -> None:
        """Expires in so many seconds at the latest."""
        if self._at is None or self._at > self._loop.time() + seconds:
            self.set(seconds)

    def put_off(self, size: int, patience: Patience) -> None:
        """Notes `size` bytes of output. Near its end it moves on while output comes at `patience.slowest` or faster."""
        if self._at is None or self._due is None or self._loop.time() < self._due - patience.margin:
            return
        self._late += size
        if self._late >= (self._loop.time() - (self._due - patience.margin)) * patience.slowest:
            self._at = max(self._at, self._loop.time() + patience.margin)

    def hold(self) -> None:
        """Stops counting: from now on the host waits for us."""
        self._held_since = self._loop.time()

    def go_on(self) -> None:
        """Counts again: the host is waited for."""
        if self._held_since is not None:
            held, self._held_since = self._loop.time() - self._held_since, None
            if self._at is not None and self._due is not None:
                self._at += held
                self._due += held
                self._timer.watch(self, self._at)

    def stop(self) -> None:
        """It never expires."""
        self._at = None
        self._timer.running.discard(self)

    def look(self, now: float) -> float | None:
        """Expires when its time is up. When to look again; None when there is no need, unless it is set or goes on."""
        if self._at is None or self._held_since is not None:
            return None
        if self._at > now:
            return self._at
        self._at = None
        self._expired()
        return None


def remaining_in(told: dict[str, Any]) -> float | None:
    """Seconds that the script has left, by an agent's ACCEPTED; None where that is missing or no number."""
    found = told.get("remaining")
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    return float(min(max(0, found), LONGEST_TIMEOUT))
