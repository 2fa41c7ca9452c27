"""The frames of PROTOCOL.md as bytes, both ways. No I/O: bytes in, frames out."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Final, NamedTuple

from . import exactjson

MAGIC: Final = b"\x1ecronium-agent\n"
PROTOCOL: Final = 1
MAX_BODY: Final = 16 * 1024 * 1024
"""Room for a large input in one SUBMIT; small enough that a hostile length can't exhaust memory."""
MAX_BEFORE_MAGIC: Final = 1024 * 1024
DATA_PIECE: Final = 256 * 1024
"""DATA and PAYLOAD are sent in pieces of this size: large enough to be fast, small enough to interleave."""
BEHIND_ALL: Final = (1 << 62, 1 << 62)
"""Offsets behind any output: whoever attaches there is sent none of it and hears of the end."""
CREDIT: Final = 4 * 1024 * 1024
"""Bytes of one stream under way: covers 100 ms at 320 Mbit/s, so that a long line is filled."""
SILENCE_SECONDS: Final = 120.0
PING_SECONDS: Final = 30.0

_HEADER: Final = struct.Struct(">IBI")
_DATA: Final = struct.Struct(">BQ")
_CREDIT: Final = struct.Struct(">BI")


class Kind(IntEnum):
    """What a frame says; see the table in PROTOCOL.md."""

    HELLO = 1
    SUBMIT = 2
    PAYLOAD = 3
    CREDIT = 4
    CANCEL = 5
    ATTACH = 6
    ACKNOWLEDGE = 7
    STATUS = 8
    DETACH = 9
    PING = 10
    PONG = 11
    GC = 12
    ACCEPTED = 65
    WANT_PAYLOAD = 66
    DATA = 67
    FINISHED = 68
    REFUSED = 69
    ERROR = 70


class ProtocolError(Exception):
    """The other side sent something that is not in the protocol."""


class Frame(NamedTuple):
    """One frame. `kind` is a plain number because a newer peer may send kinds that we don't know."""

    kind: int
    channel: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ProtocolError for anything else."""
        try:
            value = exactjson.loads(self.body)
        except ValueError as error:
            raise ProtocolError(f"frame {self.kind} carries no valid JSON: {error}") from None
        if not isinstance(value, dict):
            raise ProtocolError(f"frame {self.kind} carries {type(value).__name__} instead of an object")
        return value

    def told(self) -> dict[str, Any]:
        """The body as a JSON object whose texts are to be shown: cleaned, as the other side chose them.

        Raises ProtocolError.
        """
        from .text import clean_values  # of a controller only: an agent's start must not pay for it

        cleaned: dict[str, Any] = clean_values(self.json(), self.body)
        return cleaned


def encode(kind: int, channel: int, body: bytes = b"") -> bytes:
    """One frame as bytes. Raises ProtocolError when the body is over the limit."""
    if len(body) > MAX_BODY:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {MAX_BODY}")
    return _HEADER.pack(len(body), kind, channel) + body


def encode_json(kind: int, channel: int, value: dict[str, Any]) -> bytes:
    """One frame with a JSON object as its body."""
    return encode(kind, channel, exactjson.encode(value))


def encode_data(channel: int, stream: int, offset: int, piece: bytes) -> bytes:
    """A DATA frame: `piece` is at `offset` of the stream."""
    return encode(Kind.DATA, channel, _DATA.pack(stream, offset) + piece)


def decode_data(body: bytes) -> tuple[int, int, bytes]:
    """Stream, offset and bytes of a DATA frame."""
    if len(body) < _DATA.size:
        raise ProtocolError("a DATA frame is too short")
    stream, offset = _DATA.unpack_from(body)
    return stream, offset, body[_DATA.size :]


def encode_credit(channel: int, stream: int, count: int) -> bytes:
    """A CREDIT frame: `count` more bytes of the stream may be sent."""
    return encode(Kind.CREDIT, channel, _CREDIT.pack(stream, count))


def decode_credit(body: bytes) -> tuple[int, int]:
    """Stream and bytes of a CREDIT frame."""
    if len(body) != _CREDIT.size:
        raise ProtocolError("a CREDIT frame has the wrong length")
    stream, count = _CREDIT.unpack(body)
    return stream, count


class FrameReader:
    """Cuts a byte stream into frames. Feed it what arrived, iterate over what is complete."""

    def __init__(self, *, max_body: int = MAX_BODY) -> None:
        self._pending = bytearray()
        self._max_body = max_body

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """The frames that `piece` completes. Raises ProtocolError for a length over the limit."""
        pending = self._pending
        pending += piece
        start = 0
        try:
            while len(pending) - start >= _HEADER.size:
                length, kind, channel = _HEADER.unpack_from(pending, start)
                if length > self._max_body:
                    raise ProtocolError(f"a frame announces {length} bytes; the limit is {self._max_body}")
                end = start + _HEADER.size + length
                if len(pending) < end:
                    break
                body = bytes(memoryview(pending)[start + _HEADER.size : end])
                start = end
                yield Frame(kind, channel, body)
        finally:
            if start:
                del pending[:start]


class GreetingReader:
    """Finds the agent's magic line behind whatever a login shell prints first."""

    def __init__(self) -> None:
        self.printed = bytearray()
        """What came before the magic line, for the error message when it never comes."""

    def feed(self, piece: bytes) -> bytes | None:
        """None while the magic line has not come; then the bytes after it. Raises ProtocolError past 1 MiB."""
        seen = max(0, len(self.printed) - len(MAGIC))  # looked through before: a slow drip must not cost its square
        self.printed += piece
        # What counts is where the magic line begins, not how the bytes were cut into pieces.
        found = self.printed.find(MAGIC, seen, MAX_BEFORE_MAGIC + len(MAGIC))
        if found >= 0:
            rest = bytes(self.printed[found + len(MAGIC) :])
            del self.printed[found:]
            return rest
        if len(self.printed) >= MAX_BEFORE_MAGIC + len(MAGIC):
            raise ProtocolError(f"no agent greeting within {MAX_BEFORE_MAGIC} bytes")
        return None
