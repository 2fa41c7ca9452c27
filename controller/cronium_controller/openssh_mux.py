"""The control socket of an OpenSSH master: sessions and forwardings of a connection that `ssh` holds.

Version 4 of the protocol, which OpenSSH describes in PROTOCOL.mux and has spoken since 5.4 (2010). One socket
connection serves one session, which ends with it, or any number of questions. A session's streams are descriptors that
are handed over with it, so no process is started for one.
"""

import array
import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

VERSION: Final = 4
LONGEST_MESSAGE: Final = 256 * 1024
"""Bytes of a message to us, which is a number and at most a sentence. OpenSSH's own limit."""

_HELLO: Final = 0x00000001
_NEW_SESSION: Final = 0x10000002
_ALIVE_CHECK: Final = 0x10000004
_TERMINATE: Final = 0x10000005
_OPEN_FORWARD: Final = 0x10000006
_CLOSE_FORWARD: Final = 0x10000007
_OK: Final = 0x80000001
_PERMISSION_DENIED: Final = 0x80000002
_FAILURE: Final = 0x80000003
_EXIT_MESSAGE: Final = 0x80000004
_ALIVE: Final = 0x80000005
_SESSION_OPENED: Final = 0x80000006
_REMOTE_PORT: Final = 0x80000007

_REMOTE: Final = 2
"""The kind of a forwarding for which the server listens."""
_SOCKET_PORT: Final = 0xFFFFFFFE
"""The port of a place that is a socket's path."""
_NO_ESCAPE: Final = 0xFFFFFFFF
_NUMBER: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">II")
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_XUCRED_SIZE: Final = 76
"""Bytes of struct xucred on macOS (sys/ucred.h): two numbers, a count of 16 bits with padding, 16 groups."""
_BUSY_PAUSE: Final = 0.005
"""Seconds until a master is asked again that has 64 clients whom it has not yet let in."""


class MuxError(Exception):
    """The master refused a request, in its words."""


class MasterGoneError(MuxError):
    """No master answers at the socket."""


def encode(kind: int, *fields: int | bytes) -> bytes:
    """A message: numbers have 32 bits, strings their length in front."""
    body = b"".join(
        _NUMBER.pack(field) if isinstance(field, int) else _NUMBER.pack(len(field)) + field for field in fields
    )
    return _HEAD.pack(len(body) + 4, kind) + body


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a master."""

    kind: int
    body: bytes

    def number(self, at: int) -> int:
        """The number in the place `at`. Raises MuxError when it ends before."""
        try:
            return int(_NUMBER.unpack_from(self.body, 4 * at)[0])
        except struct.error:
            raise MuxError("an incomplete message") from None

    def text(self) -> str:
        """The string that follows the first number, for a message."""
        return self.body[8:].decode("utf-8", "replace")


class Messages:
    """Puts messages together from the pieces that arrive."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises MuxError for what is none."""
        self._waiting += data
        found = []
        while len(self._waiting) >= _HEAD.size:
            length, kind = _HEAD.unpack_from(self._waiting)
            if not 4 <= length <= LONGEST_MESSAGE:
                raise MuxError(f"a message of {length} bytes")
            if len(self._waiting) < 4 + length:
                break
            found.append(Message(kind, bytes(self._waiting[8 : 4 + length])))
            del self._waiting[: 4 + length]
        return found


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a session is to do there. `environment` holds NAME=VALUE."""

    command: bytes
    environment: Sequence[bytes] = ()
    forwards_agent: bool = False

    def encode(self) -> bytes:
        """The request, which is the first and only one of its socket connection."""
        return encode(
            _NEW_SESSION, 1, b"", 0, 0, int(self.forwards_agent), 0, _NO_ESCAPE, b"", self.command, *self.environment
        )


class Control(asyncio.Protocol):
    """One connection to a master's control socket."""

    def __init__(self) -> None:
        self._messages = Messages()
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Message] | None = None
        self._requests = 1
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the master has closed the connection, or we have."""
        self.exited: Callable[[int], None] = lambda _: None
        """Told the exit status of the session."""

    @classmethod
    async def open(cls, path: str, request: bytes = b"", descriptors: Sequence[int] = ()) -> "Control":
        """Connects, and sends a first request with what it hands over. Raises MasterGoneError and OSError."""
        control = cls()
        if request:
            control._answer = asyncio.get_running_loop().create_future()
        sock = await _connected(path)
        try:
            sock.sendall(encode(_HELLO, VERSION) + request)
            for descriptor in descriptors:
                rights = array.array("i", [descriptor])
                sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            await asyncio.get_running_loop().create_unix_connection(lambda: control, sock=sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise MasterGoneError(os.strerror(error.errno or errno.EPIPE)) from None
            raise
        return control

    # -- asyncio's calls ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._messages.feed(data):
                self._hear(message)
        except MuxError:
            self.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._is_over()

    def _is_over(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(MasterGoneError("the master has closed the connection"))
            self._answer.exception()  # retrieved, as it may not be waited for

    def _hear(self, message: Message) -> None:
        if message.kind == _EXIT_MESSAGE:
            self.exited(message.number(1))
        elif message.kind != _HELLO and self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    # -- what we do --------------------------------------------------------------------------------------------------

    async def opened(self) -> None:
        """Waits until the session of the first request is open. Raises MuxError when it is refused or lost."""
        await self._wait_answer(_SESSION_OPENED)

    async def ask_alive(self) -> int:
        """The process id of the master, which answers as long as its event loop runs. Raises MuxError."""
        return (await self._ask(_ALIVE, _ALIVE_CHECK)).number(1)

    async def forward(self, listen: str, port: int | None, to: str) -> int:
        """Has the server listen at a socket's path, or at a port of an address (0: any), for a socket here.

        Returns the port, 0 for a socket. Raises MuxError when it is refused.
        """
        answer = await self._ask(_OK, _OPEN_FORWARD, *_forwarding(listen, port, to))
        return answer.number(1) if answer.kind == _REMOTE_PORT else 0

    def cancel_forward(self, listen: str, port: int | None, to: str) -> None:
        """Ends a forwarding. The answer is not waited for."""
        self._send(_CLOSE_FORWARD, *_forwarding(listen, port, to))

    def terminate(self) -> None:
        """Has the master end, with everything on it."""
        self._send(_TERMINATE)

    def close(self) -> None:
        """Ends this connection, and the session on it."""
        if self._transport is not None:
            self._transport.abort()
        self._is_over()

    def _send(self, kind: int, *fields: int | bytes) -> None:
        self._requests += 1
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, self._requests, *fields))

    async def _ask(self, wanted: int, kind: int, *fields: int | bytes) -> Message:
        if self.ended.done():
            raise MasterGoneError("the master has closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._send(kind, *fields)
        return await self._wait_answer(wanted)

    async def _wait_answer(self, wanted: int) -> Message:
        assert self._answer is not None, "something was asked"
        answer = await self._answer
        if answer.kind in (_PERMISSION_DENIED, _FAILURE):
            raise MuxError(answer.text())
        if answer.kind != wanted and not (wanted == _OK and answer.kind == _REMOTE_PORT):
            raise MuxError(f"an answer of the kind {answer.kind:#x}")
        return answer


def _forwarding(listen: str, port: int | None, to: str) -> tuple[int | bytes, ...]:
    there = (os.fsencode(listen), _SOCKET_PORT if port is None else port)
    return (_REMOTE, *there, os.fsencode(to), _SOCKET_PORT)


async def _connected(path: str) -> socket.socket:
    """A socket connected to a master of ours. Raises MasterGoneError when there is none, OSError otherwise."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(path)
            _refuse_strangers(sock)
        except BlockingIOError:  # its queue is full; connecting again is the only way to wait for it (unix(7))
            sock.close()
            await asyncio.sleep(_BUSY_PAUSE)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            sock.close()
            raise MasterGoneError(os.strerror(error.errno or 0)) from None
        except BaseException:
            sock.close()
            raise
        else:
            return sock


def _refuse_strangers(sock: socket.socket) -> None:
    """Raises MasterGoneError for a socket that another user's process listens at."""
    uid = _peer_uid(sock)
    if uid != os.geteuid():
        raise MasterGoneError(f"another user (uid {uid}) listens at the socket")


def _peer_uid(sock: socket.socket) -> int:
    """The user at the other end of a Unix socket. Raises OSError."""
    if hasattr(socket, "SO_PEERCRED"):
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    else:  # macOS and FreeBSD, unix(4): struct xucred has a version, the uid and the groups
        _, uid = struct.unpack_from("II", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE))
    return int(uid)
