"""Commands on this machine without SSH: streams, ends, what is left, and what names it."""

import asyncio
import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import inventory, local_connection
from cronium_controller.access import Access
from cronium_controller.client import SSHClient
from cronium_controller.connections import Connections
from cronium_controller.errors import ControllerError
from cronium_controller.executor import SSHExecutor
from cronium_controller.hosts import LOCAL, LOCAL_HOST, Host, SSHConfig, parse_host
from cronium_controller.local_connection import LocalConnection
from cronium_controller.memory import Memory
from runner_process import unreaped, wait_until


async def test_a_client_needs_no_ssh(tmp_path: Path) -> None:
    before = unreaped()
    async with SSHClient(SSHConfig(LOCAL)) as client:
        results = await asyncio.gather(*[client.run_async(f"echo {number}") for number in range(30)])
        assert [result.stdout for result in results] == [f"{number}\n" for number in range(30)]
        assert {result.transport_used for result in results} == {"local"}
        assert await client.check_connectivity() == (True, "Connected via local")
        slow = await client.run_async("echo begun; sleep 600", timeout=3)
        assert (slow.timed_out, slow.stdout) == (True, "begun\n")
        log = tmp_path / "log" / "background"
        started = await client.run_background("echo one; echo two >&2", log_file=str(log), with_runner=False)
        assert started.success, started.error
        wait_until(lambda: log.exists() and log.read_text() == "one\ntwo\n", "the background command to end")
    wait_until(lambda: unreaped() <= before, "all commands to be reaped")


async def test_a_machine_without_room_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, refusals = local_connection._spawn, [errno.EAGAIN, errno.EMFILE]

    def refuse_twice(*given: Any) -> "subprocess.Popen[bytes]":
        if refusals:
            raise OSError(refusals.pop(), "no room")
        return spawn(*given)

    monkeypatch.setattr(local_connection, "_spawn", refuse_twice)
    connection = LocalConnection(LOCAL_HOST)
    assert (await connection.run("echo here")).stdout == b"here\n"
    assert (await connection.run("kill -TERM $$")).exit_status == 128 + 15
    monkeypatch.setattr(local_connection, "SHELL", "/nonexistent/sh")
    with pytest.raises(ControllerError, match="no command can be started on this machine"):
        await connection.run("echo here")
    await connection.close()
    assert connection.is_closed()
    assert not connection._channels


async def test_the_executor_takes_it_by_name_and_by_host() -> None:
    async with SSHExecutor() as executor:
        for machine in (LOCAL, LOCAL_HOST, SSHConfig(LOCAL)):
            assert (await executor.execute(machine, "echo here")).stdout == "here\n"


async def test_what_is_let_go_of_goes_on_and_is_reaped(tmp_path: Path) -> None:
    before = unreaped()
    gate = tmp_path / "gate"
    connection = LocalConnection(LOCAL_HOST)
    process = await connection.start(f"while [ ! -e {gate} ]; do sleep 0.02; done; echo on > {gate}")
    process.close()
    await connection.close()
    gate.touch()
    wait_until(lambda: gate.read_text() == "on\n", "the command to end")
    wait_until(lambda: unreaped() <= before, "it to be reaped")
    with pytest.raises(ControllerError):
        await connection.run("echo closed")


async def test_a_host_that_is_meant_as_another_account_is_refused() -> None:
    connections = Connections(Access(), Memory())
    with pytest.raises(ControllerError, match="not deploy's"):
        await connections.open(Host("localhost", "localhost", user="deploy", is_local=True))
    await connections.close_all_connections()


def test_how_it_is_written(tmp_path: Path) -> None:
    assert parse_host(LOCAL) == LOCAL_HOST == SSHConfig(LOCAL).to_host()
    assert SSHConfig(LOCAL).to_host("build") == Host("build", "localhost", is_local=True)
    assert SSHConfig.from_host(LOCAL_HOST).to_host() == LOCAL_HOST
    for other in ("localhost", "local", "127.0.0.1:22", "local:22"):
        assert not parse_host(other).is_local
    with pytest.raises(ControllerError, match="--run-as"):
        parse_host("deploy@local:")
    file = tmp_path / "hosts.yaml"
    file.write_text(
        "defaults: {user: deploy, connect_timeout: 3}\n"
        "hosts: {localhost: , a: {local: true, work_dir: /srv}, b: 'local:', c: {local: false, host: localhost}}\n"
    )
    known = inventory.load(str(file), environment={})
    assert [known.host(name).is_local for name in ("localhost", "a", "b", "c")] == [True, True, True, False]
    assert known.host("a") == Host("a", "localhost", is_local=True)
    assert known.config("a").work_dir == "/srv"
    assert known.config("a").to_host("a").is_local
    assert known.host("c").user == "deploy"
    for text in ("{local: true, user: root}", "{local: true, host: root@web01}"):
        file.write_text(f"hosts:\n  a: {text}\n")
        with pytest.raises(ControllerError, match=r"hosts.yaml:2: a: user: a local host"):
            inventory.load(str(file), environment={})
