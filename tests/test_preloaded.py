"""A preloaded program is a process like one that an interpreter was started for."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import preloaded
from preloaded import COMMANDS, Preloaded
from runner_process import Host, command_line, open_files

SEEN = """
for what in cmdline environ; do tr '\\0' '\\n' </proc/$PPID/$what | grep -E 'cronium_runner|^run$|SEEN'; done
readlink /proc/$PPID/cwd; ls /proc/$PPID/fd | wc -l; grep -E 'Sig(Blk|Ign|Cgt)' /proc/$PPID/status
"""


def test_what_a_script_sees_of_it_is_the_same(host: Host) -> None:
    script = host.script(f"#!/bin/bash\n{SEEN}")
    seen = host.run("run", script, env={"SEEN": "1"})
    host.executable = [*COMMANDS["cronium-runner"]]
    assert host.run("run", script, env={"SEEN": "1"}).stdout == seen.stdout
    assert b"SEEN=1\n" in seen.stdout


def test_an_agent_is_our_child_and_holds_the_same(host: Host) -> None:
    with host.agent() as agent:
        stat = Path(f"/proc/{agent.process.pid}/stat").read_bytes().rpartition(b") ")[2].split()
        assert int(stat[1]) == os.getpid()
        assert command_line(agent.process.pid) == b"\0".join(
            map(os.fsencode, [*COMMANDS["cronium-runner"], "agent", ""])
        )
        agent.wait_loaded()
        held = len(open_files(agent.process.pid))
        assert host.processes() == [agent.process.pid]
    host.executable = [*COMMANDS["cronium-runner"]]
    with host.agent() as agent:
        agent.wait_loaded()
        assert len(open_files(agent.process.pid)) == held


@pytest.mark.parametrize("words", [["version"], ["nope"], ["hosts", "--hosts", "missing.yaml"], ["run", "--help"]])
def test_a_command_ends_and_says_the_same(tmp_path: Path, words: list[str]) -> None:
    environment = {**os.environ, "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state")}
    done = preloaded.run("cronium", words, cwd=tmp_path, env=environment)
    other = subprocess.run([*COMMANDS["cronium"], *words], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (other.returncode, other.stdout, other.stderr)


def test_it_is_signalled_as_any_child_and_in_a_session_of_its_own(host: Host) -> None:
    script = host.script("echo begun; exec sleep 600\n")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with host.start("run", "--execution-id", "one", script, start_new_session=True, **quiet) as process:
        host.wait_running("one", b"begun\n")
        assert os.getsid(process.pid) == process.pid
        process.terminate()
    assert process.returncode == 130
    with host.agent() as agent:
        agent.process.kill()
        agent.process.wait()
    assert agent.process.returncode == -signal.SIGKILL


def test_what_is_for_the_interpreter_gets_one(tmp_path: Path) -> None:
    with Preloaded("cronium", ["version"], env={**os.environ, "PYTHONVERBOSE": "1"}, stderr=subprocess.PIPE) as process:
        assert b"import _frozen_importlib" in process.communicate()[1]


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        preloaded.run("cronium", ["version"], cwd=tmp_path / "missing")
