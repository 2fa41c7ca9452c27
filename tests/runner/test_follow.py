"""Attaching to a supervisor that is there but takes no connection now: followed all the same, and as it goes on."""

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from cronium_runner.helper_socket import BACKLOG
from cronium_runner.wire.frames import Kind
from runner_process import PATIENCE, Host, wait_until

GATED = "".join(
    f"echo {word}; while [ ! -e ../../../{gate} ]; do sleep 0.02; done\n"
    for word, gate in (("up", "go"), ("on", "end"))
)


@contextlib.contextmanager
def busy_supervisor(host: Host, execution_id: str) -> Iterator[None]:
    """Stops the supervisor and fills the queue of its socket, as very many helpers at once do. Frees both."""
    claim = host.wait_running(execution_id, b"up")
    supervisor = claim["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGSTOP)
    waiting = []
    try:
        with contextlib.suppress(BlockingIOError):
            for _ in range(2 * BACKLOG + 2):
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                waiting.append(client)
                client.connect(claim["socket"])
            pytest.fail("the queue has no end")
        yield
    finally:
        for client in waiting:
            client.close()
        os.kill(supervisor, signal.SIGCONT)


def open_gate(host: Host, name: str) -> None:
    (host.state / name).touch()


def test_an_agent_shows_what_a_busy_supervisor_has_and_follows_it_when_it_can(host: Host) -> None:
    with host.agent() as agent:
        first = agent.start(host.payload(GATED), "busy")
        with busy_supervisor(host, "busy"):
            second = agent.new_channel()
            agent.send(Kind.ATTACH, second, {"executionId": "busy", "offsets": [0, 0]})
            assert agent.expect(second, Kind.ACCEPTED).json()["started"] is False
            agent.expect(second, Kind.DATA)
            assert agent.stdout(second) == b"up\n"
            agent.send(Kind.PING, 0, b"still here")
            agent.expect(0, Kind.PONG)
        open_gate(host, "go")
        agent.expect(second, Kind.DATA)
        assert agent.stdout(second) == b"up\non\n", "before the end"
        open_gate(host, "end")
        assert agent.finished(second)["state"] == agent.finished(first)["state"] == "succeeded"


def test_the_command_waits_for_a_busy_supervisor_too(host: Host) -> None:
    running = host.start("run", "--execution-id", "busy", host.script(GATED), stdout=subprocess.DEVNULL)
    seen = host.folder / "seen"
    with busy_supervisor(host, "busy"), seen.open("wb") as stdout:
        attached = host.start("attach", "busy", stdout=stdout)
        wait_until(lambda: seen.read_bytes() == b"up\n", "what there is")
    open_gate(host, "go")
    wait_until(lambda: seen.read_bytes() == b"up\non\n", "what is new, before the end")
    assert attached.poll() is None
    open_gate(host, "end")
    assert (attached.wait(PATIENCE), running.wait(PATIENCE)) == (0, 0)


def test_a_cancel_reaches_a_busy_supervisor(host: Host) -> None:
    running = host.start("run", "--execution-id", "busy", host.script(GATED), stdout=subprocess.DEVNULL)
    with busy_supervisor(host, "busy"):
        asking = host.start("cancel", "busy")
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(0.5)
    assert asking.wait(PATIENCE) == 0
    assert running.wait(PATIENCE) == 130
