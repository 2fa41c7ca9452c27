"""The controller's reader of agent frames, fed by an agent that may do anything: a real channel and a real execution.

It must hand out output that is contiguous and was granted, hold no more than that, believe a result only when both
streams are what it says, and end in a result or a refusal by a listed code: no frame is a defect in cronium.
"""

import asyncio
import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from cronium_controller import execution as execution_module
from cronium_controller import inbox
from cronium_controller.channel import AgentChannel
from cronium_controller.errors import ControllerError
from cronium_controller.execution import Execution
from cronium_controller.hosts import Host
from cronium_runner.wire import exactjson, frames
from cronium_runner.wire.frames import FrameReader, Kind
from cronium_runner.wire.names import STREAM_NAMES
from cronium_runner.wire.results import Outcome, Result
from faults.fuzz_source import Source
from faults.fuzz_targets import check_code, check_message

CREDIT: Final = 600
MOST_IN_FRAME: Final = 2048
SMALL_CAPS: Final[dict[str, Any]] = {"CREDIT": CREDIT, "LONGEST_ANSWER": 300, "_JOINED": 200, "_IN_ORDER": 4}
"""So that a case of a kilobyte reaches each of them."""
MOST_WAITING: Final = 4 + 2 * (CREDIT // 100 + 2) + sum(inbox._MOST.values())
"""Entries: those in order, pieces of both streams that are at least half full, and one of each other kind."""
OFFSETS: Final = ((0, 0), (0, 0), (0, 0), (3, 0), (0, 900), None)
NUMBERS: Final = (0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
HELLO: Final = b'{"protocol": [1, 1], "knows": ["gc"]}'
DEEP: Final = b'{"\\u0041": 1, "message": ' + b"[" * 499 + b"]" * 499 + b"}"
"""As deep as JSON may be, with something in it that has to be cleaned."""
HELLOS: Final = (DEEP, HELLO, HELLO, b'{"protocol": 1, "knows": 5}', b"[]", b"\xff", b'{"knows": ["api", null]}')


class _Ssh:
    """The connection's channel; nobody is at its other end."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def write_eof(self) -> None: ...

    def close(self) -> None: ...

    def get_exit_status(self) -> None:
        return None


class _Kept:
    """A store that keeps one result."""

    def __init__(self) -> None:
        self.result: Result | None = None

    def note_state(self, _id: str, _state: str) -> None: ...

    def note_acknowledged(self, _id: str) -> None: ...

    def finish(self, result: Result, _at: float) -> bool:
        self.result = result
        return True


def channel_frames(data: bytes) -> None:
    """Any stream of frames, whatever is taken of it meanwhile."""
    with (
        mock.patch.multiple(inbox, **SMALL_CAPS),
        mock.patch.object(execution_module, "GRANTED_AT_ONCE", CREDIT // 4),
        _recursion_limit(1000),
    ):
        _loop().run_until_complete(_conversed(Source(data)))


@contextlib.contextmanager
def _recursion_limit(limit: int) -> Iterator[None]:
    """The interpreter's own; hypothesis raises it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _conversed(source: Source) -> None:
    channel: Any = AgentChannel("host")
    ssh = _Ssh()
    store: Any = _Kept()
    channel._ssh, channel._reader = ssh, FrameReader(max_body=MOST_IN_FRAME)
    hello = frames.encode(Kind.HELLO, 0, source.choice(HELLOS))
    for piece in source.cut(source.choice((b"", b"motd\n", b"\x1e\x1e")) + frames.MAGIC + hello):
        channel.hear(piece)
    offsets = source.choice(OFFSETS)
    job = None if source.chance(3) else _job(source)
    conversation = channel.converse(offsets)
    held = conversation._inbox
    execution = Execution("id", Host("host", "host"), "direct", conversation, store, job, offsets=offsets)
    taken, may_take = {stream: bytearray() for stream in STREAM_NAMES}, asyncio.Event()
    if not source.chance(3):
        may_take.set()
    following = asyncio.ensure_future(_follow(execution, taken, may_take))
    content = _content(source, offsets)
    for piece in source.cut(content, 40):
        channel.hear(piece)
        assert len(held) <= MOST_WAITING, len(held)
        assert held.size <= 2 * CREDIT + sum(inbox._MOST.values()) * MOST_IN_FRAME
        for _ in range(source.below(6)):
            await asyncio.sleep(0)
        if source.chance(9):
            may_take.set()
    may_take.set()
    channel.lose("the stream is over")
    outcome = await following
    await execution.wait_acknowledged()
    assert execution._deadline not in execution._deadline._timer.running
    assert ssh.written <= 4000 + 10 * len(content)
    first = offsets or (0, 0)
    assert execution.offsets == [begin + len(taken[stream]) for begin, stream in zip(first, taken, strict=True)]
    _check_outcome(outcome, channel, store, offsets, taken)


def _job(source: Source) -> Any:
    payload = SimpleNamespace(pieces=lambda: [b"payload"] * 3, label="payload", timeout=source.choice((None, 5.0)))
    return SimpleNamespace(payload=payload, timeout=None, job_id=None, on_disconnect="continue")


async def _follow(
    execution: Execution, taken: dict[int, bytearray], may_take: asyncio.Event
) -> Result | ControllerError:
    try:
        async for piece in execution.pieces():
            taken[piece.stream] += piece.data
            await may_take.wait()
        return await execution.result()
    except ControllerError as error:
        return error


def _check_outcome(
    outcome: Result | ControllerError,
    channel: AgentChannel,
    store: _Kept,
    offsets: tuple[int, int] | None,
    taken: dict[int, bytearray],
) -> None:
    check_code(channel.lost_code, "channel.")
    check_message(str(channel.lost), 5000)
    if isinstance(outcome, ControllerError):
        if outcome.code != "runner.internal":  # what an agent says of itself
            check_code(outcome.code)
        check_message(outcome.message, 5000)
        return
    check_message(outcome.error_message or "", 6000)
    if outcome.state is Outcome.UNKNOWN and store.result is None:
        assert outcome.error_code is not None
        if outcome.error_code != "runner.internal":
            check_code(outcome.error_code)
        return
    assert store.result == outcome, "what is told as its end was written down"
    assert outcome.execution_id == "id"
    if offsets is None or outcome.error_code == "execution.collected" or outcome.state is Outcome.LOST:
        return
    for (stream, content), first in zip(taken.items(), offsets, strict=True):
        summary = outcome.stdout if stream == 1 else outcome.stderr
        if content or first <= summary.size:
            assert summary.size == first + len(content)
        if content and first == 0 and summary.sha256 is not None:
            assert summary.sha256 == hashlib.sha256(content).hexdigest()


def _content(source: Source, offsets: tuple[int, int] | None) -> bytes:
    """Frames of an agent that begins well, mostly."""
    sent = {stream: bytearray() for stream in STREAM_NAMES}
    first = dict(zip(STREAM_NAMES, offsets or (0, 0), strict=True))
    content = b"" if source.chance(8) else _json(Kind.ACCEPTED, 1, {"executionId": "id", "started": True})
    for _ in range(source.below(40)):
        content += _frame(source, first, sent)
    if not source.chance(4):
        content += _json(Kind.FINISHED, 1, _result(source, first, sent))
    if source.chance(3):
        content += source.choice((_json(Kind.STATUS, 1, {"executions": []}), _frame(source, first, sent)))
    if source.chance(6):
        content = source.mutated(content, (b"\xff\xff\xff\xff", bytes(9), bytes([Kind.DATA]), frames.MAGIC))
    return content


def _frame(source: Source, first: dict[int, int], sent: dict[int, bytearray]) -> bytes:
    if not source.chance(8):
        return _output(source, first, sent)
    if source.chance(20):
        return source.take(source.below(20))
    kind = source.choice((10, 11, 70, 65, 66, 68, 69, 8, 1, 67, 4, 200, 0))
    number = source.choice((1, 1, 0, 2, 2**32 - 1))
    match source.below(5):
        case 0:
            body = source.take(source.below(40))
        case 4:
            body = DEEP
        case 1:
            body = b"x" * source.choice((0, 9, 300, 301, MOST_IN_FRAME, MOST_IN_FRAME + 1))
        case 2:
            body = _encoded({"code": source.json(1), "message": source.json(1), "executionId": source.json(1)})
        case _:
            body = _encoded({"executionId": "id", "started": source.json(1), "remaining": source.json(1)})
    return len(body).to_bytes(4) + bytes([kind]) + number.to_bytes(4) + body


def _output(source: Source, first: dict[int, int], sent: dict[int, bytearray]) -> bytes:
    """The next of a stream; now and then of another stream, at another place, of another size."""
    stream = 1 + source.below(2)
    piece = bytes([source.byte()]) * source.choice((1, 2, 10, 60, 200, 1, 3, 10))
    offset = first[stream] + len(sent[stream])
    match source.below(40):
        case 1:
            stream = source.choice((0, 3, 255))
        case 2:
            offset = source.choice((*NUMBERS, max(0, offset - 1), offset + 1))
        case 3:
            piece = b"y" * source.choice((0, CREDIT, CREDIT + 1, MOST_IN_FRAME - 9))
    if stream in sent:
        sent[stream] += piece
    return frames.encode(Kind.DATA, 1, bytes([stream]) + offset.to_bytes(8) + piece)


def _result(source: Source, first: dict[int, int], sent: dict[int, bytearray]) -> dict[str, Any]:
    told: dict[str, Any] = {"executionId": "id", "state": source.choice([state.value for state in Outcome])}
    for stream, name in STREAM_NAMES.items():
        digest = hashlib.sha256(sent[stream]).hexdigest() if first[stream] == 0 else "0" * 64
        told[name] = {"bytes": first[stream] + len(sent[stream]), "truncated": False, "sha256": digest}
    if source.chance(3):
        key = source.choice(("stdout", "stderr", "executionId", "state", "error", "exitCode", "usage", "output"))
        told[key] = source.json(2)
    if source.chance(6):
        told["stdout"] = {"bytes": source.choice(NUMBERS), "sha256": source.choice(("", "0" * 64))}
    return told


def _json(kind: int, channel: int, value: dict[str, Any]) -> bytes:
    body = _encoded(value)
    return len(body).to_bytes(4) + bytes([kind]) + channel.to_bytes(4) + body


def _encoded(value: Any) -> bytes:
    return exactjson.dumps(value).encode("utf-8", "surrogatepass")
