"""Routes, pooled connections and health over a real server: which one is chosen, and what becomes of dead ones.

Tailscale and direct are loopback addresses, of which the server has one; `cloudflared` is a program that carries bytes.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_controller import channel, inventory, transport
from cronium_controller.connections import Connections
from cronium_controller.errors import AuthenticationError, HostKeyChangedError, UnreachableError
from cronium_controller.hosts import Host
from cronium_controller.job import Job
from cronium_controller.memory import Memory, account
from cronium_controller.payloads import load
from cronium_controller.pool import Limits
from cronium_runner.wire.results import Outcome
from kinds import BOTH
from remote_host import RemoteHost, collect

pytestmark = pytest.mark.sshd

UP, DOWN = "127.0.0.1", "127.0.0.9"
CLOUDFLARED = """#!{python}
import os, socket, sys, threading
if not {is_up} or os.environ.get("TUNNEL_SERVICE_TOKEN_SECRET") != "very-secret":
    sys.exit("tunnel is down")
there = socket.create_connection(("127.0.0.1", {port}))
def carry():
    while piece := there.recv(65536):
        os.write(1, piece)
    os._exit(0)
threading.Thread(target=carry, daemon=True).start()
while piece := os.read(0, 65536):
    there.sendall(piece)
"""


def install_cloudflared(remote: RemoteHost, monkeypatch: pytest.MonkeyPatch, *, is_up: bool = True) -> None:
    folder = remote.folder / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "cloudflared"
    program.write_text(CLOUDFLARED.format(python=sys.executable, is_up=is_up, port=remote.server.port))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def with_routes(remote: RemoteHost, tailscale: bool, direct: bool) -> Host:
    return replace(
        remote.host,
        tailscale_ip=f"{UP}:{remote.server.port}" if tailscale else DOWN,
        address=UP if direct else DOWN,
        cloudflare_tunnel="ssh.example.org",
        cloudflare_service_token_id="id",
        cloudflare_service_token_secret="very-secret",
    )


@BOTH
@pytest.mark.parametrize(("tailscale", "direct", "cloudflare"), list(itertools.product([True, False], repeat=3)))
async def test_the_first_route_that_is_up_is_taken(
    remote: RemoteHost, monkeypatch: pytest.MonkeyPatch, tailscale: bool, direct: bool, cloudflare: bool
) -> None:
    install_cloudflared(remote, monkeypatch, is_up=cloudflare)
    host = with_routes(remote, tailscale, direct)
    connections = Connections(remote.access(attempts=1), Memory())
    expected = "tailscale" if tailscale else "direct" if direct else "cloudflare" if cloudflare else None
    try:
        async with asyncio.timeout(30):
            if expected is None:
                with pytest.raises(UnreachableError, match=r"tailscale: .*direct: .*cloudflare: .*tunnel is down"):
                    await connections.open(host)
                return
            connection = await connections.open(host)
        assert connection.transport == expected
        assert (await connection.run("echo carried")).stdout == b"carried\n"
        await connection.close()
    finally:
        await connections.close_all_connections()
        async with asyncio.timeout(30):
            await asyncio.gather(*transport.Carried._watching)  # cloudflared ends with its connection


@BOTH
@pytest.mark.parametrize("trouble", ["key", "login"])
async def test_a_refusal_is_met_once_whatever_routes_there_are(remote: RemoteHost, trouble: str) -> None:
    host = replace(remote.host, tailscale_ip=f"{UP}:{remote.server.port}")
    connections = Connections(remote.access(), Memory())
    await (await connections.open(host)).close()
    expected: type[UnreachableError] = AuthenticationError
    if trouble == "key":
        expected = HostKeyChangedError
        remote.server.stop()
        remote.server.renew_host_key()
        remote.server.start()
    else:
        (remote.server.folder / "authorized_keys").write_text("")
    before = remote.server.count_in_log("Connection from")
    with pytest.raises(expected):
        await connections.open(host)
    assert remote.server.count_in_log("Connection from") == before + 1
    await connections.close_all_connections()


async def open_ten(connections: Connections, host: Host) -> None:
    """Ten pooled connections, none in use."""
    leases = []
    for _ in range(10):
        leases.append(await connections.acquire(host, is_resident=True))
        leases[-1].note_refused()  # one session each
    for lease in leases:
        lease.give_back()


@BOTH
async def test_the_next_job_works_after_ten_connections_were_closed_by_the_server(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        await open_ten(controller.connections, remote.host)
        for pid in remote.server.session_pids():
            with contextlib.suppress(ProcessLookupError):  # each connection has two, which end together
                os.kill(pid, signal.SIGKILL)
        execution = await asyncio.wait_for(controller.submit(remote.host, Job(load(remote.script("echo on")))), 60)
        assert (await collect(execution))["stdout"] == b"on\n"
        assert controller.connections_opened == 11


async def test_the_next_call_works_after_ten_connections_expired(remote: RemoteHost) -> None:
    connections = Connections(remote.access(), Memory(), limits=Limits(idle=0.2))
    await open_ten(connections, remote.host)
    for _ in range(100):
        if not remote.server.session_pids():
            break
        await asyncio.sleep(0.1)
    assert not remote.server.session_pids()
    async with connections.lease(remote.host) as lease:
        assert (await lease.connection.run("echo on")).stdout == b"on\n"
    assert connections.opened == 11
    await connections.close_all_connections()


@BOTH
async def test_the_next_job_works_after_ten_connections_fell_silent(
    remote: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "SESSION_SECONDS", 3.0)
    async with remote.controller() as controller:
        await controller.deploy(remote.host)
        opened = controller.connections_opened
        await open_ten(controller.connections, remote.host)
        silent = remote.server.session_pids()
        for pid in silent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            execution = await asyncio.wait_for(controller.submit(remote.host, Job(load(remote.script("echo on")))), 60)
            assert (await collect(execution))["stdout"] == b"on\n"
            assert controller.connections_opened == opened + 11
        finally:
            for pid in silent:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


async def test_a_job_that_fails_counts_as_a_failed_call_and_never_closes_the_host_off(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        failing = Job(load(remote.script("exit 3")))
        for _ in range(3):
            await (await controller.submit(remote.host, failing)).result()
        known = controller.memory.of(remote.host)
        assert (known.calls.consecutive_failures, known.calls.is_healthy) == (3, False)
        assert known.breaker.unreachable == 0
        await (await controller.submit(remote.host, Job(load(remote.script("true"))))).result()
        assert (known.calls.consecutive_failures, known.calls.total_successes) == (0, 1)


@BOTH
async def test_a_lost_channel_counts_as_a_failed_call(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        execution = await controller.submit(remote.host, Job(load(remote.script("sleep 1"))))
        for pid in remote.server.session_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert (await execution.result()).state is Outcome.UNKNOWN
        assert controller.memory.of(remote.host).calls.consecutive_failures == 1
    remote.wait_result(execution.id)


HOSTS = """hosts:
  inside:
    address: 127.0.0.9
    port: {port}
    identity: {identity}
    cloudflare_tunnel: ssh.example.org
    cloudflare_service_token_id: ${{CF_TOKEN_ID}}
    cloudflare_service_token_secret: ${{CF_TOKEN_SECRET}}
"""


@BOTH
async def test_a_later_process_finds_the_service_token_again(
    remote: RemoteHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_cloudflared(remote, monkeypatch)
    monkeypatch.setenv("CF_TOKEN_ID", "id")
    monkeypatch.setenv("CF_TOKEN_SECRET", "very-secret")
    path = tmp_path / "cloud.yaml"
    path.write_text(HOSTS.format(port=remote.server.port, identity=remote.server.identity))
    path.chmod(0o600)
    async with remote.controller(attempts=1) as controller:
        host = inventory.load(str(path)).host("inside")
        execution = await controller.submit(host, Job(load(remote.script("echo far")), execution_id="far"))
        assert (await execution.result()).transport == "cloudflare"
    async with remote.controller(attempts=1) as controller:
        record = controller.store.find("far")
        assert record is not None
        assert record.host.cloudflare_service_token_secret is None
        assert (await collect(await controller.attach("far", record.host)))["stdout"] == b"far\n"
    monkeypatch.delenv("CF_TOKEN_SECRET")
    async with remote.controller(attempts=1) as controller:
        with pytest.raises(UnreachableError, match=r"service token is missing.*CF_TOKEN_SECRET"):
            await controller.attach("far", record.host)
    async with asyncio.timeout(30):
        await asyncio.gather(*transport.Carried._watching)


@BOTH
async def test_a_later_process_attaches_over_tailscale(remote: RemoteHost) -> None:
    host = replace(remote.host, name="inside", tailscale_ip=f"{UP}:{remote.server.port}", address=DOWN)
    async with remote.controller() as controller:
        await (await controller.submit(host, Job(load(remote.script("echo far")), execution_id="far"))).result()
    async with remote.controller() as controller:
        record = controller.store.find("far")
        assert record is not None
        attached = await controller.attach("far", record.host)
        assert (await collect(attached))["stdout"] == b"far\n"
        assert (await attached.result()).transport == "tailscale"


async def test_the_command_shows_how_hosts_stand_and_forgets_it(remote: RemoteHost, tmp_path: Path) -> None:
    host = Host("away", DOWN, port=remote.server.port)
    async with remote.controller(attempts=1) as controller:
        for _ in range(3):
            with pytest.raises(UnreachableError):
                await controller.status("x", host)
        assert controller.store.health(account(host)) is not None
    path = tmp_path / "hosts.yaml"
    path.write_text(f"hosts:\n  away: {DOWN}:{remote.server.port}\n")
    environment = {**remote.environment, "CRONIUM_HOSTS": str(path)}

    async def shown(*words: str) -> str:
        code = "from cronium_controller.cli import main; main()"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, "hosts", *words, env=environment, stdout=asyncio.subprocess.PIPE
        )
        stdout, _ = await process.communicate()
        assert process.returncode == 0
        return stdout.decode()

    told = await shown()
    assert "paused" in told
    assert "cannot connect" in told
    assert "paused" not in await shown("--on", "away", "--reset")
    assert '"health":null' in await shown("--json")
