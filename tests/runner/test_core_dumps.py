"""What the runner holds in memory: in no core file, and not to be read by another process of the account."""

import os
import resource
import subprocess
import sys

import pytest

from cronium_runner import process
from runner_process import Host

SEEN = (
    "import ctypes, resource; print(ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE), flush=True)"
)
LIMIT = 4096


@pytest.fixture
def limited(host: Host) -> Host:
    """A host whose login allows core files of 4 KiB."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != resource.RLIM_INFINITY and hard < LIMIT:
        pytest.skip("no core files here at all")
    raised = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_CORE, ({LIMIT}, {hard})); "
    raised += "os.execv(sys.argv[1], sys.argv[1:])"
    host.executable = (sys.executable, "-c", raised, *host.executable)
    host.environment.pop(process.DUMPABLE, None)
    return host


def run_python(text: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != process.DUMPABLE}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


def test_runner_is_not_dumpable_and_its_script_is() -> None:
    text = f"""
import os, resource, sys
from cronium_runner import process
{SEEN}
process.forbid_core_dumps()
{SEEN}
argv = [sys.executable, "-c", {SEEN!r}]
for steps in ((), (("nothing", lambda: None),)):
    os.waitpid(process.start_script(argv, environment=dict(os.environ), stdout=1, stderr=2, steps=steps), 0)
{SEEN}
pid = os.fork()
if pid == 0:
    {SEEN}
    os.abort()
print(os.WCOREDUMP(os.waitpid(pid, 0)[1]))
"""
    before, forbidden, spawned, forked, after, inherited, dumped, _ = run_python(text)
    hard = before.split()[2]
    assert before.split()[0] == "1"
    assert forbidden == after == inherited == f"0 0 {hard}"
    assert spawned == forked == before, "the script has the login's own limits"
    assert dumped == "False"


@pytest.mark.parametrize("words", [(), ("--limit", "open_files=100")])
def test_script_keeps_the_limit_of_the_login(limited: Host, words: tuple[str, ...]) -> None:
    """Its supervisor and the `run` above that have none."""
    limits = "/proc/self/limits /proc/$PPID/limits /proc/$run/limits"
    script = limited.script(f"read -r _ _ _ run _ </proc/$PPID/stat\ngrep -h '^Max core' {limits}\n")
    seen = [line.split()[4] for line in limited.run("run", *words, script).stdout.decode().splitlines()]
    assert seen == [str(LIMIT), "0", "0"]


def test_agent_and_its_supervisor_forbid_core_files(limited: Host) -> None:
    with limited.agent() as agent:
        script = limited.payload("grep -h '^Max core' /proc/self/limits /proc/$PPID/limits\n")
        channel = agent.start(script, "limits")
        agent.finished(channel)
        mine, supervisors = agent.stdout(channel).decode().splitlines()
        with open(f"/proc/{agent.process.pid}/limits") as limits:
            agents = next(line for line in limits if line.startswith("Max core"))
    assert (mine.split()[4], supervisors.split()[4], agents.split()[4]) == (str(LIMIT), "0", "0")


def test_memory_is_closed_to_the_account_itself(limited: Host) -> None:
    """The script reads none of its supervisor's environment. Root reads everything, so it can't show that."""
    if os.geteuid() == 0:
        pytest.skip("needs an ordinary account")
    script = limited.script("cat /proc/$PPID/environ && echo READ\ncat /proc/self/environ >/dev/null && echo own\n")
    done = limited.run("run", script)
    assert done.stdout == b"own\n"
    assert b"Permission denied" in done.stderr


def test_processes_stay_dumpable_where_that_is_asked_for(limited: Host) -> None:
    script = limited.script("grep -h '^Max core' /proc/$PPID/limits\n")
    done = limited.run("run", script, env={process.DUMPABLE: "1"})
    assert done.stdout.split()[4] == str(LIMIT).encode()
