"""The helper socket of a running execution, against clients that stall, lie and vanish.

All talk to one real supervisor whose script just waits; each test ends by seeing that it still answers.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cronium_runner import helper_socket
from runner_process import AgentProcess, Host, wait_until

WAITING = "echo ready\nuntil [ -e go ]; do sleep 0.02; done\n"


class Supervised:
    """A running execution and its socket."""

    def __init__(self, path: str, pid: int) -> None:
        self.path = path
        self.pid = pid

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(self.path)
        return connection

    def call(self, *words: bytes) -> bytes:
        """Sends a request and returns all that comes back."""
        with self.connect() as connection:
            connection.sendall(request(*words))
            return read_to_end(connection)

    def is_serving(self) -> bool:
        """Whether a helper call gets its answer."""
        return self.call(b"cronium.setVariable", b"ALIVE", b"yes") == record(b"X", b"\0")


def request(*words: bytes) -> bytes:
    return b"CRH1" + struct.pack(">I", len(words)) + b"".join(struct.pack(">I", len(word)) + word for word in words)


def record(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(body)) + body


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the other side closes; a reset is an end as well."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


@pytest.fixture(scope="module")
def supervised(shared_host: Host) -> Iterator[Supervised]:
    with AgentProcess(shared_host) as agent:
        channel = agent.start(shared_host.payload(WAITING), "job", input={"k": "v"}, variables={"A": "1"})
        claim = shared_host.wait_running("job", b"ready")
        yield Supervised(claim["socket"], claim["supervisor"]["pid"])
        (shared_host.execution("job") / "work/go").touch()
        assert agent.finished(channel)["state"] == "succeeded"
        assert agent.close() == 0


def test_the_socket_is_for_our_account_alone(supervised: Supervised) -> None:
    assert stat.S_IMODE(os.stat(supervised.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(supervised.path)).st_mode) == 0o700
    assert len(supervised.path) <= 107


def test_an_answer_is_records_ending_with_the_status(supervised: Supervised) -> None:
    assert supervised.call(b"cronium.input", b"k") == record(b"O", b"v\n") + record(b"X", b"\0")
    answer = supervised.call(b"cronium.input", b"missing")
    assert answer == record(b"E", b"Error: input key 'missing' not found\n") + record(b"X", b"\1input.key_not_found")


def test_a_request_may_come_one_byte_at_a_time(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        for byte in request(b"cronium.getVariable", b"A"):
            connection.sendall(bytes([byte]))
        assert read_to_end(connection) == record(b"O", b"1\n") + record(b"X", b"\0")


def test_standard_input_is_asked_for_and_taken_in_chunks_however_cut(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"IN"))
        assert connection.recv(100) == record(b"I")
        chunks = b"".join(struct.pack(">I", len(part)) + part for part in (b'"ab', b"c", b'd"')) + bytes(4)
        for byte in chunks:
            connection.sendall(bytes([byte]))
        assert read_to_end(connection) == record(b"X", b"\0")
    assert supervised.call(b"cronium.getVariable", b"IN").startswith(record(b"O", b"abcd\n"))


def test_a_large_value_goes_in_and_comes_out_whole(supervised: Supervised) -> None:
    value = b"0123456789abcdef" * 300_000
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"LARGE"))
        assert connection.recv(100) == record(b"I")
        for start in range(0, len(value), 1 << 20):
            piece = value[start : start + (1 << 20)]
            connection.sendall(struct.pack(">I", len(piece)) + piece)
        connection.sendall(bytes(4))
        assert read_to_end(connection) == record(b"X", b"\0")
    assert supervised.call(b"cronium.getVariable", b"LARGE") == record(b"O", value + b"\n") + record(b"X", b"\0")
    assert supervised.call(b"cronium.setVariable", b"LARGE", b"") == record(b"X", b"\0")


def test_standard_input_larger_than_any_value_is_heard_out_and_refused(supervised: Supervised) -> None:
    piece = bytes(1 << 20)
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"HUGE"))
        assert connection.recv(100) == record(b"I")
        for _ in range(9):
            connection.sendall(struct.pack(">I", len(piece)) + piece)
        connection.sendall(bytes(4))
        answer = read_to_end(connection)
    assert answer.startswith(b"E")
    assert b"larger than 8 MiB" in answer
    assert answer.endswith(b"\1value.too_large")


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"CRH2" + bytes(4),
        b"C" + b"\0" * 10,
        b"CRH1" + struct.pack(">I", 0),
    ],
    ids=["http", "version", "junk", "no words"],
)
def test_what_does_not_keep_to_the_protocol_is_hung_up_on(supervised: Supervised, content: bytes) -> None:
    with supervised.connect() as connection:
        connection.sendall(content)
        assert read_to_end(connection) == b""
    assert supervised.is_serving()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack(">I", 4097), b"4096 words at most"),
        (b"\xff" * 4, b"4096 words at most"),
        (struct.pack(">II", 1, 16 * 1024 * 1024 + 1), b"larger than 16 MiB"),
        (struct.pack(">II", 1, 2**32 - 1), b"larger than 16 MiB"),
        (struct.pack(">II", 2, 1) + b"a" + struct.pack(">I", 16 * 1024 * 1024), b"larger than 16 MiB"),
    ],
    ids=["too many", "most words", "long word", "longest word", "sum of words"],
)
@pytest.mark.parametrize("more", [0, 40 << 20])
def test_a_request_that_is_too_large_is_told_so(supervised: Supervised, content: bytes, said: bytes, more: int) -> None:
    with supervised.connect() as connection:
        connection.sendall(b"CRH1" + content)
        connection.sendall(bytes(more))  # as libraries do, which read nothing before they have sent all
        answer = read_to_end(connection)
    assert answer.startswith(b"E")
    assert said in answer
    assert answer.endswith(b"\1value.too_large")
    assert supervised.is_serving()


def test_a_chunk_over_its_limit_is_hung_up_on(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.output"))
        assert connection.recv(100) == record(b"I")
        connection.sendall(struct.pack(">I", (1 << 20) + 1))
        assert read_to_end(connection) == b""
    assert supervised.is_serving()


def test_endless_standard_input_is_told_so_and_hung_up_on(supervised: Supervised) -> None:
    chunk = struct.pack(">I", 1 << 20) + bytes(1 << 20)
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"ENDLESS"))
        assert connection.recv(100) == record(b"I")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(chunk * 100)
        assert b"standard input is larger than 8 MiB" in read_to_end(connection)
    assert supervised.is_serving()


@pytest.mark.parametrize(
    "words", [[b"cronium.nothing"], [b""], [b"\xff\xfe"], [b"@other"], [b"cronium.input", b"\xff"]]
)
def test_words_that_mean_nothing_get_an_answer(supervised: Supervised, words: list[bytes]) -> None:
    answer = supervised.call(*words)
    assert answer.startswith(b"E")
    assert answer[5 + int.from_bytes(answer[1:5]) :][5:6] in (b"\1", b"\2")
    assert supervised.is_serving()


@pytest.mark.parametrize("sent", [0, 2, 4, 7, 8, 11, 14])
def test_a_client_that_vanishes_in_the_middle_costs_only_itself(supervised: Supervised, sent: int) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"HALF", b"x")[:sent])
    assert supervised.is_serving()


def test_a_request_that_was_cut_short_changes_nothing(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"CUT", b"x")[:-1])
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.setVariable", b"CUT") + struct.pack(">I", 1) + b"x")
    assert b"variable.not_found" in supervised.call(b"cronium.getVariable", b"CUT")


def test_stalled_clients_hold_up_nobody(supervised: Supervised) -> None:
    stalled = [supervised.connect() for _ in range(100)]
    try:
        for number, connection in enumerate(stalled):
            connection.sendall(request(b"cronium.setVariable", b"S", b"x")[: number % 20])
        assert supervised.is_serving()
    finally:
        for connection in stalled:
            connection.close()


def test_a_client_that_does_not_read_its_answer_holds_up_nobody(supervised: Supervised) -> None:
    supervised.call(b"cronium.setVariable", b"BIG", b"x" * 4_000_000)
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.getVariable", b"BIG"))
        for _ in range(20):
            assert supervised.is_serving()
        assert len(read_to_end(connection)) == 4_000_000 + 1 + 5 + 6
    supervised.call(b"cronium.setVariable", b"BIG", b"")


def test_a_client_that_sends_more_after_its_request_still_gets_its_answer(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"cronium.getVariable", b"A") + b"trailing bytes" * 10)
        assert connection.recv(100).startswith(record(b"O", b"1\n"))
    assert supervised.is_serving()


def test_160_writers_at_once_lose_nothing(supervised: Supervised) -> None:
    def write(number: int) -> bytes:
        return supervised.call(b"cronium.setVariable", b"N%d" % number, b"%d" % number)

    with ThreadPoolExecutor(32) as threads:
        assert set(threads.map(write, range(160))) == {record(b"X", b"\0")}
    for number in range(160):
        expected = record(b"O", b"%d\n" % number) + record(b"X", b"\0")
        assert supervised.call(b"cronium.getVariable", b"N%d" % number) == expected


def test_no_descriptor_of_a_client_is_kept(supervised: Supervised) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{supervised.pid}/fd"))

    before = count()
    for _ in range(50):
        supervised.call(b"cronium.input")
        supervised.connect().close()
        with supervised.connect() as connection:
            connection.sendall(b"nonsense")
    wait_until(lambda: count() <= before, "descriptors to be closed")


def test_a_watcher_that_talks_nonsense_ends_nothing(supervised: Supervised) -> None:
    with supervised.connect() as connection:
        connection.sendall(request(b"@watch") + b"xyz" * 1000)
        assert connection.recv(1) == b"\n"
        assert supervised.is_serving()


def test_listening_makes_a_private_socket(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with helper_socket.listen(str(tmp_path / "s")) as listening:
            assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600
            assert not listening.get_inheritable()
    finally:
        os.umask(before)
