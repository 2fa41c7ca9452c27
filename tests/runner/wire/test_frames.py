"""Frames as bytes and back, however the bytes are cut, and lengths that lie."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Frame, FrameReader, GreetingReader, Kind, ProtocolError

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8)


def cut(content: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(content) + 1) for place in places), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds)]


@given(FRAMES, st.lists(st.integers(0, 10_000), max_size=40))
def test_any_frames_cut_anywhere_come_back_whole_and_in_order(
    sent: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    reader = FrameReader()
    content = b"".join(frames.encode(*frame) for frame in sent)
    got = [frame for piece in cut(content, places) for frame in reader.feed(piece)]
    assert got == [Frame(*frame) for frame in sent]


def test_one_byte_at_a_time() -> None:
    reader = FrameReader()
    content = frames.encode(200, 4_000_000_000, b"abc") + frames.encode(1, 0)
    got = [frame for at in range(len(content)) for frame in reader.feed(content[at : at + 1])]
    assert got == [Frame(200, 4_000_000_000, b"abc"), Frame(1, 0, b"")]


def test_a_body_of_exactly_the_limit_passes() -> None:
    body = bytes(frames.MAX_BODY)
    [frame] = FrameReader().feed(frames.encode(Kind.PAYLOAD, 1, body))
    assert frame.body == body


def test_a_body_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        frames.encode(Kind.PAYLOAD, 1, bytes(frames.MAX_BODY + 1))


@given(st.integers(frames.MAX_BODY + 1, 2**32 - 1))
def test_an_announced_length_over_the_limit_is_refused_before_its_body_arrives(length: int) -> None:
    with pytest.raises(ProtocolError, match="announces"):
        list(FrameReader().feed(struct.pack(">IBI", length, 2, 1)))


def test_frames_before_an_oversized_one_are_still_delivered() -> None:
    got: list[Frame] = []
    with pytest.raises(ProtocolError):
        got.extend(FrameReader(max_body=10).feed(frames.encode(1, 1, b"fine") + frames.encode(1, 2, bytes(11))))
    assert got == [Frame(1, 1, b"fine")]


@given(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=100))
def test_data_round_trips(stream: int, offset: int, piece: bytes) -> None:
    [frame] = FrameReader().feed(frames.encode_data(7, stream, offset, piece))
    assert (frame.kind, frame.channel) == (Kind.DATA, 7)
    assert frames.decode_data(frame.body) == (stream, offset, piece)


@given(st.integers(0, 255), st.integers(0, 2**32 - 1))
def test_credit_round_trips(stream: int, count: int) -> None:
    [frame] = FrameReader().feed(frames.encode_credit(7, stream, count))
    assert frames.decode_credit(frame.body) == (stream, count)


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x01\0\0\0", b"\x01\0\0\0\0\0"])
def test_credit_of_the_wrong_length_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.decode_credit(body)


@pytest.mark.parametrize("size", range(9))
def test_data_too_short_for_its_offset_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        frames.decode_data(bytes(size))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"null", b"\xff", b'{"a": NaN}', b'{"a":"\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Frame(2, 1, body).json()


@given(
    st.binary(max_size=200).filter(lambda junk: frames.MAGIC not in junk),
    st.binary(max_size=50),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_junk_before_the_greeting_is_set_aside_and_nothing_after_it_is_lost(
    junk: bytes, rest: bytes, places: list[int]
) -> None:
    reader = GreetingReader()
    after = bytearray()
    is_greeted = False
    for piece in cut(junk + frames.MAGIC + rest, places):
        if is_greeted:
            after += piece
        elif (begun := reader.feed(piece)) is not None:
            is_greeted = True
            after += begun
    assert is_greeted
    assert bytes(after) == rest
    assert bytes(reader.printed) == junk


def test_a_greeting_that_never_comes_is_given_up_with_what_was_printed() -> None:
    reader = GreetingReader()
    assert reader.feed(b"Welcome to web01\n" + bytes(frames.MAX_BEFORE_MAGIC - 100)) is None
    with pytest.raises(ProtocolError, match="no agent greeting"):
        reader.feed(bytes(200))
    assert reader.printed.startswith(b"Welcome to web01")


@pytest.mark.parametrize(("junk", "is_found"), [(frames.MAX_BEFORE_MAGIC, True), (frames.MAX_BEFORE_MAGIC + 1, False)])
@pytest.mark.parametrize("size", [1 << 16, 1 << 22])
def test_how_much_may_be_printed_before_the_greeting_does_not_depend_on_the_pieces(
    junk: int, is_found: bool, size: int
) -> None:
    """Found by fuzzing: in one piece any amount was taken."""
    content = bytes(junk) + frames.MAGIC + b"rest"
    reader = GreetingReader()
    found = None
    try:
        for start in range(0, len(content), size):
            found = reader.feed(content[start : start + size])
    except ProtocolError:
        assert not is_found
    assert (found == b"rest") is is_found
