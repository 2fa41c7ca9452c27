"""One execution in the foreground: what `run`, `test` and `attach` show of it on a terminal.

The foreground process is the supervisor's guardian and a follower like any other: it copies what the spools hold to
its own standard output and error, byte for byte, and ends with the script's exit status. Signals: INT and TERM
cancel the execution, HUP follows what was asked for the loss of the submitter.
"""

import contextlib
import functools
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

from . import follow, liveness, process
from .errors import OutcomeUnknownError, StateDirectoryError
from .guardian import GuardianReader, start_supervisor, undecided
from .jobdir import ExecutionDirectory, StateDirectory
from .submission import Submission
from .wire.names import STDERR, STDOUT
from .wire.results import Result

_STREAM_DESCRIPTORS = {STDOUT: 1, STDERR: 2}
LOOK_SECONDS: Final = 0.02
"""Between two looks for a result that nothing announces."""


def run(state: StateDirectory, submission: Submission, *, show: bool) -> Result:
    """Submits and sees the execution through. With `show` its output appears on our own streams as it comes.

    An id that exists is attached to, not started again. Raises ExecutionError when it was used for something else,
    OutcomeUnknownError when it was started and what became of it can't be read.
    """
    process.forbid_core_dumps()
    # Held back until there is somebody to pass them on to: one that came earlier would end us and not the script.
    unheld = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    process.become_subreaper()
    pid, pair = start_supervisor(state, submission, collects=True)
    with _sight(submission.execution_id):
        return _see_through(state, submission, pid, pair, unheld, show=show)


def _see_through(
    state: StateDirectory, submission: Submission, pid: int, pair: socket.socket, unheld: set[int], *, show: bool
) -> Result:
    """From the started supervisor to the result."""
    reader = GuardianReader()
    lock = None
    with _cancelling_signals(pair, submission.on_disconnect == "cancel"):
        signal.pthread_sigmask(signal.SIG_SETMASK, unheld)
        while reader.verdict is None and (piece := _hear(pair)):
            reader.feed(piece)
        if reader.verdict in ("claimed", "finished"):
            # Not looked for: a script that is quick may have removed it by now.
            own = ExecutionDirectory(state, submission.execution_id)
            lock = liveness.hold_file(own.state_path)
            _copy_until_end(pair, follow.Follower(own), show=show)
    os.waitpid(pid, 0)
    pair.close()
    if reader.verdict in ("claimed", "finished"):
        _restore(state, submission.execution_id, pid, lock)
    if reader.rejection is not None:
        return reader.rejection
    if reader.verdict is None and not state.is_claimed(submission.execution_id):
        return undecided(submission)
    execution = state.execution(submission.execution_id)
    if reader.verdict in (None, "exists"):
        # Without a verdict it was killed: the claim may be its own, or somebody else's.
        _check_conflict(execution, submission)
        return attach(execution, show=show, is_guardian=reader.verdict is None)
    result = Result.from_json(_wait_for_result(execution, is_guardian=True))
    if lock is not None:
        os.close(lock)
    with contextlib.suppress(
        OSError, StateDirectoryError
    ):  # a disk that is full: the result is there, its record is only kept longer
        follow.acknowledge(execution)
    return result


def _restore(state: StateDirectory, execution_id: str, pid: int, lock: int | None) -> None:
    """Makes the record again that was removed while the script ran. Raises OutcomeUnknownError when it can't."""
    try:
        state.restore_for_dead(execution_id, pid, lock)
    except (OSError, StateDirectoryError) as error:
        reason = error.message if isinstance(error, StateDirectoryError) else f"{state.executions}: {error.strerror}"
        raise OutcomeUnknownError(
            "state.unusable",
            f"the record of '{execution_id}' was removed while its script ran and cannot be made again: {reason}; "
            "what became of it is not known",
        ) from None


@contextlib.contextmanager
def _sight(execution_id: str) -> Iterator[None]:
    """What we can't read any more ends our following, not the execution: so that is no rejection."""
    try:
        yield
    except StateDirectoryError as error:
        raise OutcomeUnknownError(error.code, error.message) from None
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        raise OutcomeUnknownError(
            "runner.refused",
            f"'{execution_id}' cannot be followed any further: {where}{error.strerror}; "
            f"`cronium-runner attach {execution_id}` says what became of it",
        ) from None


def attach(
    execution: ExecutionDirectory,
    *,
    offsets: tuple[int, int] = (0, 0),
    show: bool = True,
    is_guardian: bool = False,
) -> Result:
    """Follows an execution from the given offsets to its end. An interrupt leaves it running.

    Raises OutcomeUnknownError when what became of it can't be read.

    `is_guardian`: its supervisor may have been a child of this process.
    """
    with _sight(execution.id):
        return _attach(execution, offsets, show, is_guardian)


def _attach(execution: ExecutionDirectory, offsets: tuple[int, int], show: bool, is_guardian: bool) -> Result:
    follower = follow.Follower(execution, offsets)
    watch = follow.wait_watch(execution, lambda: _copy(follower, show=show))
    if watch is None:
        # It has ended, or lives where its socket can't be reached: then its files say what is new.
        while follow.final_result(execution, is_guardian=is_guardian) is None:
            _copy(follower, show=show)
            time.sleep(LOOK_SECONDS)
        _copy(follower, show=show)
        follower.close()
    else:
        _copy_until_end(watch, follower, show=show)
        watch.close()
    return Result.from_json(_wait_for_result(execution, is_guardian=is_guardian))


def cancel(execution: ExecutionDirectory) -> bool:
    """Asks the execution to end. False when it has ended already. Raises RunnerError when it can't be reached."""
    watch = follow.wait_watch(execution)
    if watch is None:
        if follow.final_result(execution) is None:
            follow.check_reachable(execution)
        return False
    with contextlib.suppress(OSError):  # it ended just now, by itself
        watch.sendall(follow.CANCEL)
    while _hear(watch):
        pass
    watch.close()
    return True


def _hear(channel: socket.socket) -> bytes:
    """What the supervisor says next; nothing when it is gone, also when it went without having listened."""
    try:
        wait_readable(channel.fileno())
        return channel.recv(65536)
    except OSError:
        return b""


def wait_readable(descriptor: int, seconds: float | None = None) -> bool:
    """Whether there is something to read, or nothing to come, within the time. Signals are acted on meanwhile.

    One that arrives after Python has last looked for signals, and before a read blocks, would wait as long as the read.
    """
    until = None if seconds is None else time.monotonic() + seconds
    signals = _signals()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while True:
        left = None if until is None else max(0.0, until - time.monotonic()) * 1000
        ready = dict(poll.poll(left))
        if descriptor in ready or not ready:
            return bool(ready)
        with contextlib.suppress(BlockingIOError):
            os.read(signals, 4096)


@functools.cache
def _signals() -> int:
    """The end to read of a pipe that every signal with a handler of ours writes to, as long as this process lives."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _copy_until_end(watch: socket.socket, follower: follow.Follower, *, show: bool) -> None:
    """Copies whatever is new each time the supervisor says that there is something, until it is gone."""
    _copy(follower, show=show)
    while _hear(watch):
        _copy(follower, show=show)
    _copy(follower, show=show)
    follower.close()


def _copy(follower: follow.Follower, *, show: bool) -> None:
    if not show:
        return
    for stream, descriptor in _STREAM_DESCRIPTORS.items():
        while piece := follower.read(stream):
            _write(descriptor, piece)


def copy_piece(stream: int, piece: bytes) -> None:
    """Shows a piece of output that came another way than from a spool of ours."""
    _write(_STREAM_DESCRIPTORS[stream], piece)


_closed: set[int] = set()


def _write(descriptor: int, piece: bytes) -> None:
    """Writes all of it. A reader that has gone away ends the showing, not the execution."""
    if descriptor in _closed:
        return
    view = memoryview(piece)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            _closed.add(descriptor)
            return


def _wait_for_result(execution: ExecutionDirectory, *, is_guardian: bool = False) -> dict[str, Any]:
    """The result, once the supervisor has ended, and what it left when it had none."""
    while (result := follow.final_result(execution, is_guardian=is_guardian)) is None:
        time.sleep(LOOK_SECONDS)  # its sockets are closed: it is about to end, or an undertaker is at work
    return result


def _check_conflict(execution: ExecutionDirectory, submission: Submission) -> None:
    from .prepare import source_digest

    follow.check_same_submission(
        execution, submission.fingerprint(source_digest(execution.state_directory, submission.source))
    )


@contextlib.contextmanager
def _cancelling_signals(channel: socket.socket, cancel_on_hangup: bool) -> Iterator[None]:
    """INT and TERM (and HUP, when asked for) become a cancel on `channel` while the block runs."""

    def ask_for_end(_number: int, _frame: object) -> None:
        with contextlib.suppress(OSError):
            channel.send(follow.CANCEL)

    chosen: dict[int, Any] = {
        signal.SIGINT: ask_for_end,
        signal.SIGTERM: ask_for_end,
        signal.SIGHUP: ask_for_end if cancel_on_hangup else signal.SIG_IGN,
        signal.SIGPIPE: signal.SIG_IGN,
    }
    before = {number: signal.signal(number, action) for number, action in chosen.items()}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
