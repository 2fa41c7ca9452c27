"""What is kept, and for how long: ended executions by age and size, payloads by use. `choose` decides, `collect` acts.

A collected execution leaves a tombstone: its directory with one small file, so that its id stays claimed at every
instant. What nobody has acknowledged is removed only when somebody asks for exactly that. One collection at a time;
each execution is looked at again under the lock that its undertaker takes as well.
"""

import contextlib
import errno
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from . import housekeeping, indexing, settings
from .errors import InputError, StateDamagedError, StateDirectoryError
from .jobdir import ExecutionDirectory, StateDirectory
from .kept_records import Kept, KeptPayload, ended_record, look, size_of
from .record_index import WORTHWHILE
from .settings import Settings

PAYLOAD_DAYS: Final = 30.0
"""A payload that was not used for so long: a monthly job is sent its payload at most once a month."""
IN_USE_SECONDS: Final = 3600.0
"""A payload used lately is never collected: between the question whether it is here and its unpacking, it must stay."""
DAY: Final = 86_400.0
BALLAST: Final = 64 * 1024
"""Bytes that are kept in the marker's file, to be given up when the disk is full: a tombstone needs room before its
execution's files give back theirs."""
_ASKED: Final = ("olderThanDays", "budget", "unacknowledgedOlderThanDays", "dryRun")
"""The keys of a GC frame."""


class Choice(NamedTuple):
    """What is to go, the oldest first."""

    executions: list[Kept]
    payloads: list[KeptPayload]


class Report(NamedTuple):
    """What a collection did. Sizes are bytes; `kept` counts records, `unacknowledged` those nobody has fetched.

    `failed` are executions that should have gone and could not, with the reason; the next collection tries again.
    """

    collected: list[str]
    payloads: list[str]
    freed: int
    used: int
    budget: int
    kept: int
    unacknowledged: int
    running: int
    tombstones: int
    failed: dict[str, str]
    is_dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """The report as --json prints it."""
        return {
            "collected": self.collected,
            "payloads": self.payloads,
            "freedBytes": self.freed,
            "usedBytes": self.used,
            "budgetBytes": self.budget,
            "overBytes": max(0, self.used - self.budget),
            "kept": self.kept,
            "unacknowledged": self.unacknowledged,
            "running": self.running,
            "tombstones": self.tombstones,
            "failed": self.failed,
            "isDryRun": self.is_dry_run,
        }


def choose(
    executions: Iterable[Kept], payloads: Iterable[KeptPayload], used: int, now: float, settings: Settings
) -> Choice:
    """What goes: first what is too old, then, while `used` bytes are over the budget, what is oldest.

    Never what nobody has acknowledged, unless an age was given for that; never a payload that is in use.
    """
    going: list[Kept] = []
    spare: list[Kept] = []
    for record in sorted(executions, key=lambda record: (record.ended_at, record.id)):
        age = (now - record.ended_at) / DAY
        days = settings.days if record.is_acknowledged else settings.unacknowledged_days
        if days is not None and age >= days:
            going.append(record)
        elif record.is_acknowledged:
            spare.append(record)
    going_payloads: list[KeptPayload] = []
    spare_payloads: list[KeptPayload] = []
    for payload in sorted(payloads, key=lambda payload: (payload.used_at, payload.path)):
        if now - payload.used_at >= PAYLOAD_DAYS * DAY:
            going_payloads.append(payload)
        elif now - payload.used_at >= IN_USE_SECONDS:
            spare_payloads.append(payload)
    left = used - sum(one.bytes for one in going) - sum(one.bytes for one in going_payloads)
    # Payloads first: the controller has them and sends them again; a record exists only here.
    for payload in spare_payloads:
        if left <= settings.budget:
            break
        going_payloads.append(payload)
        left -= payload.bytes
    for record in spare:
        if left <= settings.budget:
            break
        going.append(record)
        left -= record.bytes
    return Choice(going, going_payloads)


def start(state: StateDirectory) -> int:
    """Begins a collection in a process of its own and returns its pid at once. Raises OSError."""
    with contextlib.suppress(OSError):
        # The next hour begins now, also when this one fails, and for others that look now.
        os.utime(state.collected, follow_symlinks=False)
    # What it can't do, and why, the next `gc` tells.
    return housekeeping.start(lambda: _collect_alone(state, settings.read(state)))


def check_asked(asked: Mapping[str, Any]) -> None:
    """Raises InputError for a GC frame with a key that is unknown or of the wrong kind."""
    for key, value in asked.items():
        if key not in _ASKED:
            raise InputError(f"{key[:60]!r} is not known; there are {', '.join(_ASKED)}", "usage.invalid")
        if isinstance(value, bool) != (key == "dryRun"):
            raise InputError(f"{key} cannot be {type(value).__name__}", "usage.invalid")


def collect_as_asked(state: StateDirectory, asked: Mapping[str, Any]) -> Report:
    """Collects as a checked GC frame asks for. Raises InputError for a bad value, and as `collect` does."""
    chosen = settings.read(
        state,
        days=asked.get("olderThanDays"),
        budget=asked.get("budget"),
        unacknowledged_days=asked.get("unacknowledgedOlderThanDays"),
    )
    return collect(state, chosen, is_dry_run=asked.get("dryRun", False))


def collect(state: StateDirectory, chosen: Settings, *, is_dry_run: bool = False) -> Report:
    """Removes what may go and says what it did, after another collection that is at work.

    What can't be removed is told of and keeps nothing else from going. Raises StateDirectoryError when nothing in the
    state directory can be changed.
    """
    return _reported(state, chosen, is_acting=not is_dry_run, waits=True)


def _collect_alone(state: StateDirectory, chosen: Settings) -> None:
    """The same unless another one is at work."""
    with contextlib.suppress(BlockingIOError):
        _reported(state, chosen, is_acting=True, waits=False)


def _reported(state: StateDirectory, chosen: Settings, *, is_acting: bool, waits: bool) -> Report:
    try:
        with housekeeping.only_one(state, waits=waits) as marker:
            if not is_acting:
                return _collect(state, chosen, None)
            os.utime(state.collected)
            _fill(marker)
            state.sweep()
            report = _collect(state, chosen, marker)
            with contextlib.suppress(OSError, StateDamagedError):
                state.forget_started()
            _fill(marker)
            return report
    except BlockingIOError:
        raise
    except OSError as error:
        raise StateDirectoryError(
            f"{error.filename or state.path} cannot be collected: {error.strerror}; mend it, then try again"
        ) from None


def _collect(state: StateDirectory, chosen: Settings, marker: int | None) -> Report:
    """`marker` is the lock's descriptor; None only looks."""
    seen = look(state)
    choice = choose(seen.ended, seen.payloads, seen.used, time.time(), chosen)
    failed = dict(seen.damaged)
    freed = 0
    if marker is not None:
        for execution_id in seen.half_collected:
            _try(failed, execution_id, ExecutionDirectory(state, execution_id).remove_all_but_the_tombstone)
    # Payloads first: that needs no room, and a tombstone does.
    payloads = [one for one in choice.payloads if marker is None or _remove_payload(one)]
    freed += sum(payload.bytes for payload in payloads)
    gone = []
    for record in choice.executions:
        if marker is None or _try(failed, record.id, functools.partial(_bury, state, record, marker)):
            gone.append(record)
            path = ExecutionDirectory(state, record.id).path
            freed += record.bytes - (_size_of_tombstone(path) if marker is None else size_of(path))
    if marker is not None and seen.not_indexed + len(gone) >= WORTHWHILE:
        indexing.refresh(state)
    ids = {record.id for record in gone}
    return Report(
        collected=[record.id for record in gone],
        payloads=[os.path.basename(payload.path).partition(".")[0] for payload in payloads],
        freed=freed,
        used=seen.used - freed,
        budget=chosen.budget,
        kept=sum(record.id not in ids for record in seen.ended),
        unacknowledged=sum(record.id not in ids and not record.is_acknowledged for record in seen.ended),
        running=seen.running,
        tombstones=seen.tombstones + len(gone),
        failed=failed,
        is_dry_run=marker is None,
    )


def _try(failed: dict[str, str], execution_id: str, step: Callable[[], bool | None]) -> bool:
    """Whether the step was done. Why it failed is noted: one record that can't be removed must not keep the others."""
    try:
        return step() is not False
    except StateDirectoryError as error:
        failed[execution_id] = error.message
    except OSError as error:
        failed[execution_id] = f"{error.filename or execution_id}: {error.strerror}"
    return False


def _bury(state: StateDirectory, record: Kept, marker: int) -> bool:
    """Puts the tombstone in the execution's place, unless it has changed since it was chosen."""
    try:
        return _bury_locked(state, record)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    os.ftruncate(marker, 0)
    return _bury_locked(state, record)


def _bury_locked(state: StateDirectory, record: Kept) -> bool:
    execution = ExecutionDirectory(state, record.id)
    lock = os.open(execution.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if execution.is_tombstone():  # a first try came so far
            execution.remove_all_but_the_tombstone()
            return True
        if ended_record(execution, record.bytes) is None:
            return False
        execution.bury()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _remove_payload(payload: KeptPayload) -> bool:
    """Whether it went. One that was used since we looked stays; whoever misses it in between asks for it again."""
    with contextlib.suppress(OSError):
        if os.stat(payload.path).st_mtime <= payload.used_at:
            os.unlink(payload.path)
            return True
    return False


def _fill(marker: int) -> None:
    """Puts the ballast there, if there is room for it."""
    with contextlib.suppress(OSError):
        if os.fstat(marker).st_size < BALLAST:
            os.pwrite(marker, bytes(BALLAST), 0)


def _size_of_tombstone(path: str) -> int:
    """What will be left of an execution's directory: itself, and a file that is no longer than the one it replaces."""
    total = 0
    for name in (".", "state.jsonl"):
        with contextlib.suppress(OSError):
            total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total
