"""`cronium wait`, `ps` and `gc` over a real SSH server; what later processes learn of one that was collected."""

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cronium_controller import asking
from cronium_controller.errors import RefusedError
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_runner.wire.results import Outcome
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import is_running, wait_until

pytestmark = pytest.mark.sshd


@pytest.fixture
def other(tmp_path: Path, carrier: Path, install_directory: Path) -> Iterator[Callable[[RemoteHost], RemoteHost]]:
    """A second host, known to the same controller."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    with ExitStack() as running:

        def make(first: RemoteHost) -> RemoteHost:
            made = RemoteHost(
                tmp_path / "other",
                carrier,
                tmp_path / "lib2",
                environment={"CRONIUM_INSTALL_DIR": str(install_directory)},
            )
            made.remembered, made.known_hosts = first.remembered, first.known_hosts
            return running.enter_context(made)

        yield make


def gated(gate: Path, status: int = 0) -> str:
    return f"echo up; until [ -e {gate} ]; do sleep 0.02; done; echo done; exit {status}\n"


def detached(remote: RemoteHost, execution_id: str, text: str) -> None:
    done = remote.run("--detach", "--execution-id", execution_id, remote.script(text, f"{execution_id}.sh"))
    assert done.returncode == 0, done.stderr


def test_wait_fetches_the_result_without_its_output_and_acknowledges_it(remote: RemoteHost, tmp_path: Path) -> None:
    detached(remote, "one", gated(tmp_path / "gate", 7) + "\n")
    waiting = remote.start_cronium("wait", "one", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    remote.wait_output("one", b"up")
    (tmp_path / "gate").touch()
    stdout, stderr = waiting.communicate(timeout=60)
    assert (waiting.returncode, stdout, stderr) == (
        7,
        f"one on {remote.server.target}: failed, exit 7\n".encode(),
        b"",
    )
    assert any("acknowledged" in line for line in remote.history("one"))
    record = remote.store().find("one")
    assert record is not None
    assert record.result is not None
    assert (record.state, record.result.exit_code, record.result.stdout.size) == ("failed", 7, len(b"up\ndone\n"))
    done = remote.cronium("wait", "one", "--json")  # again, from a later process
    assert done.returncode == 7
    assert json.loads(done.stdout)["exitCode"] == 7


def test_wait_for_several_tells_each_as_it_ends(remote: RemoteHost, tmp_path: Path) -> None:
    for name, status in (("slow", 0), ("quick", 3)):
        detached(remote, name, gated(tmp_path / name, status))
    waiting = remote.start_cronium("wait", "--json", "slow", "quick", stdout=subprocess.PIPE, bufsize=0)
    assert waiting.stdout is not None
    (tmp_path / "quick").touch()
    first = json.loads(waiting.stdout.readline())
    assert (first["executionId"], first["exitCode"]) == ("quick", 3)
    assert waiting.poll() is None
    (tmp_path / "slow").touch()
    second, summary = map(json.loads, waiting.communicate(timeout=60)[0].splitlines())
    assert (second["executionId"], second["state"]) == ("slow", "succeeded")
    assert (summary["verdict"], summary["states"]) == ("PARTIAL SUCCESS", {"failed": 1, "succeeded": 1})
    assert (summary["summary"], summary["exitStatus"], "text" in second["stdout"]) == (True, 101, False)
    assert waiting.returncode == 101
    assert remote.cronium("wait", "slow", "slow").returncode == 0, "the same one twice is one"


def test_wait_on_two_hosts_and_one_that_cannot_be_reached(
    remote: RemoteHost, other: Callable[[RemoteHost], RemoteHost], tmp_path: Path
) -> None:
    second = other(remote)
    detached(remote, "here", "exit 0\n")
    detached(second, "there", gated(tmp_path / "gate", 0))
    waiting = remote.start_cronium("wait", "here", "there", stdout=subprocess.PIPE, bufsize=0)
    assert waiting.stdout is not None
    assert waiting.stdout.readline().startswith(b"here on ")
    (tmp_path / "gate").touch()
    assert waiting.communicate(timeout=60)[0].startswith(b"there on ")
    assert waiting.returncode == 0
    detached(second, "away", gated(tmp_path / "away", 0))
    second.server.stop()
    done = remote.cronium("wait", "here", "there", "away")
    assert done.returncode == 101
    assert f"here on {remote.server.target}: succeeded".encode() in done.stdout
    assert f"there on {second.server.target}: succeeded".encode() in done.stdout, "what is known is not asked for"
    assert f"away on {second.server.target}: unknown".encode() in done.stdout
    assert b"[host.unreachable]" in done.stdout
    table = [line.split() for line in done.stderr.decode().splitlines()]
    assert ["EXECUTION", "STATE", "EXIT", "TIME", "ROUTE"] in table
    assert [line[1:3] for line in table if line[:1] == [remote.server.target]] == [["succeeded", "0"]]
    assert [line[:3] for line in table if line[:1] == ["away"]] == [["away", "unknown", "-"]]
    assert ["→", "cronium", "doctor", "--host", second.server.target] in table
    assert table[-1][:6] == ["PARTIAL", "SUCCESS:", "2", "succeeded,", "1", "failed"]
    (tmp_path / "away").touch()
    second.server.start()


def test_what_was_never_submitted_from_here_is_told_before_anything_is_waited_for(
    remote: RemoteHost, tmp_path: Path
) -> None:
    detached(remote, "real", gated(tmp_path / "gate"))
    done = remote.cronium("wait", "real", "never")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[execution.not_found]" in done.stderr
    (tmp_path / "gate").touch()
    assert remote.cronium("wait", "real").returncode == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_leaving_a_wait_leaves_the_executions(remote: RemoteHost, tmp_path: Path, name: str) -> None:
    """Also a controller that is killed: the next process waits on."""
    for one in ("a", "b"):
        detached(remote, one, gated(tmp_path / one))
    waiting = remote.start_cronium("wait", "a", "b", stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert waiting.stdout is not None
    (tmp_path / "a").touch()
    assert waiting.stdout.readline().startswith(b"a on ")
    waiting.send_signal(signal.Signals[name])
    _, stderr = waiting.communicate(timeout=60)
    if name == "SIGINT":
        assert waiting.returncode == 255
        assert b"the executions go on" in stderr
        assert b"Traceback" not in stderr
    assert is_running(remote.script_group("b"))
    (tmp_path / "b").touch()
    assert remote.cronium("wait", "a", "b").returncode == 0


def test_ps_lists_what_runs_and_what_is_kept(remote: RemoteHost, tmp_path: Path) -> None:
    assert remote.run("--execution-id", "fetched", remote.script("echo out")).returncode == 0
    detached(remote, "runs", gated(tmp_path / "gate"))
    remote.wait_output("runs", b"up")
    ps = ["ps", "--host", remote.server.target]
    done = remote.cronium(*ps)
    assert done.returncode == 0
    heading, *lines = done.stdout.decode().splitlines()
    assert heading.split() == ["EXECUTION", "STATE", "AGE", "BYTES", "KEPT"]
    assert [line.split()[:2] for line in lines] == [["fetched", "succeeded"], ["runs", "running"]]
    assert [line.split()[3] for line in lines] == ["4", "3"]
    told = [json.loads(line) for line in remote.cronium(*ps, "--json").stdout.splitlines()]
    assert [(one["executionId"], one["acknowledged"]) for one in told] == [("fetched", True), ("runs", False)]
    assert remote.cronium("gc", "--host", remote.server.target, "--older-than", "0").returncode == 0
    assert b"fetched" not in remote.cronium(*ps).stdout
    assert b"its ending only" in remote.cronium(*ps, "--all").stdout
    (tmp_path / "gate").touch()
    assert remote.cronium("wait", "runs").returncode == 0


def test_gc_says_what_goes_and_later_commands_say_that_it_went(remote: RemoteHost) -> None:
    script = remote.script("echo precious; exit 3")
    assert remote.run("--execution-id", "old", script).returncode == 3
    wait_until(lambda: not remote.processes(), "its supervisor to end")
    gc = ["gc", "--host", remote.server.target]
    dry = remote.cronium(*gc, "--older-than", "0", "--dry-run")
    assert b"would remove old\nwould remove 1 execution and " in dry.stdout
    assert b"\nwould be left: " in dry.stdout
    assert dry.stdout.endswith(b" of 10.7 GB\n")
    assert (remote.execution("old") / "stdout").exists()
    told = json.loads(remote.cronium(*gc, "--older-than", "0", "--json").stdout)
    assert (told["collected"], told["isDryRun"], told["tombstones"]) == (["old"], False, 1)
    assert told["freedBytes"] > 0
    assert os.listdir(remote.execution("old")) == ["state.jsonl"]

    again = remote.run("--execution-id", "old", script)
    assert (again.returncode, again.stdout) == (3, b"")
    assert b"[execution.collected]" in again.stderr
    conflict = remote.run("--execution-id", "old", remote.script("echo other", "other.sh"))
    assert (conflict.returncode, b"[execution.id_conflict]" in conflict.stderr) == (125, True)
    for command, status in (("attach", 3), ("status", 3), ("logs", 125)):
        done = remote.cronium(command, "old")
        assert done.returncode == status, command
        assert b"[execution.collected]" in done.stderr + done.stdout, command
        assert b"choose a new id" in done.stderr + done.stdout, command
    assert remote.cronium("wait", "old").returncode == 3, "known from here, whatever the host still has"
    assert remote.cronium("cancel", "old").returncode == 0
    record = remote.store().find("old")
    assert record is not None
    assert record.result is not None
    assert record.result.error_code is None, "what was stored here at its end stays"


def test_gc_says_when_it_is_over_its_budget_and_nothing_more_may_go(remote: RemoteHost, tmp_path: Path) -> None:
    detached(remote, "unfetched", "echo x\n")
    remote.wait_result("unfetched")
    gc = ["gc", "--host", remote.server.target]
    done = remote.cronium(*gc, "--budget", "1")
    assert done.returncode == 0
    assert re.search(rb"over the budget.*cronium wait.*--unacknowledged-older-than DAYS", done.stderr)
    assert (remote.execution("unfetched") / "result.json").exists()
    assert remote.cronium("wait", "unfetched").returncode == 0
    done = remote.cronium(*gc, "--budget", "1")
    assert re.search(rb"over the budget.*give it a larger budget", done.stderr), "there is nothing to fetch"
    refused = remote.cronium(*gc, "--budget", "5 GB")
    assert (refused.returncode, b"5 GB" in refused.stderr) == (125, True)
    (remote.state / "settings.yaml").write_text("retention_days: 3\nbudjet: 5\n")
    refused = remote.cronium(*gc)
    assert (refused.returncode, b"settings.yaml:2: budjet" in refused.stderr) == (125, True)


async def test_a_collection_while_twenty_jobs_run_touches_none(remote: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with remote.controller() as controller:
        job = load(remote.script(gated(gate)))
        executions = [
            await controller.submit(remote.host, Job(job, execution_id=f"job{number}")) for number in range(20)
        ]
        everything = {"olderThanDays": 0, "unacknowledgedOlderThanDays": 0, "budget": 1}
        told = await controller.collect(remote.host, everything)
        assert (told["collected"], told["running"]) == ([], 20)
        gate.touch()
        results = await asyncio.gather(*(execution.result() for execution in executions))
        assert {result.state for result in results} == {Outcome.SUCCEEDED}
        assert {result.stdout.size for result in results} == {len(b"up\ndone\n")}
        await asyncio.gather(*(execution.wait_acknowledged() for execution in executions))
        # The last supervisors are at their tidying up for a moment.
        while len(await controller.executions(remote.host)) > 0:
            await controller.collect(remote.host, everything)
        assert len(await controller.executions(remote.host, wants_all=True)) == 20


async def test_an_older_agent_is_told_apart(remote: RemoteHost) -> None:
    async with remote.controller() as controller:
        reached = await controller.reachable.reach(remote.host)
        del reached.agent.agent["knows"]
        with pytest.raises(RefusedError) as refused:
            await asking.collect(reached.agent, {})
        assert refused.value.code == "channel.version"


def test_a_read_only_state_directory_is_one_clear_error(remote: RemoteHost) -> None:
    if os.geteuid() != 0:
        remote.state.mkdir(mode=0o500)
        done = remote.cronium("gc", "--host", remote.server.target)
        remote.state.chmod(0o700)
        assert (done.returncode, b"[state.unusable]" in done.stderr) == (125, True)
        return
    remote.state.mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "none", remote.state], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = remote.cronium("gc", "--host", remote.server.target)
    finally:
        wait_until(lambda: not remote.processes(), "the host's processes to end")
        subprocess.run(["umount", remote.state], check=True)
    assert done.returncode == 125
    assert b"Traceback" not in done.stderr
    assert str(remote.state).encode() in done.stderr
