"""Jump hosts of ~/.ssh/config: chains of two, nested ones, dead ones, impostors. Every one is a real OpenSSH server."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cronium_controller import jumps
from cronium_controller.connections import Connections
from cronium_controller.errors import AuthenticationError, ControllerError, HostKeyChangedError, UnreachableError
from cronium_controller.hosts import OPENSSH, Host, parse_host
from cronium_controller.job import Job
from cronium_controller.memory import Memory
from cronium_controller.payloads import load
from cronium_controller.ssh_config import ssh_settings_of
from cronium_controller.ssh_settings import SSHSettings
from kinds import BOTH, ssh_reading
from openssh import OpenSSHServer
from remote_host import RemoteHost, collect, connected
from runner_process import PATIENCE, wait_until

pytestmark = pytest.mark.sshd

CHAIN = "Host inner\n  HostName 127.0.0.1\n  Port {inner}\n  ProxyJump outer,middle\n"
NESTED = "Host inner\n  HostName 127.0.0.1\n  Port {inner}\n  ProxyJump middle\nHost middle\n  ProxyJump outer\n"


async def chain_of(name: str) -> list[jumps.Jump[SSHSettings]]:
    host = parse_host(name)
    return await jumps.jumps(host, await ssh_settings_of(host), ssh_settings_of)


class Way:
    """A host behind two jump hosts, `outer` and `middle`."""

    def __init__(self, remote: RemoteHost, folder: Path) -> None:
        self.remote = remote
        self.outer, self.middle = (OpenSSHServer(folder / name) for name in ("outer", "middle"))
        key = remote.server.identity.with_suffix(".pub").read_text()
        for server in (self.outer, self.middle):
            (server.folder / "authorized_keys").write_text(key)
            server.start()

    def configure(self, written: str) -> Host:
        """Writes ~/.ssh/config; the host behind both."""
        folder = self.remote.home / ".ssh"
        folder.mkdir(exist_ok=True)
        (folder / "config").write_text(
            written.format(inner=self.remote.server.port)
            + f"Host outer\n  HostName 127.0.0.1\n  Port {self.outer.port}\n"
            + f"Host middle\n  HostName 127.0.0.1\n  Port {self.middle.port}\n"
            + f"Host *\n  IdentityFile {self.remote.server.identity}\n  HashKnownHosts no\n"
        )
        return parse_host("inner")

    def end(self) -> None:
        self.outer.stop()
        self.middle.stop()


def kill_sessions(server: OpenSSHServer) -> None:
    for pid in server.session_pids():
        with contextlib.suppress(ProcessLookupError):  # each connection has two, which end together
            os.kill(pid, signal.SIGKILL)


def has_no_session(server: OpenSSHServer) -> bool:
    return not server.session_pids()


async def wait_closed(*servers: OpenSSHServer) -> None:
    for server in servers:
        await asyncio.to_thread(wait_until, partial(has_no_session, server), "the connections to end")


@pytest.fixture
def way(remote: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    if remote.connection == OPENSSH:
        folder = ssh_reading(tmp_path / "bin", remote.home / ".ssh" / "config")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    made = Way(remote, tmp_path)
    yield made
    made.end()


@BOTH
@pytest.mark.parametrize("written", [CHAIN, NESTED])
async def test_jobs_and_commands_go_through_two_jump_hosts(way: Way, written: str) -> None:
    host = way.configure(written)
    async with way.remote.controller() as controller:
        execution = await controller.submit(host, Job(load(way.remote.script("echo far"))))
        assert (await collect(execution))["stdout"] == b"far\n"
        assert (await execution.result()).transport == "direct"
        assert (await controller.client(host).run_async("echo raw")).stdout == "raw\n"
        assert controller.connections_opened == 1
    for server in (way.outer, way.middle, way.remote.server):
        assert server.count_in_log("Accepted publickey") == 1
    known = way.remote.known_hosts.read_text()
    assert [f"[127.0.0.1]:{server.port} " in known for server in (way.outer, way.middle)] == [True, True]
    await wait_closed(way.outer, way.middle, way.remote.server)


@BOTH
@pytest.mark.parametrize("dead", ["outer", "middle"])
async def test_a_jump_host_that_dies_is_one_clear_error_and_the_next_call_works(way: Way, dead: str) -> None:
    host = way.configure(CHAIN)
    server: OpenSSHServer = getattr(way, dead)
    async with way.remote.controller(attempts=1) as controller:
        client = controller.client(host)
        assert (await client.run_async("echo on")).stdout == "on\n"
        begun = way.remote.home / "begun"
        waiting = f"echo > {begun}; while [ -e {begun} ]; do sleep 0.1; done"
        running = asyncio.ensure_future(client.run_async(waiting, 60))
        await asyncio.to_thread(wait_until, begun.exists, "the command to begin")
        kill_sessions(server)
        lost = await asyncio.wait_for(running, PATIENCE)
        begun.unlink()
        assert (lost.success, lost.error_code) == (False, "channel.lost")
        server.stop()
        before = server.count_in_log("Connection from")
        with pytest.raises(UnreachableError) as raised:
            await asyncio.wait_for(controller.submit(host, Job(load(way.remote.script("true")))), PATIENCE)
        assert (raised.value.code, raised.value.host) == ("host.unreachable", "inner")
        assert raised.value.message.startswith(f"inner: at the jump host {dead}: cannot connect to {dead}: ")
        assert raised.value.message.count("cannot connect") == 1
        assert server.count_in_log("Connection from") == before
        server.start()
        execution = await asyncio.wait_for(controller.submit(host, Job(load(way.remote.script("echo on")))), PATIENCE)
        assert (await collect(execution))["stdout"] == b"on\n"
    await wait_closed(way.outer, way.middle, way.remote.server)


@BOTH
async def test_a_jump_host_that_dies_while_it_connects_leaves_nothing_open(way: Way) -> None:
    host = way.configure(CHAIN)
    connections = Connections(way.remote.access(attempts=1), Memory())
    assert way.middle._process is not None
    os.kill(way.middle._process.pid, signal.SIGSTOP)  # it takes connections and says nothing
    opening = asyncio.ensure_future(connections.open(host))
    try:
        await asyncio.to_thread(wait_until, way.middle.count_connections, "the second one to be asked")
        kill_sessions(way.outer)
        with pytest.raises(UnreachableError, match="at the jump host middle: ") as raised:
            await asyncio.wait_for(opening, PATIENCE)
        assert raised.value.code == "host.unreachable"
    finally:
        os.kill(way.middle._process.pid, signal.SIGCONT)
    await wait_closed(way.outer, way.middle)
    connection = await connections.open(host)
    assert (await connection.run("echo on")).stdout == b"on\n"
    await connection.close()
    await connections.close_all_connections()
    await wait_closed(way.outer, way.middle, way.remote.server)


@BOTH
@pytest.mark.parametrize("name", ["outer", "middle"])
async def test_a_changed_key_of_a_jump_host_stops_at_once_with_one_clear_error(way: Way, name: str) -> None:
    host = way.configure(CHAIN)
    connections = Connections(way.remote.access(), Memory())
    await (await connections.open(host)).close()
    server: OpenSSHServer = getattr(way, name)
    server.stop()
    server.renew_host_key()
    server.start()
    before = server.count_in_log("Connection from")
    accepted = way.remote.server.count_in_log("Accepted")
    with pytest.raises(HostKeyChangedError) as raised:
        await connections.open(host)
    assert raised.value.message.startswith(f"inner: at the jump host {name}: the host's key is no")
    assert f"[127.0.0.1]:{server.port}" in raised.value.message
    if way.remote.connection != OPENSSH:  # whose own words are shown
        assert f"-R '[127.0.0.1]:{server.port}'" in raised.value.message
    assert server.count_in_log("Connection from") == before + 1, "one attempt: it is final"
    assert way.remote.server.count_in_log("Accepted") == accepted
    await connections.close_all_connections()
    await wait_closed(way.outer, way.middle, way.remote.server)


@BOTH
async def test_a_refusal_of_a_jump_host_is_met_once(way: Way) -> None:
    host = way.configure(CHAIN)
    (way.middle.folder / "authorized_keys").write_text("")
    connections = Connections(way.remote.access(), Memory())
    before = way.middle.count_in_log("Connection from")
    with pytest.raises(AuthenticationError, match=r"^inner: at the jump host middle: the host refused"):
        await connections.open(host)
    assert way.middle.count_in_log("Connection from") == before + 1
    await connections.close_all_connections()
    await wait_closed(way.outer, way.middle)


@BOTH
async def test_the_three_attempts_wrap_the_whole_chain(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    host = way.configure(CHAIN)
    way.remote.server.stop()
    monkeypatch.setattr("cronium_controller.transport.PAUSES", (0.01, 0.02))
    connections = Connections(way.remote.access(), Memory())
    with pytest.raises(UnreachableError, match=r"^inner: through outer, middle: cannot connect to inner: "):
        await connections.open(host)
    assert [server.count_in_log("Accepted publickey") for server in (way.outer, way.middle)] == [3, 3]
    await connections.close_all_connections()
    await wait_closed(way.outer, way.middle)


@BOTH
async def test_a_cancelled_call_leaves_no_jump_host_connected(way: Way) -> None:
    host = replace(way.configure(CHAIN), connect_timeout=60.0)  # not to run out before it is cancelled
    assert way.remote.server._process is not None
    os.kill(way.remote.server._process.pid, signal.SIGSTOP)
    try:
        opening = asyncio.ensure_future(connected(host, way.remote.access()))
        await asyncio.to_thread(wait_until, lambda: way.middle.count_in_log("Accepted"), "the jump hosts' logins")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await wait_closed(way.outer, way.middle)
    finally:
        os.kill(way.remote.server._process.pid, signal.SIGCONT)


@BOTH
async def test_another_route_needs_no_jump_host(way: Way) -> None:
    way.configure(CHAIN)
    host = Host("inner", "inner", port=way.remote.server.port, tailscale_ip=f"127.0.0.1:{way.remote.server.port}")
    way.outer.stop()
    connections = Connections(way.remote.access(), Memory())
    connection = await connections.open(host)
    assert connection.transport == "tailscale"
    await connection.close()
    await connections.close_all_connections()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Host inner\n  ProxyJump a,b\n", ["a", "b"]),
        ("Host inner\n  ProxyJump b\nHost b\n  ProxyJump a\n", ["a", "b"]),
        ("Host inner\n  ProxyJump a,b\nHost a\n  ProxyJump x,y\nHost b\n  ProxyJump z\n", ["x", "y", "a", "b"]),
        ("Host inner\n  ProxyJump none\nHost *\n  ProxyJump a\n", []),
        ("Host * !a\n  ProxyJump a\n", ["a"]),
        ("Host inner\n  ProxyJump me@[::1]:2222,ssh://a\n", ["[::1]:2222", "a"]),
        ("Host other\n  ProxyJump a\n", []),
        ("Match host inner\n  ProxyJump a\n", ["a"]),
    ],
)
async def test_the_chain_is_what_openssh_makes_of_it(home_config: Path, written: str, expected: list[str]) -> None:
    home_config.write_text(written)
    assert [jump.host.name for jump in await chain_of("inner")] == expected


@pytest.mark.parametrize(
    "written", ["Host *\n  ProxyJump a\n", "Host inner\n  ProxyJump a\nHost a\n  ProxyJump inner\n"]
)
async def test_a_circle_is_told(home_config: Path, written: str) -> None:
    home_config.write_text(written)
    with pytest.raises(
        ControllerError, match=r"^inner: the SSH configuration leads in a circle \(inner -> a -> "
    ) as raised:
        await chain_of("inner")
    assert raised.value.code == "host.config"


async def test_what_cannot_be_a_jump_host_is_told(home_config: Path) -> None:
    home_config.write_text("Host inner\n  ProxyJump a:many\n")
    with pytest.raises(ControllerError, match=r"has a ProxyJump of which .*'many' is not a port"):
        await chain_of("inner")


@pytest.fixture
def home_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh" / "config"
