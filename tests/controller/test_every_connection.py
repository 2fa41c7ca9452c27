"""The same of every kind of connection: over SSH, by OpenSSH's own program, and on this machine."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cronium_controller.access import Access
from cronium_controller.client import SSHClient
from cronium_controller.connections import Connections
from cronium_controller.errors import ControllerError
from cronium_controller.hosts import LOCAL, LOCAL_HOST, OPENSSH, SSH, Host, SSHConfig, parse_host
from cronium_controller.memory import Memory
from cronium_controller.sessions import Channel, Connection, Session
from openssh import OpenSSHServer, sshd_path
from runner_process import PATIENCE, wait_until

KINDS = (SSH, OPENSSH, LOCAL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSHServer]:
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    with OpenSSHServer(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture(autouse=True)
def own_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(params=KINDS)
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == LOCAL:
        return LOCAL_HOST
    server: OpenSSHServer = request.getfixturevalue("server")
    return replace(parse_host(server.target, identity=str(server.identity)), connection=request.param)


@pytest.fixture
def access(host: Host, request: pytest.FixtureRequest) -> Access:
    if host.is_local:
        return Access()
    return Access(known_hosts=str(request.getfixturevalue("server").known_hosts), attempts=1)


@pytest.fixture
async def connected(host: Host, access: Access) -> AsyncIterator[Connection]:
    connections = Connections(access, Memory())
    made = await connections.open(host)
    yield made
    await made.close()
    assert made.is_closed()


async def test_streams_and_ends(connected: Connection) -> None:
    done = await connected.run("echo out; echo err >&2; exit 7")
    assert (done.exit_status, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert (await connected.run("cat")).exit_status == 0, "its input has no end"
    said = await asyncio.gather(*[connected.run(f"echo {number}") for number in range(6)])
    assert [one.stdout for one in said] == [f"{number}\n".encode() for number in range(6)]
    process = await connected.start("cat; exit 3")

    async def write() -> None:
        for _ in range(30):
            process.stdin.write(bytes(100_000))
            await process.stdin.drain()
        process.stdin.write_eof()

    ended, _ = await asyncio.gather(process.wait(), write())
    assert (ended.stdout, ended.exit_status) == (bytes(3_000_000), 3)


class _Appliance(asyncssh.SSHServer):
    """Lets everybody in, and runs nothing."""

    def begin_auth(self, username: str) -> bool:
        return False

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return asyncssh.SSHServerSession()


@pytest.mark.parametrize("kind", [SSH, OPENSSH])
async def test_a_server_that_runs_no_commands_is_told(kind: str, tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    listening = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[key], server_factory=_Appliance)
    host = parse_host(f"127.0.0.1:{listening.get_port()}")
    access = Access(known_hosts=str(tmp_path / "known_hosts"), attempts=1, connection=kind)
    async with SSHClient(SSHConfig.from_host(host), access=access) as client:
        result = await client.run_async("echo hi")
    assert (result.success, result.error_code) == (False, "host.unreachable")
    assert "the server opens a session but runs no commands" in str(result.error)
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize("kind", [SSH, OPENSSH])
async def test_a_session_without_room_hears_of_nothing(kind: str, tmp_path: Path) -> None:
    """It is opened again a moment later, and was told before that it had ended."""

    class Refused(Session):
        lost = 0

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost += 1

    refused = Refused()
    with OpenSSHServer(tmp_path / "sshd", options=["MaxSessions 1"]) as server:
        host = replace(parse_host(server.target, identity=str(server.identity)), connection=kind)
        made = await Connections(Access(known_hosts=str(server.known_hosts), attempts=1), Memory()).open(host)
        held = await made.start("cat")
        with pytest.raises(asyncssh.ChannelOpenError):
            await made.create_session(lambda: refused, "true")
        held.close()
        assert (await made.run("echo room")).stdout == b"room\n"
        assert refused.lost == 0
        await made.close()


async def test_a_signal_is_no_success(connected: Connection) -> None:
    done = await connected.run("kill -KILL $$")
    assert done.exit_status in (128 + 9, 255, -1)
    assert (await connected.run("echo still here")).stdout == b"still here\n"


async def test_a_command_that_reads_no_more_ends_the_writing(connected: Connection) -> None:
    process = await connected.start("head -c 3; exit 4")
    with contextlib.suppress(BrokenPipeError):
        for _ in range(1000):
            process.stdin.write(bytes(100_000))
            await process.stdin.drain()
        pytest.fail("it was never told")
    done = await process.wait()
    assert (done.exit_status, done.stdout, done.stderr) == (4, bytes(3), b"")
    process.close()


async def test_what_was_written_before_the_end_arrives(connected: Connection, tmp_path: Path) -> None:
    """A cancel, or an acknowledgement: the channel is closed directly behind it."""
    there = tmp_path / "there"

    class Silent(Session):
        pass

    channel = await connected.create_session(Silent, f"sleep 0.2; cat > {there}.new; mv {there}.new {there}")
    channel.write(bytes(20_000))
    channel.write_eof()
    channel.close()
    await asyncio.to_thread(wait_until, there.exists, "the command to read its input")
    assert there.read_bytes() == bytes(20_000)


async def test_what_is_let_go_of_goes_on(host: Host, access: Access, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.write_text("")
    made = await Connections(access, Memory()).open(host)
    process = await made.start(f"trap '' HUP PIPE; while [ ! -s {gate} ]; do sleep 0.02; done; echo on > {gate}.passed")
    process.close()
    await made.close()
    gate.write_text("go")
    await asyncio.to_thread(wait_until, Path(f"{gate}.passed").exists, "the command to end")
    with pytest.raises(ControllerError):
        await made.run("echo closed")


class Holding(Session):
    """Holds output back from the first piece on."""

    def __init__(self) -> None:
        self.heard = 0
        self.over = asyncio.Event()
        self.channel: Channel | None = None

    def connection_made(self, chan: Channel) -> None:
        self.channel = chan

    def data_received(self, data: bytes, datatype: Any) -> None:
        self.heard += len(data)
        assert self.channel is not None
        self.channel.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()


async def test_output_is_held_back_while_nobody_wants_it(connected: Connection) -> None:
    session, size = Holding(), 8_000_000
    channel = await connected.create_session(lambda: session, f"head -c {size} /dev/zero; exit 6")
    while session.heard < size:
        before = session.heard
        channel.resume_reading()
        while session.heard == before:
            await asyncio.sleep(0.001)
        assert session.heard - before < size // 2, "it was not held back"
    channel.resume_reading()
    await asyncio.wait_for(session.over.wait(), PATIENCE)
    assert channel.get_exit_status() == 6


async def test_a_session_that_is_left_is_no_loss(connected: Connection) -> None:
    for pause in (0, 0.001, 0.003, 0.01):
        running = asyncio.ensure_future(connected.run("sleep 0.01"))
        await asyncio.sleep(pause)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert (await connected.run("echo still here")).stdout == b"still here\n"


async def test_a_client_runs_commands_and_copies_files(host: Host, access: Access, tmp_path: Path) -> None:
    config = SSHConfig.from_host(host)
    source = tmp_path / "source"
    source.write_bytes(b"\0" * 1_000_000 + b"end")
    (tmp_path / "home").mkdir()
    async with SSHClient(config, access=replace(access, connection=host.connection)) as client:
        results = await asyncio.gather(*[client.run_async(f"echo {number}") for number in range(8)])
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(8)]
        slow = await client.run_async("echo begun; sleep 600", timeout=3)
        assert (slow.timed_out, slow.stdout) == (True, "begun\n")
        sent = await client.scp_to_async(str(source), str(tmp_path / "there"))
        fetched = await client.scp_from_async(str(tmp_path / "there"), str(tmp_path / "back"))
        assert (sent.success, fetched.success) == (True, True), (sent.error, fetched.error)
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        refused = await client.scp_to_async(str(source), "/nonexistent/folder/file")
        assert refused.error_code == "files.refused"
