"""The result of an execution: the same object in result.json, on the channel, with --json and in Python.

The shape is contracts.md §10. What an outcome means for an exit status is decided here, once, for both command lines.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Outcome(StrEnum):
    """How an execution ended. `unknown` is the controller's word while it can't reach the host."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    LOST = "lost"
    UNKNOWN = "unknown"


class StreamSummary(NamedTuple):
    """What the spool of one stream holds: bytes kept, whether some are missing, and their SHA-256 in hex."""

    bytes: int = 0
    truncated: bool = False
    sha256: str | None = None


class Result(NamedTuple):
    """One execution's result. Times are ISO 8601 in UTC, durations milliseconds, sizes bytes unless named otherwise."""

    execution_id: str
    state: Outcome
    job_id: str | None = None
    host: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    duration_ms: float | None = None
    output: Any = None
    variables: Mapping[str, Any] = MappingProxyType({})
    condition: bool | None = None
    stdout: StreamSummary = StreamSummary()
    stderr: StreamSummary = StreamSummary()
    cpu_ms: float | None = None
    max_rss_kib: int | None = None
    strays: int = 0
    transport: str | None = None
    runner_version: str | None = None
    undelivered: int = 0
    error_code: str | None = None
    error_message: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of contracts.md §10."""
        return {
            "executionId": self.execution_id,
            "jobId": self.job_id,
            "host": self.host,
            "state": self.state.value,
            "exitCode": self.exit_code,
            "signal": self.signal,
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            "durationMs": self.duration_ms,
            "output": self.output,
            "variables": dict(self.variables),
            "condition": self.condition,
            "stdout": _summary_to_json(self.stdout),
            "stderr": _summary_to_json(self.stderr),
            "usage": {"cpuMs": self.cpu_ms, "maxRssKiB": self.max_rss_kib},
            "strays": self.strays,
            "transport": self.transport,
            "runnerVersion": self.runner_version,
            "undelivered": self.undelivered,
            "error": None if self.error_code is None else {"code": self.error_code, "message": self.error_message},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Result":
        """Reads what `to_json` wrote, also from another version: unknown keys are ignored, missing ones default.

        Raises ValueError when there is no usable id or state.
        """
        execution_id, state = value.get("executionId"), value.get("state")
        if not isinstance(execution_id, str) or not isinstance(state, str):
            raise ValueError("a result needs executionId and state")
        plain = set(cls._fields) - {"stdout", "stderr", "state", "execution_id"}
        names = {_camel(name): name for name in plain}
        known: dict[str, Any] = {names[key]: item for key, item in value.items() if key in names}
        usage, error = value.get("usage") or {}, value.get("error") or {}
        known.update(
            cpu_ms=usage.get("cpuMs"),
            max_rss_kib=usage.get("maxRssKiB"),
            error_code=error.get("code"),
            error_message=error.get("message"),
            stdout=_summary_from_json(value.get("stdout")),
            stderr=_summary_from_json(value.get("stderr")),
        )
        return cls(execution_id=execution_id, state=Outcome(state), **known)

    def on(self, host: str, transport: str) -> "Result":
        """The same result with the controller's name for the host and the route it took."""
        return self._replace(host=host, transport=transport)


TEXT_TAIL: Final = 64 * 1024
"""Bytes at the end of each stream that --json shows as text (contracts.md §6)."""

EXIT_TIMED_OUT: Final = 124
EXIT_RUNNER_FAILED: Final = 125
EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
EXIT_CANCELLED: Final = 130
EXIT_UNREACHABLE: Final = 255

_REJECTIONS: Final = {
    "interpreter.not_found": EXIT_NOT_FOUND,
    "interpreter.not_executable": EXIT_NOT_EXECUTABLE,
}


def exit_status(result: Result) -> int:
    """The exit status that a command line ends with for this result (contracts.md §6 and §9)."""
    match result.state:
        case Outcome.TIMED_OUT:
            return EXIT_TIMED_OUT
        case Outcome.CANCELLED:
            return EXIT_CANCELLED
        case Outcome.REJECTED:
            return _REJECTIONS.get(result.error_code or "", EXIT_RUNNER_FAILED)
        case Outcome.LOST:
            return EXIT_RUNNER_FAILED
        case Outcome.UNKNOWN:
            return EXIT_UNREACHABLE
    if result.signal is not None:
        return 128 + result.signal
    return EXIT_RUNNER_FAILED if result.exit_code is None else result.exit_code


def _summary_to_json(summary: StreamSummary) -> dict[str, Any]:
    return {"bytes": summary.bytes, "truncated": summary.truncated, "sha256": summary.sha256}


def _summary_from_json(value: Any) -> StreamSummary:
    if not isinstance(value, dict):
        return StreamSummary()
    return StreamSummary(
        bytes=int(value.get("bytes", 0)),
        truncated=bool(value.get("truncated", False)),
        sha256=value.get("sha256"),
    )


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
