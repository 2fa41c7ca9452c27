"""Many executions over one channel: the frames of wire/PROTOCOL.md on standard input and output.

The agent forks a supervisor per submission, reads the executions' directories and sends what is new. It owns nothing:
when it dies, executions go on and the next agent reads the same directories. While it lives it is their guardian, so
it stays after its channel has gone until the last of them has ended.

Arguments: none. Standard input: frames. Standard output: the magic line, then frames. Exit status: 0 when the channel
was closed and everything has ended, 125 when the state directory can't be used.
"""

import contextlib
import fcntl
import gc
import hashlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from . import __version__, process
from . import follow as following
from .errors import ExecutionError, InputError, PayloadError, RunnerError
from .guardian import GuardianReader, start_supervisor
from .jobdir import ExecutionDirectory, StateDirectory
from .submission import Archive, Submission, from_frame
from .wire import frames
from .wire.frames import Frame, Kind, ProtocolError
from .wire.names import STREAM_NAMES

MAX_QUEUED: Final = 8 * 1024 * 1024
"""Bytes waiting for the channel before spools are read further: two streams' credit."""
ENDING_SECONDS: Final = 0.05
"""How soon to look again at a supervisor whose sockets are closed but which the kernel has not yet ended."""


class _Conversation:
    """One channel number: an execution that is being submitted, followed, or both."""

    def __init__(self, channel: int, *, follow: bool) -> None:
        self.channel = channel
        self.wants_data = follow
        self.wants_future = True
        self.offsets = (0, 0)
        self.credit = dict.fromkeys(STREAM_NAMES, frames.CREDIT)
        self.submission: Submission | None = None
        self.watch: socket.socket | None = None
        self.verdict: GuardianReader | None = None
        self.pid: int | None = None
        self.follower: following.Follower | None = None
        self.is_over = False
        self.receiving: _PayloadFile | None = None


class _PayloadFile:
    """A payload on its way into the cache: written under a temporary name, kept only if its digest is right."""

    def __init__(self, state: StateDirectory, sha256: str) -> None:
        state.ensure_payloads()
        self._final = state.payload_path(sha256)
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._path = state.new_temporary(state.payloads)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._file, view) :]

    def finish(self) -> None:
        """Puts the file in its place. Raises PayloadError when it is not what was announced."""
        os.close(self._file)
        if self._digest.hexdigest() != self._sha256:
            os.unlink(self._path)
            raise PayloadError(
                "payload.digest_mismatch",
                f"the payload that arrived has SHA-256 {self._digest.hexdigest()}, announced was {self._sha256}; "
                "send it again",
            )
        os.rename(self._path, self._final)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Agent:
    """The agent's loop. `source` and `sink` are the channel's descriptors."""

    def __init__(self, state: StateDirectory, source: int, sink: int) -> None:
        self._state = state
        self._source = source
        self._sink = sink
        self._reader = frames.FrameReader()
        self._unsent = bytearray()
        self._conversations: dict[int, _Conversation] = {}
        self._supervisors: dict[int, str] = {}
        self._detached: dict[int, socket.socket] = {}
        self._remembered: set[str] = set()
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._last_heard = time.monotonic()
        self._is_connected = True

    def run(self) -> None:
        """Serves until the channel is gone and every supervisor has ended."""
        process.become_subreaper()
        self._signals_read, self._signals_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        os.set_blocking(self._source, False)
        os.set_blocking(self._sink, False)
        self._add(self._signals_read, self._hear_signals)
        self._add(self._source, self._hear_controller)
        self._unsent += frames.MAGIC
        self._send(Kind.HELLO, 0, self._hello())
        _load_what_supervisors_need()
        # What is loaded by now is shared with every supervisor; keep the collector from touching, and so copying, it.
        gc.collect()
        gc.freeze()
        self._flush()
        while self._is_connected or self._supervisors:
            self._turn()
        # Orphans of a dead supervisor, and their undertaker: while we are there they can be told from strangers.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    def _hello(self) -> dict[str, Any]:
        return {
            "protocol": [frames.PROTOCOL, frames.PROTOCOL],
            "runner": __version__,
            "maxFrame": frames.MAX_BODY,
            "credit": frames.CREDIT,
            "hostname": os.uname().nodename,
        }

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        timeout = None
        if self._is_connected:
            timeout = max(0.0, self._last_heard + frames.SILENCE_SECONDS - time.monotonic())
        if any(conversation.is_over for conversation in self._conversations.values()):
            timeout = ENDING_SECONDS
        ready = self._poll.poll(None if timeout is None else timeout * 1000 + 1)
        for descriptor, _ in ready:
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback()
        if self._is_connected and time.monotonic() - self._last_heard >= frames.SILENCE_SECONDS:
            self._lose_channel()
        self._flush()

    def _add(self, descriptor: int, callback: Callable[[], None]) -> None:
        self._callbacks[descriptor] = callback
        self._poll.register(descriptor, select.POLLIN)

    def _remove(self, descriptor: int) -> None:
        del self._callbacks[descriptor]
        self._poll.unregister(descriptor)

    def _send(self, kind: Kind, channel: int, value: dict[str, Any]) -> None:
        try:
            self._unsent += frames.encode_json(kind, channel, value)
        except ProtocolError as error:
            raise RunnerError("channel.protocol", f"the answer cannot be sent: {error}; read it on the host") from None

    def _flush(self) -> None:
        """Sends what the channel takes, and asks to be told when it takes more."""
        while self._is_connected:
            self._pump()
            if not self._unsent:
                break
            try:
                del self._unsent[: os.write(self._sink, memoryview(self._unsent)[: 1024 * 1024])]
            except BlockingIOError:
                break
            except OSError:
                self._lose_channel()
        if self._is_connected:
            waits = bool(self._unsent)
            if waits != (self._sink in self._callbacks):
                if waits:
                    self._callbacks[self._sink] = lambda: None
                    self._poll.register(self._sink, select.POLLOUT)
                else:
                    self._remove(self._sink)

    def _pump(self) -> None:
        """Moves new output of the followed executions into the send buffer, as far as credit and room allow."""
        for conversation in list(self._conversations.values()):
            if conversation.follower is not None and len(self._unsent) < MAX_QUEUED:
                self._pump_one(conversation, conversation.follower)

    def _pump_one(self, conversation: _Conversation, follower: following.Follower) -> None:
        is_waiting = False
        if conversation.wants_data:
            for stream in STREAM_NAMES:
                while conversation.credit[stream] > 0 and len(self._unsent) < MAX_QUEUED:
                    offset = follower.offsets[stream]
                    piece = follower.read(stream, min(frames.DATA_PIECE, conversation.credit[stream]))
                    if not piece:
                        break
                    conversation.credit[stream] -= len(piece)
                    self._unsent += frames.encode_data(conversation.channel, stream, offset, piece)
                else:
                    is_waiting = True
        if not is_waiting and (conversation.is_over or not conversation.wants_future):
            self._conclude(conversation)

    def _conclude(self, conversation: _Conversation) -> None:
        """All output has been sent: the result follows, or the state when only a look was wanted and it still runs."""
        assert conversation.follower is not None
        execution = conversation.follower.execution
        try:
            result = following.final_result(execution, is_guardian=True)
            if result is None and not conversation.wants_future:
                self._send(Kind.STATUS, conversation.channel, {"executions": [following.status(execution)]})
            elif result is None:
                return  # the supervisor is ending: the next turn looks again
            else:
                self._send(Kind.FINISHED, conversation.channel, result)
        except RunnerError as error:
            self._refuse(conversation.channel, error)
        except (
            OSError,
            ValueError,
        ) as error:  # a full disk, a damaged record: this execution's trouble, not the others'
            self._refuse(conversation.channel, RunnerError("state.unusable", f"{execution.path}: {error}"))
        else:
            self._close(conversation)

    def _close(self, conversation: _Conversation) -> None:
        """The channel number is free again. A supervisor of ours stays ours: it is reaped when it ends."""
        del self._conversations[conversation.channel]
        if conversation.follower is not None:
            conversation.follower.close()
        if conversation.receiving is not None:
            conversation.receiving.discard()
        if conversation.watch is not None:
            self._drop_watch(conversation)

    def _drop_watch(self, conversation: _Conversation) -> None:
        assert conversation.watch is not None
        self._remove(conversation.watch.fileno())
        conversation.watch.close()
        conversation.watch = None

    # -- what is heard -------------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(self._signals_read, 4096)
            if signal.SIGTERM in arrived:
                self._lose_channel()
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                execution_id = self._supervisors.pop(pid, None)
                if pid in self._detached:
                    self._detached.pop(pid).close()
                if execution_id is not None and self._state.is_claimed(execution_id):
                    # Died without a result: its orphans are ours to end, also when nobody follows any more.
                    with contextlib.suppress(OSError, ValueError):
                        following.final_result(ExecutionDirectory(self._state, execution_id), is_guardian=True)

    def _hear_controller(self) -> None:
        try:
            piece = os.read(self._source, 1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._lose_channel()
            return
        self._last_heard = time.monotonic()
        try:
            for frame in self._reader.feed(piece):
                self._obey(frame)
        except ProtocolError as error:
            self._send(Kind.ERROR, 0, {"code": "channel.protocol", "message": str(error)})
            self._flush()
            self._lose_channel()

    def _lose_channel(self) -> None:
        """The controller is gone. Executions go on, or are cancelled if that was asked for; nothing new starts."""
        if not self._is_connected:
            return
        self._is_connected = False
        for descriptor in (self._source, self._sink):
            if descriptor in self._callbacks:
                self._remove(descriptor)
        # Closing our end of a supervisor's pair tells it that its submitter is gone; it knows what was asked for.
        for conversation in list(self._conversations.values()):
            self._close(conversation)
        for kept in self._detached.values():
            kept.close()
        self._detached.clear()
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (self._source, self._sink):
            os.dup2(null, descriptor)
        os.close(null)

    def _obey(self, frame: Frame) -> None:
        if frame.channel == 0:
            self._obey_on_connection(frame)
            return
        try:
            match frame.kind:
                case Kind.SUBMIT:
                    self._submit(frame.channel, frame.json())
                case Kind.ATTACH:
                    self._attach(frame.channel, frame.json())
                case Kind.ACKNOWLEDGE:
                    following.acknowledge(self._state.execution(_id_in(frame.json())))
                    self._send(Kind.STATUS, frame.channel, {"executions": []})
                case Kind.STATUS:
                    self._tell_status(frame.channel, frame.json())
                case _:
                    self._obey_in_conversation(frame)
        except RunnerError as error:
            self._refuse(frame.channel, error)
        except OSError as error:
            self._refuse(frame.channel, RunnerError("state.unusable", f"{self._state.path}: {error.strerror}"))
        except ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - one request's defect must not end the others' guardian
            self._refuse(frame.channel, RunnerError("runner.internal", f"{type(error).__name__}: {error}"))

    def _obey_on_connection(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.PING:
                self._unsent += frames.encode(Kind.PONG, 0, frame.body[:16])
            case Kind.PONG | Kind.HELLO:
                pass
            case Kind.ERROR:
                self._lose_channel()
            case _:
                raise ProtocolError(f"frame kind {frame.kind} does not belong on channel 0")

    def _obey_in_conversation(self, frame: Frame) -> None:
        conversation = self._conversations.get(frame.channel)
        if conversation is None:
            return  # it ended while this frame was under way
        match frame.kind:
            case Kind.PAYLOAD:
                self._receive_payload(conversation, frame.body)
            case Kind.CREDIT:
                stream, count = frames.decode_credit(frame.body)
                if stream in conversation.credit:
                    conversation.credit[stream] += count
            case Kind.CANCEL:
                self._cancel(conversation)
            case Kind.DETACH:
                self._detach(conversation)
            case _:
                raise ProtocolError(f"frame kind {frame.kind} is not known")

    def _refuse(self, channel: int, error: RunnerError) -> None:
        conversation = self._conversations.get(channel)
        if conversation is not None:
            self._close(conversation)
        self._send(Kind.REFUSED, channel, {"code": error.code, "message": error.message})

    # -- requests ------------------------------------------------------------------------------------------------

    def _submit(self, channel: int, body: dict[str, Any]) -> None:
        self._check_free(channel)
        submission = from_frame(body, self._state.payload_path)
        conversation = _Conversation(channel, follow=body.get("follow", True))
        conversation.offsets = _offsets_in(body)
        conversation.submission = submission
        self._conversations[channel] = conversation
        if self._state.is_claimed(submission.execution_id):
            self._follow_existing(conversation)
        elif os.path.exists(self._state.payload_path(body["sha256"])):
            self._start(conversation)
        else:
            conversation.receiving = _PayloadFile(self._state, body["sha256"])
            self._send(Kind.WANT_PAYLOAD, channel, {"sha256": body["sha256"]})

    def _receive_payload(self, conversation: _Conversation, piece: bytes) -> None:
        if conversation.receiving is None:
            raise ProtocolError("PAYLOAD without WANT_PAYLOAD")
        if piece:
            conversation.receiving.write(piece)
            return
        received, conversation.receiving = conversation.receiving, None
        received.finish()
        self._start(conversation)

    def _start(self, conversation: _Conversation) -> None:
        assert conversation.submission is not None
        assert isinstance(conversation.submission.source, Archive)
        self._remember(conversation.submission.source.path)
        pid, watch = start_supervisor(self._state, conversation.submission)
        conversation.pid = pid
        conversation.verdict = GuardianReader()
        self._supervisors[pid] = conversation.submission.execution_id
        self._watch(conversation, watch)

    def _remember(self, path: str) -> None:
        """The first job of a payload parses its manifest for all later ones."""
        from .prepare import remember_manifest

        if path not in self._remembered:
            self._remembered.add(path)
            remember_manifest(path)

    def _watch(self, conversation: _Conversation, watch: socket.socket) -> None:
        watch.setblocking(False)
        conversation.watch = watch
        self._add(watch.fileno(), lambda: self._hear_supervisor(conversation))

    def _hear_supervisor(self, conversation: _Conversation) -> None:
        assert conversation.watch is not None
        try:
            piece = conversation.watch.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        verdict = conversation.verdict
        if verdict is not None and piece:
            before = verdict.verdict
            verdict.feed(piece)
            if verdict.verdict != before:
                self._act_on_verdict(conversation, before, verdict)
        elif not piece:
            if verdict is None or verdict.verdict not in ("exists", "rejected"):
                conversation.is_over = True
            self._drop_watch(conversation)

    def _act_on_verdict(self, conversation: _Conversation, before: str | None, reader: GuardianReader) -> None:
        assert conversation.submission is not None
        assert isinstance(conversation.submission.source, Archive)
        execution_id = conversation.submission.execution_id
        if reader.verdict == "exists":
            self._drop_watch(conversation)
            conversation.verdict = None
            try:
                self._follow_existing(conversation)
            except RunnerError as error:
                self._refuse(conversation.channel, error)
            return
        if before is None and reader.verdict in ("claimed", "finished"):
            self._send(Kind.ACCEPTED, conversation.channel, {"executionId": execution_id, "started": True})
            conversation.follower = following.Follower(self._state.execution(execution_id), conversation.offsets)
        if reader.verdict == "rejected" and reader.rejection is not None:
            if reader.rejection.error_code == "payload.digest_mismatch":
                # The cached file has rotted: without it the next submission brings a good one.
                with contextlib.suppress(OSError):
                    os.unlink(self._state.payload_path(conversation.submission.source.sha256 or ""))
            self._send(Kind.FINISHED, conversation.channel, reader.rejection.to_json())
            self._close(conversation)
        elif reader.verdict == "finished":
            conversation.is_over = True

    def _follow_existing(self, conversation: _Conversation) -> None:
        """The id was claimed before: the same submission attaches to it, another one is refused."""
        assert conversation.submission is not None
        submission = conversation.submission
        execution = self._state.execution(submission.execution_id)
        assert isinstance(submission.source, Archive)
        following.check_same_submission(execution, submission.fingerprint(submission.source.sha256 or ""))
        self._send(Kind.ACCEPTED, conversation.channel, {"executionId": execution.id, "started": False})
        self._follow(conversation, execution)

    def _follow(self, conversation: _Conversation, execution: ExecutionDirectory) -> None:
        conversation.follower = following.Follower(execution, conversation.offsets)
        watch = following.open_watch(execution) if conversation.wants_future else None
        if watch is None:
            conversation.is_over = True
        else:
            self._watch(conversation, watch)

    def _attach(self, channel: int, body: dict[str, Any]) -> None:
        self._check_free(channel)
        execution = self._state.execution(_id_in(body))
        conversation = _Conversation(channel, follow=True)
        conversation.offsets = _offsets_in(body)
        conversation.wants_future = body.get("follow", True) is True
        self._conversations[channel] = conversation
        self._send(Kind.ACCEPTED, channel, {"executionId": execution.id, "started": False})
        self._follow(conversation, execution)

    def _cancel(self, conversation: _Conversation) -> None:
        if conversation.watch is None:
            return  # it has ended by itself
        with contextlib.suppress(OSError):
            conversation.watch.send(following.CANCEL)

    def _detach(self, conversation: _Conversation) -> None:
        """Follows no longer. The supervisor keeps its guardian: a detached execution has lost nobody."""
        if conversation.pid is not None and conversation.watch is not None:
            self._remove(conversation.watch.fileno())
            self._detached[conversation.pid] = conversation.watch
            conversation.watch = None
        self._close(conversation)

    def _tell_status(self, channel: int, body: dict[str, Any]) -> None:
        if "executionId" in body:
            executions = [self._state.execution(_id_in(body))]
        else:
            executions = [ExecutionDirectory(self._state, execution_id) for execution_id in self._state.ids()]
        self._send(Kind.STATUS, channel, {"executions": [following.status(execution) for execution in executions]})

    def _check_free(self, channel: int) -> None:
        if channel in self._conversations:
            raise ProtocolError(f"channel {channel} is in use")


def _id_in(body: dict[str, Any]) -> str:
    execution_id = body.get("executionId")
    if not isinstance(execution_id, str):
        raise ExecutionError("execution.id_invalid", "the request names no executionId")
    return execution_id


def _offsets_in(body: dict[str, Any]) -> tuple[int, int]:
    offsets = body.get("offsets", [0, 0])
    match offsets:
        case [int(stdout), int(stderr)] if stdout >= 0 and stderr >= 0:
            return stdout, stderr
    raise InputError(f"offsets are two numbers from 0 on, not {offsets!r}", "usage.invalid")


def _load_what_supervisors_need() -> None:
    """Does once, here, what each forked supervisor would otherwise do again: imports, and finding the helpers."""
    from . import install, manifest, supervisor  # noqa: F401

    install.helper_folder()
    manifest.parse_manifest(b"version: v1\nentrypoint: warm\n", members=("warm",))


def serve() -> int:
    """The `agent` command: serves the channel on standard input and output. Returns its exit status."""
    try:
        state = StateDirectory.open()
    except RunnerError as error:
        sys.stderr.write(f"cronium-runner: {error.message} [{error.code}]\n")
        return error.exit_status
    # Descriptors of our own, so that nothing that prints by accident ever lands between two frames.
    source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    Agent(state, source, sink).run()
    return 0
