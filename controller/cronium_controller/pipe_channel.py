"""A command on three pipes as a session's channel. Who runs the command is a subclass's matter."""

import abc
import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .sessions import STDERR_TYPE, Channel, DataType, Session


class PipeChannel(abc.ABC):
    """A command's pipes and its end, which is when its exit is known and both outputs have ended."""

    def __init__(self, session: Session, forget: Callable[["PipeChannel"], None]) -> None:
        self.session = session
        self._forget = forget
        self._input: asyncio.WriteTransport | None = None
        self._outputs: list[asyncio.ReadTransport] = []
        self._open_outputs = 0
        self._has_exited = False
        self._status: int | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._is_made = False
        """Whether the session knows of the channel: it hears of the end of no other."""

    async def start(self, command: str) -> None:
        """Makes the pipes, then the process. Starts nothing when it is cancelled meanwhile. Raises OSError."""
        with contextlib.ExitStack() as theirs:
            stdin = await self._make_input(theirs)
            stdout = await self._make_output(theirs, None)
            stderr = await self._make_output(theirs, STDERR_TYPE)
            await self._begin(command, stdin, stdout, stderr)
        self._is_made = True
        self.session.connection_made(self)
        self.session.session_started()

    @abc.abstractmethod
    async def _begin(self, command: str, stdin: int, stdout: int, stderr: int) -> None:
        """Starts the command with these ends of its pipes, which are closed here afterwards. Raises OSError."""

    def _let_go(self) -> None:  # noqa: B027 - not every kind has anything to let go of
        """Lets go of the command itself, once nothing more is to be heard of it or said to it."""

    async def _make_input(self, theirs: contextlib.ExitStack) -> int:
        reading, writing = os.pipe()
        theirs.callback(os.close, reading)
        pipe = os.fdopen(writing, "wb", 0)
        loop = asyncio.get_running_loop()
        self._input, _ = await loop.connect_write_pipe(lambda: _Input(self.session, self._note_input_end), pipe)
        return reading

    async def _make_output(self, theirs: contextlib.ExitStack, datatype: int | None) -> int:
        reading, writing = os.pipe()
        theirs.callback(os.close, writing)
        pipe = os.fdopen(reading, "rb", 0)
        loop = asyncio.get_running_loop()
        output, _ = await loop.connect_read_pipe(
            lambda: _Output(lambda data: self._hear(data, datatype), self._note_output_end), pipe
        )
        self._outputs.append(output)
        self._open_outputs += 1
        return writing

    # -- what we do --------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queues bytes. They are dropped when the command has closed its input; its end is reported all the same."""
        if self.is_writable():
            assert self._input is not None, "made by start"
            self._input.write(data)

    def is_writable(self) -> bool:
        """Whether the command may still read."""
        return not self._is_over and self._input is not None and not self._input.is_closing()

    def write_eof(self) -> None:
        if self.is_writable():
            assert self._input is not None, "made by start"
            self._input.write_eof()

    def pause_reading(self) -> None:
        for output in self._outputs:
            output.pause_reading()

    def resume_reading(self) -> None:
        for output in self._outputs:
            output.resume_reading()

    def get_exit_status(self) -> int | None:
        return self._status

    def close(self) -> None:
        """Ends the pipes, the input's once it has been read."""
        if self._is_over:
            return
        self._is_over = True
        if self._input is None or self._input.is_closing():
            self._end()
        else:
            self._input.close()
        for output in self._outputs:
            output.close()
        if self._is_made:
            asyncio.get_running_loop().call_soon(self.session.connection_lost, None)

    def abort(self) -> None:
        """Ends them, whatever has not been read."""
        self.close()
        self._drop_input()
        self._end()

    def _end(self) -> None:
        self._let_go()
        self._forget(self)

    # -- what happens ------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes, datatype: DataType) -> None:
        self.session.data_received(data, datatype)

    def _note_input_end(self) -> None:
        if self._is_over:
            self._end()

    def _note_output_end(self) -> None:
        self._open_outputs -= 1
        self._end_if_over()

    def _note_exit(self, status: int | None, error: Exception | None = None) -> None:
        """The command has ended; None: without an exit status, for the reason `error` where it is known."""
        self._has_exited = True
        self._status = status
        self._error = error
        if not self._is_over and status is not None:
            self.session.exit_status_received(status)
        self._end_if_over()

    def _end_if_over(self) -> None:
        """As over SSH, what a command has left behind and still writes is part of it."""
        if self._is_over or self._open_outputs or not self._has_exited:
            return
        self._is_over = True
        self._drop_input()
        self._end()
        self.session.connection_lost(self._error)

    def _drop_input(self) -> None:
        """Ends it with what was not read; asyncio takes it amiss when one is ended that is about to be closed."""
        if self._input is not None and (not self._input.is_closing() or self._input.get_write_buffer_size()):
            self._input.abort()


class _Input(asyncio.BaseProtocol):
    """A command's standard input: how much of it is taken."""

    def __init__(self, session: Session, ended: Callable[[], None]) -> None:
        self._session = session
        self._ended = ended

    def pause_writing(self) -> None:
        self._session.pause_writing()

    def resume_writing(self) -> None:
        self._session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._session.resume_writing()  # wakes a writer that waits
        self._ended()


class _Output(asyncio.Protocol):
    """One of a command's output streams."""

    def __init__(self, hear: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._hear = hear
        self._ended = ended

    def data_received(self, data: bytes) -> None:
        self._hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._ended()


@dataclass(frozen=True, slots=True)
class PipeEnded:
    """A command's end. Death by signal n is 128 + n."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes
    exit_signal: None = None


class PipeProcess(Session):
    """A command with its streams. Its standard output is held back while it is not read."""

    def __init__(self) -> None:
        self.stdin = _Stdin()
        self.stdout = asyncio.StreamReader()
        self._stderr = bytearray()
        self._channel: Any = None
        self._over = asyncio.Event()

    def connection_made(self, chan: Channel) -> None:
        """It runs."""
        self._channel = self.stdin.channel = chan
        self.stdout.set_transport(self._channel)  # the reader pauses and resumes it, and asks for nothing else

    def data_received(self, data: bytes, datatype: DataType) -> None:
        """A piece of output."""
        if datatype is None:
            self.stdout.feed_data(data)
        else:
            self._stderr += data

    def pause_writing(self) -> None:
        """It is slow to read."""
        self.stdin.writable.clear()

    def resume_writing(self) -> None:
        """It takes more, or nothing any more."""
        self.stdin.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, or was let go of."""
        del exc
        self.stdin.writable.set()
        self.stdout.feed_eof()
        self._over.set()

    async def wait(self) -> PipeEnded:
        """Its end, with the output that was not yet read."""
        rest = await self.stdout.read()
        await self._over.wait()
        return PipeEnded(self._channel.get_exit_status(), rest, bytes(self._stderr))

    def close(self) -> None:
        """Lets go of it."""
        self._channel.close()


class _Stdin:
    """A command's standard input."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.writable = asyncio.Event()
        self.writable.set()

    def write(self, data: bytes) -> None:
        if not self.channel.is_writable():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self.channel.write(data)

    async def drain(self) -> None:
        await self.writable.wait()
        if not self.channel.is_writable():
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def write_eof(self) -> None:
        self.channel.write_eof()
