"""What one controller has done since it was made: executions, deployments, what was found instead of sent.

Counts in memory, read with `Controller.get_stats()`. What other processes did is not here: `cronium metrics` derives
that from the database (`store_metrics`).
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

from cronium_runner.wire.results import Outcome, Result

from .deployments import FAILED, PRESENT, Made
from .logs import logger

LOGGED_EVERY: Final = 10
"""Executions between two lines in the log."""
_REPLACEABLE: Final = (Outcome.UNKNOWN, Outcome.LOST)
"""Ends that a later answer of the host may put right."""

_log = logger("cronium.metrics")


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of one controller. Rates are between 0 and 1, and None before there is anything to tell.

    An execution counts once, when its end is first known here; `failed` are also those that could not be submitted.
    The total is the sum of the five below it. Durations are seconds, of scripts and of deployments.
    """

    total_executions: int
    successful_executions: int
    failed_executions: int
    timeout_executions: int
    cancelled_executions: int
    unknown_executions: int
    execution_seconds: float
    average_execution_seconds: float | None
    total_deployments: int
    """Times that an agent needed the runner on a host, and deployments that were asked for."""
    successful_deployments: int
    failed_deployments: int
    cached_deployments: int
    """Of the successful ones: the runner was there already."""
    deployment_seconds: float
    """Of those that had to look at the host; one that is cached takes no time of its own."""
    average_deployment_seconds: float | None
    runner_cache_hit_rate: float | None
    payloads_sent: int
    payloads_cached: int
    """Jobs whose payload the host had already."""
    payload_cache_hit_rate: float | None
    connections_opened: int
    connections_reused: int
    """Calls that went over a connection that was open."""

    def to_json(self) -> dict[str, Any]:
        """By name; seconds and rates rounded to thousandths."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


class Metrics:
    """The counters. Whoever does something says so here; nothing is decided by them."""

    def __init__(self) -> None:
        self._ends = dict.fromkeys(Outcome, 0)
        self._replaceable: dict[str, Outcome] = {}
        """By execution id; only few executions are ever in it."""
        self._refused = 0
        self._timed = 0
        self._seconds = 0.0
        self._deployments = {"made": 0, "failed": 0, "cached": 0}
        self._deployment_seconds = 0.0
        self._recorded = 0
        self._payloads = [0, 0]
        self._logged_at = 0

    def note_end(self, result: Result) -> None:
        """An execution's end is known, or its channel is lost. What puts an `unknown` right takes its place."""
        self._replaceable.pop(result.execution_id, None)
        if result.state in _REPLACEABLE:
            self._replaceable[result.execution_id] = result.state
        else:
            self._ends[result.state] += 1
        if result.duration_ms is not None:
            self._timed += 1
            self._seconds += result.duration_ms / 1000

    def note_not_submitted(self) -> None:
        """The host was not reached, or refused: nothing was started."""
        self._refused += 1

    def note_submitted(self, *, has_sent_payload: bool) -> None:
        """A job was started on its host, which has asked for the payload or had it."""
        self._payloads[not has_sent_payload] += 1

    def note_cached_runner(self) -> None:
        """An agent was started where the runner was expected: nothing had to be looked at."""
        self._deployments["cached"] += 1

    def note_deployment(self, made: Made) -> None:
        """A deployment was written down, whatever became of it."""
        self._deployments[{FAILED: "failed", PRESENT: "cached"}.get(made.outcome, "made")] += 1
        self._recorded += 1
        self._deployment_seconds += made.duration_ms / 1000

    def stats(self, *, opened: int, reused: int) -> Stats:
        """The figures as they are now, with those of the connections."""
        ends, made = self._ends, self._deployments
        lost = sum(state is Outcome.LOST for state in self._replaceable.values())
        sent, found = self._payloads
        deployed = made["made"] + made["cached"]
        return Stats(
            total_executions=self._total,
            successful_executions=ends[Outcome.SUCCEEDED],
            failed_executions=ends[Outcome.FAILED] + ends[Outcome.REJECTED] + lost + self._refused,
            timeout_executions=ends[Outcome.TIMED_OUT],
            cancelled_executions=ends[Outcome.CANCELLED],
            unknown_executions=len(self._replaceable) - lost,
            execution_seconds=self._seconds,
            average_execution_seconds=_ratio(self._seconds, self._timed),
            total_deployments=deployed + made["failed"],
            successful_deployments=deployed,
            failed_deployments=made["failed"],
            cached_deployments=made["cached"],
            deployment_seconds=self._deployment_seconds,
            average_deployment_seconds=_ratio(self._deployment_seconds, self._recorded),
            runner_cache_hit_rate=_ratio(made["cached"], deployed + made["failed"]),
            payloads_sent=sent,
            payloads_cached=found,
            payload_cache_hit_rate=_ratio(found, sent + found),
            connections_opened=opened,
            connections_reused=reused,
        )

    def log_sometimes(self, *, opened: int, reused: int) -> None:
        """Logs all figures, once every ten executions."""
        if self._total - self._logged_at >= LOGGED_EVERY:
            self._logged_at = self._total - self._total % LOGGED_EVERY
            _log.info("execution_metrics", extra=self.stats(opened=opened, reused=reused).to_json())

    @property
    def _total(self) -> int:
        return sum(self._ends.values()) + len(self._replaceable) + self._refused


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
