"""One raw command on one connection: started, its output kept as it comes, its exit status, its end in time.

What is sent is `remote_shell`'s, which connection `client`'s. Bytes throughout. SSH's own signals are not relied on:
servers refuse them for forced commands and for root.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from cronium_runner.wire.names import STDERR, STDOUT

from . import remote_shell
from .errors import UnreachableError, reason
from .sessions import MOST_SAID, STDERR_TYPE, Channel, Connection, DataType, Session
from .ssh_library import asyncssh

GRACE_SECONDS: Final = 5
"""Between SIGTERM and SIGKILL."""
ENDING_SECONDS: Final = GRACE_SECONDS + 5.0
"""How long ending a command may take altogether before it is given up, on a host that may not answer any more."""
LAST_WORDS_SECONDS: Final = 2.0
"""For what an ended command had written, some round trips: only a process that got away keeps its output open."""
_SIGNALS: Final = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10,
    "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "XCPU": 24, "SYS": 31,
}  # fmt: skip
"""Linux's numbers of what SSH gives by name."""


Output = Callable[[int, bytes], Awaitable[None]]
"""Awaited with each piece of output: its stream (`names.STDOUT` or `STDERR`) and bytes."""
_AHEAD: Final = 1024 * 1024
"""Bytes that wait for whoever listens before the host is held back: a slow terminal must not fill our memory."""
_PIECE: Final = 256 * 1024
"""Bytes up to which waiting output of one stream becomes one piece: single bytes would take a hundred times their size,
and each piece costs its listener a turn of a thread."""
MOST_KEPT: Final = 16 * 1024 * 1024
"""Bytes of each stream that are kept where the output is returned as a whole. As text they may take five times that."""


_INPUT_SECONDS: Final = 0.25
"""After which the server is told that there is no input. Commands of ours don't read any, but a forced command may; the
packet is a twentieth of a short command's time."""


class NotStartedError(Exception):
    """The connection failed before the command was sent: trying another one starts nothing twice."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended. `exit_status` is None when that isn't known; 128 + n for death by signal n.

    `was_ended` says whether, after a timeout, the host has confirmed that nothing of it runs any more.
    """

    exit_status: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    was_ended: bool = True
    truncated: bool = False
    """Whether a stream was longer than what is kept of it; `stdout` and `stderr` are then its beginning."""


class _Passing:
    """Output on its way to whoever listens, in order; the host is held back while they are slow."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._pieces: deque[tuple[int, bytearray]] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._is_held_back = False
        self.channel: Channel | None = None

    def put(self, stream: int, data: bytes) -> None:
        if self._pieces and self._pieces[-1][0] == stream and len(self._pieces[-1][1]) + len(data) <= _PIECE:
            self._pieces[-1][1].extend(data)
        else:
            self._pieces.append((stream, bytearray(data)))
        self._size += len(data)
        if self._size > _AHEAD and not self._is_held_back and self.channel is not None:
            self._is_held_back = True
            self.channel.pause_reading()
        if self._task is None:
            self._task = asyncio.ensure_future(self._pass())

    async def wait(self) -> None:
        """Until all of it was heard, which goes on when this is cancelled. Raises what the listener raised."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _pass(self) -> None:
        while self._pieces:
            stream, data = self._pieces.popleft()
            await self._output(stream, bytes(data))
            self._size -= len(data)
            if self._is_held_back and self._size <= _AHEAD // 2 and self.channel is not None:
                self._is_held_back = False
                self.channel.resume_reading()
        self._task = None


class RunningCommand(Session):
    """A command that was started. What it has written so far is in `stdout` and `stderr`, or was given to `output`."""

    def __init__(self, host: str, output: Output | None = None, *, most: int = MOST_KEPT) -> None:
        """`host` is named in errors. `most` bytes of each stream are kept; what comes behind them is read and dropped.

        The caller that made it closes it.
        """
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.is_truncated = False
        self._host = host
        self._most = most
        self.is_open = False
        """Whether the command may have been started."""
        self._passing = None if output is None else _Passing(output)
        self._status: int | None = None
        self._error: Exception | None = None
        self._end_of_input: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()
        self._channel: Channel | None = None

    def connection_made(self, chan: Channel) -> None:
        self.is_open = True
        self._channel = chan
        self._end_of_input = asyncio.get_running_loop().call_later(_INPUT_SECONDS, chan.write_eof)
        if self._passing is not None:
            self._passing.channel = chan

    def data_received(self, data: bytes, datatype: DataType) -> None:
        """A piece of output."""
        is_error = datatype == STDERR_TYPE
        if self._passing is not None:
            self._passing.put(STDERR if is_error else STDOUT, data)
        else:
            self._keep(self.stderr if is_error else self.stdout, data)

    def _keep(self, kept: bytearray, data: bytes) -> None:
        room = self._most - len(kept)
        self.is_truncated |= len(data) > room
        kept += data if len(data) <= room else data[:room]

    def exit_status_received(self, status: int) -> None:
        """It ended by itself."""
        self._status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """A signal ended it."""
        del core_dumped, msg, lang
        self._status = 128 + _SIGNALS.get(signal, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, with the command's end or without."""
        self._error = exc
        if self._end_of_input is not None:
            self._end_of_input.cancel()
        self._over.set()

    async def is_over(self, timeout: float) -> bool:
        """Whether it ends within that many seconds."""
        try:
            async with asyncio.timeout(None if math.isinf(timeout) else timeout):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    async def completed(self) -> Completed:
        """How it ended, as far as is known, when all output has been heard. Raises what `output` raises.

        And UnreachableError when it turns out that the server has refused to start it.
        """
        if self._passing is not None:
            await self._passing.wait()
        if self._error is not None and isinstance(self._error, asyncssh.ChannelOpenError):
            raise _runs_nothing(self._host)
        return Completed(self._status, bytes(self.stdout), bytes(self.stderr), truncated=self.is_truncated)

    def close(self) -> None:
        """Nothing further comes. What runs on the host goes on."""
        if self._channel is not None:
            self._channel.close()


async def start(connection: Connection, running: RunningCommand, text: str, timeout: float) -> None:
    """Starts a command, whose output `running` receives. Its standard input ends after a moment.

    Raises NotStartedError when the connection turns out to be dead before anything was sent, asyncssh.ChannelOpenError
    when the server has no room for another session, UnreachableError when nobody can tell whether it was started.
    """
    try:
        async with asyncio.timeout(timeout):
            await connection.create_session(lambda: running, text)
    except asyncssh.ChannelOpenError as error:
        if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
            raise _runs_nothing(connection.host.name) from None
        raise
    except (TimeoutError, asyncssh.Error, OSError) as error:
        if not running.is_open:
            raise NotStartedError(reason(error)) from None
        running.close()
        raise dropped(connection, reason(error)) from None


def _runs_nothing(host: str) -> UnreachableError:
    return UnreachableError("host.unreachable", "the server opens a session but runs no commands", host=host)


def dropped(connection: Connection, why: str) -> UnreachableError:
    """The connection ended under a command; what became of it isn't known."""
    sentence = f"the connection ended while the command ran ({why}); look at the host before running it again"
    return UnreachableError("channel.lost", sentence, host=connection.host.name)


async def asked(connection: Connection, text: str, timeout: float) -> Completed:
    """What a short command of ours says; its exit status is None when it took longer than `timeout` seconds to answer.

    Raises as `start` does.
    """
    ends_at = time.monotonic() + timeout
    running = RunningCommand(connection.host.name, most=MOST_SAID)
    try:
        await start(connection, running, text, timeout)
        await running.is_over(max(0.1, ends_at - time.monotonic()))
        return await running.completed()
    finally:
        running.close()


async def end(connection: Connection, command_id: str, *, tree: bool = False) -> bool:
    """Ends a command's processes on its host, those that go on by themselves excepted unless `tree`.

    Whether none is left. Raises asyncssh's errors.
    """
    text = remote_shell.in_sh(remote_shell.ending(command_id, GRACE_SECONDS, tree=tree))
    return (await asked(connection, text, ENDING_SECONDS)).exit_status == 0
