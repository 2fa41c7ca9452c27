"""After a supervisor that died without a result: ends what it left behind, then writes down that the execution is lost.

It is a process of its own, so that the process that finds the dead supervisor (the agent, the foreground command, a
later `status`) goes on at once. A lock on the execution's directory lets one undertaker work at a time; when it dies,
the next contact starts another. It is the only process beside the supervisor that writes a result, and it does so only
once the supervisor is dead, or an operator has said that it is.
"""

import contextlib
import fcntl
import os
import signal
import time
from typing import Any, Final

from . import __version__, cgroup, orphans, process
from .digest import sha256
from .errors import StateDamagedError, StateDirectoryError
from .jobdir import REMOVED, ExecutionDirectory, utc_now
from .lifecycle import State
from .state_files import open_file
from .wire.access import API, mode_of
from .wire.names import STDERR, STDOUT, STREAM_NAMES
from .wire.results import Outcome, Result, StreamSummary

GRACE_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL, as the supervisor would have given."""
GIVE_UP_SECONDS: Final = 60.0
SWEEP_SECONDS: Final = 0.02
READ_PIECE: Final = 256 * 1024
AGAIN_SECONDS: Final = 5.0
"""Between two tries for one execution, where the disk refuses the record."""


_failed: dict[str, float] = {}
"""When (monotonic) an undertaker that this process started failed to write the loss, by the execution's path."""
_started: dict[str, tuple[int, float]] = {}
"""Undertakers that this process started, by the execution's path: pid, and start time (monotonic)."""
_ended: dict[int, int] = {}
"""Wait statuses of undertakers that `note_end` has told of."""


def note_end(pid: int, status: int) -> None:
    """Takes the wait status of a child that was collected elsewhere in this process, as an agent's loop does."""
    if any(child == pid for child, _ in _started.values()):
        _ended[pid] = status


def start(execution: ExecutionDirectory, *, guardian: int | None, is_declared: bool = False) -> None:
    """Starts an undertaker for the execution, unless one is at work. Returns at once.

    `guardian` is the process that the dead supervisor's orphans were handed to, when that is known and alive.
    `is_declared`: that the supervisor is dead is an operator's word, which the result then says.
    Raises StateDirectoryError when one that we started before could not write down what it had to.
    """
    if execution.path in _started:
        child, when = _started[execution.path]
        try:
            pid, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:  # an agent's loop has collected it
            pid, status = child, _ended.pop(child, 0)
        if pid == 0 or (status == 0 and time.monotonic() < when + AGAIN_SECONDS):
            return
        del _started[execution.path]
        if status != 0:
            _failed[execution.path] = time.monotonic()
    if time.monotonic() < _failed.get(execution.path, -AGAIN_SECONDS) + AGAIN_SECONDS:
        raise StateDirectoryError(
            f"that '{execution.id}' is lost cannot be written down in {execution.path}; "
            "see that there is space and a free descriptor"
        )
    lock = os.open(execution.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                process.detach(lock)
                if execution.read_result() is None:
                    _end_orphans(execution, guardian)
                    _write_lost(execution, is_declared=is_declared)
                status = 0
            finally:
                os._exit(status)
        _started[execution.path] = (pid, time.monotonic())
    except BlockingIOError:
        pass  # another undertaker is at work
    finally:
        os.close(lock)  # the child's copy holds on to it


def _end_orphans(execution: ExecutionDirectory, guardian: int | None) -> None:
    """SIGTERM, grace, SIGKILL until none is left."""
    history = execution.history()
    claim = history[0] if history else {}
    group = cgroup.reopened(claim.get("group"))
    marker = f"CRONIUM_SOCKET={claim['socket']}" if isinstance(claim.get("socket"), str) else None
    left = orphans.Orphans(marker, guardian, group)
    began = time.monotonic()
    left.signal(signal.SIGTERM)
    left.signal(signal.SIGCONT)  # a stopped process hears SIGTERM only when it goes on
    while left.may_be_left() and time.monotonic() < began + GRACE_SECONDS:
        time.sleep(SWEEP_SECONDS)
    # Without a pause, else a process that forks and ends for ever stays ahead of us.
    while left.signal(signal.SIGKILL) and time.monotonic() < began + GIVE_UP_SECONDS:
        pass
    if group is not None:
        group.remove()


def _write_lost(execution: ExecutionDirectory, *, is_declared: bool) -> None:
    history = execution.history()
    claim: dict[str, Any] = history[0] if history else {}
    if isinstance(claim.get("socket"), str):
        with contextlib.suppress(OSError):
            os.unlink(claim["socket"])
    lost = Result(
        execution_id=execution.id,
        state=Outcome.LOST,
        job_id=claim.get("jobId"),
        started_at=next((record["at"] for record in history if record.get("state") == State.RUNNING.value), None),
        finished_at=utc_now(),
        stdout=_kept(execution, STDOUT),
        stderr=_kept(execution, STDERR),
        runner_version=claim.get("runnerVersion", __version__),
        **_writes(execution, claim),
        error_code="execution.lost",
        error_message=_loss(
            execution.id, was_removed=any(REMOVED in record for record in history), is_declared=is_declared
        ),
    )
    try:
        execution.write_result(lost.to_json())
    except OSError:
        execution.remove_work()  # makes room; nothing runs there any more
        execution.write_result(lost.to_json())


def _loss(execution_id: str, *, was_removed: bool, is_declared: bool) -> str:
    """The sentence of a lost execution."""
    if is_declared:
        what = f"'{execution_id}' was declared gone together with the machine or container that it ran in"
    else:
        what = f"the supervisor of '{execution_id}' died without a result"
    kept = "The record was removed while it ran" if was_removed else "What it had written so far is kept"
    return f"{what}; how far the script came is not known. {kept}; submit it under a new id to run it again"


def _writes(execution: ExecutionDirectory, claim: dict[str, Any]) -> dict[str, Any]:
    """What the result of an execution in API mode has besides: what it wrote and the platform doesn't have."""
    if mode_of(claim) != API:
        return {}
    from .journal import Journal

    try:
        left = Journal.read(execution)
    except (OSError, StateDamagedError):
        return {"mode": API}
    return {"mode": API, "undelivered": left.undelivered, "refused": left.refusals, "refusal": left.refusal}


def _kept(execution: ExecutionDirectory, stream: int) -> StreamSummary:
    """What the spool holds. It counts as cut: what was in the pipe when the supervisor died is gone."""
    size, digest = 0, sha256()
    path = execution.spool_path(STREAM_NAMES[stream])
    with contextlib.suppress(OSError, StateDamagedError), open(path, "rb", opener=open_file) as file:
        while piece := file.read(READ_PIECE):
            size += len(piece)
            digest.update(piece)
    return StreamSummary(size, truncated=True, sha256=digest.hexdigest())
