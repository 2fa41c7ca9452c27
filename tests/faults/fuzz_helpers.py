"""Helper requests: words of the grammar and bytes of the protocol, sent as a script could send them.

The connection is a real socket pair, the values are real and on disk; the caps are small, so that a case reaches them.
"""

import socket
from collections.abc import Iterable
from typing import Any
from unittest import mock

from cronium_runner import helper_socket, helpers, values
from cronium_runner.helper_socket import MAGIC, Connection
from cronium_runner.wire import exactjson
from faults.fuzz_source import Source
from faults.fuzz_targets import check_message, room

SMALL_CAPS: dict[str, Any] = {
    "MAX_WORDS": 12,
    "MAX_WORDS_BYTES": 2000,
    "MAX_STDIN": 600,
    "MAX_DISCARDED": 1500,
    "MAX_CHUNK": 400,
}
MOST_RECEIVED = 8 + 12 * 4 + 2000 + 1024
"""Every word and its length, and one piece more."""
PIECE = 1024
ASKED_FOR_STDIN = b"I" + bytes(4)
CODES = {
    "", "input.key_not_found", "variable.not_found", "event.field_not_found", "value.invalid", "usage",
    "value.too_large", "store.failed", "tool.unavailable",
}  # fmt: skip
OPERANDS = (
    b"KEY", b"config.hosts.0", b"", b"-", b"--", b"--json", b"--default", b"V", b"true", b"OFF", b'{"a": 1}', b"[1.10]",
    b"\xff", b"a.b.c", b"0", b"eventId", b"x" * 500, b"NaN", b'"\\ud800"', b"\x00", b"\n", b"1" * 5000, b"\xe2\x80\xa8",
)  # fmt: skip
INPUT = exactjson.loads('{"KEY": 1.10, "config": {"hosts": ["a", {"b": null}]}, "a.b": "x", "": [1]}')


def helper_requests(data: bytes) -> None:
    """Any bytes: an answer as the protocol has it, or the end of this connection; and the same however they arrive."""
    source = Source(data)
    content = _words(source) + _stdin(source)
    if source.chance(2):
        content = source.mutated(content, (MAGIC, b"\xff\xff\xff\xff", bytes(4), b"\x00\x00\x00\x01", b"@watch"))
    with mock.patch.multiple(helper_socket, **SMALL_CAPS):
        whole = _conversed([content])
        assert _conversed(source.cut(content)) == whole
        assert _conversed([content[at : at + 3] for at in range(0, len(content), 3)]) == whole
    _check_answer(whole)


def helper_grammar(data: bytes) -> None:
    """Any words and any input: an answer with a known code, never an exception; printed values are JSON or text."""
    source = Source(data)
    words = [_name(source), *source.several(lambda: _operand(source), 5)]
    stdin = _operand(source) + source.rest()
    execution = _values()
    try:
        request = helpers.parse(words)
    except helpers.HelperError as error:
        answer = error.answer
    else:
        answer = helpers.execute(request, execution, stdin)
        if answer.status == 0 and request.as_json and answer.stdout:
            exactjson.loads(answer.stdout)
    assert answer.code in CODES
    _check_texts(answer.status, answer.stdout, answer.stderr)
    exactjson.encode({"output": execution.output, "variables": execution.changed_variables})


def _name(source: Source) -> bytes:
    return source.choice((*(name.encode() for name in helpers.HELPER_NAMES), b"", b"cronium.x", b"\xff", b"@watch"))


def _operand(source: Source) -> bytes:
    return source.choice(OPERANDS) if not source.chance(4) else source.take(source.below(12))


def _words(source: Source) -> bytes:
    words = [_name(source), *source.several(lambda: _operand(source), 4)]
    count = len(words) if not source.chance(12) else source.choice((0, 1, 13, 2**32 - 1))
    return MAGIC + count.to_bytes(4) + b"".join(_chunk(word) for word in words)


def _stdin(source: Source) -> bytes:
    chunks = source.several(lambda: _chunk(_operand(source) or b"x"), 5)
    return b"".join(chunks) + (bytes(4) if not source.chance(6) else b"")


def _chunk(content: bytes) -> bytes:
    return len(content).to_bytes(4) + content


def _values() -> values.BundledValues:
    folder = room() / "values"
    folder.mkdir(exist_ok=True)
    return values.BundledValues(
        str(folder), input=INPUT, variables={"KEY": "old"}, secrets={"V": "hidden"}, event={"name": "é"}
    )


def _conversed(pieces: Iterable[bytes]) -> tuple[bytes, bool]:
    """What a client gets that sends these pieces, and whether it turned out to be a watcher."""
    execution = _values()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        connection = Connection(theirs, lambda _, request, stdin: helpers.execute(request, execution, stdin))
        for start in (piece[at : at + PIECE] for piece in pieces for at in range(0, len(piece), PIECE)):
            ours.sendall(start)
            goes_on = connection.receive()
            assert len(connection._received) <= MOST_RECEIVED or connection.is_watch
            assert len(connection._stdin) <= SMALL_CAPS["MAX_STDIN"]
            assert not (goes_on and connection.has_unsent)
            if not goes_on or connection.is_watch:
                break
        is_watch = connection.is_watch
        connection.close()
        received = _received(ours)
        # A client that is cut off for what it sent may have been asked for its standard input just before, or not.
        return b"" if received == ASKED_FOR_STDIN else received, is_watch


def _received(ours: socket.socket) -> bytes:
    received = b""
    try:
        while piece := ours.recv(65536):
            received += piece
    except ConnectionResetError:  # what we sent too much was not read
        pass
    return received


def _check_answer(answer: tuple[bytes, bool]) -> None:
    left, is_watch = answer
    assert not is_watch or not left
    kinds, stdout, stderr = b"", b"", b""
    while left:
        kind, length = left[:1], int.from_bytes(left[1:5])
        body, left = left[5 : 5 + length], left[5 + length :]
        assert len(body) == length
        kinds += kind
        stdout += body if kind == b"O" else b""
        stderr += body if kind == b"E" else b""
        if kind == b"X":
            assert not left
            assert body[1:].decode("ascii") in CODES
            _check_texts(body[0], stdout, stderr)
    assert kinds in (b"", b"X", b"OX", b"EX", b"IX", b"IEX")


def _check_texts(status: int, stdout: bytes, stderr: bytes) -> None:
    """As PROTOCOL.md says: success writes nothing to standard error, failure nothing to standard output."""
    assert status in (0, 1, 2)
    if status == 0:
        assert not stderr
        assert not stdout or stdout.endswith(b"\n")
    else:
        assert not stdout
        assert stderr.startswith(b"Error: ")
        first, _, usage = stderr.decode().removesuffix("\n").partition("\n")
        check_message(first, longest=8000)  # with the script's own words in it, whole
        assert bool(usage) is (status == 2)
