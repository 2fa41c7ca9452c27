"""Frames of one conversation that have arrived and were not read yet: checked on arrival, and bounded.

The agent of a host is not trusted. Frames that the protocol does not allow here end its channel before anything of them
is kept: more output than was granted, an unknown stream, an offset that does not follow the last, a second end.
Frames of a kind that a newer agent may have are dropped. No I/O.
"""

from collections import deque
from typing import Final, NamedTuple

from cronium_runner.wire import frames
from cronium_runner.wire.frames import CREDIT, Frame, Kind, ProtocolError
from cronium_runner.wire.names import STREAM_NAMES

LONGEST_ANSWER: Final = 64 * 1024
"""Bytes of a frame that says a little: an id, a digest, a refusal of 2,000 characters."""
_JOINED: Final = 256 * 1024
"""Bytes up to which output that waits becomes one piece: single bytes would take a hundred times their size."""
_IN_ORDER: Final = 64
"""Waiting pieces that keep their order of arrival; beyond that many, those of one stream are joined."""
_MOST: Final = {
    Kind.ACCEPTED: 1,
    Kind.WANT_PAYLOAD: 2,  # asked again when its cache was emptied just then
    Kind.FINISHED: 1,
    Kind.REFUSED: 1,
    Kind.STATUS: 2,  # the end of a look, and the answer to an acknowledgement
}
"""How often a kind may come in one conversation."""
_ENDS: Final = (Kind.FINISHED, Kind.REFUSED, Kind.STATUS)
_LONG: Final = (Kind.FINISHED, Kind.STATUS)


class Piece(NamedTuple):
    """A piece of output: the stream (`names.STDOUT` or `STDERR`), its offset in the stream, and bytes."""

    stream: int
    offset: int
    data: bytes


class _Waiting:
    """Piece of one stream that waits to be taken."""

    __slots__ = ("data", "offset", "stream")

    def __init__(self, stream: int, offset: int, data: bytes) -> None:
        self.stream = stream
        self.offset = offset
        self.data: bytes | bytearray = data

    def join(self, data: bytes) -> bool:
        if len(self.data) + len(data) > _JOINED:
            return False
        if isinstance(self.data, bytes):
            self.data = bytearray(self.data)
        self.data += data
        return True


class Inbox:
    """The frames of one conversation, in the order in which they came."""

    def __init__(self, offsets: tuple[int, int] | None = None) -> None:
        """`offsets`: where the output that was asked for begins; None when none was asked for."""
        self._next = None if offsets is None else dict(zip(STREAM_NAMES, offsets, strict=True))
        self._credit = dict.fromkeys(STREAM_NAMES, CREDIT)
        self._counts: dict[int, int] = {}
        self.waiting: deque[Frame | _Waiting] = deque()
        """What has arrived and was not taken."""
        self._last: dict[int, _Waiting] = {}
        """Of each stream, the piece that came last and still waits."""
        self._is_over = False

    def __len__(self) -> int:
        return len(self.waiting)

    @property
    def size(self) -> int:
        """Bytes that wait to be taken."""
        return sum(len(one.data if isinstance(one, _Waiting) else one.body) for one in self.waiting)

    def grant(self, stream: int, count: int) -> None:
        """Allows the agent `count` more bytes of a stream."""
        self._credit[stream] += count

    def put(self, frame: Frame) -> bool:
        """Checks a frame that has arrived and queues it; False for one that is ignored. Raises ProtocolError."""
        if frame.kind == Kind.DATA:
            self._put_output(*frames.decode_data(frame.body))
            return True
        most = _MOST.get(frame.kind)  # type: ignore[call-overload]
        if most is None:
            return False
        count = self._counts[frame.kind] = self._counts.get(frame.kind, 0) + 1
        if count > most:
            raise ProtocolError(f"{Kind(frame.kind).name} came {count} times")
        if len(frame.body) > LONGEST_ANSWER and frame.kind not in _LONG:
            raise ProtocolError(f"{Kind(frame.kind).name} has {len(frame.body)} bytes; {LONGEST_ANSWER} at most")
        self._is_over |= frame.kind in _ENDS
        self.waiting.append(frame)
        return True

    def _put_output(self, stream: int, offset: int, data: bytes) -> None:
        if self._next is None:
            raise ProtocolError("output came that was not asked for")
        if stream not in self._next:
            raise ProtocolError(f"output of stream {stream}, which does not exist")
        name = STREAM_NAMES[stream]
        if self._is_over:
            raise ProtocolError(f"output on {name} came behind the end")
        if offset != self._next[stream]:
            raise ProtocolError(f"output on {name} at offset {offset} where {self._next[stream]} comes next")
        if not 0 < len(data) <= self._credit[stream]:
            raise ProtocolError(f"{len(data)} bytes on {name} where 1 to {self._credit[stream]} were granted")
        self._next[stream] += len(data)
        self._credit[stream] -= len(data)
        last = self._last.get(stream)
        is_next = last is not None and (self.waiting[-1] is last or len(self.waiting) > _IN_ORDER)
        if last is None or not is_next or not last.join(data):
            self._last[stream] = last = _Waiting(stream, offset, data)
            self.waiting.append(last)

    def take(self) -> Frame | Piece | None:
        """The next frame or piece of output; None when none waits."""
        if not self.waiting:
            return None
        one = self.waiting.popleft()
        if not isinstance(one, _Waiting):
            return one
        if self._last.get(one.stream) is one:
            del self._last[one.stream]
        return Piece(one.stream, one.offset, bytes(one.data))

    def clear(self) -> None:
        """Drops everything that waits."""
        self.waiting.clear()
        self._last.clear()
