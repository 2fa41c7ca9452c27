"""What a collection sees of a state directory: ended executions, tombstones, payloads, and what they take on disk.

Records that the index holds are taken from there; the others are read. Nothing is changed here; what goes is chosen
and removed by `retention`.
"""

import contextlib
import os
from typing import NamedTuple

from . import liveness
from .errors import StateDamagedError
from .jobdir import ExecutionDirectory, StateDirectory
from .liveness import Liveness
from .record_index import Facts, Index, Stamps, is_ripe


class Kept(NamedTuple):
    """One execution that has ended. `ended_at` is when it was acknowledged, else when it ended, in seconds since the
    epoch; `bytes` is what its directory takes on disk."""

    id: str
    ended_at: float
    bytes: int
    is_acknowledged: bool


class KeptPayload(NamedTuple):
    """One payload in the cache, and when it was used last."""

    path: str
    used_at: float
    bytes: int


class Seen(NamedTuple):
    """What the state directory holds. `half_collected` are tombstones with something left beside them, `damaged` are
    records that cannot be read, with the reason; `not_indexed` counts records that the index could hold and lacks."""

    ended: list[Kept]
    payloads: list[KeptPayload]
    half_collected: list[str]
    damaged: dict[str, str]
    running: int
    tombstones: int
    used: int
    not_indexed: int


def look(state: StateDirectory) -> Seen:
    """Looks at all of it. Raises OSError when the state directory can't be read."""
    ended: list[Kept] = []
    half_collected: list[str] = []
    damaged: dict[str, str] = {}
    running = tombstones = used = not_indexed = 0
    with Index(state) as index:
        for execution_id in state.ids_after(""):
            entry = index.find(execution_id)
            if entry is not None:
                size, ended_at, is_acknowledged = entry.facts
                used += size
                if ended_at is None:
                    tombstones += 1
                else:
                    ended.append(Kept(execution_id, ended_at, size, is_acknowledged))
                continue
            execution = ExecutionDirectory(state, execution_id)
            size = size_of(execution.path)
            used += size
            try:
                record = ended_record(execution, size)
            except StateDamagedError as error:
                damaged[execution_id] = error.message
                continue
            if record is not None:
                ended.append(record)
            elif not execution.is_tombstone():
                running += 1
                continue
            else:
                tombstones += 1
                if execution.holds_more_than_its_tombstone():
                    half_collected.append(execution_id)
            not_indexed += is_ripe(execution.path)
    payloads = payloads_in(state)
    used += sum(one.bytes for one in payloads)
    return Seen(ended, payloads, half_collected, damaged, running, tombstones, used, not_indexed)


def ended_record(execution: ExecutionDirectory, size: int) -> Kept | None:
    """The execution as a record that could go; None while it runs, or when it is a tombstone.

    Raises StateDamagedError.
    """
    try:
        finished_at = os.lstat(os.path.join(execution.path, "result.json")).st_mtime
        history = execution.history()
        changed_at = os.lstat(execution.state_path).st_mtime
    except OSError:
        return None
    if not history or execution.is_tombstone():
        return None
    if liveness.of_supervisor(history[0], execution.state_path) is Liveness.ALIVE:
        return None  # the result is there, and it is tidying up
    is_acknowledged = any("acknowledged" in record for record in history)
    # The acknowledgement is the last line that is ever appended.
    return Kept(execution.id, changed_at if is_acknowledged else finished_at, size, is_acknowledged)


def final_facts(execution: ExecutionDirectory, stamps: Stamps) -> Facts | None:
    """What the index says of the execution; None unless it is final: an ended one without supervisor, or a tombstone
    with nothing beside it. Raises StateDamagedError."""
    record = ended_record(execution, stamps.bytes)
    if record is not None:
        return Facts(record.bytes, record.ended_at, record.is_acknowledged)
    if execution.is_tombstone() and not execution.holds_more_than_its_tombstone():
        return Facts(stamps.bytes)
    return None


def payloads_in(state: StateDirectory) -> list[KeptPayload]:
    """The cached payloads."""
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(state.payloads) as entries:
        for entry in entries:
            if entry.name.endswith(".tar.gz") and not entry.name.startswith("."):
                seen = entry.stat(follow_symlinks=False)
                found.append(KeptPayload(entry.path, seen.st_mtime, seen.st_blocks * 512))
    return found


def size_of(path: str) -> int:
    """Bytes on disk of a folder and everything in it."""
    total = 0
    for folder, folders, files in os.walk(path, onerror=lambda _error: None):
        for name in (*folders, *files, "."):
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
