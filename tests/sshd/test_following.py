"""An execution from later processes, and through everything that can happen to the connection in between."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cronium_controller.errors import RefusedError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_runner.wire.results import Outcome, exit_status
from kinds import BOTH
from remote_host import RemoteHost, collect
from runner_process import PATIENCE, is_running, wait_until
from tcp_proxy import TcpProxy

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


def counting(gate: Path, before: int = 2000, after: int = 2000) -> str:
    """A script that prints numbered lines on both streams, and waits in the middle."""
    lines = "for i in $(seq {} {}); do echo line $i; echo aside $i >&2; done\n"
    waits = f"echo waiting; while [ ! -e {gate} ]; do sleep 0.01; done\n"
    return lines.format(1, before) + waits + lines.format(before + 1, before + after) + "exit 9\n"


def started_at(pid: int) -> int:
    """When a process was started, in clock ticks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])


def expected(before: int = 2000, after: int = 2000) -> dict[str, bytes]:
    def lines(word: str, start: int, end: int) -> bytes:
        return b"".join(f"{word} {number}\n".encode() for number in range(start, end + 1))

    total = before + after
    stdout = lines("line", 1, before) + b"waiting\n" + lines("line", before + 1, total)
    return {"stdout": stdout, "stderr": lines("aside", 1, total)}


def test_detach_and_everything_from_later_processes(alone: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    words = ["--detach", "--execution-id", "later", alone.script(counting(gate, 3, 3))]
    done = alone.run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"later\n", b"")
    alone.wait_output("later", b"waiting")
    status = json.loads(alone.cronium("status", "later", "--json").stdout)
    assert (status["state"], status["result"]) == ("running", None)
    assert status["stdout"]["bytes"] == len(b"line 1\nline 2\nline 3\nwaiting\n")
    logs = alone.cronium("logs", "later")
    assert (logs.returncode, logs.stdout) == (0, b"line 1\nline 2\nline 3\nwaiting\n")
    assert logs.stderr == b"aside 1\naside 2\naside 3\n"
    logs = alone.cronium("logs", "later", "--raw", "--stream", "stdout", "--offset", "7")
    assert (logs.stdout, logs.stderr) == (b"line 2\nline 3\nwaiting\n", b"")
    attached = alone.start_cronium("attach", "later", stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"line 1\n"
    gate.touch()
    stdout, stderr = attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 9
    assert b"line 1\n" + stdout == expected(3, 3)["stdout"]
    assert stderr == expected(3, 3)["stderr"]
    status = alone.cronium("status", "later").stdout
    assert b"failed, exit 9" in status
    again = alone.cronium("attach", "later", "--offset", "29", "24")
    assert (again.returncode, again.stdout) == (9, b"line 4\nline 5\nline 6\n")
    assert again.stderr == b"aside 4\naside 5\naside 6\n"
    record = alone.store().find("later")
    assert record is not None
    assert record.state == "failed"
    assert record.result is not None
    assert record.is_acknowledged


def test_raw_logs_are_every_byte_and_others_are_readable(alone: RemoteHost) -> None:
    assert alone.run("--detach", "--execution-id", "bytes", alone.script("printf 'a\\377\\0b\\303'")).returncode == 0
    alone.wait_result("bytes")
    assert alone.cronium("logs", "bytes", "--raw").stdout == b"a\xff\0b\xc3"
    assert alone.cronium("logs", "bytes").stdout.decode() == "a\ufffd\0b\ufffd"
    past = alone.cronium("logs", "bytes", "--raw", "--offset", "1000")
    assert (past.returncode, past.stdout) == (0, b"")


@BOTH
def test_cancel_from_another_process(alone: RemoteHost) -> None:
    assert alone.run("--detach", "--execution-id", "long", alone.script("echo up; sleep 600")).returncode == 0
    alone.wait_output("long", b"up")
    script = alone.script_group("long")
    done = alone.cronium("cancel", "long")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"cancelled" in done.stderr
    assert not is_running(script)
    assert alone.cronium("attach", "long").returncode == 130
    assert alone.cronium("cancel", "long").returncode == 0, "there is nothing left to cancel"


def test_a_second_interrupt_leaves_it_running(alone: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    text = f"trap '' TERM; echo up; while [ ! -e {gate} ]; do sleep 0.05; done; exit 5"
    words = ["run", "--host", alone.server.target, "--json", "-v", "--execution-id", "twice", alone.script(text)]
    running = alone.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stderr is not None
    assert b"execution twice on" in running.stderr.readline()
    alone.wait_output("twice", b"up")
    running.send_signal(signal.SIGINT)
    assert b"interrupt again" in running.stderr.readline()
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    told = running.stderr.readline()  # told at once: the first interrupt's grace period goes on, and ends it
    assert b"cronium attach twice" in told, told
    assert is_running(alone.script_group("twice"))
    gate.touch()
    stdout, stderr = running.communicate(timeout=PATIENCE)
    assert running.returncode == 255, stderr
    assert json.loads(stdout)["state"] == "unknown"
    assert b"Traceback" not in stderr
    assert alone.wait_result("twice")["state"] == "cancelled", "the first interrupt still holds"


async def test_interrupts_are_heard_while_the_payload_is_on_its_way(alone: RemoteHost, tmp_path: Path) -> None:
    """A line that is dead, which only its silence would tell after two minutes."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\ninterpreter: bash\nentrypoint: script.sh\n")
    (folder / "script.sh").write_text("echo never\n")
    (folder / "data").write_bytes(os.urandom(30_000_000))
    await asyncio.to_thread(alone.cronium, "deploy", "--host", alone.server.target)
    async with TcpProxy(alone.server.port) as proxy:
        proxy.cut_after(3_000_000, "hole", is_sent=True)
        words = ["run", "--json", "--execution-id", "early", "--host", f"127.0.0.1:{proxy.port}", folder]
        with alone.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            async with asyncio.timeout(60):
                while not proxy.cuts:
                    await asyncio.sleep(0.01)
            running.send_signal(signal.SIGINT)
            assert running.stderr is not None
            assert b"interrupt again" in await asyncio.to_thread(running.stderr.readline)
            running.send_signal(signal.SIGINT)
            stdout, stderr = await asyncio.to_thread(running.communicate, timeout=60)
    assert (running.returncode, json.loads(stdout)["state"]) == (255, "unknown")
    assert b"Traceback" not in stderr
    assert alone.executions() == []


@BOTH
@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP"])
def test_a_controller_that_dies_loses_nothing(alone: RemoteHost, tmp_path: Path, name: str) -> None:
    gate = tmp_path / "gate"
    words = ["run", "--host", alone.server.target, "--execution-id", "orphan", alone.script(counting(gate))]
    seen = {"stdout": tmp_path / "stdout", "stderr": tmp_path / "stderr"}
    with seen["stdout"].open("wb") as stdout, seen["stderr"].open("wb") as stderr:
        running = alone.start_cronium(*words, stdout=stdout, stderr=stderr)
        wait_until(lambda: seen["stdout"].stat().st_size > 5000, "some output")
        running.send_signal(signal.Signals[name])
        running.wait(PATIENCE)
    had = {stream: path.read_bytes() for stream, path in seen.items()}
    record = alone.store().find("orphan")
    assert record is not None
    assert (record.state, record.result) == ("accepted", None)
    gate.touch()
    offsets = [len(had["stdout"]), len(had["stderr"])]
    attached = alone.cronium("attach", "orphan", "--offset", *offsets)
    assert attached.returncode == 9
    whole = expected()
    assert had["stdout"] + attached.stdout == whole["stdout"]
    assert had["stderr"] + attached.stderr == whole["stderr"]
    record = alone.store().find("orphan")
    assert record is not None
    assert record.result is not None
    assert record.result.exit_code == 9


@BOTH
@pytest.mark.parametrize("victim", ["session", "agent"])
async def test_a_channel_that_is_cut_is_unknown_and_the_truth_comes_later(
    alone: RemoteHost, tmp_path: Path, victim: str
) -> None:
    gate = tmp_path / "gate"
    async with alone.controller() as controller:
        job = Job(load(alone.script(counting(gate))), execution_id="cut")
        execution = await controller.submit(alone.host, job)
        had = {1: b"", 2: b""}
        # The supervisor is a fork of the agent: the elder is the agent.
        victims = alone.server.session_pids() if victim == "session" else [min(alone.agents(), key=started_at)]
        async for piece in execution.pieces():
            assert piece.offset == len(had[piece.stream])
            had[piece.stream] += piece.data
            while b"waiting" in had[1] and victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victims.pop(), signal.SIGKILL)
        result = await execution.result()
        assert (result.state, exit_status(result)) == (Outcome.UNKNOWN, 255)
        assert result.error_code == "channel.lost"
        assert "cronium attach cut" in (result.error_message or "")
        record = controller.store.find("cut")
        assert record is not None
        assert (record.state, record.result) == ("unknown", None)
        gate.touch()
        again = await controller.attach("cut", alone.host, offsets=(len(had[1]), len(had[2])))
        rest = await collect(again)
        truth = await again.result()
        assert (truth.state, truth.exit_code) == (Outcome.FAILED, 9)
        assert {"stdout": had[1] + rest["stdout"], "stderr": had[2] + rest["stderr"]} == expected()
        record = controller.store.find("cut")
        assert record is not None
        assert record.state == "failed"


def test_the_command_says_unknown_with_255(alone: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    words = [
        "run",
        "--json",
        "--host",
        alone.server.target,
        "--execution-id",
        "cut",
        alone.script(counting(gate, 3, 3)),
    ]
    running = alone.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    alone.wait_output("cut", b"waiting")
    for pid in alone.server.session_pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    stdout, stderr = running.communicate(timeout=PATIENCE)
    assert running.returncode == 255
    assert b"Traceback" not in stderr
    assert json.loads(stdout)["state"] == "unknown"
    gate.touch()
    assert alone.cronium("attach", "cut").returncode == 9


async def test_on_disconnect_cancel_is_obeyed(alone: RemoteHost) -> None:
    async with alone.controller() as controller:
        job = Job(load(alone.script("echo up; sleep 600")), execution_id="tied", on_disconnect="cancel")
        execution = await controller.submit(alone.host, job)
        async for _ in execution.pieces():
            break
    recorded = await asyncio.to_thread(alone.wait_result, "tied")
    assert recorded["state"] == "cancelled"


async def test_what_nobody_knows_is_refused(shared: RemoteHost) -> None:
    async with shared.controller() as controller:
        for asking in (
            lambda: controller.attach("never", shared.host),
            lambda: controller.status("never", shared.host),
            lambda: controller.attach("../../etc", shared.host),
        ):
            with pytest.raises(RefusedError) as refused:
                await asking()
            assert refused.value.exit_status == 125
            assert "\n" not in refused.value.message


async def test_many_followers_of_one_execution_see_the_same(shared: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with shared.controller() as controller:
        job = Job(load(shared.script(counting(gate))), execution_id="watched")
        first = await controller.submit(shared.host, job)
        others = [await controller.attach("watched", shared.host) for _ in range(5)]
        gate.touch()
        seen = await asyncio.gather(*[collect(execution) for execution in [first, *others]])
        assert seen == [expected()] * 6


async def test_a_task_that_is_cancelled_leaves_nothing_waiting(shared: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with shared.controller() as controller:
        job = Job(load(shared.script(counting(gate, 3, 3))), execution_id="dropped")
        execution = await controller.submit(shared.host, job)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(execution.result(), 0.3)
        gate.touch()
        again = await controller.attach("dropped", shared.host)
        assert await collect(again) == expected(3, 3)
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()
