"""This machine as a host, without SSH: everything that works elsewhere, and nothing of ours handed down."""

import asyncio
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts import throw_away_account
from cronium_controller import local_connection
from cronium_controller.hosts import LOCAL, LOCAL_HOST, Host, parse_host
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.platform_store import PlatformStore
from cronium_runner.wire.results import Outcome
from remote_host import RemoteHost, collect
from runner_process import processes_with, unreaped, wait_until

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
VISIBLE = {} if os.geteuid() == 0 else {"CRONIUM_DUMPABLE": "1"}
"""Else only root sees whose process one is."""
SECRETS = {"DATABASE_URL": "postgresql://u:hidden-away@db/x", "CRONIUM_CONTROLLER_TOKEN": "hidden-away"}


class LocalHost(RemoteHost):
    """This machine, with a state directory of the test's. There is no server."""

    def __enter__(self) -> "LocalHost":
        return self

    @property
    def host(self) -> Host:
        return parse_host(LOCAL)

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | SECRETS | {"CRONIUM_STATE_DIR": str(self.state), **VISIBLE}

    def run(self, *words: object, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        return self.cronium("run", "--host", LOCAL, *words, **options)


@pytest.fixture
def here(tmp_path: Path, binary: Path, install_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHost]:
    with LocalHost(tmp_path / "here", binary, install_root) as host:
        monkeypatch.setenv("CRONIUM_STATE_DIR", str(host.state))
        for name, value in (SECRETS | VISIBLE).items():
            monkeypatch.setenv(name, value)
        yield host


def session_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[3])


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_runs_here_as_anywhere(here: LocalHost) -> None:
    script = here.script(
        "read -r x; printf 'out\\0\\377'; cronium.event server | grep -qx null && echo err >&2; "
        "cronium.output k v; exit 7"
    )
    done = here.run("--execution-id", "one", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\0\xff", b"err\n")
    assert json.loads(here.cronium("status", "--json", "one").stdout)["state"] == "finished"
    again = here.run_json("--execution-id", "one", script)
    assert (again["transport"], again["host"], again["exitCode"], again["output"]) == ("local", "local", 7, {"k": "v"})
    assert len([record for record in here.history("one") if record["state"] == "running"]) == 1
    assert here.cronium("attach", "one").stdout == b"out\0\xff"
    assert here.run(here.script("kill -9 $$", "dies.sh")).returncode == 137
    assert here.run(here.script("sleep 60", "slow.sh"), "--timeout", "0.2").returncode == 124


async def test_jobs_share_an_agent_that_no_interrupt_of_ours_reaches(here: LocalHost) -> None:
    before = unreaped()
    async with here.controller() as controller:
        jobs = [Job(load(here.script("echo $1; sleep 0.1")), args=(str(number),)) for number in range(12)]
        executions = await asyncio.gather(*[controller.submit(here.host, job) for job in jobs])
        outputs = await asyncio.gather(*[collect(execution) for execution in executions])
        assert [output["stdout"] for output in outputs] == [f"{number}\n".encode() for number in range(12)]
        # A supervisor has the agent's name, and goes a moment after its result has been told.
        [agent] = wait_until(lambda: (found := here.agents()) and len(found) == 1 and found, "one agent")
        assert session_of(agent) != os.getsid(0)
        assert controller.connections.opened == 1
        assert {(await execution.result()).transport for execution in executions} == {"local"}
    wait_until(lambda: not here.agents(), "the agent to end")
    wait_until(lambda: unreaped() <= before, "the agent to be reaped")


async def test_what_runs_outlives_the_controller_that_closes(here: LocalHost) -> None:
    before = unreaped()
    gate = here.folder / "gate"
    script = here.script(f"echo on; while [ ! -e {gate} ]; do sleep 0.02; done; echo off")
    async with here.controller() as controller:
        execution = await controller.submit(here.host, Job(load(script), execution_id="stays"))
        here.wait_output("stays", b"on\n")
        execution.detach()
    assert here.agents(), "its guardian has ended"
    gate.touch()
    assert here.wait_result("stays")["state"] == "succeeded"
    wait_until(lambda: not here.processes() and unreaped() <= before, "all of it to end and be reaped")


def test_a_killed_controller_takes_nothing_with_it(here: LocalHost) -> None:
    gate = here.folder / "gate"
    script = here.script(f"echo on; while [ ! -e {gate} ]; do sleep 0.02; done; echo off; exit 3")
    running = here.start_cronium(
        "run", "--host", LOCAL, "--execution-id", "killed", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"on\n"
        running.send_signal(signal.SIGKILL)
    gate.touch()
    found = here.cronium("attach", "killed")
    assert (found.returncode, found.stdout) == (3, b"on\noff\n")
    assert here.cronium("wait", "killed").returncode == 3
    states = [record["state"] for record in here.history("killed")]
    assert states.count("running") == 1


def test_nothing_of_our_environment_is_handed_down(here: LocalHost) -> None:
    in_job = here.run(here.script("tr '\\0' '\\n' < /proc/$PPID/environ; env"))
    in_command = here.cronium("exec", "--host", LOCAL, "--", "env; pwd; tty; cat")
    for done in (in_job, in_command):
        assert done.returncode == 0, done.stderr
        assert b"hidden-away" not in done.stdout
    names = {line.partition("=")[0] for line in in_command.stdout.decode().splitlines() if "=" in line}
    allowed = {"HOME", "USER", "LOGNAME", "SHELL", "CRONIUM_COMMAND_ID", *local_connection.HANDED_DOWN}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} <= allowed
    account = pwd.getpwuid(os.geteuid())
    assert f"\nUSER={account.pw_name}\n".encode() in b"\n" + in_command.stdout
    assert in_command.stdout.endswith(f"\n{os.path.realpath(account.pw_dir)}\nnot a tty\n".encode())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("useradd") is None, reason="needs root and useradd")
def test_another_account_of_this_machine(here: LocalHost) -> None:
    with throw_away_account() as account:
        done = here.run("--run-as", account.name, "--execution-id", "other", here.script("id -un; exit 5"))
        assert (done.returncode, done.stdout) == (5, f"{account.name}\n".encode()), done.stderr
        assert (account.execution("other").is_dir(), here.execution("other").exists()) == (True, False)
        assert here.cronium("attach", "other").stdout == f"{account.name}\n".encode()
        account.wait_nothing_left()


def test_live_data_without_a_tunnel(here: LocalHost) -> None:
    platform = PlatformStore(str(here.remembered / "live.db"))
    try:
        platform.set_variable("MOOD", "calm", None, 0.0, actor="operator test", host="here")
        script = here.script("cronium.getVariable MOOD; cronium.setVariable SEEN yes; cronium.output done true")
        result = here.run_json("--mode", "api", "--execution-id", "live", script)
        assert (result["mode"], result["fallback"], result["stdout"]["text"]) == ("api", None, "calm\n")
        assert (result["undelivered"], result["variables"], result["transport"]) == (0, {"SEEN": "yes"}, "local")
        assert platform.written("live")[0] == {"done": "true"}
    finally:
        platform.close()


async def test_this_machine_and_another_at_once(here: LocalHost, shared: RemoteHost) -> None:
    job = Job(load(here.script("echo $CRONIUM_EXECUTION_ID; exit $1")), args=("0",), execution_id="mixed-local")
    async with shared.controller() as controller:
        fan_out = controller.run_many([shared.host, LOCAL, LOCAL_HOST], job)
        results = [result async for result in fan_out]
    assert {result.transport: result.state for result in results} == {
        "direct": Outcome.SUCCEEDED,
        "local": Outcome.SUCCEEDED,
    }
    assert len(results) == 2, "the same host twice runs once"
    assert fan_out.tally.exit_status == 0
    assert len(here.executions()) == 1


# -- commands ---------------------------------------------------------------------------------------------------------


def test_commands_have_their_own_streams_and_statuses(here: LocalHost) -> None:
    done = here.cronium("exec", "--host", LOCAL, "--env", "A=1 2", "--cwd", "/", "--", 'pwd; echo "$A" >&2; exit 9')
    assert (done.returncode, done.stdout, done.stderr) == (9, b"/\n", b"1 2\n")
    assert here.cronium("exec", "--host", LOCAL, "--", "kill -TERM $$").returncode == 143
    much = here.cronium("exec", "--host", LOCAL, "--", "head -c 20000000 /dev/zero")
    assert (much.returncode, len(much.stdout)) == (0, 20_000_000)


def test_a_timeout_ends_the_whole_tree(here: LocalHost) -> None:
    mark = f"cronium-{os.urandom(8).hex()}"
    tree = f"echo started; (M={mark} setsid sleep 600 &) ; M={mark} sleep 600"
    done = here.cronium("exec", "--host", LOCAL, "--timeout", "3", "--kill", "tree", "--", tree)
    assert (done.returncode, done.stdout) == (124, b"started\n")
    assert b"[command.timeout]" in done.stderr
    wait_until(lambda: not processes_with(mark), "the tree to end")


# -- files ------------------------------------------------------------------------------------------------------------


def test_files_are_copied_and_verified(here: LocalHost) -> None:
    source, there, back = (here.folder / name for name in ("source", "there's a file", "back"))
    content = os.urandom(3_000_000) + b"\0end"
    source.write_bytes(content)
    source.chmod(0o640)
    for sent in (len(content), 0):
        put = here.cronium("put", "--host", LOCAL, "--json", source, there)
        assert put.returncode == 0, put.stderr
        told = json.loads(put.stdout.splitlines()[0])
        assert (told["sentBytes"], told["sha256"]) == (sent, hashlib.sha256(content).hexdigest())
    assert (there.read_bytes(), there.stat().st_mode & 0o777) == (content, 0o640)
    assert here.cronium("get", "--host", LOCAL, there, back).returncode == 0
    assert back.read_bytes() == content
    refused = here.cronium("get", "--host", LOCAL, here.folder / "none", back)
    assert b"[files.refused]" in refused.stderr
    assert sorted(path.name for path in here.folder.iterdir() if ".part" in path.name) == []


# -- the runner -------------------------------------------------------------------------------------------------------


def test_a_runner_is_deployed_and_explained(here: LocalHost) -> None:
    here.root = here.folder / "a root"
    first, second = (here.cronium("deploy", "--host", LOCAL) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout.strip().endswith(b"is there")
    examined = here.cronium("doctor", "--host", LOCAL)
    assert examined.returncode == 0, examined.stdout
    assert b"without SSH" in examined.stdout


def test_a_hosts_file_has_this_machine(here: LocalHost) -> None:
    file = here.folder / "hosts.yaml"
    file.write_text("defaults: {user: deploy, port: 2222}\nhosts:\n  localhost:\n  build: {local: true}\n")
    shown = here.cronium("hosts", "--hosts", file, "--on", "build", "--json")
    [row] = map(json.loads, shown.stdout.splitlines())
    assert (row["routes"], row["user"]) == ([{"transport": "local", "address": "localhost"}], None)
    for name in ("localhost", "build"):
        done = here.cronium("exec", "--hosts", file, "--on", name, "--", "id -un")
        assert done.stdout.decode().strip() == pwd.getpwuid(os.geteuid()).pw_name
    file.write_text("hosts:\n  build: {local: true, user: deploy}\n")
    refused = here.cronium("exec", "--hosts", file, "--on", "build", "--", "id -un")
    assert b"hosts.yaml:2: build: user: a local host" in refused.stderr
