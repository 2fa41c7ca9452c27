"""A supervisor and whoever started it, when one of them goes at the wrong moment, or the script can't begin."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from typing import Any

import pytest

from cronium_runner.wire.frames import Kind
from openssh import child_pids
from payload_bytes import make_payload
from runner_process import PATIENCE, AgentProcess, Host, Payload, is_running, wait_until

NO_PROGRAM = Payload(
    make_payload({"manifest.yaml": b"version: v1\nentrypoint: s\n", "s": b"\x7fELF garbage"}, executable=("s",))
)
"""Passes every check, and the kernel refuses to execute it."""


def slow_payload(script: bytes) -> Payload:
    """A payload that takes a while to unpack, so that there is a time before the claim."""
    files = {f"d/{number}": b"" for number in range(2000)}
    manifest = b"version: v1\ninterpreter: bash\nentrypoint: s\n"
    return Payload(make_payload({"manifest.yaml": manifest, "s": script, **files}))


def kill_supervisor_before_the_claim(host: Host, guardian: int) -> None:
    """Kills the guardian's one child while it prepares, and removes what it could not."""

    def staged() -> list[str]:
        return [name for name in host.executions() if name.startswith(".new-")]

    wait_until(staged, "the preparation to begin")
    [supervisor] = child_pids(guardian)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not is_running(supervisor), "the supervisor's end")
    for name in staged():
        shutil.rmtree(host.state / "executions" / name)


# The script cannot begin


def test_an_id_is_told_to_be_claimed_only_once_the_script_runs(host: Host) -> None:
    with host.agent() as agent:
        channel = agent.submit(NO_PROGRAM, "job")
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, NO_PROGRAM.content)
        for _ in range(5):
            frame = agent.expect(channel)
            assert frame.kind == Kind.FINISHED
            assert frame.json()["error"]["code"] == "interpreter.not_executable"
            assert not host.execution("job").exists()
            channel = agent.submit(NO_PROGRAM, "job")
        agent.finished(channel)
        assert agent.finished(agent.start(host.payload("true\n"), "job"))["state"] == "succeeded"


def test_the_foreground_rejects_a_script_that_cannot_begin(host: Host) -> None:
    path = NO_PROGRAM.write(host.folder / "payload.tar.gz")
    for _ in range(3):
        result = host.run_json("--execution-id", "job", path)
        assert (result["state"], result["exit status"]) == ("rejected", 126)
        assert host.executions() == []


# The guardian goes before the claim


@pytest.mark.parametrize(
    ("on_disconnect", "script", "state"),
    [("continue", b"echo ran\n", "succeeded"), ("cancel", b"sleep 60\n", "cancelled")],
    ids=["continue", "cancel"],
)
def test_a_submitter_that_goes_before_the_claim_decides_as_it_said(
    host: Host, on_disconnect: str, script: bytes, state: str
) -> None:
    payload = slow_payload(script)
    with host.agent() as agent:
        channel = agent.submit(payload, "job", onDisconnect=on_disconnect)
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, payload.content)
        wait_until(lambda: child_pids(agent.process.pid), "the supervisor")
        agent.close_input()
        assert agent.process.wait(PATIENCE) == 0
    recorded = host.recorded("job")
    assert recorded is not None
    assert recorded["state"] == state


# The supervisor goes before its verdict


def test_a_supervisor_killed_before_the_claim_is_a_rejection(host: Host) -> None:
    payload = slow_payload(b"echo ran\n")
    with host.agent() as agent:
        channel = agent.submit(payload, "job")
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, payload.content)
        kill_supervisor_before_the_claim(host, agent.process.pid)
        result = agent.finished(channel)
        assert (result["state"], result["error"]["code"]) == ("rejected", "runner.internal")
        assert agent.finished(agent.start(payload, "job"))["state"] == "succeeded"


def test_a_supervisor_killed_right_after_the_claim_is_followed_to_lost(host: Host) -> None:
    payload = host.payload("sleep 60\n")
    with host.agent() as agent:
        agent.finished(agent.start(host.payload("true\n"), "warm"))
        channel = agent.submit(payload, "job")
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, payload.content)
        while not host.execution("job").exists():
            pass
        supervisor = host.history("job")[0]["supervisor"]["pid"]  # the one before may be on its way out
        os.kill(supervisor, signal.SIGKILL)
        assert agent.expect(channel, Kind.ACCEPTED).json() == {"executionId": "job", "started": True}
        assert agent.finished(channel)["state"] == "lost"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(host.history("job")[0]["socket"])


def test_the_foreground_sees_a_supervisor_killed_before_the_claim(host: Host) -> None:
    path = slow_payload(b"echo ran\n").write(host.folder / "payload.tar.gz")
    with host.start("run", "--execution-id", "job", path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        kill_supervisor_before_the_claim(host, process.pid)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (125, b"")
    assert b"[runner.internal]" in stderr


# Descriptors


def with_descriptors(host: Host, soft: int, hard: int) -> AgentProcess:
    """An agent whose shell gave it so many."""
    host.user = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))}
    try:
        return host.agent()
    finally:
        host.user = {}


def test_an_agent_takes_more_descriptors_and_scripts_get_what_the_login_gave(host: Host) -> None:
    with with_descriptors(host, 200, 2000) as agent:
        agent.send(Kind.PING, 0)  # HELLO comes before the agent is whole
        agent.expect(0, Kind.PONG)
        assert resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE) == (2000, 2000)
        channel = agent.start(host.payload("ulimit -Sn; ulimit -Hn\n"), "job")
        agent.finished(channel)
        assert agent.stdout(channel) == b"200\n2000\n"


def test_an_agent_without_a_free_descriptor_serves_all_the_same(host: Host) -> None:
    """24 pairs fit into 64 descriptors, their 48 spools do not."""
    waiting = "until [ -e {}/{} ]; do sleep 0.05; done\n".format
    script = waiting(host.folder, "speak") + "echo $1\necho err $1 >&2\n" + waiting(host.folder, "end")
    payload = host.payload(script)
    with with_descriptors(host, 64, 64) as agent:
        channels: list[Any] = [agent.start(payload, f"job-{number}", args=[str(number)]) for number in range(24)]
        (host.folder / "speak").touch()
        for number in range(24):
            wait_until((host.execution(f"job-{number}") / "stderr").exists, "its output")
        (host.folder / "end").touch()
        for number, channel in enumerate(channels):
            assert agent.finished(channel)["exitCode"] == 0
            assert agent.stdout(channel) == b"%d\n" % number
            assert agent.stderr(channel) == b"err %d\n" % number
        assert agent.close() == 0
