"""What a connection to a host is, whatever carries it: commands and sessions, an end. SSH's is `connection`'s.

Whoever uses a host works on a `Connection`, and need not know whether there is a network in between. The errors are
asyncssh's on every kind of connection: no room for another session is no room, be it sshd's or this machine's.
"""

import abc
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from .errors import ControllerError, UnreachableError, reason
from .hosts import Host
from .ssh_library import asyncssh

_SESSION_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to open a session: sshd cleans up within milliseconds, on a busy machine within a second."""

_Opened = TypeVar("_Opened")


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


class Session(asyncssh.SSHClientSession[bytes]):
    """What hears of a command: the calls of `asyncssh.SSHClientSession`, with whatever channel there is."""

    def connection_made(self, chan: Channel) -> None:
        """The command may have been started from here on."""


class Writer(Protocol):
    """A command's standard input."""

    def write(self, data: bytes) -> None:
        """Queues bytes. Raises BrokenPipeError when nobody reads them any more."""

    async def drain(self) -> None:
        """Waits until more is taken. Raises likewise."""

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

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tunnel_used_at = 0.0
        """When somebody on the host used a tunnel of it last, by the monotonic clock."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.host} {'closed' if self.is_closed() else 'open'}>"

    @abc.abstractmethod
    def is_closed(self) -> bool:
        """Whether it can be used no longer."""

    @abc.abstractmethod
    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command that a session of ours hears of. Raises asyncssh's errors."""

    @abc.abstractmethod
    async def start_sftp(self) -> asyncssh.SFTPClient:
        """An SFTP session. Raises asyncssh.SFTPError where there is none."""

    @abc.abstractmethod
    async def _start_process(self, command: str) -> Process:
        """Starts a command with streams of bytes. Raises asyncssh's errors."""

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
        """Runs a short command without input or terminal. Raises UnreachableError when the connection fails midway.

        Raises ControllerError for a NUL: a server ends the whole connection when it meets one.
        """
        try:
            process = await self.start(command)
            try:
                process.stdin.write_eof()
                done = await asyncio.wait_for(process.wait(), timeout)
            finally:
                process.close()  # not waited for: a command that doesn't end keeps its channel open
        except TimeoutError:
            raise UnreachableError(
                "host.unreachable", f"a command took longer than {timeout:g} s", host=self.host.name
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise UnreachableError("host.unreachable", reason(error), host=self.host.name) from None
        return CommandOutput(done.exit_status, _bytes(done.stdout), _bytes(done.stderr))

    async def start(self, command: str) -> Process:
        """Starts a command, its streams as bytes. Raises asyncssh's errors, and ControllerError for a NUL."""
        if "\0" in command:
            raise ControllerError("host.config", "a command cannot contain a NUL byte; remove it", host=self.host.name)
        return await self.open_session(lambda: self._start_process(command))

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


def _bytes(output: Any) -> bytes:
    return bytes(output) if output else b""
