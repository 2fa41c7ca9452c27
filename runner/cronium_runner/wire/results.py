"""The result of an execution: the same object in result.json, on the channel, with --json and in Python.

docs/reading-results.md describes the shape. What an outcome means for an exit status is decided here, once, for both
command lines.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from .access import API, BUNDLED
from .exactjson import NumberLiteral, dumps


class Outcome(StrEnum):
    """How an execution ended. The last four are the controller's alone: nothing was started there for certain.

    `unknown` stands only where a start may have happened.
    """

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    LOST = "lost"
    UNKNOWN = "unknown"
    REFUSED = "refused"
    """The host refused our authentication, or we refused its key."""
    UNREACHABLE = "unreachable"
    SKIPPED = "skipped"
    """The run ended before this host's turn: too many failures, an interrupt, a controller that ended."""
    MALFORMED = "malformed"
    """The row that names the host can't be read."""

    @property
    def is_unstarted(self) -> bool:
        """Whether only a controller can say it, of a host on which it started nothing."""
        return self in _UNSTARTED


_UNSTARTED: Final = frozenset({Outcome.REFUSED, Outcome.UNREACHABLE, Outcome.SKIPPED, Outcome.MALFORMED})


class StreamSummary(NamedTuple):
    """What the spool of one stream holds: bytes kept, whether some are missing, and their SHA-256 in hex."""

    size: int = 0
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
    """Writes of API mode that the platform has not confirmed; the next contact delivers them."""
    refused: int = 0
    """Writes of API mode that the platform refused for good; `refusal` is what it said to the first."""
    refusal: str | None = None
    mode: str = BUNDLED
    """`bundled` or `api`: how it was executed."""
    fallback_code: str | None = None
    fallback_message: str | None = None
    """Set by the controller: why it was not executed in the mode that was preferred."""
    error_code: str | None = None
    error_message: str | None = None
    masked: tuple[str, ...] = ()
    """Paths of outputs and variables that hold a secret, such as `output.token`; each stands for all below it."""
    progress: Mapping[str, Any] | None = None
    """How far the script said it was: `percent` from 0 to 100, and perhaps `text`."""
    summary: str | None = None
    """What came of it, as the script says: Markdown, which nobody has cleaned."""

    def to_json(self) -> dict[str, Any]:
        """The object that docs/reading-results.md describes."""
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
            "refused": self.refused,
            "refusal": self.refusal,
            "mode": self.mode,
            "fallback": _reason(self.fallback_code, self.fallback_message),
            "error": _reason(self.error_code, self.error_message),
            **({"masked": list(self.masked)} if self.masked else {}),
            **({} if self.progress is None else {"progress": dict(self.progress)}),
            **({} if self.summary is None else {"summary": self.summary}),
        }

    def hidden(self) -> "Result":
        """The same result for screens, history, logs and reports: `***` in place of secrets that were handed back."""
        if not self.masked:
            return self
        from . import masks  # no command's start needs it

        return Result.from_json(masks.hidden(self.to_json()))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Result":
        """Reads what `to_json` wrote, also from another version: unknown keys are ignored, missing ones default.

        Raises ValueError when there is no usable id or state, or something in it is not what it has to be.
        """
        value = _object(value, "whole")
        execution_id, state = value.get("executionId"), value.get("state")
        if not isinstance(execution_id, str) or not isinstance(state, str):
            raise ValueError("a result needs executionId and state")
        known: dict[str, Any] = {}
        for key, (name, read) in _PLAIN.items():
            told = value.get(key)
            if told is not None:
                known[name] = found = read(told)
                if found is None:
                    raise _unusable(key, told)
        usage, error = _object(value.get("usage"), "usage"), _object(value.get("error"), "error")
        error_code = _checked(error.get("code"), "error.code", _text)
        fallback = _object(value.get("fallback"), "fallback")
        fallback_code = _checked(fallback.get("code"), "fallback.code", _text)
        known.update(
            output=value.get("output"),
            cpu_ms=_checked(usage.get("cpuMs"), "usage.cpuMs", _number),
            max_rss_kib=_checked(usage.get("maxRssKiB"), "usage.maxRssKiB", _integer),
            error_code=error_code,
            error_message=_checked(error.get("message"), "error.message", _text) if error_code is not None else None,
            fallback_code=fallback_code,
            fallback_message=(
                None if fallback_code is None else _checked(fallback.get("message"), "fallback.message", _text)
            ),
            stdout=_summary_from_json(value.get("stdout")),
            stderr=_summary_from_json(value.get("stderr")),
        )
        return cls(execution_id=execution_id, state=Outcome(state), **known)

    def on(self, host: str, transport: str) -> "Result":
        """The same result with the controller's name for the host and the route it took."""
        return self._replace(host=host, transport=transport)


_SHORT: Final = 1000
"""Characters of a text that is not cut off anywhere."""

TEXT_TAIL: Final = 64 * 1024
"""Bytes at the end of each stream that --json shows as text."""

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
    """The exit status that a command line ends with for this result."""
    match result.state:
        case Outcome.TIMED_OUT:
            return EXIT_TIMED_OUT
        case Outcome.CANCELLED:
            return EXIT_CANCELLED
        case Outcome.REJECTED:
            return _REJECTIONS.get(result.error_code or "", EXIT_RUNNER_FAILED)
        case Outcome.LOST | Outcome.SKIPPED | Outcome.MALFORMED:
            return EXIT_RUNNER_FAILED
        case Outcome.UNKNOWN | Outcome.REFUSED | Outcome.UNREACHABLE:
            return EXIT_UNREACHABLE
    if result.signal is not None:
        return 128 + result.signal
    if result.exit_code is None or (result.exit_code == 0 and result.state is not Outcome.SUCCEEDED):
        return EXIT_RUNNER_FAILED  # a script that ended with 0, and a disk that refused its output
    return result.exit_code


def exit_status_of_many(statuses: list[int]) -> int:
    """The exit status for several executions: 0 when all succeeded, 100 + failures (at most 255) when some did, else
    the largest."""
    failures = sum(status != 0 for status in statuses)
    return max(statuses, default=0) if failures in (0, len(statuses)) else min(100 + failures, 255)


def _reason(code: str | None, message: str | None) -> dict[str, Any] | None:
    """An error as JSON. A path in it may have bytes that are no UTF-8, which must not make the result unreadable."""
    told = None if message is None else message.encode(errors="backslashreplace").decode()
    return None if code is None else {"code": code, "message": told}


def _summary_to_json(summary: StreamSummary) -> dict[str, Any]:
    return {"bytes": summary.size, "truncated": summary.truncated, "sha256": summary.sha256}


def _summary_from_json(value: Any) -> StreamSummary:
    summary = _object(value, "stream")
    size, truncated, sha256 = summary.get("bytes"), summary.get("truncated"), summary.get("sha256")
    if type(size) is int and type(truncated) is bool and sha256 is None:  # what a silent script leaves
        return StreamSummary(size, truncated)
    return StreamSummary(
        size=_checked(size, "bytes", _integer) or 0,
        truncated=_checked(truncated, "truncated", _truth) or False,
        sha256=_checked(sha256, "sha256", _text),
    )


# What a value has to be. Each answers it, or None when it is something else.


def _text(value: Any) -> str | None:
    """Text that is shown: whoever wrote the record or the frame may have put controls into it."""
    if not isinstance(value, str):
        return None
    if len(value) <= _SHORT and value.isascii() and value.isprintable():  # nearly all of it
        return value.strip()
    from .text import clean  # no command's start needs it

    return clean(value)


def _job_id(value: Any) -> str:
    """A job's id as text: the runner of 0.1.0 wrote whatever the manifest had there."""
    return value if isinstance(value, str) else dumps(value)


def _paths(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(path, str) for path in value) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _status(value: Any) -> int | None:
    return value if _integer(value) is not None and 0 <= value <= 255 else None


def _signal(value: Any) -> int | None:
    return value if _integer(value) is not None and 1 <= value <= 127 else None


def _number(value: Any) -> float | None:
    if isinstance(value, NumberLiteral):
        return float(value)
    return value if isinstance(value, float) else _integer(value)


def _mode(value: Any) -> str | None:
    return value if value in (BUNDLED, API) else None


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _checked(value: Any, key: str, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of the value; None for None. Raises ValueError naming the key."""
    if value is None:
        return None
    found = read(value)
    if found is None:
        raise _unusable(key, value)
    return found


def _unusable(key: str, value: Any) -> ValueError:
    return ValueError(f"a result's {key} cannot be {type(value).__name__} {value!r:.60}")


def _object(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if value is not None:
        raise _unusable(key, value)
    return {}


def _progress(value: Any) -> dict[str, Any] | None:
    percent = _number(value.get("percent")) if isinstance(value, dict) else None
    if percent is None or not 0 <= percent <= 100:
        return None
    text = value.get("text")
    return {"percent": percent, **({"text": _text(text)} if isinstance(text, str) else {})}


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "job_id": _job_id,
    "host": _text,
    "exit_code": _status,
    "signal": _signal,
    "started_at": _text,
    "finished_at": _text,
    "duration_ms": _number,
    "variables": _mapping,
    "condition": _truth,
    "strays": _integer,
    "transport": _text,
    "runner_version": _text,
    "undelivered": _integer,
    "refused": _integer,
    "refusal": _text,
    "mode": _mode,
    "masked": _paths,
    "progress": _progress,
    "summary": _string,
}
_PLAIN: Final = {_camel(name): (name, read) for name, read in _READ.items()}
"""Key in JSON to the field's name and what reads it, for all that lie at the top."""
