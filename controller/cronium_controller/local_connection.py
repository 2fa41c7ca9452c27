"""This machine and account as a host: commands are children of this process, and nothing travels over a network.

A command is run as sshd would run it: by a shell, in a session of its own (so no Ctrl-C of our terminal reaches it), in
the home directory, with a small environment that is made afresh: what this process has in its own, a database's
address or a token, is nobody's business there. One that is let go of goes on; it is reaped whenever it ends.
"""

import asyncio
import contextlib
import errno
import os
import pwd
import queue
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .errors import ControllerError, reason
from .hosts import Host
from .sessions import Channel, Connection, Process, Session
from .ssh_library import asyncssh

LOCAL: Final = "local"
"""What results have as `transport`."""
SHELL: Final = "/bin/sh"
"""Reads every command, also for accounts whose login shell lets nobody in."""
HANDED_DOWN: Final = (
    "PATH", "LANG", "LC_ALL", "TZ",
    "CRONIUM_STATE_DIR", "CRONIUM_RETENTION_DAYS", "CRONIUM_STATE_BUDGET",
)  # fmt: skip
"""Of our environment: what makes commands be found and their output be read as here, and where the runner keeps things,
so that `cronium-runner` typed beside us looks at the same ones. Nothing here can be a secret."""
_USUAL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What a machine says that has no room for another process, now."""
_SIGNALLED: Final = 128
"""Added to a signal's number, as shells do."""


class LocalConnection(Connection):
    """Open until it is closed; no other end can close it."""

    transport = LOCAL

    def __init__(self, host: Host) -> None:
        """Raises ControllerError for a host that is meant as another account."""
        if host.user is not None:
            sentence = f"a local host is this account's, not {host.user}'s; take the user out, and see --run-as"
            raise ControllerError("host.config", sentence, host=host.name)
        super().__init__(host)
        self._channels: set[_LocalChannel] = set()
        self._is_closed = False

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command. Raises asyncssh.ChannelOpenError where there is no room, ControllerError where no way."""
        return await self._started(make(), command)

    async def start_sftp(self) -> asyncssh.SFTPClient:
        """Raises asyncssh.SFTPOpUnsupported: files are copied through the shell."""
        raise asyncssh.SFTPOpUnsupported("there is no SFTP without SSH")

    async def _start_process(self, command: str) -> Process:
        process = LocalProcess()
        await self._started(process, command)
        return process

    async def _started(self, session: Session, command: str) -> "_LocalChannel":
        if self._is_closed:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the connection is closed")
        channel = _LocalChannel(session, self._channels.discard)
        self._channels.add(channel)
        try:
            await channel.start(command)
        except BaseException as error:
            channel.abort()
            if not isinstance(error, OSError):
                raise
            if error.errno in _NO_ROOM:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason(error)) from None
            sentence = f"no command can be started on this machine: {reason(error)}"
            raise ControllerError("host.config", sentence, host=self.host.name) from None
        return channel

    def abort(self) -> None:
        """Lets go of all commands at once."""
        self._is_closed = True
        for channel in list(self._channels):
            channel.abort()

    async def close(self) -> None:
        """The same; what runs goes on, an agent until its executions have ended."""
        self.abort()
        await asyncio.sleep(0)  # asyncio closes a pipe in its next turn


def environment() -> dict[str, str]:
    """What commands get: the account's own, and what is handed down."""
    name, home = _account()
    made = {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": SHELL, "PATH": _USUAL_PATH}
    return made | {name: os.environ[name] for name in HANDED_DOWN if os.environ.get(name)}


def _account() -> tuple[str, str]:
    """Name and home directory, by the password database, as for a login."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:  # containers run accounts that have no entry
        return str(os.geteuid()), os.environ.get("HOME") or "/"
    return entry.pw_name, entry.pw_dir


def described() -> str:
    """This machine and account in words."""
    return f"this machine as {_account()[0]}, without SSH"


class _LocalChannel:
    """A command's pipes, and its end."""

    def __init__(self, session: Session, forget: Callable[["_LocalChannel"], None]) -> None:
        self._session = session
        self._forget = forget
        self._input: asyncio.WriteTransport | None = None
        self._outputs: list[asyncio.ReadTransport] = []
        self._open_outputs = 0
        self._status: int | None = None
        self._is_over = False

    async def start(self, command: str) -> None:
        """Makes the pipes, then the process: whoever is cancelled meanwhile has started nothing. Raises OSError."""
        with contextlib.ExitStack() as theirs:
            stdin = await self._make_input(theirs)
            stdout = await self._make_output(theirs, None)
            stderr = await self._make_output(theirs, asyncssh.EXTENDED_DATA_STDERR)
            hand_over = _reaping(asyncio.get_running_loop(), self._note_exit)
            process = None
            try:
                process = _spawn(command, stdin, stdout, stderr)
            finally:
                hand_over(process)
        self._session.connection_made(self)
        self._session.session_started()

    async def _make_input(self, theirs: contextlib.ExitStack) -> int:
        reading, writing = os.pipe()
        theirs.callback(os.close, reading)
        pipe = os.fdopen(writing, "wb", 0)
        loop = asyncio.get_running_loop()
        self._input, _ = await loop.connect_write_pipe(lambda: _Input(self._session, self._note_input_end), pipe)
        return reading

    async def _make_output(self, theirs: contextlib.ExitStack, datatype: int | None) -> int:
        reading, writing = os.pipe()
        theirs.callback(os.close, writing)
        pipe = os.fdopen(reading, "rb", 0)
        loop = asyncio.get_running_loop()
        output, _ = await loop.connect_read_pipe(
            lambda: _Output(lambda data: self._session.data_received(data, datatype), self._note_output_end), pipe
        )
        self._outputs.append(output)
        self._open_outputs += 1
        return writing

    # -- what we do --------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queues bytes; nobody gets them when the command has ended its input, and its own end is told anyway."""
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
            self._forget(self)
        else:
            self._input.close()
        for output in self._outputs:
            output.close()
        asyncio.get_running_loop().call_soon(self._session.connection_lost, None)

    def abort(self) -> None:
        """Ends them, whatever has not been read."""
        self.close()
        self._drop_input()
        self._forget(self)

    # -- what happens ------------------------------------------------------------------------------------------------

    def _note_input_end(self) -> None:
        if self._is_over:
            self._forget(self)

    def _note_output_end(self) -> None:
        self._open_outputs -= 1
        self._end_if_over()

    def _note_exit(self, status: int) -> None:
        self._status = status if status >= 0 else _SIGNALLED - status
        if not self._is_over:
            self._session.exit_status_received(self._status)
        self._end_if_over()

    def _end_if_over(self) -> None:
        """As over SSH, what a command has left behind and still writes is part of it."""
        if self._is_over or self._open_outputs or self._status is None:
            return
        self._is_over = True
        self._drop_input()
        self._forget(self)
        self._session.connection_lost(None)

    def _drop_input(self) -> None:
        """Ends it with what was not read; asyncio takes it amiss when one is ended that is about to be closed."""
        if self._input is not None and (not self._input.is_closing() or self._input.get_write_buffer_size()):
            self._input.abort()


def _spawn(command: str, stdin: int, stdout: int, stderr: int) -> "subprocess.Popen[bytes]":
    made = environment()
    home = made["HOME"] if os.path.isdir(made["HOME"]) else "/"
    return subprocess.Popen(
        [SHELL, "-c", command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=made,
        cwd=home,
        start_new_session=True,
    )


def _reaping(
    loop: asyncio.AbstractEventLoop, told: Callable[[int], None]
) -> "Callable[[subprocess.Popen[bytes] | None], None]":
    """Takes over a process and tells its exit status; a thread, so that also one is reaped that outlives the loop.

    asyncio's own processes are killed when they are let go of, which an agent must survive. The thread is started
    first: where there is no room for it nothing is started. Raises OSError.
    """
    handed: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()

    def reap() -> None:
        process = handed.get()
        if process is None:
            return
        status = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            loop.call_soon_threadsafe(told, status)

    try:
        threading.Thread(target=reap, name="cronium-local", daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    return handed.put


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
        self._session.resume_writing()  # whoever waits shall look again
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
class LocalEnded:
    """A command's end. Death by signal n is 128 + n."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes
    exit_signal: None = None


class LocalProcess(Session):
    """A command with its streams. Its standard output is held back while nobody reads it."""

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

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
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

    async def wait(self) -> LocalEnded:
        """Its end, with the output that was not yet read."""
        rest = await self.stdout.read()
        await self._over.wait()
        return LocalEnded(self._channel.get_exit_status(), rest, bytes(self._stderr))

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
