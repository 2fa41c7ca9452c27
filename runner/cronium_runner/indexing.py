"""Writes the index of ended executions (`record_index`): keeps the entries that hold and reads what is new.

A collection does it when many records were new to it, else a listing has it done by a process of its own.
"""

import contextlib
from collections.abc import Iterator

from . import follow, housekeeping, record_index
from .errors import RunnerError, StateDamagedError
from .jobdir import ExecutionDirectory, StateDirectory
from .kept_records import final_facts
from .listing import row_of, without_values
from .wire import exactjson


def start(state: StateDirectory) -> int:
    """Writes the index in a process of its own and returns its pid at once. Raises OSError."""
    return housekeeping.start(lambda: _refresh_alone(state))


def _refresh_alone(state: StateDirectory) -> None:
    with contextlib.suppress(BlockingIOError), housekeeping.only_one(state, waits=False):
        refresh(state)


def refresh(state: StateDirectory) -> None:
    """Writes the index. The caller holds the lock of the housekeeping. A disk that refuses it leaves the old one."""
    with contextlib.suppress(OSError, StateDamagedError):
        record_index.write(state, lambda quiet_since_ns: _lines(state, quiet_since_ns))


def _lines(state: StateDirectory, quiet_since_ns: int) -> Iterator[bytes]:
    with record_index.Index(state) as index:
        for execution_id in state.ids_after(""):
            entry = index.find(execution_id)
            line = entry.line if entry is not None else _read(ExecutionDirectory(state, execution_id), quiet_since_ns)
            if line is not None:
                yield line


def _read(execution: ExecutionDirectory, quiet_since_ns: int) -> bytes | None:
    """The entry of an execution; None unless it is final and can be read."""
    try:
        stamps = record_index.stamps_of(execution.path)
        if stamps is None or stamps.changed_ns >= quiet_since_ns:
            return None
        result, facts = execution.read_result(), final_facts(execution, stamps)
        if result is None or facts is None:
            return None
        status = follow.described(execution, execution.history(), result)
        row, whole = exactjson.encode(row_of(status)), exactjson.encode(without_values(status))
    except (OSError, RunnerError, ValueError):
        return None
    return record_index.line_of(execution.id, stamps, facts, row, whole)
