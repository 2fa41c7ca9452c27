"""What a connection to a host is, whatever carries it: commands and sessions, an end. SSH's is `connection`'s.

Code that uses a host works on a `Connection`, whether or not there is a network in between. The errors are
asyncssh's on every kind of connection: no room for another session is no room, be it sshd's or this machine's.
"""

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from cronium_runner.wire.sizes import readable
from cronium_runner.wire.text import last_words

from .errors import ControllerError, LoginShellError, UnreachableError, reason
from .hosts import Host
from .ssh_library import asyncssh

_SESSION_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to open a session: sshd cleans up within milliseconds, on a busy machine within a second."""

_Opened = TypeVar("_Opened")


DataType = int | None
STDERR_TYPE: Final = 1
"""RFC 4254, section 5.2: the type of standard error's data; standard output's has none."""


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a raw command on the host said. `exit_status` is None when the connection ended before it did."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """Our end of a command that runs: its input, and the flow of its output."""

    def write(self, data: bytes) -> None:
        """Queues bytes for its standard input."""

    def write_eof(self) -> None:
        """Ends its standard input, once everything has been sent."""

    def pause_reading(self) -> None:
        """Holds its output back."""

    def resume_reading(self) -> None:
        """Lets its output come again."""

    def get_exit_status(self) -> int | None:
        """Its exit status, once it has ended."""

    def close(self) -> None:
        """Ends the channel, once everything has been sent. What runs on the host goes on."""


class Session:
    """What hears of a command: the calls of `asyncssh.SSHClientSession`, with whatever channel there is."""

    def connection_made(self, chan: Channel) -> None:
        """The command may have been started from here on."""

    def session_started(self) -> None:
        """The server has taken the command."""

    def data_received(self, data: bytes, datatype: DataType) -> None:
        """A piece of output: of standard output where `datatype` is None, of standard error where it is STDERR_TYPE."""

    def eof_received(self) -> bool:
        """The output has ended."""
        return False

    def pause_writing(self) -> None:
        """More input would wait here."""

    def resume_writing(self) -> None:
        """More input is taken."""

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """A terminal's affair; there is none."""

    def exit_status_received(self, status: int) -> None:
        """The command ended by itself."""

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """A signal ended the command."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed, with the command's end or without."""


MOST_SAID: Final = 1 << 20
"""Bytes of both streams that a short command may print, as before an agent's greeting: rc files print, too."""
_QUOTED: Final = 60
"""Characters of them in an error."""


class ShortCommand(Session):
    """A command with a short answer: what it prints is kept, up to MOST_SAID bytes; printing more ends it.

    The caller closes it, with `close`.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._said = {False: bytearray(), True: bytearray()}
        """What came on standard output, and on standard error."""
        self._channel: Channel | None = None
        self._is_endless = False
        self._over = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    def connection_made(self, chan: Channel) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: DataType) -> None:
        room = MOST_SAID - sum(map(len, self._said.values()))
        self._said[datatype == STDERR_TYPE] += data[:room]
        if len(data) > room:
            self._is_endless = True
            self.close()
            self._end()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # without an exit status it was lost
        self._end()

    def _end(self) -> None:
        self._over.set()
        self._can_write.set()

    async def write(self, data: bytes) -> bool:
        """Writes to its standard input as fast as it is read; False when it has ended and reads no more."""
        if self._over.is_set() or self._channel is None:
            return False
        try:
            self._channel.write(data)
        except (BrokenPipeError, ConnectionResetError):  # its status is on its way, and says why
            return False
        await self._can_write.wait()
        await asyncio.sleep(0)  # its end may be waiting to be heard
        return True

    def write_eof(self) -> None:
        """Ends its standard input."""
        if self._channel is not None and not self._over.is_set():
            self._channel.write_eof()

    async def output(self) -> CommandOutput:
        """What it has said, once it has ended. Raises LoginShellError when that was more than it may say."""
        await self._over.wait()
        stdout, stderr = (bytes(self._said[is_error]) for is_error in (False, True))
        if self._is_endless:
            words = last_words(stdout or stderr, _QUOTED)
            raise LoginShellError(
                f"a command printed more than {readable(MOST_SAID)} and did not end ('{words}'); "
                "see what the account's login shell prints by itself (its rc files)",
                host=self._host,
            )
        return CommandOutput(None if self._channel is None else self._channel.get_exit_status(), stdout, stderr)

    def close(self) -> None:
        """Closes its channel. What runs on the host goes on, and its output is not read."""
        if self._channel is not None:
            self._channel.close()


class Writer(Protocol):
    """A command's standard input."""

    def write(self, data: bytes) -> None:
        """Queues bytes. Raises BrokenPipeError when the command reads no more."""

    async def drain(self) -> None:
        """Waits until more is taken. Raises BrokenPipeError."""

    def write_eof(self) -> None:
        """Ends it."""


class Reader(Protocol):
    """A command's standard output."""

    async def read(self, n: int = -1) -> bytes:
        """What there is, at most `n` bytes; nothing at its end. -1: all of it."""


class Ended(Protocol):
    """A command's end: its exit status and what was not yet read."""

    @property
    def exit_status(self) -> int | None: ...
    @property
    def exit_signal(self) -> Any: ...
    @property
    def stdout(self) -> bytes | str | None: ...
    @property
    def stderr(self) -> bytes | str | None: ...


class Process(Protocol):
    """A command that was started, with its streams."""

    @property
    def stdin(self) -> Writer: ...
    @property
    def stdout(self) -> Reader: ...

    async def wait(self) -> Ended:
        """Its end."""

    def close(self) -> None:
        """Lets go of it. What runs on the host goes on."""


class Connection(abc.ABC):
    """An open connection to a host. `transport` names the route it took."""

    transport: str
    has_sftp = True
    """Whether SFTP sessions may be had; where not, files are copied through the shell."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tunnel_used_at = 0.0
        """When a process on the host last used a tunnel of this connection, by the monotonic clock."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host} {'closed' if self.is_closed() else 'open'}>"

    @property
    def server(self) -> dict[str, Any] | None:
        """The host as scripts see it in `event.server`: name, address, user and port; None for this machine."""
        host = self.host
        return {"name": host.name, "address": host.address, "user": host.user, "port": host.port}

    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Whether it can be used no longer."""

    @abc.abstractmethod
    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command; its events go to the session that `make` makes. Raises asyncssh's errors.

        From `connection_made` on it is the session that closes the channel, also when this call is cancelled.
        """

    @abc.abstractmethod
    async def start_sftp(self) -> "asyncssh.SFTPClient":
        """An SFTP session. Raises asyncssh.SFTPError where there is none."""

    @abc.abstractmethod
    async def _start_process(self, command: str) -> Process:
        """Starts a command with streams of bytes. Raises asyncssh's errors."""

    async def forward(self, listen: str, port: int | None, answering: Callable[[], asyncio.Protocol]) -> int:
        """Has the host listen at a socket's path, or at a port (0: any) of an address; `answering` makes what answers.

        Returns the port, 0 for a socket. Raises asyncssh.ChannelListenError where the host refuses it.
        """
        del listen, port, answering
        raise asyncssh.ChannelListenError(f"there is no way back from {self.host}")

    @abc.abstractmethod
    def abort(self) -> None:
        """Ends the connection without a farewell; executions on the host go on."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends the connection; executions on the host go on."""

    def unacknowledged(self) -> int:
        """Bytes that were sent and wait for the other side's kernel to take them; 0 where that cannot be told."""
        return 0

    def acknowledge_quickly(self) -> None:  # noqa: B027 - not every kind has anything to acknowledge
        """Has the answers to what is asked now come without delay, where something could delay them."""

    async def run(self, command: str, *, timeout: float = 30.0) -> CommandOutput:
        """Runs a short command without input or terminal, for `timeout` seconds at most, its session's start included.

        Raises UnreachableError when that takes longer or the connection fails midway, LoginShellError when it prints
        more than MOST_SAID bytes, ControllerError for a NUL.
        """
        async with self.short_command(command, timeout) as running:
            running.write_eof()
            return await running.output()

    @contextlib.asynccontextmanager
    async def short_command(self, command: str, timeout: float) -> AsyncIterator[ShortCommand]:
        """A short command, started and let go of, after `timeout` seconds at the latest. Raises as `run` does."""
        self._refuse_nul(command)
        made: list[ShortCommand] = []  # one for each attempt to open its session

        def make() -> ShortCommand:
            made.append(ShortCommand(self.host.name))
            return made[-1]

        try:
            async with asyncio.timeout(timeout):
                await self.open_session(lambda: self.create_session(make, command))
                yield made[-1]
        except TimeoutError:
            raise UnreachableError(
                "host.unreachable", f"a command took longer than {timeout:g} s", host=self.host.name
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise UnreachableError("host.unreachable", reason(error), host=self.host.name) from None
        finally:
            for running in made:
                running.close()  # not waited for: a command that doesn't end keeps its channel open

    async def start(self, command: str) -> Process:
        """Starts a command, its streams as bytes. Raises asyncssh's errors, and ControllerError for a NUL."""
        self._refuse_nul(command)
        return await self.open_session(lambda: self._start_process(command))

    def _refuse_nul(self, command: str) -> None:
        """A server ends the whole connection when it meets one."""
        if "\0" in command:
            raise ControllerError("host.config", "a command cannot contain a NUL byte; remove it", host=self.host.name)

    async def open_session(self, opening: Callable[[], Awaitable[_Opened]]) -> _Opened:
        """What `opening` opens. Waits a little where there is no room for another session.

        A server counts a session until it has cleaned up after it, and may allow one only (MaxSessions 1).
        """
        for pause in _SESSION_PAUSES:
            try:
                return await opening()
            except asyncssh.ChannelOpenError as error:
                if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:  # opened, but it won't do what we asked for
                    raise
                if self.is_closed():  # it will never have room
                    raise
            await asyncio.sleep(pause)
        return await opening()
