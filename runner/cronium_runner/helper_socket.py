"""The supervisor's side of the helper protocol (cronium_helpers/PROTOCOL.md): bytes of a connection in, answers out.

Non-blocking throughout: a client that stalls, lies about lengths or vanishes costs its own connection and nothing else.
What the words mean is `helpers`'s; what a watcher may ask is the supervisor's.
"""

import os
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from . import helpers

MAGIC: Final = b"CRH1"
MAX_WORDS: Final = 4096
MAX_WORDS_BYTES: Final = 16 * 1024 * 1024
MAX_STDIN: Final = 8 * 1024 * 1024
"""More than any value may have (`values.MAX_BYTES`), so more is refused without being kept."""
MAX_DISCARDED: Final = 64 * 1024 * 1024
"""Standard input is heard out up to here, so that the client can be told; what comes then is not read."""
MAX_CHUNK: Final = 1024 * 1024
BACKLOG: Final = 256
"""Connections that may wait while the supervisor is busy: 8 processes × 20 helpers at once fit."""

Execute = Callable[["Connection", helpers.Request, bytes | None], helpers.Answer | None]
"""Does a call for a connection. None: `Connection.answer` is given what it comes to, later."""


_TOO_LARGE: Final = "value.too_large"


class _ExcessError(Exception):
    """A request that is larger than any may be."""


class _BrokenError(Exception):
    """The client doesn't keep to the protocol."""


class _Phase(Enum):
    WORDS = auto()
    STDIN = auto()
    WAITING = auto()
    ANSWER = auto()
    EXCESS = auto()
    """As ANSWER, to a client that may still be sending what was too large: libraries read when they have sent all."""
    WATCH = auto()


def listen(path: str) -> socket.socket:
    """The helper socket of an execution, for our own account only."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    server.bind(path)
    os.chmod(path, 0o600)
    server.listen(BACKLOG)
    return server


class Connection:
    """One client's connection. `is_watch` once it has turned out to be a watcher instead of a helper."""

    def __init__(self, connected: socket.socket, execute: Execute) -> None:
        self.socket = connected
        self._execute = execute
        self._phase = _Phase.WORDS
        self._received = bytearray()
        self._stdin = bytearray()
        self._stdin_size = 0
        self._request: helpers.Request | None = None
        self._unsent = bytearray()
        self._is_deaf = False

    def fileno(self) -> int:
        """For epoll."""
        return self.socket.fileno()

    @property
    def is_watch(self) -> bool:
        """Whether this connection follows the execution instead of asking for a value."""
        return self._phase is _Phase.WATCH

    @property
    def is_deaf(self) -> bool:
        """Whether the client has said all it will, and waits for its answer: nothing is to be read any more."""
        return self._is_deaf

    @property
    def has_unsent(self) -> bool:
        """Whether part of the answer still waits for the client to read."""
        return bool(self._unsent)

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    def receive(self) -> bool:
        """Takes what has arrived. False when the connection is over."""
        try:
            piece = self.socket.recv(256 * 1024)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not piece:
            # A client may close its sending side and wait; when it is gone altogether, that is heard once more.
            was_deaf, self._is_deaf = self._is_deaf, True
            return self._phase is _Phase.WAITING and not was_deaf
        if self._phase is _Phase.WAITING:
            return True  # what comes after the request is nobody's
        if self._phase in (_Phase.ANSWER, _Phase.EXCESS):
            return self.send()
        self._received += piece
        try:
            self._advance()
        except _ExcessError as error:
            self._received.clear()
            self.answer(helpers.HelperError(_TOO_LARGE, str(error)).answer)
            self._phase = _Phase.EXCESS
        except _BrokenError:
            return False
        return self.send()

    def answer(self, answer: helpers.Answer) -> None:
        """What the call has come to; `send` sends it."""
        self._phase = _Phase.ANSWER
        if answer.stdout:
            self._unsent += _record(b"O", answer.stdout)
        if answer.stderr:
            self._unsent += _record(b"E", answer.stderr)
        self._unsent += _record(b"X", bytes([answer.status]) + answer.code.encode("ascii"))

    @property
    def received(self) -> bytearray:
        """What a watcher has sent; whoever reads it takes it out."""
        return self._received

    def send(self) -> bool:
        """Sends what the client will take now. False when the answer is out or nobody is there."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
            if self._phase is _Phase.EXCESS:
                self.socket.shutdown(socket.SHUT_WR)  # that was all; the client closes when it is ready
        except BlockingIOError:
            pass
        except OSError:
            return False
        return not (self._phase is _Phase.ANSWER and not self._unsent)

    def _advance(self) -> None:
        if self._phase is _Phase.WORDS:
            words = _take_words(self._received)
            if words is None:
                return
            if words[0] == b"@watch":
                self._phase = _Phase.WATCH
                return
            try:
                request = helpers.parse(words)
            except helpers.HelperError as error:
                self.answer(error.answer)
                return
            if not request.needs_stdin:
                self._do(request, None)
                return
            self._request = request
            self._phase = _Phase.STDIN
            self._unsent += _record(b"I", b"")
        if self._phase is _Phase.STDIN and self._take_stdin():
            assert self._request is not None
            if self._stdin_size > MAX_STDIN:
                too_large = f"standard input is larger than {MAX_STDIN >> 20} MiB; write a file instead"
                self.answer(helpers.HelperError(_TOO_LARGE, too_large).answer)
            else:
                self._do(self._request, bytes(self._stdin))

    def _do(self, request: helpers.Request, stdin: bytes | None) -> None:
        self._phase = _Phase.WAITING
        answer = self._execute(self, request, stdin)
        if answer is not None:
            self.answer(answer)

    def _take_stdin(self) -> bool:
        """Collects chunks of standard input; True once the empty one has come, or so much that nothing more is read."""
        received = self._received
        start = 0
        try:
            while len(received) - start >= 4:
                length = int.from_bytes(received[start : start + 4])
                if length > MAX_CHUNK:
                    raise _BrokenError
                if length == 0 or self._stdin_size > MAX_DISCARDED:
                    return True
                if len(received) - start - 4 < length:
                    return False
                self._stdin_size += length
                if self._stdin_size <= MAX_STDIN:
                    self._stdin += memoryview(received)[start + 4 : start + 4 + length]
                start += 4 + length
        finally:
            del received[:start]
        return False


def _record(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4) + body


def _take_words(received: bytearray) -> list[bytes] | None:
    """The request's words once all have arrived; None until then. Raises _BrokenError and _ExcessError."""
    if not received.startswith(MAGIC[: len(received)]):
        raise _BrokenError
    if len(received) < 8:
        return None
    count = int.from_bytes(received[4:8])
    if count < 1:
        raise _BrokenError
    if count > MAX_WORDS:
        raise _ExcessError(f"a call has {MAX_WORDS} words at most, and this one {count}; write a file instead")
    words: list[bytes] = []
    start, total = 8, 0
    for _ in range(count):
        if len(received) < start + 4:
            return None
        length = int.from_bytes(received[start : start + 4])
        total += length
        if total > MAX_WORDS_BYTES:
            raise _ExcessError(f"the value is larger than {MAX_WORDS_BYTES >> 20} MiB; write a file instead")
        if len(received) < start + 4 + length:
            return None
        words.append(bytes(memoryview(received)[start + 4 : start + 4 + length]))
        start += 4 + length
    del received[:start]
    return words
