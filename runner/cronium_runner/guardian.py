"""Starting a supervisor, and being the process that outlives it.

The agent and the foreground command both start supervisors this way, and both learn the same things from the pair of
sockets: what became of the claim, that there is more to read, and, by its end, that the supervisor is gone.

    supervisor → guardian   claimed\\n | exists\\n | rejected <json>\\n   first; claimed: and the script runs
                            \\n                                          look again
                            finished\\n                                  the result is durable
    guardian → supervisor   c                                           cancel
    either end closing                                                  that side is gone

A guardian that is gone changes nothing about the job, unless the submission says so: what can't be told is dropped.
"""

import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING, NoReturn

from . import __version__, process
from .errors import RunnerError, StateDamagedError, SystemRefusedError
from .jobdir import AlreadyClaimedError, StateDirectory
from .state_files import open_file
from .submission import Submission
from .wire import exactjson
from .wire.access import API, BUNDLED
from .wire.results import Outcome, Result

if TYPE_CHECKING:
    from .prepare import Prepared
    from .supervisor import Supervisor


def start_supervisor(
    state: StateDirectory,
    submission: Submission,
    *,
    descriptor_limit: tuple[int, int] | None = None,
    collects: bool = False,
) -> tuple[int, socket.socket]:
    """Forks a supervisor for the submission. Returns its pid and our end of the pair, which blocks.

    Raises SystemRefusedError when the host has no process or descriptor for it.
    `descriptor_limit` is what RLIMIT_NOFILE shall be for it and the script when the guardian has changed its own.
    `collects`: it starts a collection at its end, should one be due; an agent does that by itself.
    """
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
    except OSError as error:
        raise SystemRefusedError(f"no supervisor can be started: {error.strerror}; nothing was started") from None
    if pid == 0:
        ours.close()
        _supervise(state, submission, theirs, descriptor_limit, collects)
    theirs.close()
    return pid, ours


def import_what_supervisors_need() -> None:
    """Imports once, before a fork, what each forked supervisor would otherwise import again."""
    # The codecs are those of our own list of contents and of a manifest.
    import encodings.ascii
    import encodings.utf_8_sig  # noqa: F401

    from . import cgroup, install, manifest, supervisor  # noqa: F401
    from .wire import masks  # noqa: F401


def rejected(submission_id: str, job_id: str | None, error: RunnerError, mode: str = BUNDLED) -> Result:
    """The result of a submission that could not be started. It is told, not recorded: the id stays free."""
    return Result(
        execution_id=submission_id,
        job_id=job_id,
        state=Outcome.REJECTED,
        mode=mode,
        runner_version=__version__,
        error_code=error.code,
        error_message=error.message,
    )


def undecided(submission: Submission) -> Result:
    """The result of a submission whose supervisor ended before it could claim the id."""
    sentence = "the supervisor ended before it had claimed the execution, so nothing was started; submit it again"
    return _rejection(submission, RunnerError("runner.internal", sentence))


def _rejection(submission: Submission, error: RunnerError) -> Result:
    return rejected(submission.execution_id, submission.job_id, error, BUNDLED if submission.api is None else API)


def _supervise(
    state: StateDirectory,
    submission: Submission,
    guardian: socket.socket,
    descriptor_limit: tuple[int, int] | None,
    collects: bool,
) -> NoReturn:
    """The supervisor's whole life. Never returns into the guardian's code."""
    status = 0
    try:
        process.detach(guardian.fileno())
        process.forbid_core_dumps()  # for a guardian that has not done it for both
        if descriptor_limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, descriptor_limit)
        _prepare_and_run(state, submission, guardian, collects)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must be told and must not unwind further
        status = 1
        _report_defect(state, submission, guardian, error)
    finally:
        os._exit(status)


def _prepare_and_run(state: StateDirectory, submission: Submission, guardian: socket.socket, collects: bool) -> None:
    from .prepare import prepare

    try:
        prepared = prepare(state, submission)
    except AlreadyClaimedError:
        _tell(guardian, b"exists\n")
        return
    except (RunnerError, OSError) as error:
        if state.started.has(submission.execution_id):  # its record was removed, which else the claim notices
            _tell(guardian, b"exists\n")
            return
        _tell_rejection(submission, guardian, _as_rejection(state, error))
        return
    socket_path = prepared.helper_socket.getsockname()
    try:
        supervisor = _start(prepared, submission, guardian)
        if supervisor is None:
            return
        # Only now: until the script runs the id may be given back, and who was told of it would find nothing.
        _tell(guardian, b"claimed\n")
        if not _run(supervisor, state, submission):
            return
        # Never waited for: a guardian that doesn't read now learns the same from the pair's end.
        _tell(guardian, b"finished\n")
        if not submission.keep_work:
            with contextlib.suppress(RunnerError):  # the result is durable; retention takes what is left here
                prepared.execution.remove_work()
        if collects and state.is_collection_due():
            from . import retention

            with contextlib.suppress(OSError):  # no process for it now
                retention.start(state)
    finally:
        prepared.containment.close()
        with contextlib.suppress(OSError):
            os.unlink(socket_path)


def _run(supervisor: "Supervisor", state: StateDirectory, submission: Submission) -> bool:
    """Sees the script through; whether its result is durable.

    Without a result the guardian finds out what there is to tell: the script has run, so it is no rejection.
    """
    try:
        supervisor.run()
    except BaseException as error:  # noqa: BLE001 - whatever it is, a trace of it is all that we can leave
        _keep_trace(state, submission, error)
        return False
    return True


def _start(prepared: "Prepared", submission: Submission, guardian: socket.socket) -> "Supervisor | None":
    """Starts the script. None when that failed: then nothing has run, so the id is given back as in any rejection."""
    from .supervisor import Supervisor

    supervisor = None
    try:
        supervisor = Supervisor(prepared, submission, guardian)
        supervisor.start()
    except (RunnerError, OSError) as error:
        if supervisor is not None and supervisor.has_started:
            raise
        if not _give_back(prepared):
            raise
        guardian.setblocking(True)
        _tell_rejection(submission, guardian, _as_rejection(prepared.execution.state_directory, error))
        return None
    return supervisor


def _give_back(prepared: "Prepared") -> bool:
    """Frees the id. False where the disk refuses that, twice: then the directory stays, and the execution is `lost`.

    A remembered id without a directory would pass for one whose record was removed while its script ran.
    """
    execution = prepared.execution
    for _ in range(2):
        try:
            execution.state_directory.started.take_back(execution.id)
        except (FileNotFoundError, StateDamagedError):
            pass  # nothing is remembered there
        except OSError:
            continue
        execution.release()
        return True
    return False


def _as_rejection(state: StateDirectory, error: RunnerError | OSError) -> RunnerError:
    if isinstance(error, RunnerError):
        return error
    where = error.filename if isinstance(error.filename, str) else state.path
    sentence = f"the execution cannot be prepared in {where}: {error.strerror}; nothing was started"
    return RunnerError("state.unusable", sentence)


def _tell_rejection(submission: Submission, guardian: socket.socket, error: RunnerError) -> None:
    result = _rejection(submission, error)
    _tell(guardian, b"rejected " + exactjson.encode(result.to_json()) + b"\n")


def _tell(guardian: socket.socket, words: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody there, which `Supervisor` notices and judges
        guardian.sendall(words)


def _report_defect(
    state: StateDirectory, submission: Submission, guardian: socket.socket, error: BaseException
) -> None:
    """A defect of ours. Before the claim it is a rejection; after it the execution is `lost`, with a trace to read."""
    if isinstance(error, OSError):
        defect = _as_rejection(state, error)
    else:
        defect = RunnerError("runner.internal", f"{type(error).__name__}: {error}")
    if not state.is_claimed(submission.execution_id):
        guardian.setblocking(True)
        _tell_rejection(submission, guardian, defect)
        return
    _keep_trace(state, submission, error)


def _keep_trace(state: StateDirectory, submission: Submission, error: BaseException) -> None:
    import traceback

    path = os.path.join(state.executions, submission.execution_id, "supervisor.log")
    with (
        contextlib.suppress(OSError, StateDamagedError),
        open(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file,
    ):
        traceback.print_exception(error, file=file)


class GuardianReader:
    """Reads what a supervisor tells its guardian. Feed it bytes; it keeps the verdict on the claim."""

    def __init__(self) -> None:
        self.verdict: str | None = None
        """`claimed`, `exists` or `rejected`, once it is known; `finished` at the end."""
        self.rejection: Result | None = None
        self._pending = b""

    def feed(self, piece: bytes) -> None:
        """Takes a piece of what the supervisor sent."""
        self._pending += piece
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word:
                self.verdict = word.decode("ascii")
            if word == b"rejected":
                self.rejection = Result.from_json(exactjson.loads(rest))
