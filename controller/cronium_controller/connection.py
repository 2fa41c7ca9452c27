"""One SSH connection to one host: opened over asyncssh, host key checked, dead peers noticed.

Knows nothing of runners and executions. Every foreign exception on the way to a connection ends here.
"""

import asyncio
import contextlib
import fcntl
import functools
import socket
import sys
import termios
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from .access import Access
from .errors import ControllerError, UnreachableError, reason
from .hosts import Host
from .jumps import Jump, jumps
from .login import Login, LoginClient
from .service_token import with_token
from .sessions import Channel, Connection, Session
from .ssh_config import identity_path, ssh_settings_of
from .ssh_library import asyncssh
from .ssh_options import options_of
from .ssh_settings import SSHSettings
from .transport import ATTEMPT_SECONDS, CLOUDFLARE, DIRECT, Attempt, Carried, Route, opened, unhurried

_QUICK_ACK_PAUSES: Final = (0.001, 0.003, 0.008, 0.02)
"""Seconds, the first ones short: on a quiet network the server's answers come within milliseconds."""
_SO_NWRITE: Final = 0x1024
"""macOS, sys/socket.h: a socket option that Python has no name for."""
_Opened = TypeVar("_Opened")
_CARRIED: Final = "cronium_carried"
"""What asyncssh keeps for us with a connection: the program that carries its bytes, or those of its first jump host."""
_CLOSE_SECONDS: Final = 5.0
"""For a host to take its leave; one that hangs never does."""


class _Opening:
    """A session that is being opened. One that was left meanwhile ends as soon as it is open, and runs nothing."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._make = make
        self.is_left = False

    def session(self) -> asyncssh.SSHClientSession[bytes]:
        session: Any = _Left() if self.is_left else self._make()  # the same calls as asyncssh's class has
        return session  # type: ignore[no-any-return]


class _Left(asyncssh.SSHClientSession[bytes]):
    def connection_made(self, chan: "asyncssh.SSHClientChannel[bytes]") -> None:
        chan.abort()  # before the command is sent


class SSHConnection(Connection):
    """An open connection over SSH. `transport` names the route it took."""

    transport = "direct"

    def __init__(self, host: Host, ssh: asyncssh.SSHClientConnection) -> None:
        super().__init__(host)
        self.ssh = ssh
        self._opening: set[asyncio.Task[Any]] = set()
        """Sessions that nobody waits for any more."""
        self._acknowledging: asyncio.Handle | None = None

    @property
    def server(self) -> dict[str, Any] | None:
        """With the user and the port that were used where the host leaves them to OpenSSH's configuration."""
        told = self.ssh.get_extra_info
        return {
            "name": self.host.name,
            "address": self.host.address,
            "user": self.host.user or told("username"),
            "port": self.host.port or told("port"),
        }

    def is_closed(self) -> bool:
        """Whether it can be used no longer."""
        return bool(self.ssh.is_closed())

    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command, as `Connection` says. A cancel before the session is made starts nothing."""
        opening = _Opening(make)
        creating = self.ssh.create_session(opening.session, command, encoding=None, request_pty=False)
        try:
            channel, _ = await self._whole(creating, lambda _: None)
        except asyncio.CancelledError:
            opening.is_left = True
            raise
        return channel

    async def start_sftp(self) -> asyncssh.SFTPClient:
        """An SFTP session. Raises asyncssh.SFTPError or ChannelOpenError where there is none."""
        return await self._whole(self.ssh.start_sftp_client(), lambda sftp: sftp.exit())

    async def _start_process(self, command: str) -> "asyncssh.SSHClientProcess[bytes]":
        creating = self.ssh.create_process(command, encoding=None, request_pty=False)
        return await self._whole(creating, lambda process: process.close())

    async def _whole(self, opening: Awaitable[_Opened], drop: Callable[[_Opened], None]) -> _Opened:
        """What is opened. When we are cancelled meanwhile, it is dropped once it is open.

        asyncssh would forget it, and the server count it among the sessions of a connection that others use.
        """
        task = asyncio.ensure_future(opening)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
            task.add_done_callback(lambda done: None if done.cancelled() or done.exception() else drop(done.result()))
            raise

    async def forward(self, listen: str, port: int | None, answering: Callable[[], asyncio.Protocol]) -> int:
        """Has the host listen at a socket's path or a port; each connection is a channel. Raises ChannelListenError."""
        from .tunnel import TunnelSession

        def accept(*_address: object) -> Any:  # asyncssh asks for a session of its own class, and calls the same
            return TunnelSession(answering(), self)

        if port is None:
            await self.ssh.create_unix_server(accept, listen, encoding=None)
            return 0
        return (await self.ssh.create_server(accept, listen, port, encoding=None)).get_port()

    def unacknowledged(self) -> int:
        """Bytes in the socket's send queue (tcp(7), SIOCOUTQ; on macOS the option SO_NWRITE)."""
        sock = self.ssh.get_extra_info("socket")
        try:
            if sys.platform == "darwin":
                return int(sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE))
            return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (AttributeError, OSError, ValueError):  # closed, or a channel of a jump host's connection
            return 0

    def acknowledge_quickly(self) -> None:
        """Sends TCP acknowledgements at once for a while, beginning with what has come so far.

        sshd keeps Nagle's algorithm on until a session has started; with our delayed acknowledgements the first channel
        of a connection would wait 40 ms. The kernel switches quick acknowledgements off again by itself, hence the
        repetition.
        """
        if self._acknowledging is not None:  # as for whoever asked just before: it begins anew
            self._acknowledging.cancel()
        sock = self.ssh.get_extra_info("socket")
        # A jump host's channel has no options, and macOS not this one.
        if hasattr(sock, "setsockopt") and hasattr(socket, "TCP_QUICKACK"):
            self._acknowledge(sock, asyncio.get_running_loop(), iter(_QUICK_ACK_PAUSES))

    def _acknowledge(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, pauses: Iterator[float]) -> None:
        self._acknowledging = None
        with contextlib.suppress(OSError):  # not TCP, or closed
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if (pause := next(pauses, None)) is not None:
                self._acknowledging = loop.call_later(pause, self._acknowledge, sock, loop, pauses)

    def abort(self) -> None:
        """Ends the connection without a farewell; executions on the host go on."""
        self.ssh.abort()

    async def close(self) -> None:
        """Ends the connection; executions on the host go on."""
        await _closed(self.ssh)


async def _closed(ssh: asyncssh.SSHClientConnection) -> None:
    """Ends a connection and those that it goes through, with the program that carries the first of them."""
    ssh.close()
    with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await ssh.wait_closed()
    carried: Carried | None = ssh.get_extra_info(_CARRIED)
    if carried is not None:
        await carried.wait_ended()


async def prepare(host: Host, access: Access) -> Attempt[SSHConnection]:
    """How a host is connected to. Raises ControllerError."""
    settings = await ssh_settings_of(host)
    timeout = access.connect_seconds(host, settings.connect_timeout)

    async def make(way: Route) -> SSHConnection:
        through = with_token(host) if way.transport == CLOUDFLARE else host
        connection = await open_connection(through, access, settings=settings, way=way)
        connection.host = host
        connection.transport = way.transport
        return connection

    return Attempt(make, timeout, max(ATTEMPT_SECONDS, timeout))


async def open_connection(
    host: Host, access: Access, *, settings: SSHSettings | None = None, way: Route | None = None
) -> SSHConnection:
    """Connects and authenticates. Raises HostKeyError, AuthenticationError or UnreachableError, each with the fix.

    One attempt. `way` is the direct one by default, which leads through the jump hosts that the settings ask for; their
    keys are checked as the host's own is. `settings` are asked for when they are not given.
    """
    settings = settings or await ssh_settings_of(host)
    way = way or Route(DIRECT, host.address)
    chain = await jumps(host, settings, ssh_settings_of) if way.transport == DIRECT else []
    if not chain:
        return SSHConnection(host, await _log_in(host, access, settings, way))
    tunnel = await _through(chain, host, access)
    through = f"through {', '.join(jump.host.name for jump in chain)}: "
    return SSHConnection(host, await _log_in_behind(tunnel, host, access, settings, host.name, through))


async def _through(chain: Sequence[Jump[SSHSettings]], host: Host, access: Access) -> asyncssh.SSHClientConnection:
    """A connection to the last of the jump hosts, which the others end with."""
    tunnel: asyncssh.SSHClientConnection | None = None
    for jump, settings in chain:
        timed = replace(jump, connect_timeout=host.connect_timeout)
        tunnel = await _log_in_behind(tunnel, timed, access, settings, host.name, f"at the jump host {jump}: ")
    assert tunnel is not None, "asked for one jump host at least"
    return tunnel


async def _log_in_behind(
    tunnel: asyncssh.SSHClientConnection | None,
    host: Host,
    access: Access,
    settings: SSHSettings,
    name: str,
    before: str,
) -> asyncssh.SSHClientConnection:
    """Connects through a tunnel, which ends with what is returned, or now; directly without one.

    Errors are told of the host `name`.
    """
    try:
        ssh = await _log_in(host, access, settings, tunnel or Route(DIRECT, host.address))
    except BaseException as error:
        if tunnel is not None:
            await _closed(tunnel)
        if isinstance(error, ControllerError):
            raise error.about(name, before) from None
        raise
    ssh.set_tunnel(tunnel)
    return ssh


async def _log_in(
    host: Host, access: Access, settings: SSHSettings, over: Route | asyncssh.SSHClientConnection
) -> asyncssh.SSHClientConnection:
    """Connects and authenticates by a route, or through a connection to a jump host."""
    timeout = access.connect_seconds(host, settings.connect_timeout)
    login = Login(
        settings,
        access.warn,
        host=host.name,
        identity=identity_path(host),
        policy=access.host_keys,
        known_hosts=access.known_hosts,
        passphrase=None if access.passphrase is None else unhurried(access.passphrase),
    )

    class Client(LoginClient):
        def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
            super().connection_made(conn)
            conn.send_packet = functools.partial(_send_packet, weakref.ref(conn))  # type: ignore[method-assign]

    try:
        await login.prepare(timeout)
        options = options_of(settings, host.name) | login.options()
        options |= {
            "client_factory": lambda: Client(login),
            "connect_timeout": timeout,
            "login_timeout": 2 * timeout,
            "keepalive_interval": host.keepalive_seconds or access.keepalive_seconds,
            "keepalive_count_max": host.keepalive_count or access.keepalive_count,
        }
        return await _connect(host, settings, options, over)
    except (TimeoutError, asyncssh.Error, OSError, UnicodeError, asyncssh.packet.PacketDecodeError) as error:
        if (refusal := login.failure(error)) is not None:
            raise refusal from None
        said = "; ".join(getattr(error, "__notes__", ()))
        dialled = over.address if isinstance(over, Route) else host.address
        told = f"cannot connect to {dialled}: {reason(error)}; check the address, and that SSH answers there"
        raise UnreachableError("host.unreachable", said or told, host=host.name) from None
    except ValueError as error:  # settings that contradict each other, an account without a name
        raise ControllerError("host.config", f"cannot prepare a connection: {error}", host=host.name) from None
    finally:
        login.close()


async def _connect(
    host: Host, settings: SSHSettings, options: dict[str, Any], over: Route | asyncssh.SSHClientConnection
) -> asyncssh.SSHClientConnection:
    if not isinstance(over, Route):
        ssh = await asyncssh.connect(settings.host_name, tunnel=over, **options)
        ssh.set_extra_info(**{_CARRIED: over.get_extra_info(_CARRIED)})
        return ssh
    async with opened(over, host, settings, options["connect_timeout"]) as sock:
        ssh = await asyncssh.connect(settings.host_name, tunnel=None, sock=sock, **options)
    ssh.set_extra_info(**{_CARRIED: Carried.of(sock)})
    return ssh


def _send_packet(its: "weakref.ref[asyncssh.SSHClientConnection]", kind: int, *content: bytes, **more: Any) -> None:
    """Sends a packet as asyncssh does, but not the empty one that it puts before each: they guard against an attack on
    CBC ciphers, and are half of all packets (docs/decisions/0018).
    """
    ssh = its()
    if ssh is not None and (
        kind != asyncssh.constants.MSG_IGNORE or "cbc" in str(ssh.get_extra_info("send_cipher", "cbc"))
    ):
        type(ssh).send_packet(ssh, kind, *content, **more)
