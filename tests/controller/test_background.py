"""Commands in the background on a real host that has a runner: jobs, which any later process finds again."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_controller import SSHClient, SSHConfig
from cronium_controller.job import Job
from cronium_controller.payloads import load
from remote_host import RemoteHost
from runner_process import is_running, wait_until

pytestmark = pytest.mark.sshd
LONG = 30.0


@pytest.fixture
async def installed(remote: RemoteHost) -> RemoteHost:
    """A host that has a runner."""
    async with remote.controller() as controller:
        await (await controller.submit(remote.host, Job(load(remote.script("true"))))).result()
    return remote


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that a command waits for."""
    path = tmp_path / "gate"
    yield path
    path.touch()


async def test_it_is_a_job_that_is_followed_and_cancelled_by_its_id(
    installed: RemoteHost, gate: Path, tmp_path: Path
) -> None:
    log = tmp_path / "new folder/it's a log"
    command = f'echo one; echo "two\'s $A" >&2; pwd; while [ ! -e {gate} ]; do sleep 0.05; done; echo three; exit 7'
    async with installed.controller() as controller:
        client = controller.client(installed.host)
        result = await client.run_background(command, str(log), cwd="/usr", env={"A": "a b"})
        assert result.success, result
        assert result.execution_id is not None
        pid = int(result.stdout)
        assert is_running(pid)
        said = b"one\ntwo's a b\n/usr\n"
        wait_until(lambda: log.read_bytes() == said, "the log file")
        memory = await client.get_process_memory(pid)
        assert memory is not None
        await client.close()
    logs = installed.cronium("logs", "--raw", result.execution_id)
    assert (logs.returncode, logs.stdout) == (0, said)
    assert b"running" in installed.cronium("status", result.execution_id).stdout
    gate.touch()
    ended = json.loads(installed.cronium("wait", "--json", result.execution_id).stdout)
    assert (ended["state"], ended["exitCode"]) == ("failed", 7)
    assert log.read_bytes() == said + b"three\n"


async def test_the_process_id_is_that_of_the_command_and_a_cancel_ends_all_of_it(
    installed: RemoteHost, tmp_path: Path
) -> None:
    async with installed.controller() as controller:
        client = controller.client(installed.host)
        result = await client.run_background("exec sleep 6711", str(tmp_path / "log"))
        pid = int(result.stdout)

        async def name() -> str:
            memory = await client.get_process_memory(pid)
            return "" if memory is None else memory[1]

        async with asyncio.timeout(LONG):
            while await name() != "sleep":
                await asyncio.sleep(0.02)
        plain = await client.run_background("sleep 6712; true")
        assert plain.execution_id
        assert plain.execution_id != result.execution_id
        for execution_id in (result.execution_id, plain.execution_id):
            assert installed.cronium("cancel", str(execution_id)).returncode in (0, 130)
        wait_until(lambda: not is_running(pid) and not is_running(int(plain.stdout)), "both to end")
        assert await client.get_process_memory(pid) is None
        await client.close()


async def test_without_a_runner_or_without_wanting_it_nohup_does(
    remote: RemoteHost, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo done"
    async with remote.controller() as controller:
        client = controller.client(remote.host)
        none = await client.run_background(command, str(tmp_path / "none"))
        assert (none.success, none.execution_id) == (True, None)
        await (await controller.submit(remote.host, Job(load(remote.script("true"))))).result()
        unwanted = await client.run_background(command, str(tmp_path / "unwanted"), with_runner=False)
        assert (unwanted.success, unwanted.execution_id) == (True, None)
        failed = await client.run_background("true", "/proc/nope/log")
        assert not failed.success
        assert "/proc/nope" in failed.stderr
        await client.close()
    # The binary is not here, so no agent can be put there when the one that is there is another.
    monkeypatch.setenv("CRONIUM_RUNNER_BINARY", str(tmp_path / "nope"))
    monkeypatch.setenv("CRONIUM_RUNNER_ROOT", str(remote.root))
    monkeypatch.setenv("CRONIUM_CONTROLLER_STATE", str(tmp_path / "other controller"))
    monkeypatch.setenv("CRONIUM_KNOWN_HOSTS", str(remote.known_hosts))
    config = SSHConfig("127.0.0.1", remote.server.port, key_path=str(remote.server.identity))
    async with SSHClient(config) as alone:
        unable = await alone.run_background(command, str(tmp_path / "unable"))
        assert (unable.success, unable.execution_id) == (True, None), unable
    gate.touch()
    for name in ("none", "unwanted", "unable"):
        wait_until(lambda name=name: (tmp_path / name).read_text() == "done\n", name)  # type: ignore[misc]


async def test_a_client_of_its_own_uses_the_runner_over_its_connection(
    installed: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in installed.environment.items():
        if name.startswith("CRONIUM_"):
            monkeypatch.setenv(name, value)
    (installed.home / ".bashrc").write_text("echo 99 bottles; echo of noise >&2\n")
    before = installed.server.count_in_log("Accepted publickey")
    config = SSHConfig("127.0.0.1", installed.server.port, key_path=str(installed.server.identity))
    async with SSHClient(config, name=installed.server.target) as client:
        result = await client.run_background("echo it $0 | sed 's,[^ ]*/,,'; pwd", work := str(tmp_path / "log"))
        assert result.execution_id is not None, result
        again = await client.run_background("sleep 6713 &", work + "2")  # what is left running ends with it
        assert again.execution_id is not None
    assert installed.server.count_in_log("Accepted publickey") == before + 1
    ended = json.loads(installed.cronium("wait", "--json", result.execution_id).stdout)
    assert ended["state"] == "succeeded"
    assert json.loads(installed.cronium("wait", "--json", again.execution_id).stdout)["state"] == "succeeded"
    assert Path(work).read_text().splitlines()[-1] == str(installed.home)
