"""The runtime API's figures in Prometheus' text form. Labels are routes and names of the configuration, never keys."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# Seconds. A read is some tenths of a millisecond of database and a few of Python; a tool may take its whole timeout.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)


class Metrics:
    """One application's counters, in a registry of its own: several can be in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "cronium_api_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "cronium_api_request_seconds",
            "From a request's headers to its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.writes = Counter(
            "cronium_api_writes", "Writes, applied or repeated.", ["action", "result"], registry=self._registry
        )
        self.tool_actions = Counter(
            "cronium_api_tool_actions", "Tool actions.", ["tool", "result"], registry=self._registry
        )

        self.connections = Gauge("cronium_api_connections", "Connections that are open.", registry=self._registry)
        self.refused = Counter(
            "cronium_api_refused_connections",
            "Connections that were refused, or closed because they kept the service waiting.",
            ["reason"],
            registry=self._registry,
        )
        self.over_quota = Counter(
            "cronium_api_over_quota", "Writes refused because of a quota.", ["quota"], registry=self._registry
        )

    def text(self) -> bytes:
        """Everything, for `GET /metrics`."""
        return generate_latest(self._registry)
