"""Frames of a hostile agent, checked as they arrive; and output compared with the result. The agents: hostile_agent."""

import hashlib

import pytest

from cronium_controller.inbox import LONGEST_ANSWER, Inbox, Piece
from cronium_controller.received import Received
from cronium_runner.wire import frames
from cronium_runner.wire.frames import CREDIT, Frame, FrameReader, Kind, ProtocolError
from cronium_runner.wire.names import STDERR, STDOUT
from cronium_runner.wire.results import Outcome, Result, StreamSummary


def data(stream: int, offset: int, content: bytes) -> Frame:
    [frame] = FrameReader().feed(frames.encode_data(1, stream, offset, content))
    return frame


FINISHED = Frame(Kind.FINISHED, 1, b"{}")
ACCEPTED = Frame(Kind.ACCEPTED, 1, b"{}")
REFUSED: dict[str, tuple[list[Frame], str]] = {
    "more than was granted": ([data(STDOUT, 0, b"x" * (CREDIT + 1))], "were granted"),
    "more in two pieces": ([data(STDERR, 0, b"x" * CREDIT), data(STDERR, CREDIT, b"x")], "were granted"),
    "nothing": ([data(STDOUT, 0, b"")], "were granted"),
    "a third stream": ([data(3, 0, b"x")], "stream 3"),
    "stream zero": ([data(0, 0, b"x")], "stream 0"),
    "a gap": ([data(STDOUT, 0, b"ab"), data(STDOUT, 3, b"d")], "offset 3 where 2"),
    "an overlap": ([data(STDOUT, 0, b"ab"), data(STDOUT, 1, b"bc")], "offset 1 where 2"),
    "the beginning again": ([data(STDOUT, 0, b"ab"), data(STDOUT, 0, b"ab")], "offset 0 where 2"),
    "a huge offset": ([data(STDOUT, 2**64 - 1, b"x")], "where 0"),
    "output behind the end": ([FINISHED, data(STDOUT, 0, b"x")], "behind the end"),
    "output behind a refusal": ([Frame(Kind.REFUSED, 1, b"{}"), data(STDOUT, 0, b"x")], "behind the end"),
    "output behind a status": ([Frame(Kind.STATUS, 1, b"{}"), data(STDOUT, 0, b"x")], "behind the end"),
    "two ends": ([FINISHED, FINISHED], "came 2 times"),
    "two refusals": ([Frame(Kind.REFUSED, 1, b"{}")] * 2, "came 2 times"),
    "a third status": ([Frame(Kind.STATUS, 1, b"{}")] * 3, "came 3 times"),
    "two acceptances": ([ACCEPTED, ACCEPTED], "came 2 times"),
    "a third request for the payload": ([Frame(Kind.WANT_PAYLOAD, 1, b"{}")] * 3, "came 3 times"),
    "a long acceptance": ([Frame(Kind.ACCEPTED, 1, b"x" * (LONGEST_ANSWER + 1))], "at most"),
    "a long refusal": ([Frame(Kind.REFUSED, 1, b"x" * (LONGEST_ANSWER + 1))], "at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_not_come_is_refused_on_arrival(case: str) -> None:
    sent, sentence = REFUSED[case]
    inbox = Inbox((0, 0))
    for frame in sent[:-1]:
        inbox.put(frame)
    waiting = inbox.size
    with pytest.raises(ProtocolError, match=sentence):
        inbox.put(sent[-1])
    assert inbox.size == waiting, "nothing of it is kept"


def test_what_one_stream_was_granted_is_not_the_others() -> None:
    inbox = Inbox((0, 0))
    inbox.grant(STDOUT, 1)
    with pytest.raises(ProtocolError, match="were granted"):
        inbox.put(data(STDERR, 0, b"x" * (CREDIT + 1)))
    assert inbox.put(data(STDOUT, 0, b"x" * (CREDIT + 1)))


def test_output_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not asked for"):
        Inbox(None).put(data(STDOUT, 0, b"x"))


def test_what_may_come_is_handed_out_in_order() -> None:
    inbox = Inbox((3, 0))
    assert not inbox.put(Frame(99, 1, b"of a newer agent"))
    assert inbox.put(ACCEPTED)
    for number in range(200):
        inbox.put(data(STDOUT, 3 + number, bytes([number])))
    inbox.put(data(STDERR, 0, b"e" * CREDIT))
    inbox.grant(STDERR, 2)
    inbox.put(data(STDERR, CREDIT, b"!!"))
    inbox.put(Frame(Kind.FINISHED, 1, b"x" * (LONGEST_ANSWER + 1)))  # a result may be long
    assert len(inbox) < 10, "small pieces are joined"
    found = [inbox.take() for _ in range(len(inbox))]
    assert found[0] == ACCEPTED
    assert isinstance(found[-1], Frame)
    pieces = [one for one in found if isinstance(one, Piece)]
    assert b"".join(one.data for one in pieces if one.stream == STDOUT) == bytes(range(200))
    assert b"".join(one.data for one in pieces if one.stream == STDERR) == b"e" * CREDIT + b"!!"
    assert inbox.size == 0


def test_what_alternates_is_joined_up_to_a_size() -> None:
    inbox = Inbox((0, 0))
    for number in range(1000):
        inbox.put(data(STDOUT, number, b"o"))
        inbox.put(data(STDERR, number, b"e"))
    assert len(inbox) < 100
    for offset in range(1000, CREDIT - 1000, 1000):
        inbox.put(data(STDOUT, offset, b"o" * 1000))
    pieces = [one for one in iter(inbox.take, None) if isinstance(one, Piece)]
    assert max(len(piece.data) for piece in pieces) <= 256 * 1024
    assert sum(len(piece.data) for piece in pieces if piece.stream == STDERR) == 1000


def test_nothing_is_added_to_what_was_taken_or_dropped() -> None:
    inbox = Inbox((0, 0))
    inbox.put(data(STDOUT, 0, b"a"))
    assert inbox.take() == Piece(STDOUT, 0, b"a")
    inbox.put(data(STDOUT, 1, b"b"))
    inbox.clear()
    inbox.put(data(STDOUT, 2, b"c"))
    assert inbox.take() == Piece(STDOUT, 2, b"c")


WORDS = b"hello"
DIGEST = hashlib.sha256(WORDS).hexdigest()


def told(**changes: object) -> Result:
    result = Result("job", Outcome.SUCCEEDED, exit_code=0, stdout=StreamSummary(len(WORDS), sha256=DIGEST))
    return result._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offset", "content", "result", "sentence"),
    [
        (0, WORDS, told(), None),
        (0, b"hallo", told(), "others than its result says"),
        (0, WORDS[:4], told(), "4 bytes of stdout have arrived, and its result says 5"),
        (0, WORDS + b"!", told(), "6 bytes of stdout"),
        (0, b"", told(), "0 bytes of stdout"),
        (2, WORDS[2:], told(), None),
        (2, WORDS[2:4], told(), "4 bytes of stdout"),
        (2, b"xyz", told(), None),  # only its length can be compared
        (9, b"", told(), None),
        (0, b"hallo", told(stdout=StreamSummary(len(WORDS))), None),  # an older runner says no digest
        (0, b"", told(error_code="execution.collected"), None),
        (0, b"x", told(state=Outcome.LOST), None),
    ],
)
def test_output_is_compared_with_its_result(offset: int, content: bytes, result: Result, sentence: str | None) -> None:
    received = Received((offset, 0))
    for at in range(0, len(content), 2):
        received.add(Piece(STDOUT, offset + at, content[at : at + 2]))
    found = received.difference(result)
    assert found == sentence if sentence is None or found is None else sentence in found


def test_both_streams_are_compared() -> None:
    received = Received((0, 0))
    received.add(Piece(STDOUT, 0, WORDS))
    received.add(Piece(STDERR, 0, b"other"))
    summary = StreamSummary(len(WORDS), sha256=DIGEST)
    assert "stderr" in (received.difference(told(stderr=summary)) or "")
