"""One SSH connection to one host: opened over asyncssh, host key checked, dead peers noticed.

Knows nothing of runners and executions. Every foreign exception on the way to a connection ends here.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import asyncssh

from .errors import AuthenticationError, ControllerError, UnreachableError, reason
from .hostkeys import DEFAULT_PORT, HostKeyCheck, HostKeyPolicy, default_known_hosts
from .hosts import Host
from .service_token import with_token
from .transport import ATTEMPTS, CLOUDFLARE, Remembered, Route, opened, reach

CONNECT_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 30.0
KEEPALIVE_COUNT: Final = 4
"""Contracts §8. asyncssh gives a silent peer up after interval × (count + 1): here, two and a half minutes."""
_SESSION_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between attempts to open a session: sshd cleans up within milliseconds, on a busy machine within a second."""
_QUICK_ACK_ROUNDS: Final = 25

_Session = TypeVar("_Session")
_log = logging.getLogger("cronium.connection")


@dataclass(frozen=True, slots=True)
class Access:
    """How hosts are reached: host-key policy and file, timeouts in seconds, who is asked for a key's passphrase."""

    host_keys: HostKeyPolicy = HostKeyPolicy.ACCEPT_NEW
    known_hosts: str = field(default_factory=default_known_hosts)
    connect_timeout: float = CONNECT_SECONDS
    keepalive_seconds: float = KEEPALIVE_SECONDS
    """Silence after which the host is asked whether it is there, and how long each answer is awaited."""
    keepalive_count: int = KEEPALIVE_COUNT
    """Questions without an answer before the connection counts as lost."""
    attempts: int = ATTEMPTS
    """Over all routes of a host, with pauses between them, before it counts as unreachable."""
    ignores_health: bool = False
    """Whether a host that could not be reached lately is tried all the same."""
    passphrase: Callable[[str], str] | None = None
    warn: Callable[[str], None] = _log.warning


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a raw command on the host said. `exit_status` is None when the connection ended before it did."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes


class Connection:
    """An open connection. `transport` names the route it took."""

    transport = "direct"

    def __init__(self, host: Host, ssh: asyncssh.SSHClientConnection) -> None:
        self.host = host
        self.ssh = ssh

    def __repr__(self) -> str:
        return f"<Connection {self.host} {'closed' if self.is_closed() else 'open'}>"

    def is_closed(self) -> bool:
        """Whether it can be used no longer."""
        return bool(self.ssh.is_closed())

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

    async def start(self, command: str) -> "asyncssh.SSHClientProcess[bytes]":
        """Starts a command, its streams as bytes. Raises asyncssh's errors, and ControllerError for a NUL."""
        if "\0" in command:
            raise ControllerError("host.config", "a command cannot contain a NUL byte; remove it", host=self.host.name)
        return await self.open_session(lambda: self.ssh.create_process(command, encoding=None, request_pty=False))

    async def open_session(self, opening: Callable[[], Awaitable[_Session]]) -> _Session:
        """What `opening` opens. Waits a little where the server has no room for another session.

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

    async def close(self) -> None:
        """Ends the connection; executions on the host go on."""
        self.ssh.close()
        with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
            await asyncio.wait_for(self.ssh.wait_closed(), 5)


async def connect(host: Host, access: Access, remembered: Remembered, *, is_hurried: bool = False) -> Connection:
    """A connection by the first of the host's routes that works, tried as contracts §8 says.

    `is_hurried`: no further attempt begins once the connect timeout has gone by since the first one began.

    Raises HostKeyError, AuthenticationError or UnreachableError, each with the fix.
    """

    timeout = host.connect_timeout or access.connect_timeout

    async def attempt(way: Route) -> Connection:
        through = with_token(host) if way.transport == CLOUDFLARE else host
        async with opened(way, through, host.port or DEFAULT_PORT, timeout) as sock:
            connection = await open_connection(host, access, sock=sock)
        connection.transport = way.transport
        return connection

    retry_seconds = timeout if is_hurried else None
    return await reach(host, attempt, remembered, attempts=access.attempts, retry_seconds=retry_seconds)


async def open_connection(host: Host, access: Access, *, sock: socket.socket | None = None) -> Connection:
    """Connects and authenticates. Raises HostKeyError, AuthenticationError or UnreachableError, each with the fix.

    One attempt. `sock` is a connected socket to speak SSH over, which is then ours.
    Jump hosts of ~/.ssh/config are checked by asyncssh: strictly, against ~/.ssh/known_hosts.
    """
    check = HostKeyCheck(access.host_keys, access.known_hosts, access.warn, host=host.name)

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
            del host, addr, port  # `check.trusted` was asked for the same host just before
            return check.accept(key)

    options: dict[str, Any] = {
        "known_hosts": check.trusted,
        "client_factory": Client,
        "connect_timeout": host.connect_timeout or access.connect_timeout,
        "login_timeout": 2 * (host.connect_timeout or access.connect_timeout),
        "keepalive_interval": host.keepalive_seconds or access.keepalive_seconds,
        "keepalive_count_max": host.keepalive_count or access.keepalive_count,
    }
    if sock is not None:
        options["sock"] = sock
    if host.port is not None:
        options["port"] = host.port
    if host.user is not None:
        options["username"] = host.user
    if host.identity is not None:
        if not os.path.isfile(os.path.expanduser(host.identity)):
            raise ControllerError(
                "host.config", f"no private key at {host.identity}; correct --identity", host=host.name
            )
        options["client_keys"] = [os.path.expanduser(host.identity)]
    if access.passphrase is not None:
        options["passphrase"] = access.passphrase
        if host.identity is not None and _is_encrypted(options["client_keys"][0]):
            # Asked for now: asyncssh would ask late, and a wrong one would then look like the host's refusal.
            options["passphrase"] = access.passphrase(host.identity)
    elif os.environ.get("SSH_AUTH_SOCK"):
        options["ignore_encrypted"] = True  # as with `ssh -i`: the agent may hold the same key, open
    try:
        ssh = await _connect(host, options, check)
    except asyncssh.PermissionDenied as error:
        raise AuthenticationError(
            "host.auth_failed",
            f"the host refused our authentication ({reason(error)}); check the user and offer a key with --identity",
            host=host.name,
        ) from None
    except asyncssh.HostKeyNotVerifiable as error:
        raise check.explain(reason(error)) from None
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise ControllerError(
            "host.config",
            f"the private key cannot be used: {reason(error)}; give another with --identity, or use ssh-agent",
            host=host.name,
        ) from None
    except asyncssh.ConfigParseError as error:
        raise ControllerError(
            "host.config", f"~/.ssh/config cannot be used: {error}; mend it", host=host.name
        ) from None
    except (TimeoutError, asyncssh.Error, OSError) as error:
        raise UnreachableError(
            "host.unreachable",
            f"cannot connect to {host.address}: {reason(error)}; check the address, and that SSH answers there",
            host=host.name,
        ) from None
    return Connection(host, ssh)


def _is_encrypted(path: str) -> bool:
    """Whether a private key is there but can't be read without a passphrase."""
    try:
        asyncssh.read_private_key(path)
    except asyncssh.KeyImportError as error:
        return "assphrase" in str(error)
    except OSError:  # said when it is loaded
        pass
    return False


async def _connect(host: Host, options: dict[str, Any], check: HostKeyCheck) -> asyncssh.SSHClientConnection:
    """asyncssh asks for the recorded kinds of host key only, and a server that has none of them hangs up in silence.

    Asked for any kind it shows what it has, which `check` then refuses as a changed key.
    """
    try:
        return await asyncssh.connect(host.address, **options)
    except (asyncssh.ConnectionLost, asyncssh.KeyExchangeFailed, ConnectionError):
        if not check.has_record() or "sock" in options:  # a used socket can't be used again
            raise
    return await asyncssh.connect(host.address, server_host_key_algs="default", **options)


async def acknowledge_quickly(connection: Connection) -> None:
    """Sends TCP acknowledgements at once for a while.

    sshd keeps Nagle's algorithm on until a session has started; with our delayed acknowledgements the first channel of
    a connection would wait 40 ms. The kernel switches quick acknowledgements off again by itself, hence the repetition.
    """
    sock = connection.ssh.get_extra_info("socket")
    if not isinstance(sock, socket.socket) and not hasattr(sock, "setsockopt"):
        return
    for _ in range(_QUICK_ACK_ROUNDS):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except OSError:  # not TCP, or closed
            return
        await asyncio.sleep(0.001)


def _bytes(output: Any) -> bytes:
    return bytes(output) if output else b""
