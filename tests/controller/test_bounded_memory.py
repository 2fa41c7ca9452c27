"""What a host or a job can make a controller hold: windows of SSH channels, output that is kept, answers not read."""

import asyncio
import itertools
import os
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cronium_controller import raw_command, ssh_windows
from cronium_controller.client import SSHClient
from cronium_controller.executor import SSHExecutor
from cronium_controller.hosts import LOCAL_HOST, SSHConfig
from cronium_controller.lines import FOLDED_BYTES, Folder
from cronium_controller.local_connection import LocalConnection
from cronium_controller.sessions import MOST_SAID
from cronium_controller.ssh_library import asyncssh
from cronium_runner.wire.names import STDERR, STDOUT
from peak_memory import MIB, peak_memory
from remote_host import RemoteHost

MUCH = 60_000_000
PRINTING = f"head -c {MUCH} /dev/zero"


def read_slowly(process: "subprocess.Popen[bytes]") -> int:
    """How much a process prints to a reader that is slower than it."""
    assert process.stdout is not None
    size = 0
    while piece := os.read(process.stdout.fileno(), 1 << 16):
        size += len(piece)
        time.sleep(0.002)
    return size


def executed(remote: RemoteHost, *words: object) -> tuple[int, int]:
    """Bytes that `cronium exec WORDS` printed, and its peak memory."""
    process = remote.start_cronium("exec", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process, peak_memory(process) as peak:
        printed = read_slowly(process)
        assert process.wait() == 0
    return printed, peak.bytes


@pytest.mark.sshd
def test_exec_holds_one_window_of_what_it_cannot_print(remote: RemoteHost) -> None:
    there = ["--host", remote.server.target, "--timeout", "0"]
    _, idle = executed(remote, *there, "--", "true")
    printed, peak = executed(remote, *there, "--", PRINTING)
    assert printed == MUCH
    assert peak - idle < 25 * MIB


@pytest.mark.sshd
async def test_a_result_keeps_the_beginning_and_says_so(remote: RemoteHost) -> None:
    port, key = remote.server.port, str(remote.server.identity)
    config = SSHConfig("127.0.0.1", port=port, user=remote.host.user, key_path=key)
    async with SSHClient(config, access=remote.access(), max_output=1000) as client:
        result = await client.run_async("head -c 1000 /dev/zero; echo err >&2")
        assert (len(result.stdout), result.stderr, result.truncated) == (1000, "err\n", False)
        result = await client.run_async("printf 'begin'; head -c 3000000 /dev/zero; exit 3")
        assert (result.returncode, result.truncated, len(result.stdout)) == (3, True, 1000)
        assert result.stdout.startswith("begin\0")
        heard = 0

        async def hear(_stream: int, data: bytes) -> None:
            nonlocal heard
            heard += len(data)

        done = (await client.execute("head -c 3000000 /dev/zero", output=hear)).done
        assert (heard, done.truncated) == (3_000_000, False), "what is handed out as it comes is not kept"
    async with SSHExecutor(access=remote.access()) as executor:
        many = await executor.execute(config, "head -c 17000000 /dev/zero | tr '\\0' x")
    assert (many.success, many.truncated, len(many.stdout)) == (True, True, 16 * MIB)


def test_what_is_folded_of_all_hosts_together_is_bounded() -> None:
    folder = Folder(room=3 * FOLDED_BYTES)
    for number in range(10):
        folder.feed(f"web{number}", STDOUT, bytes([number]) * FOLDED_BYTES)
        folder.feed(f"web{number}", STDERR, b"same\n")
        folder.end(f"web{number}", "")
    folds = list(folder.folds())
    assert [fold.hosts for fold in folds] == [[f"web{number}"] for number in range(10)]
    assert sum(len(fold.output) for fold in folds) < 3 * FOLDED_BYTES + 1000
    assert [fold.is_cut for fold in folds] == [False] * 2 + [True] * 8
    for _ in range(100):  # equal outputs take the room of one
        folder.feed("again", STDOUT, bytes([0]) * FOLDED_BYTES)
        folder.feed("again", STDERR, b"same\n")
        folder.end("again", "")
    assert len(next(iter(folder.folds())).hosts) == 101


class _Heard:
    """A session that may hold its channel back."""

    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes, _datatype: Any) -> None:
        self.data += data

    def eof_received(self) -> bool:
        return False


class _Peer:
    """A connection that notes what it is told to send, and keeps to the window that it is granted."""

    logger: Any = SimpleNamespace(debug2=lambda *_: None, debug1=lambda *_: None, info=lambda *_: None)

    def __init__(self, window: int) -> None:
        self.window = window
        self.granted: list[int] = []

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def add_channel(self, _channel: Any) -> int:
        return 0


def _channel(window: int) -> tuple[Any, _Peer, _Heard]:
    """A channel of the library that is open, its peer, and what hears of it."""
    channel: Any = asyncssh.channel.SSHChannel.__new__(asyncssh.channel.SSHChannel)
    peer, heard = _Peer(window), _Heard()
    channel._logger = peer.logger
    channel._encoding = None
    channel._init_recv_window = channel._recv_window = window
    channel._recv_paused, channel._recv_buf, channel._recv_state = False, [], "open"
    channel._send_state, channel._session = "open", heard

    def send_packet(kind: int, *arguments: bytes) -> None:
        assert kind == asyncssh.constants.MSG_CHANNEL_WINDOW_ADJUST
        peer.granted.append(int.from_bytes(arguments[0]))
        peer.window += peer.granted[-1]

    channel.send_packet = send_packet
    return channel, peer, heard


def test_a_paused_channel_holds_one_window_whatever_is_read_of_it() -> None:
    window = 1000
    channel, peer, heard = _channel(window)
    sent = bytearray()
    for turn in itertools.count():
        for _ in range(window):
            data = bytes([turn % 251]) * min(7, peer.window)
            peer.window -= len(data)
            sent += data
            channel._accept_data(data)
        waiting = sum(len(piece) for piece, _ in channel._recv_buf)
        assert waiting + peer.window <= window
        assert len(channel._recv_buf) <= 1, "small pieces become one"
        if len(sent) > 100 * window:
            break
        channel.resume_reading()
        if turn % 3:
            channel.pause_reading()
    channel.resume_reading()
    assert heard.data == sent
    assert len(peer.granted) < len(sent) / window * 2 + 2, "granted in steps of half a window"


def test_a_reader_that_pauses_after_each_piece_is_not_sent_more() -> None:
    channel, peer, _ = _channel(window := 1_000_000)
    for number in range(10):
        channel.pause_reading()
        while peer.window:
            data = bytes([number]) * min(100_000, peer.window)
            peer.window -= len(data)
            channel._accept_data(data)

        class OnePiece(_Heard):
            def data_received(self, data: bytes, datatype: Any) -> None:
                super().data_received(data, datatype)
                channel.pause_reading()

        channel._session = OnePiece()
        channel.resume_reading()
        assert sum(len(piece) for piece, _ in channel._recv_buf) + peer.window <= window


def test_the_library_has_what_is_corrected() -> None:
    assert all(hasattr(asyncssh.channel.SSHChannel, name) for name in ssh_windows._NEEDED)
    assert asyncssh.channel.SSHChannel._deliver_data.__module__ == ssh_windows.__name__


async def test_output_that_waits_is_in_few_pieces() -> None:
    async def hear(_stream: int, _data: bytes) -> None: ...

    passing = raw_command._Passing(hear)
    for _ in range(10_000):
        passing.put(STDOUT, b"x")
    for _ in range(500):
        passing.put(STDOUT, b"x" * 1000)
    sizes = [len(data) for _, data in passing._pieces]
    assert len(sizes) <= 4
    assert max(sizes) <= 256 * 1024
    await passing.wait()


async def test_an_answer_of_a_command_of_ours_is_short() -> None:
    command = f"head -c {2 * MOST_SAID} /dev/zero"
    done = await raw_command.asked(LocalConnection(LOCAL_HOST), command, 60.0)
    assert (done.exit_status, len(done.stdout), done.truncated) == (0, MOST_SAID, True)


@pytest.mark.parametrize(
    ("waiting", "joined"),
    [
        ([(b"a", None), (b"b", None)], [(b"ab", None)]),
        ([(b"a", None), (b"b", 1)], [(b"a", None), (b"b", 1)]),
        ([(b"a" * 65536, 1), (b"b", 1)], [(b"a" * 65536, 1), (b"b", 1)]),
    ],
    ids=["one stream", "two streams", "large"],
)
def test_which_pieces_that_wait_become_one(waiting: Any, joined: Any) -> None:
    ssh_windows._join_last(waiting)
    assert waiting == joined
