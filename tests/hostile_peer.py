"""A peer that speaks SSH, or something else, as no server should: what a client meets before it has authenticated.

`HostilePeer(behaviour)` listens on the loopback interface and treats every connection so; BEHAVIOURS has them by name.
Up to the key exchange they are real bytes on a socket, each packet as RFC 4253 has it. What only a server that
completes the key exchange can do is AFTER_KEY_EXCHANGE, by asyncssh's server. No pytest in it.
"""

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import asyncssh

EVIL = "bye\r\ncronium: all hosts ok\x1b[1A\x1b[2K\x1b]52;c;cm0gLXJmIC8=\x07\x9b31m\u202e"
"""Another line of ours, cursor movement, the clipboard, C1, a change of direction."""
VERSION = b"SSH-2.0-OpenSSH_9.9\r\n"
DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG, KEXINIT = 1, 2, 3, 4, 20

Behaviour = Callable[[socket.socket], None]


def packet(kind: int, content: bytes) -> bytes:
    """One packet before encryption: its length, that of its padding, the message, the padding."""
    payload = bytes([kind]) + content
    padding = 8 - (5 + len(payload)) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)


def text(words: str | bytes) -> bytes:
    """A string of the protocol."""
    encoded = words if isinstance(words, bytes) else words.encode()
    return struct.pack(">I", len(encoded)) + encoded


def disconnect(words: str | bytes) -> bytes:
    """A DISCONNECT that gives these words as its reason."""
    return packet(DISCONNECT, struct.pack(">I", 2) + text(words) + text("en"))


def says(*pieces: bytes) -> Behaviour:
    """Says this, and closes once the client has said all it wants."""

    def behave(sock: socket.socket) -> None:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass

    return behave


def floods(start: bytes, again: bytes) -> Behaviour:
    """Says this, and the second for ever."""

    def behave(sock: socket.socket) -> None:
        sock.sendall(start)
        block = again * max(1, 65536 // len(again))
        while True:
            sock.sendall(block)

    return behave


def drips(words: bytes) -> Behaviour:
    """A byte at a time, and never an end of line."""

    def behave(sock: socket.socket) -> None:
        sock.settimeout(0.05)
        while True:
            for byte in words:
                sock.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(65536):
                        return

    return behave


def keeps_silent(sock: socket.socket) -> None:
    """Takes what comes and never answers."""
    while sock.recv(65536):
        pass


def resets(sock: socket.socket) -> None:
    """Ends the connection without any farewell."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


_HTTP = b"HTTP/1.1 400 Bad Request\r\nServer: \x1b[2Jnginx\r\nContent-Length: 3\r\n\r\nno\n"
BEHAVIOURS: dict[str, Behaviour] = {
    "endless banner": floods(b"", f"welcome {EVIL}\r\n".encode()),
    "endless line": floods(b"", b"x" * 1024),
    "no banner": keeps_silent,
    "http": says(_HTTP),
    "dripping": drips(b"SSH-2.0-slow"),
    "reset": resets,
    "closes at once": says(),
    "closes after version": says(VERSION),
    "version with escapes": says(f"SSH-2.0-{EVIL}\r\n".encode()),
    "version of the year 1995": says(b"SSH-1.5-\x1b[2Jold\r\n"),
    "version that is long": says(b"SSH-2.0-" + b"v" * 100_000 + b"\r\n"),
    "disconnect with escapes": says(VERSION, disconnect(EVIL)),
    "disconnect with a newline": says(VERSION, disconnect("no\ncronium: all hosts ok\n")),
    "disconnect that is long": says(VERSION, disconnect("\x1b[31m" + "long " * 6000)),
    "disconnect that is no text": says(VERSION, disconnect(b"\xff\xfe\x9b2J\x00")),
    "packet that is huge": says(VERSION, struct.pack(">IB", 0x7FFFFFFF, 4) + bytes(65536)),
    "packet of no length": says(VERSION, struct.pack(">IB", 0, 0) * 1000),
    "garbage for a key exchange": says(VERSION, packet(KEXINIT, os.urandom(200))),
    "no common algorithm": says(VERSION, packet(KEXINIT, bytes(16) + text(f"x,{EVIL}") * 10 + bytes(5))),
    "ignore flood": floods(VERSION, packet(IGNORE, text("x" * 1000))),
    "debug flood": floods(VERSION, packet(DEBUG, b"\x01" + text(EVIL) + text("en"))),
    "unknown message": says(VERSION, packet(UNIMPLEMENTED, bytes(4)) + packet(255, text(EVIL))),
}


class HostilePeer:
    """Listens at `port` of 127.0.0.1 while it is entered, and treats every connection alike."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._connected: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def __enter__(self) -> Self:
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for sock in (self._listening, *list(self._connected)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join()
        self._listening.close()

    def _begin(self, run: Callable[..., None], *given: object) -> None:
        thread = threading.Thread(target=run, args=given, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_over:
                sock, _ = self._listening.accept()
                self._connected.add(sock)
                self._begin(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # the client has gone, which is what is tested
            self._behaviour(sock)
        self._connected.discard(sock)


class BlackHole:
    """A port behind which nobody ever accepts: the kernel takes the connection, and that is all."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()


class DroppedPackets(BlackHole):
    """A port whose queue is full: the kernel answers no further connection."""

    def __init__(self) -> None:
        super().__init__()
        self._listening.listen(0)
        self._queued = []
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", self.port))
            self._queued.append(waiting)

    def __exit__(self, *_: object) -> None:
        for waiting in self._queued:
            waiting.close()
        super().__exit__()


class _Server(asyncssh.SSHServer):
    """Completes the key exchange, then does what `act` says of the connection; lets nobody in."""

    def __init__(self, act: Callable[[asyncssh.SSHServerConnection], None]) -> None:
        self._act = act

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def begin_auth(self, username: str) -> bool:
        del username
        self._act(self._connection)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username, key
        return False


def _banners(connection: asyncssh.SSHServerConnection) -> None:
    for _ in range(100):
        connection.send_auth_banner(EVIL)


AFTER_KEY_EXCHANGE: dict[str, Callable[[asyncssh.SSHServerConnection], None]] = {
    "banners with escapes": _banners,
    "banner that is long": lambda connection: connection.send_auth_banner(EVIL * 500),
    "too many failures": lambda connection: connection.disconnect(14, f"Too many authentication failures {EVIL}"),
    "hangs up at the login": lambda connection: connection.abort(),
}


@contextlib.contextmanager
def server_that(act: Callable[[asyncssh.SSHServerConnection], None], **options: Any) -> Iterator[int]:
    """The port of an SSH server with a key of its own that does this at each login. `options` are asyncssh's."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.create_server(
            lambda: _Server(act),
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            **options,
        )

    async def close(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        await acceptor.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield acceptor.get_port()
    finally:
        asyncio.run_coroutine_threadsafe(close(acceptor), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
