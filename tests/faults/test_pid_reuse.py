"""Pids that are used again: whoever got the number of one of our processes is never taken for it and never signalled.

In a pid namespace of its own, where the next pid can be chosen (ns_last_pid). The supervisor, its guardian and the
script are killed; strangers get exactly their numbers; then everything that knows these is asked to act on them.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_runner import orphans
from runner_process import Host, wait_until

INSIDE = """
import json, os, signal, subprocess, sys, time

def run(*words, **options):
    return subprocess.Popen([sys.executable, "-m", "cronium_runner", *words], **options)

def living(pid):
    try:
        return open(f"/proc/{pid}/stat", "rb").read().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False

def stranger(pid):
    '''A process that has exactly this pid, and nothing else of the one that had it.'''
    for _ in range(100):
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        child = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    sys.exit(f"{pid} is still in use")

state, script = sys.argv[1:]
folder = f"{state}/executions/job"
guardian = run("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
while not os.path.exists(folder + "/stdout"):
    time.sleep(0.01)
records = [json.loads(line) for line in open(folder + "/state.jsonl")]
supervisor, leader = records[0]["supervisor"]["pid"], records[1]["script"]["pid"]
numbers = [guardian.pid, supervisor, leader]
for pid in numbers:
    os.kill(pid, signal.SIGKILL)
guardian.wait()
while any(os.path.exists(f"/proc/{pid}") for pid in numbers):
    try:  # we are the init of this namespace
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
    time.sleep(0.01)
strangers = [stranger(pid) for pid in numbers]
for words in (["cancel", "job"], ["status", "--json", "job"], ["list"], ["attach", "job"]):
    done = run(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = done.communicate(timeout=25)[0]
    if words[0] == "status":
        state_told = json.loads(out)["result"]["state"]
print(json.dumps({"numbers": numbers, "alive": [living(one.pid) for one in strangers], "state": state_told}))
for one in strangers:
    one.kill()
"""


@pytest.fixture
def unshare() -> list[str]:
    """The command that starts another in a pid namespace where the next pid can be chosen."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    choose = "echo 100 >/proc/sys/kernel/ns_last_pid"
    try:
        is_possible = subprocess.run([*words, "sh", "-c", choose], capture_output=True, check=False).returncode == 0
    except OSError:
        is_possible = False
    if not is_possible:
        pytest.skip("no pid namespace can be made here, or its next pid not be chosen")
    return words


@pytest.mark.parametrize("by", ["subreaper", "auto"])
def test_whoever_got_the_pid_of_one_of_ours_is_left_alone(host: Host, unshare: list[str], by: str) -> None:
    host.environment["CRONIUM_CONTAINMENT"] = by
    # No child of its own: a number is not given away while it names somebody's session.
    script = host.script("echo ready\nexec sleep 600\n")
    words = [*unshare, sys.executable, "-c", INSIDE, str(host.state), str(script)]
    done = subprocess.run(words, env=host.environment, cwd=host.folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["state"] == "lost"
    assert told["alive"] == [True, True, True], told


def test_a_process_that_ended_while_it_was_looked_at_is_not_signalled_by_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is held by a descriptor before the look: the signal goes to that process or to nobody."""
    marked = {"CRONIUM_SOCKET": "/nowhere/1"}
    with (
        subprocess.Popen(["sleep", "600"], env=marked, start_new_session=True) as seen,
        subprocess.Popen(["sleep", "600"], env={}, start_new_session=True) as stranger,
    ):
        wait_until(lambda: orphans._environment(seen.pid) == [b"CRONIUM_SOCKET=/nowhere/1", b""], "its start")
        really_look, really_kill = orphans._environment, os.kill

        def look_while_it_ends(pid: int) -> list[bytes]:
            found = really_look(pid)
            if pid == seen.pid and seen.poll() is None:
                really_kill(seen.pid, signal.SIGKILL)  # Popen.kill would be the one below
                seen.wait()  # its number is free from here on
            return found

        killed: list[int] = []
        monkeypatch.setattr(orphans, "_environment", look_while_it_ends)
        monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
        orphans.Orphans("CRONIUM_SOCKET=/nowhere/1", None, None).signal(signal.SIGKILL)
        monkeypatch.undo()
        assert killed == []
        assert stranger.poll() is None
        stranger.kill()


def test_the_next_pid_was_chosen(unshare: list[str], tmp_path: Path) -> None:
    """Else the first test would show nothing."""
    script = "echo 4000 >/proc/sys/kernel/ns_last_pid; sh -c 'echo $$'; :"
    done = subprocess.run([*unshare, "sh", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"4001\n"
