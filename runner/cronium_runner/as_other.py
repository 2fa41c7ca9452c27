"""The commands with `--run-as USER`: a small client of that account's agent, over pipes.

It speaks the frames of wire/PROTOCOL.md as the controller does. Everything that is to be kept from argument vectors
travels in frames. What the agent says comes from the target's side: it is checked, shown, and otherwise not believed.
A thread keeps the agent from taking us for gone while our own output waits for a slow reader, and passes cancels on.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

from . import install, process
from .account import Account
from .errors import ExecutionError, OutcomeUnknownError, RunnerError, SystemRefusedError
from .foreground import copy_piece, wait_readable
from .jobdir import StateDirectory
from .packing import packed
from .submission import Submission, to_frame
from .wire import codes, frames
from .wire.collection import is_report
from .wire.frames import Frame, Kind, ProtocolError
from .wire.names import STREAM_NAMES
from .wire.results import TEXT_TAIL, Outcome, Result
from .wire.text import last_words

CHANNEL: Final = 1
"""One conversation at a time."""
END_SECONDS: Final = 5.0
"""How long the agent has to leave after its last execution. It needs milliseconds; we wait only to leave nothing."""
START_SECONDS: Final = 240.0
"""Until the greeting: sudo, a runner to be installed on a slow disk, and the agent's own start."""
_STDERR_KEPT: Final = 4096
_MOST_TOLD: Final = 128 << 20
"""Bytes of all statuses together, as a controller takes of a host: the target must not fill the memory of who asks."""


class Seen(NamedTuple):
    """How an execution ended, and the last 64 KiB of each of its streams by name."""

    result: Result
    tails: dict[str, bytes]


class _LeftError(Exception):
    """Asked for the second time to end: whatever the agent is doing, we go."""


def run(account: Account, submission: Submission, *, show: bool) -> Seen:
    """Submits to the account's agent and sees it through, as `foreground.run` does for our own.

    Raises RunnerError: nothing was started; OutcomeUnknownError: it may have been.
    """
    with (
        packed(StateDirectory.open(), submission.source, account) as (payload, sha256, signature),
        _Agent(account, submission.execution_id) as agent,
        agent.cancelled_by_signals(on_hangup=submission.on_disconnect == "cancel"),
    ):
        agent.send(Kind.SUBMIT, to_frame(submission, sha256, signature))
        seen = agent.follow(payload, show=show)
        if seen.result.state is not Outcome.REJECTED:
            agent.send(Kind.ACKNOWLEDGE, {"executionId": submission.execution_id})
            with contextlib.suppress(RunnerError):  # then its record is only kept longer
                agent.expect(Kind.STATUS)
        return seen


def attach(account: Account, execution_id: str, *, offsets: tuple[int, int], show: bool) -> Seen:
    """Follows an execution of the account's to its end. An interrupt leaves it running."""
    with _Agent(account, execution_id) as agent:
        agent.send(Kind.ATTACH, {"executionId": execution_id, "offsets": list(offsets)})
        return agent.follow(show=show)


def wait(account: Account, execution_id: str) -> Result:
    """How an execution of the account's has ended, once it has."""
    return attach(account, execution_id, offsets=frames.BEHIND_ALL, show=False).result


def statuses(
    account: Account, execution_id: str | None = None, *, wants_all: bool = True, is_brief: bool = False
) -> list[dict[str, Any]]:
    """How one of the account's executions stands, or all of them, oldest first; `is_brief` as rows of a table."""
    found: list[dict[str, Any]] = []
    size = 0
    asked: dict[str, Any] = {"executionId": execution_id}
    if execution_id is None:
        asked = {"all": wants_all, "brief": is_brief}
    with _Agent(account, execution_id) as agent:
        while True:
            agent.send(Kind.STATUS, asked)
            frame = agent.expect(Kind.STATUS)
            size += len(frame.body)
            told = frame.told()
            page, after = told.get("executions"), told.get("after")
            if not isinstance(page, list) or size > _MOST_TOLD or not all(isinstance(one, dict) for one in page):
                sentence = f"the runner of {account.name} tells no statuses; install it again"
                raise RunnerError("channel.protocol", sentence)
            found += page
            if not isinstance(after, str) or after <= asked.get("after", ""):
                return sorted(found, key=lambda one: str(one.get("claimedAt")))
            asked["after"] = after


def collect(account: Account, asked: dict[str, Any]) -> dict[str, Any]:
    """Has the account's runner remove what may go; the report, as `retention.Report` has it."""
    with _Agent(account, None) as agent:
        agent.send(Kind.GC, asked)
        told = agent.expect(Kind.STATUS).told().get("collection")
    if not is_report(told):
        raise RunnerError("channel.protocol", f"the runner of {account.name} tells no report; install it again")
    return told


def cancel(account: Account, execution_id: str) -> bool:
    """Ends an execution of the account's; False when it has ended already. Returns when nothing of it is left."""
    with _Agent(account, execution_id) as agent:
        agent.send(Kind.STATUS, {"executionId": execution_id})
        match agent.expect(Kind.STATUS).json().get("executions"):
            case [{"state": "finished"}]:
                return False
            case [{"stdout": {"bytes": int(stdout)}, "stderr": {"bytes": int(stderr)}}]:
                seen = [stdout, stderr]  # nobody reads the output here
            case _:
                seen = [0, 0]
        agent.send(Kind.ATTACH, {"executionId": execution_id, "offsets": seen})
        agent.expect(Kind.ACCEPTED)
        agent.send(Kind.CANCEL, {})
        return agent.follow(show=False).result.state is Outcome.CANCELLED


class _Agent:
    """The account's agent, started by us. Leaving the block closes the channel; executions go on."""

    def __init__(self, account: Account, execution_id: str | None) -> None:
        self._account = account
        self._id = execution_id or ""
        self._was_accepted = False
        self._reader = frames.FrameReader()
        self._arrived: Iterator[Frame] = iter(())
        self._greeting: frames.GreetingReader | None = frames.GreetingReader()
        self._sending = threading.Lock()
        self._stderr = bytearray()
        self._wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A session of its own: an interrupt at the terminal is ours to pass on.
        process.forbid_core_dumps()
        with process.login_core_limit():
            self._process = subprocess.Popen(
                [*_own_command(), "agent", "--run-as", account.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        self._attendant = threading.Thread(target=self._attend, daemon=True)

    def __enter__(self) -> "_Agent":
        try:
            self._start_attendant()
            self.expect(Kind.HELLO, channel=0)
            self._send(frames.encode_json(Kind.HELLO, 0, {"protocol": frames.PROTOCOL}))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_attendant(self) -> None:
        try:
            self._attendant.start()
        except RuntimeError:
            raise SystemRefusedError(
                "the host has no thread for what runs as another account; nothing was started; a container's filter "
                "may refuse clone3: correct it, or log in as that account"
            ) from None

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._sending.acquire(timeout=1.0)  # not for ever: the thread may be stuck with an agent that is
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)

    # -- saying --------------------------------------------------------------------------------------------------

    def send(self, kind: Kind, body: dict[str, Any]) -> None:
        """Sends one JSON frame. Raises RunnerError."""
        try:
            frame = frames.encode_json(kind, CHANNEL, body)
        except ProtocolError as error:
            raise RunnerError("input.invalid", f"what is to be handed over is too much: {error}") from None
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        view = memoryview(frame)
        with self._sending:
            try:
                while view:
                    view = view[self._process.stdin.write(view) or 0 :]
            except (OSError, ValueError):
                raise self._lost() from None

    @contextlib.contextmanager
    def cancelled_by_signals(self, *, on_hangup: bool) -> Iterator[None]:
        """INT and TERM (and HUP, when asked for) become a CANCEL while the block runs; the second one ends us."""
        asked = 0

        def ask_for_end(_number: int, _frame: object) -> None:
            nonlocal asked
            asked += 1
            if asked > 1:
                raise _LeftError
            os.write(self._wake_end, b"c")

        chosen: dict[int, Any] = {
            signal.SIGINT: ask_for_end,
            signal.SIGTERM: ask_for_end,
            signal.SIGHUP: ask_for_end if on_hangup else signal.SIG_IGN,
            signal.SIGPIPE: signal.SIG_IGN,
        }
        before = {number: signal.signal(number, action) for number, action in chosen.items()}
        try:
            yield
        except _LeftError:
            raise self._unknown("asked twice to end, we did not wait any longer") from None
        finally:
            for number, action in before.items():
                signal.signal(number, action)

    def _attend(self) -> None:
        """The thread: pings, cancels, and what the agent says on standard error."""
        assert self._process.stderr is not None
        stderr = self._process.stderr.fileno()
        watched = [self._wake, stderr]
        while True:
            ready, _, _ = select.select(watched, [], [], frames.PING_SECONDS)
            with contextlib.suppress(RunnerError):  # a channel that is lost is noticed where it is read
                if not ready:
                    self._send(frames.encode(Kind.PING, 0))
                if self._wake in ready and os.read(self._wake, 64):
                    self.send(Kind.CANCEL, {})
            if stderr in ready:
                piece = os.read(stderr, 65536)
                if not piece:
                    watched.remove(stderr)
                self._stderr += piece
                del self._stderr[:-_STDERR_KEPT]

    # -- hearing -------------------------------------------------------------------------------------------------

    def expect(self, *kinds: Kind, channel: int = CHANNEL) -> Frame:
        """The next frame of one of these kinds. Raises RunnerError for a refusal and for a channel that ends."""
        while True:
            frame = self._next()
            if frame.kind == Kind.ERROR or (frame.kind == Kind.REFUSED and frame.channel == CHANNEL):
                raise self._refusal(frame)
            if frame.kind == Kind.PING:
                self._send(frames.encode(Kind.PONG, 0, frame.body[:16]))
            elif frame.channel == channel and frame.kind in kinds:
                return frame

    def follow(self, payload: BinaryIO | None = None, *, show: bool) -> Seen:
        """Copies output until the end, hands the payload over when it is wanted; how it ended."""
        tails = {name: bytearray() for name in STREAM_NAMES.values()}
        try:
            while True:
                frame = self.expect(Kind.ACCEPTED, Kind.WANT_PAYLOAD, Kind.DATA, Kind.FINISHED)
                match frame.kind:
                    case Kind.ACCEPTED:
                        self._was_accepted = True
                    case Kind.WANT_PAYLOAD if payload is not None:
                        self._send_payload(payload)
                    case Kind.DATA:
                        self._take_output(frame, tails, show=show)
                    case Kind.FINISHED:
                        result = Result.from_json(frame.json())
                        if result.execution_id != self._id:
                            raise ProtocolError(f"the result of '{self._id}' names {result.execution_id!r:.100}")
                        return Seen(result, {name: bytes(tail) for name, tail in tails.items()})
        except (ProtocolError, ValueError) as error:
            raise self._unknown(f"the runner of {self._account.name} said something unknown: {error}") from None

    def _take_output(self, frame: Frame, tails: dict[str, bytearray], *, show: bool) -> None:
        stream, _, piece = frames.decode_data(frame.body)
        if stream not in STREAM_NAMES:
            raise ProtocolError(f"there is no stream {stream}")
        if show:
            copy_piece(stream, piece)
        tail = tails[STREAM_NAMES[stream]]
        tail += piece
        del tail[:-TEXT_TAIL]
        self._send(frames.encode_credit(CHANNEL, stream, len(piece)))

    def _send_payload(self, payload: BinaryIO) -> None:
        while piece := payload.read(frames.DATA_PIECE):
            self._send(frames.encode(Kind.PAYLOAD, CHANNEL, piece))
        self._send(frames.encode(Kind.PAYLOAD, CHANNEL))

    def _next(self) -> Frame:
        while True:
            for frame in self._arrived:
                return frame
            self._arrived = self._frames_in(self._read())

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        seconds = START_SECONDS if self._greeting is not None else frames.SILENCE_SECONDS
        if not wait_readable(self._process.stdout.fileno(), seconds):
            raise self._failed(f"the runner of {self._account.name} has been silent for {seconds:g} s")
        piece = os.read(self._process.stdout.fileno(), 1024 * 1024)
        if not piece:
            raise self._lost()
        return piece

    def _frames_in(self, piece: bytes) -> Iterator[Frame]:
        try:
            if self._greeting is not None:
                rest = self._greeting.feed(piece)
                if rest is None:
                    return
                self._greeting = None
                piece = rest
            yield from self._reader.feed(piece)
        except ProtocolError as error:
            raise self._failed(f"the runner of {self._account.name} said something unknown: {error}") from None

    # -- what went wrong -----------------------------------------------------------------------------------------

    def _refusal(self, frame: Frame) -> RunnerError:
        try:
            told = frame.told()
        except ProtocolError:
            told = {}
        code, message = told.get("code"), str(told.get("message"))
        if self._was_accepted:
            return self._unknown(message)
        return ExecutionError(code if code in codes.CODES else "runner.internal", message)

    def _lost(self) -> RunnerError:
        """The agent is gone. What it said last tells why; before the greeting, that is all that happened."""
        self._attendant.join(0.2)  # what it said may still be on its way
        printed = self._stderr.decode("utf-8", "replace")
        told = codes.told(printed)
        last = last_words(printed)
        if self._greeting is None:
            return self._unknown(f"the runner of {self._account.name} is gone{f': {last}' if last else ''}")
        if told is not None:
            return RunnerError(*told)
        return SystemRefusedError(f"the runner of {self._account.name} did not start: {last or 'it said nothing'}")

    def _failed(self, why: str) -> RunnerError:
        """Before the greeting nothing was asked of the agent, so nothing was started; after it that isn't known."""
        return self._unknown(why) if self._greeting is None else RunnerError("channel.protocol", why)

    def _unknown(self, why: str) -> OutcomeUnknownError:
        look = f"; look with: cronium-runner attach --run-as {self._account.name} {self._id}" if self._id else ""
        return OutcomeUnknownError("channel.lost", f"{why}{look}")


def _own_command() -> list[str]:
    executable = install.installed_executable()
    return [executable] if executable else [sys.executable, "-m", "cronium_runner"]
