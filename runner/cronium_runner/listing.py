"""All executions of a state directory: from the index where it holds, else from their directories.

Two forms of a status are sent and printed besides the whole one: without what the script handed back, which may be
megabytes, and the row of a table.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from . import follow
from .errors import RunnerError, StateDamagedError
from .jobdir import ExecutionDirectory, StateDirectory
from .record_index import WORTHWHILE, Index, is_ripe
from .state_files import RESULT_LIMIT, read_file
from .wire import exactjson
from .wire.access import BUNDLED
from .wire.names import STREAM_NAMES
from .wire.results import Outcome

PAGE: Final = 1000
"""Executions that one page tells of at most."""
PAGE_BYTES: Final = 1 << 20
"""A page ends behind the row with which it has as many: a frame holds 16 MiB, and the row may be a long one."""
MAX_ROW: Final = 1 << 20
"""A status that is longer (a job id may be) is told of in a sentence."""
PAGE_SECONDS: Final = 0.05
"""A page ends when it has taken so long: the agent's other work waits for it."""
PAGE_AT_LEAST: Final = 200
"""Executions of a page whatever the time: a slow disk must not make thousands of pages."""
_RESULT: Final = b',"result":{'
_BEHIND_RESULT: Final = b',"error":null}'
"""What is before and behind the result in the status of a record that can be read."""
_ROW_KEYS: Final = ("executionId", "jobId", "state", "claimedAt", "acknowledged", "collected", "error")
_ROW_RESULT_KEYS: Final = ("state", "exitCode", "signal")


def row_of(status: dict[str, Any]) -> dict[str, Any]:
    """The row of a table: a status with what a table shows."""
    row = {key: status[key] for key in _ROW_KEYS}
    row |= {name: {"bytes": status[name]["bytes"]} for name in STREAM_NAMES.values()}
    result = status["result"]
    return {**row, "result": result and {key: result.get(key) for key in _ROW_RESULT_KEYS}}


def without_values(status: dict[str, Any]) -> dict[str, Any]:
    """A status without what the script handed back."""
    result = status["result"]
    if result is None:
        return status
    return {**status, "result": {key: value for key, value in result.items() if key not in ("output", "variables")}}


class Pages:
    """Statuses of all executions behind `after` in the order of their ids, page by page, as JSON objects.

    `is_brief`: rows of a table. `wants_all`: also tombstones. `after` is the last id that was looked at.
    """

    def __init__(self, state: StateDirectory, after: str, *, is_brief: bool, wants_all: bool) -> None:
        self.asked = (after, is_brief, wants_all)
        """What the next page has to be asked for with."""
        self._state = state
        self._names = state.ids_after(after)
        self._at = 0
        self._index = Index(state)
        self._not_indexed = 0

    def close(self) -> None:
        """Closes the index."""
        self._index.close()

    @property
    def has_more(self) -> bool:
        """Whether there is another page."""
        return self._at < len(self._names)

    @property
    def is_index_wanted(self) -> bool:
        """Whether so many final records had to be read that the index should be written."""
        return self._not_indexed >= WORTHWHILE

    def next_page(self) -> list[bytes]:
        """The next page: an object for each execution."""
        until = time.monotonic() + PAGE_SECONDS
        found: list[bytes] = []
        size = 0
        _, is_brief, wants_all = self.asked
        try:
            for count, execution_id in enumerate(self._names[self._at : self._at + PAGE], 1):
                entry = self._index.find(execution_id)
                if entry is None:
                    text = self._read(execution_id, is_brief=is_brief, wants_all=wants_all)
                elif entry.is_collected and not wants_all:
                    text = None
                else:
                    text = entry.row if is_brief else entry.status
                if text is not None:
                    found.append(text)
                    size += len(text)
                self._at += 1
                if size >= PAGE_BYTES or (count >= PAGE_AT_LEAST and time.monotonic() >= until):
                    break
        finally:  # also when one raises: who asks for the same page again must get all of it
            if self._at:
                self.asked = (self._names[self._at - 1], is_brief, wants_all)
        return found

    def _read(self, execution_id: str, *, is_brief: bool, wants_all: bool) -> bytes | None:
        execution = ExecutionDirectory(self._state, execution_id)
        status = readable_status(execution, follow.status)
        if status is None or (status["collected"] and not wants_all):
            return None
        self._not_indexed += status["result"] is not None and is_ripe(execution.path)
        text = exactjson.encode(row_of(status) if is_brief else without_values(status))
        if len(text) <= MAX_ROW:
            return text
        return exactjson.encode(_unread(execution_id, "channel.protocol", "is too long; read it on the host"))


def oldest_first(state: StateDirectory, *, wants_all: bool, wants_running: bool, is_whole: bool) -> Iterator[bytes]:
    """Statuses of all executions, as JSON, once it is known what became of those that died; rows unless `is_whole`.

    `wants_all`: also tombstones; `wants_running`: only those that have not ended. Has the index written when many had
    to be read.
    """
    found: list[tuple[int, str, bytes | None, bool]] = []
    not_indexed = 0
    with Index(state) as index:
        for execution_id in state.ids_after(""):
            execution = ExecutionDirectory(state, execution_id)
            entry = index.find(execution_id)
            if entry is not None:
                is_wanted = not wants_running and (wants_all or not entry.is_collected)
                text: bytes | None = entry.status if is_whole else entry.row
                lacks_values = is_whole and not entry.is_collected
                changed_ns = entry.changed_ns
            else:
                status = readable_status(execution, follow.settled_status)
                if status is None:
                    continue
                not_indexed += status["result"] is not None and is_ripe(execution.path)
                is_wanted = not (wants_running and has_ended(status)) and (wants_all or not status["collected"])
                text = None if is_whole else exactjson.encode(row_of(status))
                lacks_values = is_whole
                changed_ns = _changed_ns(execution.path)
            if is_wanted:
                found.append((changed_ns, execution_id, text, lacks_values))
    if not_indexed >= WORTHWHILE:
        from . import indexing

        with contextlib.suppress(OSError):  # the next listing tries again
            indexing.start(state)
    for _, execution_id, text, lacks_values in sorted(found, key=lambda one: one[:2]):
        whole = _whole(ExecutionDirectory(state, execution_id), text) if lacks_values else text
        if whole is not None:
            yield whole


def _whole(execution: ExecutionDirectory, status: bytes | None) -> bytes | None:
    """The status with all that the script handed back; None when the execution has gone.

    `status` is that of the index. The recorded result takes the place of the one in it: both were found sound when the
    record was entered. What has changed since then is read.
    """
    with contextlib.suppress(OSError, StateDamagedError):
        head, found, _ = (status or b"").partition(_RESULT)
        recorded = read_file(os.path.join(execution.path, "result.json"), RESULT_LIMIT).strip() if found else b""
        if recorded.startswith(b"{") and recorded.endswith(b"}") and b"\n" not in recorded:
            return b"%s%s%s%s" % (head, _RESULT[:-1], recorded, _BEHIND_RESULT)
    read = readable_status(execution, follow.status)
    return None if read is None else exactjson.encode(read)


def has_ended(status: dict[str, Any]) -> bool:
    """Whether an execution has ended. One whose record can't be read is not known to run."""
    return status["result"] is not None or (status["error"] or {}).get("code") == "state.damaged"


def readable_status(
    execution: ExecutionDirectory, read: Callable[[ExecutionDirectory], dict[str, Any]]
) -> dict[str, Any] | None:
    """What `read` says of the execution, or why it can't be read: one record must not hide the others. None when the
    execution has gone."""
    try:
        status = read(execution)
    except Exception as error:  # noqa: BLE001 - what one damaged record brings about must not end the listing
        code, sentence = "runner.internal", f"{type(error).__name__}: {error}"
        if isinstance(error, RunnerError):
            code, sentence = error.code, error.message
        elif isinstance(error, OSError):
            code, sentence = "state.unusable", f"{error.filename or execution.path}: {error.strerror}"
        status = _unread(execution.id, code, f"cannot be read: {sentence}")
    return status if os.path.lexists(execution.path) else None


def _unread(execution_id: str, code: str, reason: str) -> dict[str, Any]:
    """The status of an execution whose record can't be read or sent."""
    empty: dict[str, Any] = {
        "executionId": execution_id,
        "jobId": None,
        "state": Outcome.UNKNOWN.value,
        "pid": None,
        "claimedAt": None,
        "acknowledged": False,
        "collected": False,
        "stdout": {"bytes": 0},
        "stderr": {"bytes": 0},
        "mode": BUNDLED,
        "undelivered": None,
        "heldBy": None,
        "limits": {},
        "result": None,
    }
    return {**empty, "error": {"code": code, "message": f"the record of '{execution_id}' {reason}"}}


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ctime_ns
    except OSError:
        return 0
