"""Who shares a connection, for how long, and who may close it. Over a real server; the pool alone is test_pool's."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import SSHClient, SSHConfig, inventory
from cronium_controller.access import Access
from cronium_controller.connections import Connections, way_to
from cronium_controller.dispatch import Controller
from cronium_controller.errors import UnreachableError
from cronium_controller.hosts import Host
from cronium_controller.job import Job
from cronium_controller.memory import Memory, account
from cronium_controller.payloads import load
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome
from remote_host import RemoteHost, collect
from runner_process import wait_until

pytestmark = pytest.mark.sshd

LONG = 30.0
"""Longer than anything here takes."""
IDLE = 0.3


async def until(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, LONG)


def is_unconnected(remote: RemoteHost) -> bool:
    return not remote.server.session_pids()


def script(remote: RemoteHost, text: str) -> Job:
    return Job(load(remote.script(text)))


async def run(controller: Controller, host: Host, remote: RemoteHost, text: str = "echo on") -> bytes:
    execution = await asyncio.wait_for(controller.submit(host, script(remote, text)), LONG)
    return (await collect(execution))["stdout"]


# -- one account, several names ---------------------------------------------------------------------------------------


async def test_two_names_of_one_account_share_a_connection_and_an_agent(remote: RemoteHost) -> None:
    first, second = replace(remote.host, name="web01"), replace(remote.host, name="www", connect_timeout=7.0)
    async with remote.controller() as controller:
        executions = await asyncio.gather(
            *(controller.submit(host, script(remote, "echo on")) for host in (first, second))
        )
        results = [await execution.result() for execution in executions]
        assert [result.host for result in results] == ["web01", "www"]
        commands = await asyncio.gather(*(controller.client(host).run_async("echo on") for host in (first, second)))
        assert [(one.host, one.stdout) for one in commands] == [("web01", "on\n"), ("www", "on\n")]
        assert controller.connections_opened == 1
        await until(lambda: len(remote.agents()) == 1, "the supervisors to end")
        assert remote.server.count_in_log("Accepted publickey") == 1


@pytest.mark.parametrize("change", [{"identity": None}, {"user": "nobody"}, {"tailscale_ip": "127.0.0.1"}])
def test_another_account_key_or_route_is_another_connection(remote: RemoteHost, change: dict[str, Any]) -> None:
    assert way_to(remote.host) == way_to(replace(remote.host, name="x", cloudflare_service_token_id="other"))
    assert way_to(remote.host) != way_to(replace(remote.host, **change))


async def test_errors_name_the_host_as_it_was_asked_for(remote: RemoteHost) -> None:
    first, second = replace(remote.host, name="web01"), replace(remote.host, name="www")
    async with remote.controller(attempts=1) as controller:
        go = remote.folder / "go"
        waiting = f"while [ ! -e {go} ]; do sleep 0.1; done"
        running = [await controller.submit(host, script(remote, waiting)) for host in (first, second)]
        commands = [
            asyncio.ensure_future(
                controller.client(host).run_async(f"echo > {remote.folder}/{host.name}; {waiting}", LONG)
            )
            for host in (first, second)
        ]
        await until(lambda: all((remote.folder / name).exists() for name in ("web01", "www")), "the commands to begin")
        for pid in remote.server.session_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name, execution, command in zip(("web01", "www"), running, commands, strict=True):
            lost = await execution.result()
            assert (lost.state, lost.host) == (Outcome.UNKNOWN, name)
            assert (lost.error_message or "").startswith(f"{name}: ")
            assert ((await command).error or "").startswith(f"{name}: ")
        remote.server.stop()
        refused = await asyncio.gather(
            *(controller.submit(host, script(remote, "true")) for host in (first, second)), return_exceptions=True
        )
        assert [(error.host, str(error)[:6]) for error in refused if isinstance(error, UnreachableError)] == [
            ("web01", "web01:"),
            ("www", "www: c"),
        ]
        remote.server.start()
        go.touch()
        for execution in running:
            remote.wait_result(execution.id)


async def test_a_host_that_hangs_is_tried_once_in_a_hurry_whatever_it_is_called() -> None:
    """Whoever is in a hurry may have found the connection on its way, asked for under another name."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = Host("web01", "127.0.0.1", silent.getsockname()[1], connect_timeout=0.2)
        connections = Connections(Access(known_hosts="/dev/null"), Memory())
        with connections.hurried(replace(first, name="www")), pytest.raises(UnreachableError):
            await connections.open(first)
        silent.setblocking(False)
        tried = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                tried += 1
    assert tried == 1


async def test_a_fan_out_over_two_names_of_one_account_runs_once(remote: RemoteHost) -> None:
    rows = [replace(remote.host, name=name) for name in ("web01", "www")]
    async with remote.controller() as controller:
        results = [result async for result in controller.run_many(rows, script(remote, "true"))]
    assert [result.host for result in results] == ["www"]


# -- how long ----------------------------------------------------------------------------------------------------------


async def test_an_agent_that_nobody_uses_is_left_and_its_connection_closed(remote: RemoteHost) -> None:
    async with remote.controller(idle_seconds=IDLE) as controller:
        for calls in (1, 2):
            assert await run(controller, remote.host, remote) == b"on\n"
            await until(lambda: is_unconnected(remote) and not remote.agents(), "the connection to be closed")
            assert controller.connections_opened == calls
        assert "agents" not in repr(controller.reachable)


async def test_an_agent_with_an_execution_is_kept_however_quiet_it_is(remote: RemoteHost) -> None:
    go = remote.folder / "go"
    async with remote.controller(idle_seconds=IDLE) as controller:
        host = remote.host
        waiting = f"while [ ! -e {go} ]; do sleep 0.05; done; echo on"
        execution = await controller.submit(host, script(remote, waiting))
        other = replace(
            host, tailscale_ip=f"127.0.0.1:{host.port}"
        )  # a way of its own, whose fate shows that the time has gone by
        for _ in range(3):
            async with controller.connections.lease(other) as lease:
                pass
            await until(lease.connection.is_closed, "an idle connection to be closed")
        assert controller.reachable.is_reached(host)
        assert controller.connections_opened == 4
        go.touch()
        assert (await collect(execution))["stdout"] == b"on\n"
        assert (await execution.result()).state is Outcome.SUCCEEDED
        await until(lambda: is_unconnected(remote), "the connection to be closed")


async def test_an_opening_that_nobody_waits_for_any_more_is_left_too(remote: RemoteHost) -> None:
    async with remote.controller(idle_seconds=IDLE) as controller:
        reaching = asyncio.ensure_future(controller.reachable.reach(remote.host))
        await until(lambda: remote.server.count_in_log("Connection from"), "the connection to be opened")
        reaching.cancel()
        await until(lambda: remote.agents(), "the agent to be started")
        await until(lambda: is_unconnected(remote), "the connection to be closed")


async def test_a_connection_that_is_too_old_gets_no_new_call_and_ends_with_its_last(remote: RemoteHost) -> None:
    go, begun = remote.folder / "go", remote.folder / "begun"
    waiting = f"while [ ! -e {go} ]; do sleep 0.05; done; echo on"
    async with remote.controller(max_age=100.0) as controller:
        old = await controller.submit(remote.host, script(remote, waiting))
        command = asyncio.ensure_future(controller.client(remote.host).run_async(f"touch {begun}; {waiting}"))
        await until(begun.exists, "the command to begin")
        reached = await controller.reachable.reach(remote.host)
        reached.lease._entry.opened_at -= 100.0
        assert await run(controller, remote.host, remote) == b"on\n"
        assert controller.connections_opened == 2
        assert not reached.connection.is_closed()
        go.touch()
        assert (await collect(old))["stdout"] == b"on\n"
        assert (await command).stdout == "on\n"
        await until(reached.connection.is_closed, "the connection to be closed, idle or not for long")


HOSTS = """defaults:
  max_age: 3600
hosts:
  web01: {{address: "{target}", identity: "{identity}", control_persist: {idle}, max_age: 0.2}}
  web02: {{address: "{target}", identity: "{identity}"}}
"""


async def test_a_hosts_file_says_how_long_connections_are_kept(remote: RemoteHost, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(HOSTS.format(target=remote.server.target, identity=remote.server.identity, idle=IDLE))
    found = inventory.load(str(path))
    first, second = found.host("web01"), found.host("web02")
    assert [(host.idle_seconds, host.max_age) for host in (first, second)] == [(IDLE, 0.2), (None, 3600)]
    async with remote.controller() as controller:
        assert await run(controller, first, remote) == b"on\n"
        await until(lambda: is_unconnected(remote), "the connection to be closed")


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_maximum_age_that_is_none_is_told(tmp_path: Path, value: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"hosts:\n  web01: {{max_age: {value}}}\n")
    with pytest.raises(Exception, match=r"own.yaml:2: web01: max_age: .*must be a number of seconds above 0"):
        inventory.load(str(path))


@pytest.mark.parametrize("way", ["control_persist", "max_age", "access"])
async def test_a_client_says_how_long_its_connections_are_kept(remote: RemoteHost, way: str) -> None:
    config = SSHConfig("127.0.0.1", remote.server.port, key_path=str(remote.server.identity))
    if way == "control_persist":
        config.control_persist = IDLE
    access = remote.access(idle_seconds=IDLE) if way == "access" else remote.access()
    async with SSHClient(config, access=access, max_age=IDLE if way == "max_age" else None) as client:
        for _ in range(2):
            assert (await client.run_async("echo on")).stdout == "on\n"
            await until(lambda: is_unconnected(remote), "the connection to be closed")


# -- who may close it --------------------------------------------------------------------------------------------------


async def test_a_fan_out_leaves_what_others_use(remote: RemoteHost) -> None:
    begun, go = remote.folder / "begun", remote.folder / "go"
    waiting = f"echo > {begun}; while [ ! -e {go} ]; do sleep 0.05; done; echo on"
    async with remote.controller() as controller:
        command = asyncio.ensure_future(controller.client(remote.host).run_async(waiting))
        await until(begun.exists, "the command to begin")
        results = [result async for result in controller.run_many([remote.host], script(remote, "echo many"))]
        assert [result.state for result in results] == [Outcome.SUCCEEDED]
        assert not controller.reachable.is_reached(remote.host)
        assert not command.done()
        go.touch()
        assert (await command).stdout == "on\n"
        assert controller.connections_opened == 1


async def test_a_fan_out_leaves_an_agent_that_others_follow(remote: RemoteHost) -> None:
    go = remote.folder / "go"
    async with remote.controller() as controller:
        many = controller.run_many([remote.host], script(remote, "echo many"))
        results = aiter(many)
        first = asyncio.ensure_future(anext(results))
        await until(lambda: remote.server.count_in_log("Connection from"), "the fan-out to begin")
        waiting = f"while [ ! -e {go} ]; do sleep 0.05; done; echo on"
        execution = await controller.submit(remote.host, script(remote, waiting))
        assert (await first).state is Outcome.SUCCEEDED
        assert [result async for result in results] == []
        go.touch()
        assert (await collect(execution))["stdout"] == b"on\n"
        assert (await execution.result()).state is Outcome.SUCCEEDED
        assert controller.connections_opened == 1


async def test_a_fan_out_closes_what_nobody_else_uses(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        results = [result async for result in controller.run_many([remote.host], script(remote, "echo many"))]
        assert [result.state for result in results] == [Outcome.SUCCEEDED]
        await until(lambda: is_unconnected(remote), "the connection to be closed")


async def test_a_fan_out_that_is_left_while_it_connects_leaves_nothing(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        many = controller.run_many([remote.host], script(remote, "sleep 100"))
        results = aiter(many)
        first = asyncio.ensure_future(anext(results))
        await until(lambda: remote.server.count_in_log("Connection from"), "the fan-out to begin")
        many.cancel()
        assert (await asyncio.wait_for(first, LONG)).state is Outcome.SKIPPED
        await until(lambda: is_unconnected(remote), "the connection to be closed")
        assert not controller.reachable.is_reached(remote.host)


# -- what clients remember ---------------------------------------------------------------------------------------------

CLIENT = """
import asyncio, logging
from cronium_controller import SSHClient, SSHConfig
from cronium_controller.access import Access

logging.disable()

async def main():
    config = SSHConfig("127.0.0.1", {port}, key_path={key!r})
    client = SSHClient(config, name="web01", access=Access(known_hosts={known!r}, attempts=1))
    result = await client.run_async({command!r})
    health = client.health
    print(result.error_code, health.total_successes, health.total_failures, health.consecutive_failures)
    if {closes}:
        await client.close()

asyncio.run(main())
"""


def in_a_process(remote: RemoteHost, command: str, *, port: int | None = None, closes: bool = True) -> list[str]:
    """What a program with a client of its own prints."""
    code = textwrap.dedent(CLIENT).format(
        port=port or remote.server.port,
        key=str(remote.server.identity),
        known=str(remote.known_hosts),
        command=command,
        closes=closes,
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("closes", [True, False])
def test_a_later_process_s_client_knows_how_a_host_stood(remote: RemoteHost, closes: bool) -> None:
    assert in_a_process(remote, "exit 3", closes=closes) == ["None", "0", "1", "1"]
    assert in_a_process(remote, "exit 3", closes=closes) == ["None", "0", "2", "2"]
    assert in_a_process(remote, "true", closes=closes) == ["None", "1", "2", "0"]


def test_a_later_process_s_client_leaves_a_host_alone_that_is_away(remote: RemoteHost) -> None:
    for number in (1, 2, 3):
        assert in_a_process(remote, "true", port=1) == ["host.unreachable", "0", str(number), str(number)]
    # The first pause may be over by the time that a process has started on a busy machine; each further one is longer.
    assert any(in_a_process(remote, "true", port=1)[0] == "host.paused" for _ in range(5))


async def test_a_client_and_a_controller_remember_in_the_same_place(remote: RemoteHost) -> None:
    config = SSHConfig("127.0.0.1", remote.server.port, key_path=str(remote.server.identity))
    async with SSHClient(config, access=remote.access()) as client:
        await client.run_async("exit 3")
    store = Store()
    try:
        known = store.health(account(config.to_host()))
    finally:
        store.close()
    assert known is not None
    assert (known.calls.total_failures, known.transport) == (1, "direct")


async def test_a_client_works_where_nothing_can_be_remembered(
    remote: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path / "file" / "state"))
    config = SSHConfig("127.0.0.1", remote.server.port, key_path=str(remote.server.identity))
    async with SSHClient(config, access=remote.access()) as client:
        for _ in range(2):
            assert (await client.run_async("echo on")).stdout == "on\n"
        assert client.health.total_successes == 2
    assert [record.message.split()[0] for record in caplog.records if "health" in record.message] == ["health_not_kept"]


def test_clients_of_several_threads_remember_in_one_place(remote: RemoteHost) -> None:
    config = SSHConfig("127.0.0.1", remote.server.port, key_path=str(remote.server.identity))
    blocking = SSHClient(config, access=remote.access())
    assert blocking.run("true").success

    async def both() -> None:
        async with SSHClient(config, access=remote.access()) as client:
            assert (await client.run_async("true")).success
        await blocking.close()

    asyncio.run(both())
    store = Store()
    try:
        known = store.health(account(config.to_host()))
    finally:
        store.close()
    assert known is not None
    assert known.calls.total_successes == 2


def test_the_settings_of_an_account_are_those_of_whoever_asks_last(remote: RemoteHost) -> None:
    async def limits() -> list[float]:
        connections = Connections(Access(idle_seconds=7, max_age=70), Memory())
        hosts = [remote.host, replace(remote.host, idle_seconds=1.0), replace(remote.host, max_age=9.0)]
        found = [connections._limits_of(way_to(host)) for host in hosts]
        return [value or 0 for each in found for value in (each.idle, each.max_age)]

    assert asyncio.run(limits()) == [7, 70, 1, 70, 7, 9]
