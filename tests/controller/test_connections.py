"""Jobs and raw commands share one connection; what is known of a host outlives the process. Over a real server."""

import asyncio
import logging
from dataclasses import replace

import pytest

from cronium_controller.errors import UnreachableError
from cronium_controller.job import Job
from cronium_controller.memory import account
from cronium_controller.payloads import load
from remote_host import RemoteHost, collect

pytestmark = pytest.mark.sshd


async def test_calls_of_every_kind_at_once_share_one_connection(
    remote: RemoteHost, caplog: pytest.LogCaptureFixture
) -> None:
    """24 first calls: logs fetched, status asked, raw commands run."""
    job = Job(load(remote.script("echo logged")), execution_id="known")
    async with remote.controller() as before:
        await (await before.submit(remote.host, job)).result()
    accepted = remote.server.count_in_log("Accepted publickey")
    caplog.set_level(logging.INFO, "cronium")
    caplog.clear()
    async with remote.controller() as controller:
        client = controller.client(remote.host)

        async def fetch_log() -> bytes:
            execution = await controller.attach("known", remote.host, follow=False)
            return (await collect(execution))["stdout"]

        async def ask() -> bytes:
            found = await controller.status("known", remote.host)
            return b"logged\n" if found["executionId"] == "known" else b"?"

        async def run() -> bytes:
            return (await client.run_async("echo logged")).stdout.encode()

        client._commands.is_posix = True  # else the client would ask once more which shell it is
        told = await asyncio.wait_for(asyncio.gather(*[(fetch_log, ask, run)[n % 3]() for n in range(24)]), 60)
        assert told == [b"logged\n"] * 24
        events = [getattr(record, "event", record.message) for record in caplog.records]
        assert events.count("ssh_connection_established") == controller.connections_opened == 1
        assert events.count("reusing_ssh_connection") == 23
        reuse = next(record for record in caplog.records if record.message.startswith("reusing_ssh_connection "))
        assert reuse.__dict__["host"] == remote.host.name
        assert reuse.__dict__["duration"] >= 0
    assert remote.server.count_in_log("Accepted publickey") == accepted + 1


async def test_a_host_that_is_away_is_left_alone_also_by_a_later_process(remote: RemoteHost) -> None:
    nobody = replace(remote.host, name="away", port=1)
    for _ in range(3):  # each as a process of its own would
        async with remote.controller(attempts=1) as controller:
            with pytest.raises(UnreachableError, match="cannot connect"):
                await controller.status("x", nobody)
    async with remote.controller(attempts=1) as controller:
        with pytest.raises(UnreachableError, match="left alone for") as paused:
            await controller.status("x", nobody)
        assert paused.value.code == "host.paused"
        known = controller.store.health(account(nobody))
        assert known is not None
        assert (known.breaker.unreachable, known.calls.total_successes) == (3, 0)
    async with remote.controller(attempts=1, ignores_health=True) as controller:
        with pytest.raises(UnreachableError, match="cannot connect"):
            await controller.status("x", nobody)
        assert controller.store.forget_health([account(nobody)]) == 1
        assert controller.store.health(account(nobody)) is None


async def test_a_first_route_that_is_dead_is_not_tried_first_by_a_later_process(remote: RemoteHost) -> None:
    host = replace(remote.host, tailscale_ip="127.0.0.9")
    job = Job(load(remote.script("true")), execution_id="routed")
    async with remote.controller() as controller:
        assert (await (await controller.submit(host, job)).result()).transport == "direct"
    async with remote.controller() as controller:
        controller.memory.of(host)
        from cronium_controller.transport import routes

        assert controller.memory.remembered.order(host.name, routes(host))[0].transport == "direct"
        found = controller.store.find("routed")
        assert found is not None
        assert found.host.tailscale_ip == "127.0.0.9"


async def test_an_agent_beside_commands_where_one_session_is_allowed(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["MaxSessions 1", "MaxStartups 100"]
    remote.server.start()
    async with remote.controller() as controller:
        client = controller.client(remote.host)
        jobs = [Job(load(remote.script(f"echo {number}"))) for number in range(20)]
        submitting = [controller.submit(remote.host, job) for job in jobs]
        commands = [client.run_async(f"echo {number}") for number in range(5)]
        done = await asyncio.wait_for(asyncio.gather(*submitting), 60), await asyncio.gather(*commands)
        assert [(await collect(one))["stdout"] for one in done[0]] == [b"%d\n" % number for number in range(20)]
        assert [one.stdout for one in done[1]] == [f"{number}\n" for number in range(5)]
