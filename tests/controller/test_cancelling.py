"""Callers that give up at every moment: no lease is lost, no connection and no session stays, nobody else is harmed."""

import asyncio
import itertools
import random
from collections.abc import Coroutine, Iterator
from typing import Any

import asyncssh
import pytest

from cronium_controller import raw_command
from cronium_controller.channel import AgentChannel
from cronium_controller.connections import Connections
from cronium_controller.dispatch import Controller
from cronium_controller.errors import UnreachableError
from cronium_controller.job import Job
from cronium_controller.memory import Memory
from cronium_controller.payloads import load
from cronium_controller.pool import Limits, Pool
from cronium_controller.sessions import Channel, Process
from cronium_runner.wire.results import Outcome
from remote_host import RemoteHost
from runner_process import wait_until

CALLERS = 200
LONG = 60.0
SEED = 20


class Counted:
    """Stands for a connection that takes two sessions."""

    def __init__(self, opened: "list[Counted]") -> None:
        opened.append(self)
        self.sessions = 0
        self.is_over = False

    def is_closed(self) -> bool:
        return self.is_over

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.is_over = True


async def cancelled_after(steps: int, work: Coroutine[Any, Any, Any]) -> None:
    """Does it, and gives up after so many steps of the event loop, unless it is done by then."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def check_settled(pool: "Pool[Any, Any]") -> None:
    """Nobody holds or waits for anything."""
    shelves = list(pool._shelves.values())
    assert [shelf.waiting for shelf in shelves] == [0] * len(shelves)
    entries = [entry for shelf in shelves for entry in shelf.entries]
    assert [(entry.leases, entry.residents) for entry in entries] == [(0, 0)] * len(entries)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", range(24))
async def test_a_call_that_is_given_up_at_any_step_costs_nobody_anything(steps: int, fails: bool) -> None:
    """Five callers, two sessions a connection, three connections at most; any one of them gives up."""
    for victim in range(5):
        opened: list[Counted] = []
        number = itertools.count()

        async def connect(_key: str, opened: list[Counted] = opened, number: Iterator[int] = number) -> Counted:
            for _ in range(3):
                await asyncio.sleep(0)
            if fails and next(number) == 0:
                raise UnreachableError("host.unreachable", "no route", host="web01")
            return Counted(opened)

        pool = Pool(connect, limits=Limits(connections=3, queue=0.001))
        done: list[int] = []

        async def call(caller: int, pool: "Pool[str, Counted]" = pool, done: list[int] = done) -> None:
            while True:
                lease = await pool.acquire("web01", is_resident=caller == 0)
                try:
                    lease.connection.sessions += 1
                    assert lease.connection.sessions <= 3
                    if lease.connection.sessions == 3:
                        lease.note_refused()
                        continue
                    await asyncio.sleep(0)
                    done.append(caller)
                    return
                finally:
                    lease.connection.sessions -= 1
                    lease.give_back()

        others = [asyncio.ensure_future(call(caller)) for caller in range(5) if caller != victim]
        giving_up = asyncio.ensure_future(cancelled_after(steps, call(victim)))
        found = await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), LONG)
        await giving_up
        failed = [error for error in found if error is not None]
        assert all(fails and isinstance(error, UnreachableError) for error in failed), failed
        assert len(set(done) - {victim}) == 4 - len(failed)
        check_settled(pool)
        shelved = [entry.connection for shelf in pool._shelves.values() for entry in shelf.entries]
        assert sorted(map(id, shelved)) == sorted(id(one) for one in opened if not one.is_over), "one was lost"
        await pool.close_all_connections()
        assert all(one.is_over for one in opened)


async def until(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, LONG)


def restart(remote: RemoteHost, *options: str) -> None:
    remote.server.stop()
    remote.server._options = [*options, "MaxStartups 100"]
    remote.server.start()


async def room(connections: Connections, remote: RemoteHost) -> int:
    """How many sessions the first of the connections takes at once."""
    [shelf] = connections._pool._shelves.values()
    connection = shelf.entries[0].connection
    held: list[Process] = []
    try:
        for _ in range(3):
            held.append(await connection.start("cat"))
    except asyncssh.ChannelOpenError:
        pass
    finally:
        for process in held:
            process.close()
    return len(held)


STEPS = [*range(20), *(int(20 * 1.35**power) for power in range(22))]
"""Of the event loop: each of the first ones, then up to some 10,000, in which a session is opened and a command run."""


@pytest.mark.sshd
async def test_a_session_that_is_left_while_it_is_opened_does_not_stay_on_the_server(remote: RemoteHost) -> None:
    restart(remote, "MaxSessions 2")
    connections = Connections(remote.access(), Memory())
    async with connections.lease(remote.host) as lease:
        connection = lease.connection
    for steps in STEPS:
        flag = remote.folder / f"flag{steps}"
        await cancelled_after(steps, raw_command.asked(connection, f"echo > {flag}", 10))
    assert not connection.is_closed()
    assert await room(connections, remote) == 2

    async def transfer() -> None:
        async with await connection.open_session(connection.start_sftp):
            pass

    for steps in range(0, 400, 40):
        await cancelled_after(steps, connection.run("true"))
        await cancelled_after(steps, transfer())
    assert await room(connections, remote) == 2
    await connections.close_all_connections()
    await until(lambda: not remote.server.session_pids(), "the connection to end")


@pytest.mark.sshd
async def test_a_command_that_was_given_up_before_it_was_sent_does_not_run(remote: RemoteHost) -> None:
    connections = Connections(remote.access(), Memory())
    async with connections.lease(remote.host) as lease:
        connection = lease.connection
        flag = remote.folder / "flag"
        starting = asyncio.ensure_future(raw_command.asked(connection, f"echo > {flag}", 10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the session was asked for, and is not open yet
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        for _ in range(3):
            assert (await connection.run("true")).exit_status == 0
    assert not flag.exists()
    await connections.close_all_connections()


@pytest.mark.sshd
async def test_a_command_is_heard_that_is_left_before_it_is_confirmed(
    remote: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent, and the server has not answered yet that it runs it."""
    gate, heard, calls = remote.folder / "gate", bytearray(), list[asyncio.Task[Any]]()
    made, end = raw_command.RunningCommand.connection_made, raw_command.end

    def left(self: raw_command.RunningCommand, chan: Channel) -> None:
        made(self, chan)
        if self._passing is not None:
            calls[0].cancel()

    async def end_in_time(*given: Any, **how: Any) -> bool:
        await until(gate.exists, "the command to be prepared for its end")
        return await end(*given, **how)

    async def hear(_stream: int, data: bytes) -> None:
        heard.extend(data)

    monkeypatch.setattr(raw_command.RunningCommand, "connection_made", left)
    monkeypatch.setattr(raw_command, "end", end_in_time)
    async with remote.controller() as controller:
        client = controller.client(remote.host)
        command = f"trap 'echo down; exit' TERM; echo up; echo > {gate}; sleep 1000 & wait"
        calls.append(asyncio.ensure_future(client.execute(command, LONG, output=hear)))
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        await client.close()
    assert heard == b"up\ndown\n"


@pytest.mark.sshd
async def test_two_hundred_commands_of_which_many_are_given_up(remote: RemoteHost) -> None:
    """On a server that allows two sessions a connection."""
    restart(remote, "MaxSessions 2")
    chance = random.Random(SEED)
    async with remote.controller() as controller:
        client = controller.client(remote.host)
        loop = asyncio.get_running_loop()
        calls = []
        for number in range(CALLERS):
            calls.append(asyncio.ensure_future(client.run_async(f"echo {number}", LONG)))
            if number % 2:
                loop.call_later(chance.uniform(0, 3), calls[-1].cancel)
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 2 * LONG)
        for number, result in enumerate(found):
            if isinstance(result, BaseException):
                assert number % 2, result
                assert isinstance(result, asyncio.CancelledError), result
            else:
                assert (result.stdout, result.error) == (f"{number}\n", None)
        await client._commands.wait_chores()
        pool = controller.connections._pool
        check_settled(pool)
        [shelf] = pool._shelves.values()
        assert len(shelf.entries) <= 10
        await until(
            lambda: shelf.opening is None and remote.server.count_connections() == len(shelf.entries),
            "the server to have as many connections as the pool",
        )
        assert not any(entry.connection.is_closed() for entry in shelf.entries)
        assert await room(controller.connections, remote) == 2
    await until(lambda: not remote.server.session_pids(), "every connection to end")


@pytest.mark.sshd
async def test_jobs_that_are_given_up_while_they_are_submitted_keep_nothing_open(remote: RemoteHost) -> None:
    chance = random.Random(SEED)
    async with remote.controller(idle_seconds=0.3) as controller:
        payload = load(remote.script("true"))
        await (await controller.submit(remote.host, Job(payload))).result()

        async def submit(number: int) -> Outcome:
            job = Job(payload, execution_id=f"job{number}", on_disconnect="cancel" if number % 3 else "continue")
            execution = await controller.submit(remote.host, job)
            try:
                return (await execution.result()).state
            except asyncio.CancelledError:  # who gives up waiting says so: the execution could be waited for again
                execution.detach()
                raise

        calls = []
        for number in range(60):
            calls.append(asyncio.ensure_future(submit(number)))
            if number % 2:
                asyncio.get_running_loop().call_later(chance.uniform(0, 1), calls[-1].cancel)
        found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LONG)
        assert [state for state in found[::2] if state is not Outcome.SUCCEEDED] == []
        assert controller.connections_opened == 1
        await check_left(controller, remote)


async def check_left(controller: Controller, remote: RemoteHost) -> None:
    """After the idle time nothing is left."""
    await until(lambda: not remote.server.session_pids(), "the idle connection to be closed")
    assert not controller.reachable._callers
    assert not controller.reachable._reached
    check_settled(controller.connections._pool)


@pytest.mark.sshd
@pytest.mark.parametrize("steps", [0, 1, 3, 8, 21, 50, 200, 1000, 3000])
async def test_a_first_call_that_is_given_up_leaves_its_host_reachable(remote: RemoteHost, steps: int) -> None:
    async with remote.controller(idle_seconds=0.3) as controller:
        await cancelled_after(steps, controller.reachable.reach(remote.host))
        execution = await asyncio.wait_for(controller.submit(remote.host, Job(load(remote.script("true")))), LONG)
        assert (await execution.result()).state is Outcome.SUCCEEDED
        assert controller.connections_opened == 1
        await controller.reachable.leave(remote.host)
        await check_left(controller, remote)


@pytest.mark.sshd
async def test_leaving_a_host_that_somebody_else_is_reaching_harms_nobody(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        reaching = asyncio.ensure_future(controller.reachable.reach(remote.host))
        await until(lambda: remote.server.count_in_log("Connection from"), "the connection to be opened")
        await controller.reachable.leave(remote.host)
        reached = await asyncio.wait_for(reaching, LONG)
        assert (reached.agent.lost, controller.connections_opened) == (None, 1)


@pytest.mark.sshd
async def test_an_agent_that_is_given_up_before_it_greets_does_not_stay(remote: RemoteHost) -> None:
    connections = Connections(remote.access(), Memory())
    async with connections.lease(remote.host) as lease:
        opening = asyncio.ensure_future(AgentChannel.open(lease.connection, "exec cat"))
        await until(remote.processes, "the command to be started")
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await until(lambda: not remote.processes(), "the command to end, its connection open")
        assert not lease.connection.is_closed()
    await connections.close_all_connections()
