"""Many executions over one channel: the frames of wire/PROTOCOL.md on standard input and output.

The agent forks a supervisor per submission, reads the executions' directories and sends what is new. It owns nothing:
when it dies, executions go on and the next agent reads the same directories. While it lives it is their guardian, so
it stays after its channel has gone until the last of them has ended. Here are its loop and its two sides, frames and
processes. The start and HELLO are `greeting`'s, what becomes of one channel number is `conversation`'s, and whatever
goes wrong in one ends only that one.
"""

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from . import follow as following
from . import liveness, process, undertaker
from .collecting import Collections
from .conversation import Conversation, Phase
from .errors import ExecutionError, InputError, RunnerError
from .guardian import start_supervisor
from .jobdir import ExecutionDirectory, StateDirectory
from .payload_cache import PayloadCache
from .prepare import remember_environment
from .submission import Submission, access_in, from_frame
from .wire import exactjson, frames
from .wire.frames import Frame, Kind, ProtocolError

if TYPE_CHECKING:
    from .listing import Pages

MAX_QUEUED: Final = 8 * 1024 * 1024
"""Bytes waiting for the channel before spools are read further: two streams' credit."""
MAX_MESSAGE: Final = 2000
"""Characters of a refusal's sentence, which names paths of up to 1 KiB."""
MAX_OFFSET: Final = (1 << 63) - 1
"""What the kernel takes as a position in a file, and a DATA frame in its header."""
AGAIN_SECONDS: Final = 0.05
"""How soon to look again: at a supervisor that the kernel has not yet ended, or for a free descriptor."""
MOST_DESCRIPTORS: Final = 8192
"""Three for each execution that is followed. No more, whatever the hard limit (often 10⁹ in a container): without
close_range(2) a supervisor closes all that there may be one by one."""

_REQUESTS: Final = (Kind.SUBMIT, Kind.ATTACH, Kind.ACKNOWLEDGE, Kind.STATUS, Kind.GC)
"""What begins a channel number's use."""
_ASKED_AGAIN: Final = (Phase.JOINING, Phase.ENDING)
"""Phases whose next step nothing announces: a supervisor that takes no connection now, or is not quite gone."""


class Agent:
    """The agent's loop. `source` and `sink` are the channel's descriptors; they are closed when the channel is lost."""

    def __init__(self, state: StateDirectory, source: int, sink: int) -> None:
        self.state = state
        self.payloads = PayloadCache(state)
        self._source = source
        self._sink = sink
        self._reader = frames.FrameReader()
        self._unsent = bytearray()
        self._conversations: dict[int, Conversation] = {}
        self._supervisors: dict[int, str] = {}
        self._detached: dict[int, socket.socket] = {}
        self._guards: dict[int, int | None] = {}
        """The descriptor of each running execution's lock, by its supervisor's pid; None where there was none free."""
        self._collections = Collections(self)
        self._pages: Pages | None = None
        """The listing whose next page may be asked for."""
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._last_heard = time.monotonic()
        self._is_connected = True
        self._is_starved = False
        self._is_warm = False
        self._descriptor_limit = _raise_descriptor_limit()
        self._signals_read, self._signals_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self, first: bytes | None = None) -> None:
        """Serves until the channel is gone and every supervisor has ended. `first` was read from the channel before."""
        process.become_subreaper()
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        os.set_blocking(self._source, False)
        os.set_blocking(self._sink, False)
        self._add(self._signals_read, self._hear_signals)
        self._add(self._source, self._hear_controller)
        # What is loaded by now is shared with every supervisor; keep the collector from touching, and so copying, it.
        # It has found nothing to collect so far, and looking would cost a tenth of the start.
        gc.freeze()
        if first is not None:
            self._hear(first)
        self._flush()
        while self._is_connected or self._supervisors:
            self._collections.begin_if_due()
            self._turn()
        self._collections.end()
        # Orphans of a dead supervisor, and their undertaker: while we are there they can be told from strangers.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        timeout = None
        if self._is_connected:
            timeout = max(0.0, self._last_heard + frames.SILENCE_SECONDS - time.monotonic())
        if self._is_starved or any(one.phase in _ASKED_AGAIN for one in self._conversations.values()):
            timeout = AGAIN_SECONDS
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

    def _flush(self) -> None:
        """Sends what the channel takes, and asks to be told when it takes more."""
        while self._is_connected:
            self._pump()
            if not self._unsent or not self._write():
                break
        if self._is_connected:
            waits = bool(self._unsent)
            if waits != (self._sink in self._callbacks):
                if waits:
                    self._callbacks[self._sink] = lambda: None
                    self._poll.register(self._sink, select.POLLOUT)
                else:
                    self._remove(self._sink)

    def _write(self) -> bool:
        """Gives the channel what it takes of the send buffer at once; whether it took some."""
        try:
            del self._unsent[: os.write(self._sink, memoryview(self._unsent)[: 1024 * 1024])]
        except BlockingIOError:
            return False
        except OSError:
            self._lose_channel()
        return True

    def _pump(self) -> None:
        """Moves new output of the followed executions into the send buffer, as far as credit and room allow."""
        self._is_starved = False
        for conversation in list(self._conversations.values()):
            self._attempt(conversation, conversation.pump)

    def _attempt(self, conversation: Conversation, step: Callable[[], None]) -> None:
        """Does one conversation's step. Whatever goes wrong in it refuses that one and costs the others nothing."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a defect in one must not end the guardian of all
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                self._is_starved = True  # others will end and give theirs back
            else:
                self._refuse(conversation.channel, error)
        self._forget_if_over(conversation)

    def _forget_if_over(self, conversation: Conversation) -> None:
        if conversation.phase is Phase.OVER:
            self._conversations.pop(conversation.channel, None)

    def _refuse(self, channel: int, error: Exception) -> None:
        """Ends the channel number's use with the reason."""
        conversation = self._conversations.pop(channel, None)
        if conversation is not None:
            conversation.close()
        if conversation is None or not conversation.is_left:
            self._send_refusal(channel, error)

    def _send_refusal(self, channel: int, error: Exception) -> None:
        if isinstance(error, OSError):
            error = RunnerError("state.unusable", f"{error.filename or self.state.path}: {error.strerror}")
        elif not isinstance(error, RunnerError):
            error = RunnerError("runner.internal", f"{type(error).__name__}: {error}")
        # Cut: what is refused may itself be as large as a frame, and a refusal must always fit into one.
        self.send(Kind.REFUSED, channel, {"code": error.code, "message": error.message[:MAX_MESSAGE]})

    # -- what conversations need ---------------------------------------------------------------------------------

    def send(self, kind: Kind, channel: int, value: dict[str, Any]) -> None:
        """Queues a frame. Raises RunnerError when it is over the limit."""
        try:
            self._unsent += frames.encode_json(kind, channel, value)
        except ProtocolError as error:
            raise RunnerError("channel.protocol", f"the answer cannot be sent: {error}; read it on the host") from None

    def send_data(self, channel: int, stream: int, offset: int, piece: bytes) -> None:
        """Queues a piece of output."""
        self._unsent += frames.encode_data(channel, stream, offset, piece)

    def has_room(self) -> bool:
        """Whether more output may be queued now."""
        return len(self._unsent) < MAX_QUEUED

    def supervise(self, submission: Submission) -> tuple[int, socket.socket]:
        """Forks a supervisor; returns its pid and our end of the pair."""
        if submission.api is not None and not self._is_warm:
            _load_what_api_mode_needs()
            self._is_warm = True
        remember_environment()
        pid, pair = start_supervisor(self.state, submission, descriptor_limit=self._descriptor_limit)
        self._supervisors[pid] = submission.execution_id
        return pid, pair

    def listen(self, watched: socket.socket, conversation: Conversation) -> None:
        """Calls `conversation.hear` whenever there is something to read."""
        self._add(watched.fileno(), lambda: self._attempt(conversation, conversation.hear))

    def ignore(self, watched: socket.socket) -> None:
        """Takes `listen` back."""
        self._remove(watched.fileno())

    def keep(self, pid: int, pair: socket.socket) -> None:
        """Holds our end of a supervisor's pair until it has ended."""
        if pid in self._supervisors:
            self._detached[pid] = pair
        else:
            pair.close()

    def guard(self, pid: int, execution: ExecutionDirectory) -> None:
        """The supervisor has started its script: until it has ended, we hold the lock that tells others so."""
        if pid in self._supervisors:
            self._guards[pid] = liveness.hold_file(execution.state_path)

    def is_supervised(self, execution_id: str) -> bool:
        """Whether a supervisor of ours has that execution and has not been seen to end."""
        return execution_id in self._supervisors.values()

    # -- what collections need -----------------------------------------------------------------------------------

    def add_reader(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever there is something to read."""
        self._add(descriptor, callback)

    def remove_reader(self, descriptor: int) -> None:
        """Takes `add_reader` back."""
        self._remove(descriptor)

    def answer_collection(self, channel: int, told: dict[str, Any] | RunnerError) -> None:
        """Sends a collection's report, or why there is none."""
        try:
            if isinstance(told, RunnerError):
                raise told
            self.send(Kind.STATUS, channel, {"executions": [], "collection": told})
        except RunnerError as error:
            self._send_refusal(channel, error)

    # -- what is heard -------------------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            arrived = os.read(self._signals_read, 4096)
            if signal.SIGTERM in arrived:
                self._lose_channel()
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                self._note_end(*ended)

    def _note_end(self, pid: int, status: int) -> None:
        execution_id = self._supervisors.pop(pid, None)
        self._collections.note_end(pid)
        undertaker.note_end(pid, status)
        if pid in self._detached:
            self._detached.pop(pid).close()
        if execution_id is not None and self._has_no_result(execution_id):
            # Died without a result: its orphans are ours to end, also when nobody follows any more. What can't be
            # done about it now, the next contact does.
            with contextlib.suppress(Exception):
                if pid in self._guards:
                    self.state.restore_for_dead(execution_id, pid, self._guards[pid])
                following.final_result(ExecutionDirectory(self.state, execution_id), is_guardian=True)
        if (lock := self._guards.pop(pid, None)) is not None:
            os.close(lock)

    def _has_no_result(self, execution_id: str) -> bool:
        return not self.state.has_result(execution_id) and self.state.is_claimed(execution_id)

    def _hear_controller(self) -> None:
        try:
            piece = os.read(self._source, 1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._hear(piece)

    def _hear(self, piece: bytes) -> None:
        """Obeys the frames that a piece from the channel completes; an empty one is the channel's end."""
        if not piece:
            self._lose_channel()
            return
        self._last_heard = time.monotonic()
        try:
            for frame in self._reader.feed(piece):
                self._obey(frame)
                if not self._is_connected:
                    return  # nothing of what came behind the end starts
        except ProtocolError as error:
            self.send(Kind.ERROR, 0, {"code": "channel.protocol", "message": str(error)})
            self._write()  # and nothing behind it
            self._lose_channel()

    def _lose_channel(self) -> None:
        """The controller is gone. Executions go on, or are cancelled if that was asked for; nothing new starts."""
        if not self._is_connected:
            return
        self._is_connected = False
        for descriptor in (self._source, self._sink):
            if descriptor in self._callbacks:
                self._remove(descriptor)
            os.close(descriptor)
        # Closing our end of a supervisor's pair tells it that its submitter is gone; it knows what was asked for.
        for conversation in self._conversations.values():
            conversation.close()
        self._conversations.clear()
        for kept in self._detached.values():
            kept.close()
        self._detached.clear()
        self._collections.forget_asked()
        self._end_listing()
        self._is_starved = False

    def _obey(self, frame: Frame) -> None:
        if frame.channel == 0:
            self._obey_on_connection(frame)
            return
        conversation = self._conversations.get(frame.channel)
        try:
            if frame.kind in _REQUESTS:
                self._obey_request(frame)
            elif conversation is not None:  # else it ended while this frame was under way
                _obey_in_conversation(conversation, frame)
        except ProtocolError:
            raise
        except _InUseError as error:
            self._send_refusal(frame.channel, error)
        except Exception as error:  # noqa: BLE001 - one request's defect must not end the others' guardian
            self._refuse(frame.channel, error)
        if conversation is not None:
            self._forget_if_over(conversation)

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

    # -- requests ------------------------------------------------------------------------------------------------

    def _obey_request(self, frame: Frame) -> None:
        body = frame.json()
        if frame.channel in self._conversations or self._collections.is_asked(frame.channel):
            if frame.kind == Kind.SUBMIT:
                raise ProtocolError(f"channel {frame.channel} is in use")
            raise _InUseError("channel.protocol", f"channel {frame.channel} is in use; ask on another")
        match frame.kind:
            case Kind.SUBMIT:
                submission = from_frame(body, self.payloads.path)
                conversation = self._converse(frame.channel, submission.execution_id, body)
                conversation.begin(submission, wants_data=body.get("follow", True))
            case Kind.ATTACH:
                access = access_in(body)
                conversation = self._converse(frame.channel, _id_in(body), body)
                conversation.attach(wants_future=body.get("follow", True) is True, access=access)
            case Kind.ACKNOWLEDGE:
                following.acknowledge(self.state.execution(_id_in(body)))
                self.send(Kind.STATUS, frame.channel, {"executions": []})
            case Kind.STATUS:
                self._tell_status(frame.channel, body)
            case Kind.GC:
                self._collections.ask(frame.channel, body)

    def _converse(self, channel: int, execution_id: str, body: dict[str, Any]) -> Conversation:
        conversation = Conversation(self, channel, execution_id, _offsets_in(body))
        self._conversations[channel] = conversation
        return conversation

    def _tell_status(self, channel: int, body: dict[str, Any]) -> None:
        if "executionId" in body:
            told = [following.status(self.state.execution(_id_in(body)))]
            self.send(Kind.STATUS, channel, {"executions": told})
            return
        self._tell_page(channel, body)

    def _tell_page(self, channel: int, body: dict[str, Any]) -> None:
        """The next executions in the order of their ids, which stays the same whatever happens between two pages."""
        after = body.get("after", "")
        if not isinstance(after, str):
            raise InputError(f"'after' is an id, not {after!r:.80}", "usage.invalid")
        asked = (after, body.get("brief") is True, body.get("all") is True)
        pages = self._pages
        if pages is None or pages.asked != asked:
            from .listing import Pages

            self._end_listing()
            pages = self._pages = Pages(self.state, after, is_brief=asked[1], wants_all=asked[2])
        told = b'{"executions":[%s]' % b",".join(pages.next_page())
        if pages.has_more:
            told += b',"more":true,"after":%s' % exactjson.encode(pages.asked[0])
        else:
            if pages.is_index_wanted:
                self._collections.write_index()
            self._end_listing()
        self._unsent += frames.encode(Kind.STATUS, channel, told + b"}")

    def _end_listing(self) -> None:
        """Forgets the listing that is under way, if any."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None


class _InUseError(RunnerError):
    """A request on a channel number that is in use: refused, and the conversation there goes on."""


def _obey_in_conversation(conversation: Conversation, frame: Frame) -> None:
    match frame.kind:
        case Kind.PAYLOAD:
            conversation.receive(frame.body)
        case Kind.CREDIT:
            conversation.grant(*frames.decode_credit(frame.body))
        case Kind.CANCEL:
            conversation.cancel()
        case Kind.DETACH:
            conversation.detach()
        case _:
            raise ProtocolError(f"frame kind {frame.kind} is not known")


def _id_in(body: dict[str, Any]) -> str:
    execution_id = body.get("executionId")
    if not isinstance(execution_id, str):
        raise ExecutionError("execution.id_invalid", "the request names no executionId")
    return execution_id


def _offsets_in(body: dict[str, Any]) -> tuple[int, int]:
    offsets = body.get("offsets", [0, 0])
    match offsets:
        case [int(stdout), int(stderr)] if 0 <= stdout <= MAX_OFFSET and 0 <= stderr <= MAX_OFFSET:
            return stdout, stderr
    raise InputError(f"offsets are two numbers from 0 to {MAX_OFFSET}, not {offsets!r:.80}", "usage.invalid")


def _raise_descriptor_limit() -> tuple[int, int]:
    """Allows this process more descriptors than its login shell gave it; returns what it was, for the scripts."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return before


def prepare_what_supervisors_need() -> None:
    """Does once, here, what each forked supervisor would otherwise do again: what is found out at a first use."""
    from . import cgroup, install, manifest
    from .wire import masks

    install.helper_folder()
    process.identity(os.getpid())  # finds out which boot, namespace and machine this is
    cgroup.place()
    cgroup.sweep()
    masks.masked_names(())  # sorts the default names
    manifest.parse_manifest(b"version: v1\nentrypoint: warm\n", members=("warm",))


def _load_what_api_mode_needs() -> None:
    """The same for API mode: a tenth of a second, for the first of all its executions, that bundled ones never pay."""
    from . import api_values, live, masking, platform_client  # noqa: F401

    platform_client.warm()
    gc.collect()
    gc.freeze()
