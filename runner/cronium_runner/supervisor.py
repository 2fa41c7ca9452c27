"""Supervising one execution: from the started script to the durable result.

One thread and one epoll loop. It owns the execution's directory and values; everybody else reads the directory, and
is woken through a watch connection when there is more to read. It decides about the script's end: timeout, cancel,
a limit, strays, drain. How a tree is ended is `ending`'s, how it is held and limited `containment`'s, how bytes are
kept `output`'s.
"""

import contextlib
import errno
import functools
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from . import __version__, follow, helper_socket, helpers, process
from .ending import Ending
from .errors import StateDamagedError, StateDirectoryError
from .jobdir import ExecutionDirectory, utc_now
from .lifecycle import State, has_move
from .output import Spool
from .prepare import Prepared
from .submission import Submission
from .wire.names import STDERR, STDOUT, STREAM_NAMES
from .wire.results import Outcome, Result

if TYPE_CHECKING:
    from .live import Live
    from .masking import MaskedSpool

DRAIN_SECONDS: Final = 2.0
"""How long a grandchild may keep the output open after the script's own end before the tree is ended."""
MAX_CONNECTIONS: Final = 256
"""Helpers at once. A script that opened more would take the descriptors that are needed to end it."""
READ_PIECE: Final = 256 * 1024


class Left(NamedTuple):
    """What a script in API mode has written and the platform doesn't have."""

    undelivered: int = 0
    refused: int = 0
    refusal: str | None = None


class Supervisor:
    """One running execution. `start` and then `run` are called once, in a process of its own."""

    def __init__(self, prepared: Prepared, submission: Submission, guardian: socket.socket) -> None:
        self._prepared = prepared
        self._execution: ExecutionDirectory = prepared.execution
        self._submission = submission
        self._guardian: socket.socket | None = guardian
        self._state = State.CLAIMED
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._watchers: dict[int, helper_socket.Connection] = {}
        self._spools = {stream: self._new_spool(name) for stream, name in STREAM_NAMES.items()}
        self._masked_values = len(prepared.values.masked_values)
        self._pipes: dict[int, int] = {}
        self._has_news = False
        self._script = 0
        self._status: int | None = None
        self._usage: resource.struct_rusage | None = None
        self._end_reason: Outcome | None = None
        self._containment = prepared.containment
        self._ending = Ending(self._containment)
        self._is_childless = False
        self._is_hurried = False
        self._connections = 0
        self._drain_until: float | None = None
        self._deadline = float("inf")
        self._started = 0.0
        self._started_at: str | None = None
        self._live = None if submission.api is None else _live(prepared)

    def start(self) -> None:
        """Starts the script. Raises NotExecutableError when it could not be executed at all: then nothing has run."""
        process.become_subreaper()
        self._listen_to_signals()
        self._add(self._prepared.helper_socket.fileno(), self._accept)
        if self._guardian is not None:
            self._guardian.setblocking(False)
            self._add(self._guardian.fileno(), self._hear_guardian)
        if self._live is not None:
            live = self._live
            self._add(live.descriptor, lambda _events: live.hand_back())
        self._start_script()

    @property
    def has_started(self) -> bool:
        """Whether the script was started: from then on the id can't be given back."""
        return self._script != 0

    def run(self) -> Result:
        """Sees the started script through to its end and writes the result down."""
        while not self._is_over():
            self._turn()
        if self._live is not None:
            self._deliver_rest(self._live)
        return self._finish()

    def _deliver_rest(self, live: "Live") -> None:
        """The script has ended; what it wrote last may still be on its way to the platform."""
        live.begin_end()
        while not (live.is_delivered() or self._is_hurried):
            for descriptor, events in self._epoll.poll(live.until_given_up()):
                callback = self._callbacks.get(descriptor)
                if callback is not None:
                    callback(events)
            if self._has_news:
                self._has_news = False
                self._wake_followers()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        for descriptor, events in self._epoll.poll(self._until_next_deadline()):
            callback = self._callbacks.get(descriptor)
            if callback is not None:  # an earlier callback of this round may have closed it
                callback(events)
        self._meet_deadlines()
        if self._has_news:
            self._has_news = False
            self._wake_followers()

    def _add(self, descriptor: int, callback: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def _remove(self, descriptor: int) -> None:
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    def _until_next_deadline(self) -> float:
        """Seconds until something must be done without being asked; -1 when nothing is due."""
        due = min(
            self._deadline if self._end_reason is None and self._status is None else float("inf"),
            float("inf") if self._ending.kill_at is None else self._ending.kill_at,
            float("inf") if self._drain_until is None else self._drain_until,
            self._containment.sample_at,
        )
        return -1 if due == float("inf") else max(0.0, due - time.monotonic())

    def _meet_deadlines(self) -> None:
        now = time.monotonic()
        if self._status is None and self._end_reason is None and now >= self._deadline:
            self._end(Outcome.TIMED_OUT)
        if self._drain_until is not None and now >= self._drain_until:
            self._drain_until = None
            self._end_strays()
        if now >= self._containment.sample_at and self._containment.sample() is not None:
            self._end_exceeded()
        if self._ending.kill_at is not None and now >= self._ending.kill_at:
            self._ending.sweep(self._living_script(), self._reap)

    def _is_over(self) -> bool:
        """Whether the script has ended, nothing of it is left and its output has been read to the end."""
        is_given_up = self._ending.has_given_up()
        if not is_given_up and (self._status is None or (self._pipes and self._drain_until is not None)):
            return False
        if not is_given_up and not (self._is_childless and self._containment.is_empty()):
            self._end_strays()
            return False
        # Nobody is left to write, so what the pipes still hold is all there will be.
        for pipe in list(self._pipes):
            self._drain(pipe)
        return True

    # -- the script ----------------------------------------------------------------------------------------------

    def _start_script(self) -> None:
        ends = {}
        for stream in STREAM_NAMES:
            readable, writable = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(readable, False)
            self._pipes[readable] = stream
            ends[stream] = writable
        # Before the script, which may remove its directory at once. The directory remembers it too, while it is there.
        with contextlib.suppress(OSError, StateDamagedError):
            self._execution.state_directory.started.add(self._execution.id)
        os.chdir(self._execution.work)
        self._started_at = utc_now()
        self._started = time.monotonic()
        try:
            self._script = process.start_script(
                self._prepared.argv,
                environment=self._prepared.environment,
                stdout=ends[STDOUT],
                stderr=ends[STDERR],
                steps=self._containment.steps(),
            )
        except process.StepRefusedError as error:
            raise self._containment.refusal(error.name, error.number) from None
        finally:
            with contextlib.suppress(OSError):  # the script may run by now, and nothing depends on where we are
                os.chdir("/")
            for writable in ends.values():
                os.close(writable)
        self._deadline = self._started + self._prepared.timeout
        for pipe in self._pipes:
            self._add(pipe, functools.partial(self._read, pipe))
        script: dict[str, object] = {"pid": self._script}
        with contextlib.suppress(OSError):  # no descriptor is free for it; nothing but people reads this record
            script = process.identity(self._script)
        self._move(State.RUNNING, {"script": script, **self._containment.record()})

    def _read(self, pipe: int, _events: int) -> None:
        try:
            piece = os.read(pipe, READ_PIECE)
        except BlockingIOError:
            return
        if piece:
            self._spools[self._pipes[pipe]].write(piece)
            self._has_news = True
        else:
            self._close_pipe(pipe)

    def _drain(self, pipe: int) -> None:
        while pipe in self._pipes:
            before = self._spools[self._pipes[pipe]]
            try:
                piece = os.read(pipe, READ_PIECE)
            except BlockingIOError:
                piece = b""
            if piece:
                before.write(piece)
            else:
                self._close_pipe(pipe)

    def _close_pipe(self, pipe: int) -> None:
        self._remove(pipe)
        del self._pipes[pipe]
        os.close(pipe)
        if not self._pipes:
            self._drain_until = None

    def _listen_to_signals(self) -> None:
        """SIGCHLD and SIGTERM become readable bytes in the loop, so no handler ever interrupts a write."""
        readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals_read, self._signals_write = readable, writable
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            process.on_signal(number, _ignore)
        # A login that ends hangs up on its processes; an execution outlives it.
        process.on_signal(signal.SIGHUP, process.IGNORED)
        process.on_signal(signal.SIGPIPE, process.IGNORED)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        self._add(readable, self._hear_signals)

    def _hear_signals(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(self._signals_read, 4096)
            if signal.SIGTERM in arrived or signal.SIGINT in arrived:
                self._end(Outcome.CANCELLED)
        self._reap()

    def _reap(self) -> bool:
        """Collects who has ended; whether children are left. As subreaper we have none when no descendant is left."""
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._script:
                    self._status, self._usage = status, usage
                    if self._pipes:
                        self._drain_until = time.monotonic() + DRAIN_SECONDS
        except ChildProcessError:
            self._is_childless = True
            return False

    # -- ending --------------------------------------------------------------------------------------------------

    def _end(self, reason: Outcome) -> None:
        """The script is to end: SIGTERM now, SIGKILL after the grace period."""
        self._reap()  # it may have ended before anybody wanted that, which decides its result
        if self._status is not None:
            self._is_hurried = True  # nothing is left to end but the waiting for a platform
        if self._end_reason is None and self._status is None:
            self._end_reason = reason
            self._terminate_tree(reason.value)

    def _end_exceeded(self) -> None:
        """The tree is above a limit: SIGKILL without a grace period, in which it would only grow."""
        if self._end_reason is None and self._status is None:
            self._end_reason = Outcome.FAILED
        if self._state is State.RUNNING:
            assert self._containment.exceeded is not None
            self._move(State.TERMINATING, {"reason": self._containment.exceeded.code})
        self._ending.kill_now()

    def _end_strays(self) -> None:
        """The script has ended and left processes behind."""
        if self._state is State.RUNNING:
            self._terminate_tree("strays")

    def _terminate_tree(self, reason: str) -> None:
        self._move(State.TERMINATING, {"reason": reason})
        self._ending.terminate(self._living_script())

    def _living_script(self) -> int | None:
        """The script's pid, and its process group's number, as long as nothing else can have got it."""
        return self._script if self._status is None else None

    # -- helpers and watchers ------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        while True:
            if self._connections >= MAX_CONNECTIONS:
                self._remove(self._prepared.helper_socket.fileno())  # the others wait until one has ended
                return
            try:
                connected, _ = self._prepared.helper_socket.accept()
            except OSError:  # nobody waiting, or no descriptor free: the next round tries again
                return
            self._connections += 1
            connected.setblocking(False)
            connection = helper_socket.Connection(connected, self._execute_helper)
            self._add(connected.fileno(), functools.partial(self._serve, connection))
            self._serve(connection, select.EPOLLIN)

    def _execute_helper(
        self, connection: helper_socket.Connection, request: helpers.Request, stdin: bytes | None
    ) -> helpers.Answer | None:
        values = self._prepared.values
        if self._live is not None and self._live.must_wait(request):
            self._live.do(request, stdin, functools.partial(self._answer_later, connection))
            return None
        answer = helpers.execute_safely(request, values, stdin)
        self._mask_new_values()
        return answer

    def _answer_later(self, connection: helper_socket.Connection, answer: helpers.Answer) -> None:
        """A call that had to wait is done. Its client may have gone meanwhile."""
        self._mask_new_values()
        connection.answer(answer)
        if connection.fileno() in self._callbacks:
            self._serve(connection, select.EPOLLOUT)

    def _new_spool(self, name: str) -> "Spool | MaskedSpool":
        spool = Spool(self._execution.spool_path(name))
        return self._masked(spool) if self._prepared.values.masked_values else spool

    def _masked(self, spool: "Spool | MaskedSpool") -> "MaskedSpool":
        from .masking import masked

        return masked(spool, self._prepared.values.masked_values)

    def _mask_new_values(self) -> None:
        """Before the script learns that a secret has a new value, that value is masked too."""
        count = len(self._prepared.values.masked_values)
        if count != self._masked_values:
            self._masked_values = count
            self._spools = {stream: self._masked(spool) for stream, spool in self._spools.items()}

    def _serve(self, connection: helper_socket.Connection, events: int) -> None:
        descriptor = connection.fileno()
        is_open = connection.send() if events & select.EPOLLOUT else True
        if is_open and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            is_open = connection.receive()
        if not is_open:
            self._remove(descriptor)
            self._watchers.pop(descriptor, None)
            connection.close()
            self._connections -= 1
            listening = self._prepared.helper_socket.fileno()
            if listening not in self._callbacks:  # the last that there was room for may end while it is accepted
                self._add(listening, self._accept)
            return
        wanted = (0 if connection.is_deaf else select.EPOLLIN) | (select.EPOLLOUT if connection.has_unsent else 0)
        self._epoll.modify(descriptor, wanted)
        if connection.is_watch:
            if descriptor not in self._watchers:
                self._watchers[descriptor] = connection
                self._has_news = True
            for kind, body in follow.take_messages(connection.received):
                self._obey(kind, body)

    def _hear_guardian(self, _events: int) -> None:
        assert self._guardian is not None
        try:
            words = self._guardian.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        if words:
            for kind, body in follow.take_messages(bytearray(words)):  # a guardian only cancels: one byte
                self._obey(kind, body)
            return
        # Whoever submitted this is gone, or lost the connection it was submitted over.
        self._remove(self._guardian.fileno())
        self._guardian.close()
        self._guardian = None
        if self._submission.on_disconnect == "cancel":
            self._end(Outcome.CANCELLED)

    def _obey(self, kind: bytes, body: bytes) -> None:
        if kind == follow.CANCEL:
            self._end(Outcome.CANCELLED)
        elif kind == follow.ACCESS and self._live is not None:
            self._live.replace_access(body)
            self._mask_new_values()

    def _wake_followers(self) -> None:
        waiting = [watcher.socket for watcher in self._watchers.values()]
        if self._guardian is not None:
            waiting.append(self._guardian)
        for follower in waiting:
            with contextlib.suppress(OSError):  # a full buffer wakes it as well, an end is noticed when reading
                follower.send(b"\n")

    # -- the end -------------------------------------------------------------------------------------------------

    def _move(self, state: State, record: dict[str, object]) -> None:
        assert has_move(self._state, state), f"{self._state} → {state}"
        self._state = state
        self._has_news = True
        # A full disk or a damaged record must not end a running script; the result says what happened.
        with contextlib.suppress(OSError, StateDamagedError):
            self._execution.append_state(state, record)

    def _finish(self) -> Result:
        duration = time.monotonic() - self._started
        exit_code, number = (None, None) if self._status is None else _exit_of(self._status)
        summaries = {stream: spool.close() for stream, spool in self._spools.items()}
        # Output that the disk has refused is missing from the result, so that is no success whatever the script says.
        is_complete = all(spool.error is None for spool in self._spools.values())
        state = self._end_reason or (Outcome.SUCCEEDED if exit_code == 0 and is_complete else Outcome.FAILED)
        code, message = self._explain(state, exit_code, number)
        values = self._prepared.values
        usage = self._usage
        left = Left() if self._live is None else Left(*self._live.left())
        result = Result(
            execution_id=self._execution.id,
            job_id=self._prepared.job_id,
            host=None,
            state=state,
            exit_code=exit_code,
            signal=number,
            started_at=self._started_at,
            finished_at=utc_now(),
            duration_ms=round(duration * 1000, 3),
            output=values.output,
            variables=values.changed_variables,
            condition=values.condition,
            progress=values.progress,
            summary=values.summary,
            stdout=summaries[STDOUT],
            stderr=summaries[STDERR],
            cpu_ms=None if usage is None else round((usage.ru_utime + usage.ru_stime) * 1000, 3),
            max_rss_kib=None if usage is None else usage.ru_maxrss,
            strays=self._ending.strays,
            runner_version=__version__,
            undelivered=left.undelivered,
            refused=left.refused,
            refusal=left.refusal,
            mode=self._submission.mode,
            error_code=code,
            error_message=message,
        )
        return self._write_result(result._replace(masked=self._masked_paths(result)))

    def _masked_paths(self, result: Result) -> tuple[str, ...]:
        """Which of what the script hands back holds a secret. Without secrets this costs nothing."""
        values = self._prepared.values
        handed_back = (result.output, result.progress, result.summary)
        if not values.masked_values or (handed_back == (None, None, None) and not result.variables):
            return ()
        from .masking import Masker
        from .wire import masks

        masker = Masker(values.masked_values)
        return tuple(masks.paths_of(result.to_json(), lambda text: masker.finds_in(text.encode()), values.is_secret))

    def _write_result(self, result: Result) -> Result:
        try:
            return self._record(result)
        except OSError as error:
            # Once more, under a new name: it costs nothing, and without a result a finished script counts as lost.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                # Its own files would go a moment later anyway; what became of it matters more than `--keep`.
                with contextlib.suppress(StateDirectoryError):
                    self._execution.remove_work()
            return self._record(result)

    def _record(self, result: Result) -> Result:
        """Makes the result durable. Where the record was removed it is made again and says so: its id stays taken."""
        if self._execution.is_removed():
            self._execution.restore(self._state)
            result = _without_record(result)
        self._execution.write_result(result.to_json())
        return result

    def _explain(self, state: Outcome, exit_code: int | None, number: int | None) -> tuple[str | None, str | None]:
        for stream, spool in self._spools.items():
            if spool.error is not None:
                return (
                    "execution.spool",
                    f"{STREAM_NAMES[stream]} could not be written down completely: {spool.error.strerror}; "
                    "free space in the state directory",
                )
        if not self._is_childless:
            return (
                "execution.unkillable",
                "processes of the script could not be ended within a minute: they belong to another user now, or are "
                "stuck in the kernel",
            )
        if state is Outcome.TIMED_OUT:
            return (
                "execution.timeout",
                f"the script ran longer than its timeout of {self._prepared.timeout:g} s and was ended",
            )
        if state is Outcome.CANCELLED:
            return "execution.cancelled", "the execution was cancelled and its processes were ended"
        exceeded = self._containment.verdict(exit_code, number) if state is Outcome.FAILED else None
        return exceeded or (None, None)


def _ignore(_number: int, _frame: object) -> None:
    """A handler, so that the signal is written to the loop's descriptor."""


def _live(prepared: Prepared) -> "Live":
    from .live import Live

    return Live(prepared)


def _without_record(result: Result) -> Result:
    """What is left to say of an execution whose directory was removed while its script ran."""
    if result.signal is not None:
        ending = f"was ended by signal {result.signal}"
    else:
        ending = f"ended with exit status {result.exit_code}"
    return Result(
        execution_id=result.execution_id,
        state=Outcome.LOST,
        job_id=result.job_id,
        started_at=result.started_at,
        finished_at=result.finished_at,
        stdout=result.stdout._replace(truncated=True),
        stderr=result.stderr._replace(truncated=True),
        runner_version=result.runner_version,
        mode=result.mode,
        error_code="execution.lost",
        error_message=f"the record of '{result.execution_id}' was removed while its script ran, by the script or "
        f"another process, and what it had written with it; the script {ending}. Submit it under a new id to run it "
        "again",
    )


def _exit_of(status: int) -> tuple[int | None, int | None]:
    """Exit code and signal of a wait status; exactly one of them is set."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None
