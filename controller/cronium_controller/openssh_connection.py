"""A connection by OpenSSH's own program: for what asyncssh cannot do (GSSAPI, security keys, PKCS#11, some proxies).

Commands are sessions of a master (`openssh_master`), their streams pipes that it reads and writes. Routes are tried as
for asyncssh. asyncssh itself is loaded for an error only.
"""

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from .access import Access
from .errors import reason
from .hosts import Host
from .openssh_command import settings_of
from .openssh_master import Master, attempt_seconds, connect_seconds, open_master
from .openssh_mux import Control, MasterGoneError, MuxError, SessionRequest
from .pipe_channel import PipeChannel, PipeProcess
from .sessions import Channel, Connection, DataType, Process, Session
from .ssh_library import asyncssh
from .transport import Attempt, Route

_SIGNALLED: Final = 255
"""The exit status of a command that a signal has ended, as of `ssh` itself: the master does not tell which signal."""
_TAKEN_SECONDS: Final = 5.0
"""For a master to take what was written to a command before the command is let go of."""
_TAKEN_PAUSE: Final = 0.005
_PROBE_SECONDS: Final = 15.0
"""For a command that does nothing."""
_INT: Final = struct.Struct("i")


class OpenSSHConnection(Connection):
    """An open connection that a master holds. `transport` names the route it took."""

    transport = "direct"
    has_sftp = False

    def __init__(self, host: Host, master: Master) -> None:
        super().__init__(host)
        self.master = master
        self.channels: set[PipeChannel] = set()
        self._forwardings: list[_Forwarding] = []
        self._accepted: set[asyncio.WriteTransport] = set()
        """What the master has connected to the sockets of forwardings, while it is open."""
        self._is_closed = False
        self.runs_commands = False
        """Whether a session has shown that the server runs commands: it has said something, or had an exit status."""
        self._probing: asyncio.Task[None] | None = None
        self._probe: PipeProcess | None = None

    @property
    def server(self) -> dict[str, Any] | None:
        """With the user and the port that were used where the host leaves them to OpenSSH's configuration."""
        host, told = self.host, self.master.settings.first
        port = host.port or int(told("port", "22"))
        return {"name": host.name, "address": host.address, "user": host.user or told("user"), "port": port}

    def is_closed(self) -> bool:
        """Whether it can be used no longer."""
        return self._is_closed or self.master.is_gone

    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command that a session of ours hears of. Raises asyncssh's errors."""
        return await self._started(make(), command)

    async def start_sftp(self) -> "asyncssh.SFTPClient":
        """Raises asyncssh.SFTPOpUnsupported: files are copied through the shell."""
        raise asyncssh.SFTPOpUnsupported("files are copied through the shell")

    async def _start_process(self, command: str) -> Process:
        process = PipeProcess()
        await self._started(process, command)
        return process

    async def _started(self, session: Session, command: str) -> "_MuxChannel":
        if self.is_closed():
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the connection is closed")
        channel = _MuxChannel(session, self)
        self.channels.add(channel)
        try:
            await channel.start(command)
        except MasterGoneError:
            channel.abort()
            self.abort()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the connection is closed") from None
        except (MuxError, OSError) as error:
            channel.abort()
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason(error)) from None
        except BaseException:
            channel.abort()
            raise
        return channel

    async def runs(self, ended: "_MuxChannel") -> bool:
        """Whether the server runs commands, asked once a first session has ended without a word or a status.

        That is what a refused command looks like, as well as one that a signal has ended.
        """
        if ended.session is self._probe:
            return True
        if self._probing is None:
            self._probing = asyncio.ensure_future(self._run_probe())
        await asyncio.shield(self._probing)
        return self.runs_commands

    async def _run_probe(self) -> None:
        self._probe = PipeProcess()
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._started(self._probe, "exit 0")
                await self._probe.wait()

    async def forward(self, listen: str, port: int | None, answering: Callable[[], asyncio.Protocol]) -> int:
        """Has the host listen at a socket's path or a port, for a socket here that only this account can connect to.

        Raises asyncssh.ChannelListenError where the host refuses it.
        """
        path = f"{os.path.dirname(self.master.path)}/{os.urandom(4).hex()}.api"
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Accepted(answering, self, self._accepted), path
        )
        forwarding = _Forwarding(listen, port, path, server)
        try:
            control = await Control.open(self.master.path)
            try:
                forwarding.port = found = await control.forward(listen, port, path)
            finally:
                control.close()
        except BaseException as error:
            forwarding.end()
            if not isinstance(error, MuxError | OSError):
                raise
            raise asyncssh.ChannelListenError(reason(error)) from None
        if port is None:
            forwarding.port = None
        self._forwardings.append(forwarding)
        return found

    def abort(self) -> None:
        """Ends the connection at once, also one that was to persist; executions on the host go on."""
        self._is_closed = True
        self.master.end()
        self._end_forwardings()
        for channel in list(self.channels):
            channel.abort()

    async def close(self) -> None:
        """Ends the connection, or lets go of one that persists; executions on the host go on."""
        self._is_closed = True
        for channel in list(self.channels):
            channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_SECONDS):
                while self.channels:
                    await asyncio.sleep(_TAKEN_PAUSE)
        for channel in list(self.channels):
            channel.abort()
        for forwarding in self._forwardings if self.master.persist else ():
            self.master.watch.cancel_forward(forwarding.listen, forwarding.port, forwarding.path)
        self._end_forwardings()
        await self.master.leave()

    def _end_forwardings(self) -> None:
        while self._forwardings:
            self._forwardings.pop().end()
        for transport in list(self._accepted):
            transport.abort()


@dataclass(slots=True)
class _Forwarding:
    """A place where the host listens for us, and the socket here that it leads to."""

    listen: str
    port: int | None
    path: str
    server: asyncio.Server

    def end(self) -> None:
        """Listens no longer."""
        self.server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class _Accepted(asyncio.Protocol):
    """One connection to such a socket, as a channel of a tunnel's session. It is in `accepted` while it is open."""

    def __init__(
        self,
        answering: Callable[[], asyncio.Protocol],
        connection: Connection,
        accepted: set[asyncio.WriteTransport],
    ) -> None:
        from .tunnel import TunnelSession

        self._session = TunnelSession(answering(), connection)
        self._connection = connection
        self._accepted = accepted
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._accepted.add(transport)
        self._session.connection_made(transport)
        if self._connection.is_closed():  # it was accepted before, and is handed over only now
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._session.data_received(data, None)

    def eof_received(self) -> bool:
        return self._session.eof_received()

    def pause_writing(self) -> None:
        self._session.pause_writing()

    def resume_writing(self) -> None:
        self._session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._accepted.discard(self._transport)
        self._session.connection_lost(exc)


class _MuxChannel(PipeChannel):
    """A session of a master."""

    def __init__(self, session: Session, connection: OpenSSHConnection) -> None:
        super().__init__(session, connection.channels.discard)
        self._connection = connection
        self._master = connection.master
        self._control: Control | None = None
        self._is_started = False
        self._told_status: int | None = None
        self._ending: asyncio.Task[None] | None = None
        self._explaining: asyncio.Task[None] | None = None
        self._untaken: int | None = None
        """A descriptor that tells how much of the input the master has yet to take, once the input has ended."""

    async def start(self, command: str) -> None:
        """Opens the session. Starts nothing when it is cancelled meanwhile. Raises MuxError and OSError."""
        await super().start(command)
        self._is_started = True
        self.resume_reading()
        if self._control is not None and self._control.ended.done():
            self._note_control_end(None)

    async def _begin(self, command: str, stdin: int, stdout: int, stderr: int) -> None:
        self.pause_reading()  # until the session knows its channel
        settings = self._master.settings
        request = SessionRequest(
            command.encode("utf-8", "surrogateescape"), settings.environment(), settings.forwards_agent
        )
        control = await Control.open(self._master.path, request.encode(), (stdin, stdout, stderr))
        control.exited = self._note_status
        opening = asyncio.ensure_future(control.opened())
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Only then: a master ends with all its sessions when one is left before the server has answered.
            opening.add_done_callback(partial(_close, control))
            raise
        except BaseException:
            control.close()
            raise
        self._control = control
        control.ended.add_done_callback(self._note_control_end)

    # -- what we do ----------------------------------------------------------------------------------------------------

    def write_eof(self) -> None:
        if self.is_writable():
            self._keep_untaken()
        super().write_eof()

    def close(self) -> None:
        if self.is_writable():
            self._keep_untaken()
        super().close()

    def _keep_untaken(self) -> None:
        """A second reading end of the input's pipe. The first one is the master's alone."""
        if self._untaken is None and self._input is not None:
            pipe = self._input.get_extra_info("pipe")
            with contextlib.suppress(OSError, ValueError):
                self._untaken = os.open(f"/proc/self/fd/{pipe.fileno()}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def abort(self) -> None:
        self._drop_untaken()
        super().abort()

    def _end(self) -> None:
        """Ends the session once the master has taken all of its input: what it has not read then is lost."""
        if self._untaken is None or self._has_exited:
            super()._end()
        elif self._ending is None:
            self._ending = asyncio.ensure_future(self._end_when_taken())

    async def _end_when_taken(self) -> None:
        deadline = time.monotonic() + _TAKEN_SECONDS
        while self._untaken is not None and not self._has_exited and time.monotonic() < deadline:
            unsent = 0 if self._input is None else self._input.get_write_buffer_size()
            if not unsent and not _INT.unpack(fcntl.ioctl(self._untaken, termios.FIONREAD, bytes(_INT.size)))[0]:
                break
            await asyncio.sleep(_TAKEN_PAUSE)
        self._drop_untaken()
        super()._end()

    def _drop_untaken(self) -> None:
        if self._untaken is not None:
            os.close(self._untaken)
            self._untaken = None

    def _let_go(self) -> None:
        self._drop_untaken()
        if self._control is not None:
            self._control.close()

    # -- what happens --------------------------------------------------------------------------------------------------

    def _hear(self, data: bytes, datatype: DataType) -> None:
        self._connection.runs_commands = True
        super()._hear(data, datatype)

    def _note_status(self, status: int) -> None:
        self._connection.runs_commands = True
        self._told_status = status

    def _note_control_end(self, _: Any) -> None:
        if self._is_over or not self._is_started:
            return
        if self._told_status is not None:
            self._note_exit(self._told_status)
        else:
            self._explaining = asyncio.ensure_future(self._note_unexplained_end())

    async def _note_unexplained_end(self) -> None:
        """A session that ended without an exit status: by a signal, or with its connection."""
        is_alive = await self._master.is_alive()
        if not is_alive or self._master.is_gone:
            self._note_exit(None)
        elif not self._connection.runs_commands and not await self._connection.runs(self):
            sentence = "the server refuses to run it"
            self._note_exit(None, asyncssh.ChannelOpenError(asyncssh.OPEN_REQUEST_SESSION_FAILED, sentence))
        else:
            self._note_exit(_SIGNALLED)


def _close(control: Control, opening: "asyncio.Task[None]") -> None:
    """Ends a session that was left while it was opened. Whether it could be opened is of no interest."""
    if not opening.cancelled():
        opening.exception()
    control.close()


async def prepare(host: Host, access: Access) -> Attempt[OpenSSHConnection]:
    """How a host is connected to. Raises ControllerError."""
    ssh, settings = await settings_of(host)
    timeout = connect_seconds(host, access, settings)

    async def make(way: Route) -> OpenSSHConnection:
        connection = OpenSSHConnection(host, await open_master(ssh, host, access, settings, way, timeout))
        connection.transport = way.transport
        return connection

    return Attempt(make, timeout, attempt_seconds(access, timeout))
