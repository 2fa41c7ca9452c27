"""The controller's database as Prometheus' text: what all processes that used it did, whichever reads it now.

Counted anew from the tables each time, so nothing has to run in between. Only reads. What no table holds, such as how
often a connection was reused, is not here: `Controller.get_stats()` has it, in its own process.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from cronium_runner.wire.results import Outcome

from .store import Store

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_FINAL: Final = tuple(
    state.value for state in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CANCELLED)
)
"""Ends that nothing replaces any more. Only these can be counters: the number of all others may also fall."""
_KEY: Final = '"durationMs":'
_HEAD: Final = 4096
"""Bytes of a result in which its duration is, far in front of an output of megabytes that must not be read for it."""
_NUMBER: Final = 24
"""Characters that a duration has at most, and then some: the cast stops where the number does."""


def text(path: Path | None = None) -> bytes:
    """All families, for a scrape. Raises StoreError."""
    registry = CollectorRegistry(auto_describe=False)
    store = Store(path)
    try:
        registry.register(_Database(store))
        return generate_latest(registry)
    finally:
        store.close()


class _Database(Collector):
    """Reads the tables when it is collected."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[Metric]:
        """Nothing: it is the only one in its registry, and describing it would read all of it twice."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from _executions(self._store)
        yield from _deployments(self._store)
        yield from _hosts(self._store)


def _executions(store: Store) -> Iterator[Metric]:
    ended = CounterMetricFamily("cronium_executions", "Executions that have ended.", labels=["state", "mode"])
    still = GaugeMetricFamily(
        "cronium_executions_open",
        "Executions without a final end: under way, unknown, or never started; each may yet become another.",
        labels=["state"],
    )
    took = SummaryMetricFamily("cronium_execution_seconds", "What scripts took.", labels=["state"])
    last = GaugeMetricFamily(
        "cronium_execution_last_end_timestamp_seconds", "When one last ended so, as it was learned.", labels=["state"]
    )
    rows = {(row["state"], row["mode"]): row for row in store.database.read(_BY_STATE, _DURATION)}
    for state in _FINAL:
        of_state = [row for (its, _), row in rows.items() if its == state]
        for mode in sorted({"bundled", "api"} | {row["mode"] for row in of_state}):
            ended.add_metric([state, mode], rows[state, mode]["number"] if (state, mode) in rows else 0)
        took.add_metric(
            [state], sum(row["timed"] for row in of_state), sum(row["ms"] or 0.0 for row in of_state) / 1000
        )
        if of_state:
            last.add_metric([state], max(row["last"] or 0.0 for row in of_state))
    for state in sorted({state for state, _ in rows} - set(_FINAL)):
        still.add_metric([state], sum(row["number"] for (its, _), row in rows.items() if its == state))
    yield from (ended, still, took, last)


_DURATION: Final = {"key": _KEY, "length": len(_KEY), "head": _HEAD, "number": _NUMBER}
# The encoder escapes quotes in strings, so the key with its quotes is nowhere before the key itself.
_BY_STATE: Final = """
WITH heads AS (SELECT state, mode, finished_at, CAST(substr(result, 1, :head) AS TEXT) AS head FROM executions),
     found AS (SELECT *, substr(head, instr(head, :key) + :length, :number) AS told FROM heads),
     timed AS (SELECT *, CASE WHEN instr(head, :key) > 0 AND told NOT LIKE 'null%' THEN CAST(told AS REAL) END AS took
               FROM found)
SELECT state, mode, count(*) AS number, count(took) AS timed, sum(took) AS ms, max(finished_at) AS last
FROM timed GROUP BY state, mode
"""


def _deployments(store: Store) -> Iterator[Metric]:
    made = CounterMetricFamily("cronium_deployments", "Deployments that were written down.", labels=["outcome"])
    took = SummaryMetricFamily("cronium_deployment_seconds", "What deployments took.", labels=["outcome"])
    size = CounterMetricFamily("cronium_deployment_bytes", "Bytes of runners that were uploaded.")
    total = 0
    for row in store.database.read(
        "SELECT outcome, count(*) AS number, sum(duration_ms) AS ms, sum(bytes) AS uploaded "
        "FROM runner_deployments GROUP BY outcome"
    ):
        made.add_metric([row["outcome"]], row["number"])
        took.add_metric([row["outcome"]], row["number"], row["ms"] / 1000)
        total += row["uploaded"]
    size.add_metric([], total)
    yield from (made, took, size)


def _hosts(store: Store) -> Iterator[Metric]:
    calls = CounterMetricFamily("cronium_host_calls", "Calls of a host, by how they went.", labels=["host", "result"])
    failing = GaugeMetricFamily(
        "cronium_host_consecutive_failures", "Failures since the last success.", labels=["host"]
    )
    for row in store.database.read("SELECT * FROM host_health ORDER BY account"):
        calls.add_metric([row["account"], "success"], row["total_successes"])
        calls.add_metric([row["account"], "failure"], row["total_failures"])
        failing.add_metric([row["account"]], row["consecutive_failures"])
    yield from (calls, failing)
