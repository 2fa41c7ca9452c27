"""The way from a host to the runtime API here: sshd listens there for us, on the connection that is open anyway.

Each connection to that socket becomes a channel, whose bytes go straight to a protocol of the service in this process:
no socket of this machine is in between that somebody else could reach. Who may ask for what is `api`'s matter.
"""

import asyncio
import contextlib
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final

from cronium_runner.wire.access import LONGEST_SOCKET_PATH

from .errors import TunnelError, UnreachableError, reason
from .logs import logger
from .sessions import Connection, Session
from .ssh_library import asyncssh

LOOPBACK: Final = "127.0.0.1"
_NAME_BYTES: Final = 4
"""As 8 hexadecimal digits: in a folder of the account's own nobody else has to be kept from guessing it."""

Answering = Callable[[], asyncio.Protocol]
"""Makes what answers one connection."""

_log = logger("cronium.tunnel")


class Tunnels:
    """At most one tunnel a connection, for all its executions; it ends with the connection."""

    def __init__(self, *, allow_tcp: bool = False) -> None:
        """`allow_tcp`: a port of the host's loopback interface, which every account there can connect to, where the
        socket cannot be had."""
        self._allow_tcp = allow_tcp
        self._by_socket: _Open = weakref.WeakKeyDictionary()
        self._by_port: _Open = weakref.WeakKeyDictionary()

    async def endpoint(
        self, connection: Connection, sockets: object, answering: Answering, *, is_other_account: bool = False
    ) -> str:
        """Where executions on the host find the service. `sockets` is the folder that the agent there names.

        sshd makes the socket the login account's alone, so a job that runs as another one cannot connect to it.
        Raises TunnelError where no way is allowed, and UnreachableError when the connection is lost.
        """
        host = connection.host.name
        try:
            if is_other_account:
                raise account_refused(host)
            return await _shared(self._by_socket, connection, lambda: _forward_socket(connection, sockets, answering))
        except TunnelError:
            if not self._allow_tcp:
                raise
        try:
            return await self.port(connection, answering)
        except TunnelError:
            raise TunnelError(
                "api.tunnel_refused",
                "sshd there forwards neither a socket nor a port (AllowTcpForwarding, DisableForwarding); "
                "allow one of them, or see --mode prefer-api",
                host=host,
            ) from None

    async def port(self, connection: Connection, answering: Answering) -> str:
        """The service at a port of the host's loopback interface, which every account there can connect to.

        Raises TunnelError where the host forwards none, and UnreachableError when the connection is lost.
        """
        return await _shared(self._by_port, connection, lambda: _forward_port(connection, answering))


_Open = weakref.WeakKeyDictionary[Connection, "asyncio.Task[str]"]


async def _shared(tunnels: _Open, connection: Connection, opening: Callable[[], Awaitable[str]]) -> str:
    """The endpoint that whoever asked first has opened, or is opening. One that failed is tried again."""
    known = tunnels.get(connection)
    if known is None or (known.done() and (known.cancelled() or known.exception() is not None)):
        known = tunnels[connection] = asyncio.ensure_future(opening())
        known.add_done_callback(lambda done: done.cancelled() or done.exception())  # should nobody wait any more
    return await asyncio.shield(known)


def account_refused(host: str) -> TunnelError:
    """The error for a job that runs as another account than the socket's."""
    return TunnelError(
        "api.tunnel_account",
        "the tunnel's socket belongs to the account that logs in, and the job is to run as another; log in "
        "as that one, or allow a port that every account there can connect to with --allow-tcp-tunnel",
        host=host,
    )


def socket_path(sockets: object, host: str) -> str:
    """A new path in the folder that an agent names. Raises TunnelError where it names none that can be used."""
    path = f"{sockets}/{os.urandom(_NAME_BYTES).hex()}.api"
    if not isinstance(sockets, str) or not sockets.startswith("/") or len(path.encode()) > LONGEST_SOCKET_PATH:
        raise TunnelError(
            "api.tunnel_refused",
            "the runner there has no folder for the tunnel's socket, or its path is too long; "
            "look at it with cronium doctor, or allow a port with --allow-tcp-tunnel",
            host=host,
        )
    return path


async def _forward_socket(connection: Connection, sockets: object, answering: Answering) -> str:
    host = connection.host.name
    path = socket_path(sockets, host)
    try:
        await connection.forward(path, None, answering)
    except asyncssh.ChannelListenError:
        raise TunnelError(
            "api.tunnel_refused",
            "sshd there refuses to forward a socket (AllowStreamLocalForwarding, DisableForwarding, or a key's options "
            "in authorized_keys); allow it there, or a port with --allow-tcp-tunnel, or see --mode prefer-api",
            host=host,
        ) from None
    except (asyncssh.Error, OSError) as error:
        raise UnreachableError("host.unreachable", reason(error), host=host) from None
    _log.info("tunnel_opened", extra={"host": host, "path": path})
    return f"unix://{path}"


async def _forward_port(connection: Connection, answering: Answering) -> str:
    host = connection.host.name
    try:
        port = await connection.forward(LOOPBACK, 0, answering)
    except asyncssh.ChannelListenError:
        raise TunnelError(
            "api.tunnel_refused",
            "sshd there forwards no port (AllowTcpForwarding, PermitListen, DisableForwarding); allow it there",
            host=host,
        ) from None
    except (asyncssh.Error, OSError) as error:
        raise UnreachableError("host.unreachable", reason(error), host=host) from None
    _log.info("tunnel_opened", extra={"host": host, "port": port})
    return f"http://{LOOPBACK}:{port}"


class TunnelSession(Session):
    """One connection to the tunnel: what its channel calls, passed on to the service's protocol.

    What the protocol raises ends this channel: asyncssh would end the whole connection.
    """

    def __init__(self, protocol: asyncio.Protocol, connection: Connection) -> None:
        self._protocol = protocol
        self._connection = connection
        self._host = connection.host.name
        self._transport: _Transport | None = None

    def connection_made(self, chan: Any) -> None:
        self._transport = _Transport(chan, self._host)
        self._guarded(self._protocol.connection_made, self._transport)

    def data_received(self, data: bytes, datatype: Any) -> None:
        del datatype  # there is one kind of it on such channels
        self._connection.tunnel_used_at = time.monotonic()
        self._guarded(self._protocol.data_received, data)

    def eof_received(self) -> bool:
        return bool(self._guarded(self._protocol.eof_received))

    def pause_writing(self) -> None:
        self._guarded(self._protocol.pause_writing)

    def resume_writing(self) -> None:
        self._guarded(self._protocol.resume_writing)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None, "made before it is lost"
        self._transport.is_over = True
        self._guarded(self._protocol.connection_lost, exc)

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception:  # noqa: BLE001 - a boundary: see above
            _log.exception("tunnel_channel_failed", extra={"host": self._host})
            if self._transport is not None:
                self._transport.abort()
            return None


class _Transport(asyncio.Transport):
    """A channel as asyncio's protocols expect a transport. Its peer is the host, by the name that it has here."""

    def __init__(self, channel: Any, host: str) -> None:
        super().__init__({"peername": (host, 0)})
        self._channel = channel
        self._resuming: asyncio.Handle | None = None
        self.is_over = False

    def write(self, data: Any) -> None:
        if not self.is_over:
            with contextlib.suppress(OSError):  # closed by the other side; the protocol is told in a moment
                self._channel.write(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self.is_over:
            with contextlib.suppress(OSError):
                self._channel.write_eof()

    def close(self) -> None:
        """Ends it once everything has been sent."""
        self.is_over = True
        self._channel.close()

    def abort(self) -> None:
        """Ends it now."""
        self.is_over = True
        self._channel.abort()

    def is_closing(self) -> bool:
        return self.is_over

    def pause_reading(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Delivers again from the next turn of the event loop on, as a socket's transport does.

        asyncssh delivers what waits within its call. A protocol that resumes when it has answered, and pauses as it
        finds the next request in its own buffer, would be given a piece more for each request, and fill its buffer.
        """
        if self._resuming is None:
            self._resuming = asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        self._resuming = None
        if not self.is_over:
            self._channel.resume_reading()
