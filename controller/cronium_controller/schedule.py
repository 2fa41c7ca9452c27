"""Which hosts are next, and what all of them together amount to. Values in, decisions out; nothing runs here.

forks         hosts at once
serial        hosts in one batch: the next batch begins when this one has ended
max_failures  so many failures are endured; with one more nothing new is started, and what runs ends by itself
"""

from collections import deque
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeVar

from cronium_runner.wire.results import EXIT_CANCELLED, EXIT_RUNNER_FAILED, Outcome, Result, exit_status

from .errors import ControllerError

FORKS: Final = 50
"""Hosts at once, unless told otherwise. At 200 hosts, one run each on a busy machine (docs/benchmarks.md), 50 took
a fifth less time than 10, and 100 only 4 % less than 50, with more memory."""
STOPPED: Final = "fanout.stopped"
"""The code of a host that was not begun."""
MOST_FAILED: Final = 255
"""An exit status holds no more."""

H = TypeVar("H")


class Verdict(StrEnum):
    """What all hosts together amount to."""

    SUCCESS = "SUCCESS"
    PARTIAL_SUCCESS = "PARTIAL SUCCESS"
    FAILED = "FAILED"


class Share(NamedTuple):
    """A number of hosts, or a percentage of them."""

    amount: float
    is_percentage: bool = False

    def of(self, hosts: int) -> int:
        """How many that is, rounded down: 10 % of 5 hosts is none."""
        return int(hosts * self.amount / 100) if self.is_percentage else int(self.amount)


def parse_share(text: str, option: str, *, lowest: int) -> Share:
    """`5` or `30%`. Raises ControllerError naming the option."""
    number = text.removesuffix("%")
    if number.isascii() and number.isdigit() and len(number) < 10 and int(number) >= lowest:
        share = Share(int(number), text.endswith("%"))
        if not share.is_percentage or share.amount <= 100:
            return share
    raise ControllerError(
        "usage.invalid", f"{option} {text[:40]!r}: write a number from {lowest} on, or a percentage up to 100%"
    )


def counted(number: int, noun: str = "hosts") -> str:
    """`1 host`, `2 hosts`."""
    return f"{number} {noun.removesuffix('s') if number == 1 else noun}"


class Schedule(Generic[H]):
    """Hands out hosts. Call `next` until it gives none, and `ended` for each that was given out."""

    def __init__(
        self, hosts: Iterable[H], *, forks: int, serial: Share | None = None, max_failures: Share | None = None
    ) -> None:
        self._waiting = deque(dict.fromkeys(hosts))  # the same host twice runs once
        self.total = len(self._waiting)
        self._forks = forks
        self._batch = self.total if serial is None else max(1, serial.of(self.total))
        self._left_in_batch = self._batch
        self._endured = None if max_failures is None else max_failures.of(self.total)
        self.running = 0
        self.failures = 0
        self.done = 0

    @classmethod
    def asked(
        cls,
        hosts: Iterable[H],
        *,
        forks: int,
        serial: int | str | None = None,
        max_failures: int | str | None = None,
        stop_on_failure: bool = False,
    ) -> "Schedule[H]":
        """As a person writes it: numbers, or percentages. `stop_on_failure` endures none, unless told how many.

        Raises ControllerError for what is no such number.
        """
        if stop_on_failure and max_failures is None:
            max_failures = 0
        return cls(
            hosts,
            forks=forks,
            serial=None if serial is None else parse_share(str(serial), "serial", lowest=1),
            max_failures=None if max_failures is None else parse_share(str(max_failures), "max_failures", lowest=0),
        )

    def __repr__(self) -> str:
        return f"<Schedule {self.done}/{self.total} running={self.running} failures={self.failures}>"

    @property
    def is_stopped(self) -> bool:
        """Whether nothing new starts, because too many have failed."""
        return self._endured is not None and self.failures > self._endured

    def next(self) -> H | None:
        """A host to begin with now; None when one has to end first, or none is left."""
        if not self._waiting or self.running >= self._forks or self.is_stopped:
            return None
        if self._left_in_batch == 0:
            if self.running:
                return None
            self._left_in_batch = self._batch
        self._left_in_batch -= 1
        self.running += 1
        return self._waiting.popleft()

    def ended(self, *, ok: bool) -> None:
        """One that was given out has ended."""
        self.running -= 1
        self.done += 1
        self.failures += not ok

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing will."""
        return self.running == 0 and (not self._waiting or self.is_stopped)

    def left(self) -> list[H]:
        """Those that were never begun."""
        return list(self._waiting)


class Tally:
    """What has come of the hosts so far. Holds counts, not results."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {}
        self.succeeded = 0
        self.failed = 0
        self.is_interrupted = False
        """Whether somebody ended all of it: that is then why hosts were not begun."""
        self._largest = 0

    def add(self, result: Result) -> None:
        """Counts one host's result. One that was not begun is a failure, and has no exit status that could count."""
        self.states[result.state.value] = self.states.get(result.state.value, 0) + 1
        self.note(0 if result.error_code == STOPPED else exit_status(result), ok=is_success(result))

    def note(self, status: int, *, ok: bool) -> None:
        """Counts a host that has no result, but an exit status."""
        self.succeeded += ok
        self.failed += not ok
        self._largest = max(self._largest, status)

    @property
    def verdict(self) -> Verdict:
        """All, some or none succeeded."""
        if not self.failed:
            return Verdict.SUCCESS
        return Verdict.PARTIAL_SUCCESS if self.succeeded else Verdict.FAILED

    @property
    def exit_status(self) -> int:
        """0; 100 + failures, at most 255, when some succeeded; the largest exit status when none did."""
        match self.verdict:
            case Verdict.SUCCESS:
                return 0
            case Verdict.PARTIAL_SUCCESS:
                return min(100 + self.failed, MOST_FAILED)
        return self._largest or (EXIT_CANCELLED if self.is_interrupted else EXIT_RUNNER_FAILED)


def is_success(result: Result) -> bool:
    """Whether a host's result counts as one."""
    return result.state is Outcome.SUCCEEDED
