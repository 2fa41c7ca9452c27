"""The controller's end of the channel to one host's agent: frames of wire/PROTOCOL.md over one SSH session.

It keeps conversations apart and notices when the channel is gone. What is said in them is `dispatch`'s matter.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Frame, Kind, ProtocolError
from cronium_runner.wire.text import last_words

from .errors import ChannelLostError, ControllerError, DeployError, reason
from .inbox import Inbox, Piece
from .logs import logger
from .patience import Deadline, Patience
from .sessions import Channel, Connection, Session
from .ssh_library import asyncssh

PROTOCOL_BROKEN: Final = "channel.protocol"
LOST: Final = "channel.lost"
GREETING_SECONDS: Final = 20.0
"""From starting the agent to its magic line: heavy rc files and a cold disk included."""
SESSION_SECONDS: Final = 10.0
"""For the server to open a session: no program of the account runs before, so one that takes longer is gone."""
_STDERR_KEPT: Final = 4096
_LAST_WORD: Final = b"last word"
_GATHERED: Final = 16 * 1024
"""Bytes of frames that wait for others of the same turn of the event loop: a packet less for each."""

_log = logger("cronium.channel")


class AgentNotStartedError(Exception):
    """The command did not turn out to be an agent. `exit_status` is the shell's, `printed` what came instead."""

    def __init__(self, exit_status: int | None, printed: bytes) -> None:
        super().__init__(f"exit status {exit_status}")
        self.exit_status = exit_status
        self.printed = printed


class NoRoomError(ChannelLostError):
    """The server opens no further session on the connection. Nothing was started."""


class Conversation:
    """One channel number: frames to send, frames to await. Ends with `close`, or when the channel is lost."""

    def __init__(self, channel: "AgentChannel", number: int, offsets: tuple[int, int] | None) -> None:
        self._channel = channel
        self._number = number
        self._inbox = Inbox(offsets)
        self._given_up: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False

    @property
    def patience(self) -> Patience:
        """How long the agent is waited for."""
        return self._channel.patience

    def send(self, kind: Kind, body: dict[str, Any]) -> None:
        """Sends one JSON frame."""
        self._channel.send(frames.encode_json(kind, self._number, body))
        self._channel.unanswered = self._number if kind == Kind.ACKNOWLEDGE else 0

    async def send_payload(self, pieces: Any, sent: Callable[[], None]) -> None:
        """Sends a payload's pieces and its end, as fast as the connection takes them; `sent` is called after each."""
        for piece in pieces:
            self._channel.send(frames.encode(Kind.PAYLOAD, self._number, piece))
            await self._wait_writable()
            # Refused in the middle, for want of room perhaps, or left: the rest would go nowhere.
            if self._inbox or self._is_closed or self._given_up is not None:
                return
            sent()
        self._channel.send(frames.encode(Kind.PAYLOAD, self._number))

    def grant(self, stream: int, count: int) -> None:
        """Lets the agent send `count` more bytes of a stream."""
        self._inbox.grant(stream, count)
        self._channel.send(frames.encode_credit(self._number, stream, count))

    async def receive(self, deadline: Deadline | None = None) -> Frame | Piece | None:
        """The next frame; None once the conversation was closed by us. `deadline` counts while the host is waited for.

        Raises ChannelLostError when the channel is gone, or the host given up, and nothing is left to read.
        """
        inbox = self._inbox
        while not inbox.waiting:
            if self._is_closed:
                return None
            if self._channel.lost is not None:
                raise ChannelLostError(self._channel.lost, host=self._channel.host_name, code=self._channel.lost_code)
            if self._given_up is not None:
                raise ChannelLostError(self._given_up, host=self._channel.host_name, code="execution.overdue")
            self._waiter = asyncio.get_running_loop().create_future()
            if deadline is None:
                await self._waiter
                continue
            deadline.go_on()
            try:
                await self._waiter
            finally:
                deadline.hold()
        return inbox.take()

    def give_up(self, why: str) -> None:
        """The host has not said what it was to say, in more time than that can take: `receive` waits no longer."""
        self._given_up = why
        self.wake()

    async def _wait_writable(self) -> None:
        """Waits until the connection takes more, or there is no more to be said."""
        if self._channel.is_writable:
            return
        writable = asyncio.ensure_future(self._channel.wait_writable())
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([writable, self._waiter], return_when=asyncio.FIRST_COMPLETED)
        finally:
            writable.cancel()

    def close(self) -> None:
        """Frees the channel number; frames that still arrive for it are dropped, and `receive` waits no longer."""
        self._is_closed = True
        self._inbox.clear()
        self._channel.forget(self._number)
        self.wake()

    def deliver(self, frame: Frame) -> None:
        """Takes a frame from the channel. Raises ProtocolError for one that may not come here."""
        if self._inbox.put(frame):
            self.wake()

    def wake(self) -> None:
        """Lets whoever awaits a frame look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AgentChannel:
    """An agent that is running on a host and answering."""

    ping_seconds: ClassVar[float] = frames.PING_SECONDS
    """An agent that hears nothing from us for much longer takes us for gone, however much it has to say itself."""
    silence_seconds: ClassVar[float] = frames.SILENCE_SECONDS
    patience: ClassVar[Patience] = Patience()
    """How long what an agent was asked for is waited for, though it answers pings."""

    def __init__(self, host_name: str) -> None:
        self.host_name = host_name
        self.lost: str | None = None
        """Why the channel is gone, once it is."""
        self.lost_code = LOST
        """What that goes by in docs/errors.md."""
        self.agent: dict[str, Any] = {}
        """What the agent said of itself in HELLO."""
        self.was_silent = False
        """Whether it was lost because nothing came any more; its connection may not know that yet."""
        self.frames_sent = 0
        self.quiet_since = time.monotonic()
        """When the last conversation ended, while there is none."""
        self.became_quiet: Callable[[], None] = lambda: None
        """Told then."""
        self._reader = frames.FrameReader()
        self._greeting: frames.GreetingReader | None = frames.GreetingReader()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._numbers = itertools.count(1)
        self._conversations: dict[int, Conversation] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._ssh: Channel | None = None
        self._unsent = bytearray()
        self._sending: asyncio.Handle | None = None
        self.unanswered = 0
        """The conversation whose acknowledgement was the last frame that was sent; 0 when that was another frame."""
        self._is_heard = False
        """Whether the agent is known to have read all that was sent."""
        self._stderr = bytearray()
        self._printed_aside = 0
        """Bytes on standard error before the greeting: as much as on standard output may come of rc files."""
        self._last_heard = self._last_sent = self._last_pinged = time.monotonic()
        self._pinging: asyncio.Task[None] | None = None
        self._heard: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<AgentChannel {self.host_name} {self.lost or 'open'} conversations={len(self._conversations)}>"

    @classmethod
    async def open(cls, connection: Connection, command: str, patience: float | None = None) -> "AgentChannel":
        """Starts the agent by `command`, and waits for its greeting, at most GREETING_SECONDS if nothing is said.

        Raises AgentNotStartedError when something else answers, DeployError when nothing does in time, and
        ChannelLostError when the connection turns out to be gone.
        """
        channel = cls(connection.host.name)
        connection.acknowledge_quickly()
        patience = patience or GREETING_SECONDS
        try:
            await channel._open_session(connection, command)
            async with asyncio.timeout(patience):
                await channel._ready
        except TimeoutError:
            # Not tried in another way: whatever keeps the login shell busy would do so again.
            channel.close(f"no greeting within {patience:g} s")
            printed = last_words(channel.printed())
            raise DeployError(
                "deploy.failed",
                f"the host did not start the runner within {patience:g} s"
                f"{f', and printed: {printed}' if printed else ''}; look at what its login shell does first",
                host=connection.host.name,
            ) from None
        except (asyncssh.Error, OSError) as error:
            if connection.is_closed() or not isinstance(error, asyncssh.ChannelOpenError):  # which a lost one says too
                raise ChannelLostError(f"the connection is lost ({reason(error)})", host=connection.host.name) from None
            raise NoRoomError(
                f"the connection opens no session ({reason(error)}); does the server allow one (MaxSessions)?",
                host=connection.host.name,
            ) from None
        except asyncio.CancelledError:  # the connection may be others' too: its session must not stay
            channel.close("left while it was opened")
            raise
        match channel.agent.get("protocol"):
            case [int(lowest), int(highest)]:
                pass
            case _:
                lowest = highest = 0
        if not lowest <= frames.PROTOCOL <= highest:
            channel.close("no common protocol")
            older = "runner" if highest < frames.PROTOCOL else "controller"
            raise ControllerError(
                "channel.version",
                f"the agent speaks protocol {lowest} to {highest}, we speak {frames.PROTOCOL}; update the {older}",
                host=connection.host.name,
            )
        channel._unsent += frames.encode_json(Kind.HELLO, 0, {"protocol": frames.PROTOCOL})  # goes with what comes next
        channel._pinging = asyncio.ensure_future(channel._ping())
        return channel

    async def _open_session(self, connection: Connection, command: str) -> None:
        """Raises ChannelLostError when the server doesn't answer: the connection may be gone without knowing it."""
        create = partial(connection.create_session, lambda: _Session(self), command)
        try:
            async with asyncio.timeout(SESSION_SECONDS):
                self._ssh = await connection.open_session(create)
        except TimeoutError:
            self.close("the server opened no session")
            raise ChannelLostError(
                f"the connection does not answer: no session within {SESSION_SECONDS:g} s", host=connection.host.name
            ) from None

    @property
    def is_quiet(self) -> bool:
        """Whether nobody converses with it."""
        return not self._conversations

    def converse(self, offsets: tuple[int, int] | None = None) -> Conversation:
        """A new conversation; `offsets` is where the output begins that is asked for in it, None when none is."""
        number = next(self._numbers)
        self._conversations[number] = Conversation(self, number, offsets)
        return self._conversations[number]

    def forget(self, number: int) -> None:
        """Drops a conversation."""
        if self._conversations.pop(number, None) is not None and not self._conversations:
            self.quiet_since = time.monotonic()
            self.became_quiet()

    def send(self, frame: bytes) -> None:
        """Queues bytes for the agent. Raises ChannelLostError when there is none any more."""
        if self.lost is not None or self._ssh is None:
            raise ChannelLostError(self.lost or "the channel is not open", host=self.host_name, code=self.lost_code)
        self.frames_sent += 1
        self._last_sent = time.monotonic()
        self._is_heard, self.unanswered = False, 0
        self._unsent += frame
        if len(self._unsent) >= _GATHERED:
            self._send_gathered()
            if self.lost is not None:
                raise ChannelLostError(self.lost, host=self.host_name, code=self.lost_code)
        elif self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send_gathered)

    def _send_gathered(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self._ssh is None or not self._unsent:
            return
        gathered, self._unsent = bytes(self._unsent), bytearray()
        try:
            self._ssh.write(gathered)
        except (asyncssh.Error, OSError) as error:
            self.lose(reason(error))

    @property
    def is_writable(self) -> bool:
        """Whether the connection takes more now."""
        return self._writable.is_set()

    async def wait_writable(self) -> None:
        """Waits until the connection takes more."""
        await self._writable.wait()

    async def wait_heard(self) -> None:
        """Waits until the agent has read everything that was sent so far, or the channel is lost.

        A server that is told to disconnect may drop what it has not yet passed on: a cancel, an acknowledgement.
        """
        if self._is_heard:
            return
        if self._heard is None or self._heard.done():
            self._heard = asyncio.get_running_loop().create_future()
        self.send(frames.encode(Kind.PING, 0, _LAST_WORD))
        await self._heard

    def close(self, why: str = "closed by us", code: str = LOST) -> None:
        """Ends the channel. The agent stays as guardian until its executions have ended."""
        self._send_gathered()
        self.lose(why, code)
        if self._ssh is not None:
            try:  # noqa: SIM105 - the library is loaded for an error only
                self._ssh.write_eof()
            except (asyncssh.Error, OSError):
                pass
            self._ssh.close()

    def lose(self, reason: str, code: str = LOST) -> None:
        """The channel is gone: whoever waits learns it."""
        if self.lost is not None:
            return
        self.lost, self.lost_code = reason, code
        self._writable.set()
        if self._pinging is not None:
            self._pinging.cancel()
        if not self._ready.done():
            status = None if self._ssh is None else self._ssh.get_exit_status()
            self._ready.set_exception(AgentNotStartedError(status, self.printed()))
            self._ready.exception()  # retrieved: nobody may be waiting when the connection itself failed
        self._note_heard()
        for conversation in self._conversations.values():
            conversation.wake()

    def _note_heard(self) -> None:
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    def printed(self) -> bytes:
        """What the host's shell printed instead of a greeting, for the error message."""
        before = b"" if self._greeting is None else bytes(self._greeting.printed[-_STDERR_KEPT:])
        return before + bytes(self._stderr)

    def _is_lost(self) -> bool:
        return self.lost is not None

    def hear(self, piece: bytes) -> None:
        """Takes bytes of the agent's standard output. Bytes that arrive after the channel's end are dropped."""
        if self._is_lost():
            return
        self._last_heard = time.monotonic()
        try:
            if self._greeting is not None:
                rest = self._greeting.feed(piece)
                if rest is None:
                    return
                self._greeting = None
                piece = rest
            for frame in self._reader.feed(piece):
                self._take(frame)
                if self._is_lost():  # the frame broke the protocol, so those behind it are not read
                    return
        except ProtocolError as error:
            _log.warning("channel_protocol_error", extra={"host": self.host_name, "reason": str(error)})
            self.close(f"the agent there broke the protocol: {error}", PROTOCOL_BROKEN)

    def hear_stderr(self, piece: bytes) -> None:
        """Takes bytes of the agent's standard error; the last few are kept for messages."""
        if self._greeting is not None and self.lost is None:
            self._printed_aside += len(piece)
            if self._printed_aside > frames.MAX_BEFORE_MAGIC:
                self.close(f"no agent greeting, and more than {frames.MAX_BEFORE_MAGIC} bytes on standard error")
        self._stderr += piece
        del self._stderr[:-_STDERR_KEPT]

    def pause_writing(self) -> None:
        """The connection's buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The connection takes bytes again."""
        self._writable.set()

    def _take(self, frame: Frame) -> None:
        if frame.channel != 0:
            self._is_heard |= frame.channel == self.unanswered and frame.kind == Kind.STATUS
            conversation = self._conversations.get(frame.channel)
            if conversation is not None:
                conversation.deliver(frame)
            return
        match frame.kind:
            case Kind.HELLO:
                if not self._ready.done():
                    self.agent = _readable(frame.told())
                    self._ready.set_result(None)
            case Kind.PING:
                if self.is_writable:  # answers to one that reads none must not fill our memory
                    self.send(frames.encode(Kind.PONG, 0, frame.body[:16]))
            case Kind.ERROR:
                told = frame.told()
                self.close(f"the agent gave up: {told.get('message')} [{told.get('code')}]")
            case Kind.PONG if frame.body == _LAST_WORD:
                self._note_heard()
            case _:
                pass  # another PONG, or a kind of a newer agent

    async def _ping(self) -> None:
        """Keeps the silence short on both sides, and ends a channel whose host is silent anyway.

        The agent must hear something while it alone talks; we must hear something while we alone do (a long payload).
        """
        while True:
            due = min(self._last_sent, max(self._last_heard, self._last_pinged)) + self.ping_seconds
            await asyncio.sleep(max(0.001, min(due, self._last_heard + self.silence_seconds) - time.monotonic()))
            now = time.monotonic()
            if now - self._last_heard >= self.silence_seconds:
                self.was_silent = True
                self.close(f"the host has been silent for {now - self._last_heard:.0f} s")
                return
            if now >= min(self._last_sent, max(self._last_heard, self._last_pinged)) + self.ping_seconds:
                self._last_pinged = now
                with contextlib.suppress(ChannelLostError):
                    self.send(frames.encode(Kind.PING, 0))


def _readable(hello: dict[str, Any]) -> dict[str, Any]:
    """What an agent says of itself, without what is not of the type that it has to be."""
    knows = hello.get("knows")
    return {**hello, "knows": [word for word in knows if isinstance(word, str)] if isinstance(knows, list) else []}


class _Session(Session):
    """What the connection calls; passes everything on."""

    def __init__(self, channel: AgentChannel) -> None:
        self._channel = channel
        self._ssh: Any = None

    def connection_made(self, chan: Any) -> None:
        self._ssh = chan
        self._channel._ssh = chan

    def data_received(self, data: bytes, datatype: Any) -> None:
        if datatype is None:
            self._channel.hear(data)
        else:
            self._channel.hear_stderr(data)

    def pause_writing(self) -> None:
        self._channel.pause_writing()

    def resume_writing(self) -> None:
        self._channel.resume_writing()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel.lose(reason(exc) if exc else "the agent's channel was closed")
