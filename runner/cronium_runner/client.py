"""The helper client for machines that have no compiled one: the runner binary runs this under a helper's name.

Behaves as `helpers/cronium_helpers/client.c` does and knows nothing but PROTOCOL.md: words go to the supervisor,
bytes and an exit status come back. It starts once per helper call, so it imports next to nothing, and nothing
of ours.
"""

import fcntl
import os
import socket
import sys
from typing import BinaryIO

_CHUNK = 1 << 20
_GONE = "the supervisor of this execution is gone"


class _FailedError(Exception):
    """The call cannot be made, or its answer did not come; the message is one sentence."""


def main(argv: list[str]) -> int:
    """Make the call that `argv` is, its word 0 being the helper's name. Returns the exit status."""
    words = [os.fsencode(word) for word in argv]
    words[0] = os.path.basename(words[0])
    try:
        return _call(words)
    except _FailedError as error:
        _write(2, f"Error: {error}\n".encode())
        return 1
    except BrokenPipeError:
        return 128 + 13  # nobody reads our output; a compiled client would have died of SIGPIPE


def _call(words: list[bytes]) -> int:
    path = os.environb.get(b"CRONIUM_SOCKET")
    name = os.fsdecode(words[0])
    if not path:
        raise _FailedError(f"{name} works only inside a job: CRONIUM_SOCKET is not set")
    output = bytearray()
    with _above_standard_streams(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            raise _FailedError(f"no supervisor answers at CRONIUM_SOCKET: {error.strerror or error}") from None
        _send(connection, b"CRH1" + len(words).to_bytes(4, "big") + b"".join(map(_counted, words)))
        with connection.makefile("rb") as answer:
            while True:
                kind = _receive(answer, 1)
                content = _receive(answer, int.from_bytes(_receive(answer, 4), "big"))
                if kind == b"I":
                    _send_stdin(connection)
                elif kind == b"O":
                    output += content  # held back: a failed call leaves nothing on standard output
                elif kind == b"E":
                    _write(2, content)
                elif kind == b"X":
                    _write_output(output)
                    return content[0] if content else 1


def _above_standard_streams(connection: socket.socket) -> socket.socket:
    """A caller may have closed a standard stream; the connection must not take its place."""
    if connection.fileno() > 2:
        return connection
    with connection:
        return socket.socket(fileno=fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, 3))


def _counted(word: bytes) -> bytes:
    return len(word).to_bytes(4, "big") + word


def _send(connection: socket.socket, content: bytes) -> bool:
    """False when the supervisor no longer listens. It may have answered before, so that is no error yet."""
    try:
        connection.sendall(content)
    except OSError:
        return False
    return True


def _send_stdin(connection: socket.socket) -> None:
    while True:
        try:
            chunk = os.read(0, _CHUNK)
        except OSError as error:
            raise _FailedError(f"standard input cannot be read: {error.strerror}") from None
        if not _send(connection, _counted(chunk)) or not chunk:
            return


def _receive(answer: BinaryIO, size: int) -> bytes:
    try:
        content = answer.read(size)
    except OSError:
        content = b""
    if len(content) < size:
        raise _FailedError(_GONE)
    return content


def _write_output(content: bytes | bytearray) -> None:
    try:
        _write(1, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _FailedError(f"standard output cannot be written: {error.strerror}") from None


def _write(descriptor: int, content: bytes | bytearray) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
