"""Records that go while a script runs, or that cannot be written: lost or unknown, and never started again."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cronium_runner.jobdir import StateDirectory
from cronium_runner.wire.frames import Kind
from runner_process import PATIENCE, AgentProcess, Host, Payload, open_files, wait_until

COUNTED = "echo x >>{count}\n"
"""A script's first line: how often it was started."""


def starts(host: Host) -> int:
    count = host.folder / "count"
    return len(count.read_text().split()) if count.exists() else 0


def counted(host: Host, text: str) -> str:
    return COUNTED.format(count=host.folder / "count") + text


def submitted(agent: AgentProcess, payload: Payload) -> int:
    channel = agent.submit(payload, "job")
    if agent.expect(channel).kind == Kind.WANT_PAYLOAD:
        agent.send_payload(channel, payload.content)
        agent.expect(channel, Kind.ACCEPTED)
    return channel


REMOVALS = {
    "directory": 'cd /; rm -rf "${CRONIUM_WORK_DIR%/work}"\n',
    "contents": "cd ..; rm -rf ./*\n",
    "state": 'cd /; rm -rf "${CRONIUM_WORK_DIR%/executions/*}"\n',
    "moved": 'cd /; mv "${CRONIUM_WORK_DIR%/work}" "${CRONIUM_WORK_DIR%/state/executions/*}/moved"\n',
}


@pytest.mark.parametrize("what", REMOVALS)
def test_script_that_removes_its_record_is_lost(host: Host, what: str) -> None:
    script = host.script(counted(host, f"{REMOVALS[what]}exit 3\n"))
    result = host.run_json("--execution-id", "job", script)
    assert (result["state"], result["exit status"], result["exitCode"]) == ("lost", 125, None)
    assert result["error"]["code"] == "execution.lost"
    assert "exit status 3" in result["error"]["message"]
    again = host.run_json("--execution-id", "job", script)
    assert (again["state"], again["error"]) == ("lost", result["error"])
    assert starts(host) == 1
    [listed] = map(json.loads, host.run("list", "--json").stdout.splitlines())
    assert listed["result"]["state"] == "lost"


@pytest.mark.parametrize("what", REMOVALS)
def test_agent_tells_a_removed_record_as_lost(host: Host, what: str) -> None:
    payload = host.payload(counted(host, f"{REMOVALS[what]}exit 3\n"))
    with host.agent() as agent:
        assert agent.finished(submitted(agent, payload))["state"] == "lost"
        assert agent.finished(submitted(agent, payload))["state"] == "lost"
        assert agent.close() == 0
    assert starts(host) == 1


KILLED = """
cd /
echo on
until [ -e {gate} ]; do sleep 0.02; done
{removal}
kill -KILL $PPID
"""
"""Waits until it has a guardian that knows its claim, removes its record and kills its supervisor."""


def killed(host: Host, removal: str = 'rm -rf "${CRONIUM_WORK_DIR%/work}"') -> str:
    return counted(host, KILLED.format(gate=host.folder / "gate", removal=removal))


def run_killed(host: Host, text: str, *options: str) -> "tuple[subprocess.CompletedProcess[bytes], dict[str, Any]]":
    """`run` of such a script, and the claim that was removed."""
    words = ("run", *options, "--execution-id", "job", host.script(text))
    running = host.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with running:
        claim = host.wait_running("job", b"on")
        path = str(host.execution("job") / "state.jsonl")
        wait_until(lambda: path in open_files(running.pid), "the guardian's lock")
        (host.folder / "gate").touch()
        stdout, stderr = running.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess((), running.returncode, stdout, stderr), claim


def test_removed_record_of_a_killed_supervisor_is_lost(host: Host) -> None:
    done, claim = run_killed(host, killed(host) + "sleep 60\n", "--json")
    result = json.loads(done.stdout)
    assert (result["state"], done.returncode) == ("lost", 125)
    assert "removed" in result["error"]["message"]
    assert host.history("job")[0] == claim, "else what it has left cannot be found later"
    assert host.run_json("--execution-id", "job", host.folder / "script.sh")["state"] == "lost"
    assert starts(host) == 1


def test_agent_records_the_loss_of_a_killed_supervisor(host: Host) -> None:
    payload = host.payload(killed(host) + "sleep 60\n")
    with host.agent() as agent:
        channel = submitted(agent, payload)
        claim = host.wait_running("job", b"on")
        (host.folder / "gate").touch()
        assert agent.finished(channel)["state"] == "lost"
        assert host.history("job")[0] == claim
        assert agent.finished(submitted(agent, payload))["state"] == "lost"
        assert agent.close() == 0
    assert starts(host) == 1


def test_removed_and_emptied_record_is_lost_all_the_same(host: Host) -> None:
    removal = 'cd "${CRONIUM_WORK_DIR%/work}"; echo nothing >state.jsonl; rm -rf "$PWD"'
    done, _ = run_killed(host, killed(host, removal), "--json")
    assert (json.loads(done.stdout)["state"], done.returncode) == ("lost", 125)
    assert host.history("job")[0]["supervisor"]["start"] is None


def test_id_is_not_free_while_its_removed_execution_runs(host: Host) -> None:
    gate = host.folder / "gate"
    text = counted(host, f"echo on\nuntil [ -e {gate} ]; do sleep 0.02; done\n")
    script = host.script(text)
    running = host.start("run", "--json", "--execution-id", "job", script, stdout=subprocess.PIPE)
    host.wait_running("job", b"on")
    shutil.rmtree(host.execution("job"))
    for words in (("run", "--execution-id", "job", script), ("wait", "job"), ("status", "job")):
        done = host.run(*words)
        assert done.returncode in (125, 255), words
        assert b"[state.damaged]" in done.stderr
        assert done.stderr.count(b"\n") == 1
    assert host.run("run", "--execution-id", "job", script).returncode == 255
    with host.agent() as agent:
        channel = agent.submit(host.payload(text), "job")
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "state.damaged"
        assert agent.close() == 0
    assert starts(host) == 1
    gate.touch()
    with running:
        result = json.loads(running.communicate(timeout=PATIENCE)[0])
    assert (result["state"], running.returncode) == ("lost", 125)
    assert (host.recorded("job") or {})["state"] == "lost"


def test_started_ids_are_remembered_apart_from_their_directories(host: Host) -> None:
    host.run("run", "--execution-id", "one", host.script("true\n"))
    state = StateDirectory(str(host.state))
    assert (state.started.has("one"), state.started.has("two")) == (True, False)
    shutil.rmtree(host.execution("one"))
    assert state.is_claimed("one")
    (host.state / "started").unlink()
    (host.state / "started").mkdir()
    assert not state.is_claimed("one"), "a memory that cannot be read keeps no job from running"
    assert host.run("run", "--execution-id", "one", host.folder / "script.sh").returncode == 0


def test_a_refused_script_does_not_hide_that_the_id_is_taken(host: Host) -> None:
    host.run("run", "--execution-id", "one", host.script("true\n"))
    shutil.rmtree(host.execution("one"))
    (host.folder / "utf-16.sh").write_bytes("true\n".encode("utf-16"))
    done = host.run("run", "--execution-id", "one", host.folder / "utf-16.sh")
    assert b"[state.damaged]" in done.stderr, done.stderr


def test_a_restored_record_has_what_happened_after_its_removal(host: Host) -> None:
    script = host.script(f"{REMOVALS['directory']}sleep 60\n")
    result = host.run_json("--execution-id", "job", "--timeout", "1", script)
    assert result["state"] == "lost"
    assert "terminating" in [line["state"] for line in host.history("job")]


def test_rejected_start_is_not_remembered(host: Host) -> None:
    script = host.folder / "program"
    script.write_bytes(b"no program\n")
    script.chmod(0o700)
    for _ in range(2):
        assert host.run_json("--execution-id", "job", script)["state"] == "rejected"
    assert not StateDirectory(str(host.state)).is_claimed("job")


# A directory that cannot be written


@pytest.fixture
def freezing(host: Host, tmp_path: Path) -> Iterator[str]:
    """A command line that makes the folder above the working directory read-only, for us as well."""
    if os.geteuid() != 0:
        yield "chmod 500 .."
        host.execution("job").chmod(0o700)
        return
    tried = tmp_path / "tried"
    tried.mkdir()
    chattr = shutil.which("chattr")
    if chattr is None or subprocess.run([chattr, "+i", tried], capture_output=True, check=False).returncode != 0:
        pytest.skip("no file here can be made immutable")
    subprocess.run([chattr, "-i", tried], check=True)
    yield f"{chattr} +i .."
    subprocess.run([chattr, "-i", host.execution("job")], check=True)


@pytest.fixture
def frozen_executions(host: Host) -> Iterator[str]:
    """A command line that leaves no room for the record in executions/, whoever asks."""
    away = host.folder / "away"
    executions = host.state / "executions"
    yield f"mv {executions} {away}; ln -s {away} {executions}"
    if executions.is_symlink():
        executions.unlink()
        away.rename(executions)


def test_loss_that_cannot_be_written_is_unknown(host: Host, frozen_executions: str) -> None:
    check_unknown(run_killed(host, killed(host, f"{frozen_executions}; rm -rf {host.folder}/away/job"))[0])
    assert starts(host) == 1


def check_unknown(done: "subprocess.CompletedProcess[bytes]") -> None:
    assert done.returncode == 255, done
    assert done.stderr.count(b"\n") == 1
    assert b"[state.unusable]" in done.stderr
    assert b"'job'" in done.stderr


def test_result_that_cannot_be_written_is_unknown(host: Host, freezing: str) -> None:
    script = host.script(counted(host, f"{freezing}\nexit 0\n"))
    check_unknown(host.run("run", "--execution-id", "job", script))
    check_unknown(host.run("wait", "job"))
    check_unknown(host.run("run", "--execution-id", "job", script))
    [listed] = map(json.loads, host.run("list", "--json").stdout.splitlines())
    assert (listed["state"], listed["error"]["code"]) == ("unknown", "state.unusable")
    assert starts(host) == 1


def test_agent_tells_that_a_result_cannot_be_written(host: Host, freezing: str) -> None:
    payload = host.payload(counted(host, f"{freezing}\nexit 0\n"))
    with host.agent() as agent:
        told: list[dict[str, Any]] = []
        for channel in (submitted(agent, payload), agent.new_channel()):
            if told:
                agent.send(Kind.ATTACH, channel, {"executionId": "job", "offsets": [0, 0]})
                agent.expect(channel, Kind.ACCEPTED)
            told.append(agent.expect(channel, Kind.REFUSED).json())
        assert [each["code"] for each in told] == ["state.unusable", "state.unusable"]
        assert agent.status("job")["state"] == "unknown"
        assert agent.close() == 0
    assert starts(host) == 1


def test_killed_supervisor_and_frozen_directory_are_unknown(host: Host, freezing: str) -> None:
    frozen = host.folder / "frozen"
    script = host.script(counted(host, f"{freezing}\ntouch {frozen}\nsleep 60\n"))
    running = host.start("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(frozen.exists, "the script")
    wait_until(lambda: any("script" in line for line in host.history("job")), "the record")
    os.kill(host.history("job")[0]["supervisor"]["pid"], signal.SIGKILL)
    with running:
        stderr = running.communicate(timeout=PATIENCE)[1]
    check_unknown(subprocess.CompletedProcess((), running.returncode, b"", stderr))
