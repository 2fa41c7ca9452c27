"""What a no-op job costs: file-system objects, fsyncs, forks, execs, all system calls, and function calls of Python.

On a file system that charges for each new file the first are the time of a job (docs: design); the calls are its CPU.
So they are guarded here and not by a clock.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner_process import AgentProcess, Host, wait_until

MOST_OBJECTS = 12
SYNCS = 3
FORKS = 2
SYSTEM_CALLS = 240
"""Of a supervisor, at most."""
SUPERVISOR_CALLS = 450
AGENT_CALLS = 220
"""Calls of Python functions for one job, at most; a tenth above what they are."""

COUNTING = """
import os, sys
counted = [0]
def count(frame, event, argument):
    counted[0] += event == "call"
def begin():
    counted[0] = 0
    sys.setprofile(count)
def end(status):
    sys.setprofile(None)
    with open(f"{os.environ['COUNTS']}/{os.getpid()}", "w") as file:
        file.write(f"{os.getppid()} {counted[0]}")
    leave(status)
leave, os._exit = os._exit, end
os.register_at_fork(after_in_child=begin)
begin()
from cronium_runner.__main__ import main
end(main())
"""
"""A runner whose processes write down how many functions they called since they were forked."""

CALLS = (
    "trace=mkdir,mkdirat,open,openat,creat,symlink,symlinkat,link,linkat,mknod,mknodat,bind,rename,renameat,renameat2,"
    "fsync,fdatasync,sync,syncfs,clone,clone3,fork,vfork,execve,execveat"
)
SUCCEEDED = re.compile(r"= \d+")


@pytest.fixture
def strace() -> None:
    """Skips where processes can't be traced."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-f", "-o", os.devnull, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("tracing is not permitted here")


@contextmanager
def traced(pid: int, log: Path, calls: str = CALLS) -> Iterator[None]:
    """Traces a process, and what it forks, while the block runs."""
    command = ["strace", "-f", "-e", calls, "-s", "200", "-o", str(log), "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert b"attached" in line, line
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


def calls_in(log: Path) -> list[tuple[str, str]]:
    """Name and text of each call that succeeded; one that another process interrupted is put together again."""
    pending: dict[tuple[str, str], str] = {}
    found = []
    for line in log.read_text(errors="replace").splitlines():
        pid, _, text = line.partition(" ")
        text = text.strip()
        resumed = re.match(r"<\.\.\. (\w+) resumed>(.*)", text)
        if resumed:
            text = pending.pop((pid, resumed[1]), f"{resumed[1]}(") + resumed[2]
        name = text.partition("(")[0]
        if text.endswith("<unfinished ...>"):
            pending[pid, name] = text.removesuffix("<unfinished ...>")
        elif re.fullmatch(r"\w+", name) and SUCCEEDED.search(text.rpartition(")")[2]):
            found.append((name, text))
    return found


def made_objects(calls: list[tuple[str, str]]) -> list[str]:
    """The calls that made a file-system object. Opening a file that is there already makes none."""
    made = []
    known: set[str] = set()
    for name, text in calls:
        path = (re.search(r'"([^"]*)"', text) or [""])[0]
        if name in ("open", "openat", "creat"):
            if ("O_CREAT" in text or name == "creat") and path not in known:
                known.add(path)
                made.append(text)
        elif name == "bind":
            if "AF_UNIX" in text:
                made.append(text)
        elif name.startswith(("mkdir", "symlink", "link", "mknod")):
            made.append(text)
    return made


@pytest.mark.usefixtures("strace")
def test_a_no_op_job_on_a_warm_agent(host: Host) -> None:
    payload = host.payload("", interpreter="[/bin/true]")
    log = host.folder / "trace"
    with host.agent() as agent:
        agent.finished(agent.start(payload, "warm"))
        with traced(agent.process.pid, log):
            agent.finished(agent.start(payload, "job"))
            wait_until(lambda: not has_children(agent), "the supervisor to end")
        assert agent.close() == 0
    calls = calls_in(log)
    counts = Counter(name for name, _ in calls)
    made = made_objects(calls)
    assert len(made) <= MOST_OBJECTS, "\n".join(made)
    assert len(made) >= 6, made  # else nothing was traced
    syncs = [text for name, text in calls if "sync" in name]
    assert len(syncs) == SYNCS, syncs
    assert sum(counts[name] for name in ("clone", "clone3", "fork", "vfork")) == FORKS, counts
    executed = [text for name, text in calls if name.startswith("exec")]
    assert len(executed) == 1, executed
    assert '"/bin/true"' in executed[0]


@pytest.mark.usefixtures("strace")
def test_a_supervisor_makes_few_system_calls(host: Host) -> None:
    """Whatever the login's PATH is: one look at each of its folders."""
    host.environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    payload = host.payload("", interpreter="sh")
    log = host.folder / "trace"
    with host.agent() as agent:
        agent.finished(agent.start(payload, "warm"))
        with traced(agent.process.pid, log, "trace=all"):
            agent.finished(agent.start(payload, "job"))
            wait_until(lambda: not has_children(agent), "the supervisor to end")
        assert agent.close() == 0
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in log.read_text(errors="replace").splitlines():
        if begun := re.match(r"(\d+) +(\w+)\(", line):
            counts[begun[1]][begun[2]] += 1
    [supervisor] = [calls for calls in counts.values() if calls["fsync"]]
    assert 100 < supervisor.total() <= SYSTEM_CALLS, supervisor.most_common()


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("words", [["agent"], ["run", "script.sh"]])
def test_a_start_looks_once_for_the_logins_session(host: Host, words: list[str]) -> None:
    (host.folder / "script.sh").write_text(":\n")
    log = host.folder / "trace"
    command = ["strace", "-e", "trace=open,openat", "-o", str(log), *host.executable, *words]
    subprocess.run(command, env=host.environment, cwd=host.folder, stdin=subprocess.DEVNULL, check=True)
    assert log.read_text().count('"/proc/self/cgroup"') == 1


def calls_of(host: Host, jobs: int) -> tuple[int, list[int]]:
    """Calls of Python functions by an agent that does so many jobs, and by each supervisor."""
    folder = host.folder / f"counts-{jobs}"
    folder.mkdir()
    program = host.script(COUNTING, "counting.py")
    host.executable = (sys.executable, str(program))
    host.environment["COUNTS"] = str(folder)
    payload = host.payload("", interpreter="sh")
    with host.agent() as agent:
        for number in range(jobs):
            agent.finished(agent.start(payload, f"job-{jobs}-{number}"))
            wait_until(lambda: not has_children(agent), "the supervisor to end")
        assert agent.close() == 0
    told = {path.name: path.read_text().split() for path in folder.iterdir()}
    agents = str(agent.process.pid)
    own = int(told[agents][1])
    return own, [int(calls) for parent, calls in told.values() if parent == agents]


def test_a_warm_job_calls_few_functions(host: Host) -> None:
    """However many variables the login has: the agent copies them once."""
    host.environment |= {f"VARIABLE_{number}": "value" for number in range(200)}
    few, _ = calls_of(host, 2)
    many, supervisors = calls_of(host, 12)
    assert len(supervisors) == 12
    assert 100 < max(supervisors) <= SUPERVISOR_CALLS, supervisors
    assert 50 < (many - few) / 10 <= AGENT_CALLS, (few, many)


def has_children(agent: AgentProcess) -> bool:
    pid = agent.process.pid
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().strip())


def test_a_warm_submission_is_one_exchange(host: Host) -> None:
    """All that the agent needs is in the SUBMIT: nothing is asked for, so the job costs one round trip."""
    payload = host.payload("true\n")
    with host.agent() as agent:
        agent.finished(agent.start(payload, "warm"))
        channel = agent.submit(payload, "job")
        kinds = []
        while True:
            frame = agent.receive()
            assert frame is not None
            if frame.channel == channel:
                kinds.append(frame.kind)
            if frame.kind == 68:
                break
        assert kinds == [65, 68]
        assert agent.close() == 0


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("words", "files"), [("cronium.input k", 0), ("cronium.event", 0), ("cronium.setVariable A b", 1)]
)
def test_a_helper_call_costs_the_supervisor_no_file_but_the_one_it_sets(host: Host, words: str, files: int) -> None:
    """A set writes a temporary file and renames it: one object, renamed over the other."""
    script = f"cronium.setVariable X y\necho ready\nuntil [ -e go ]; do sleep 0.02; done\n{words} >/dev/null\n"
    script += "echo called\nuntil [ -e end ]; do sleep 0.02; done\n"
    log = host.folder / "trace"
    with host.agent() as agent:
        channel = agent.start(host.payload(script), "job", input={"k": 1})
        claim = host.wait_running("job", b"ready")
        with traced(claim["supervisor"]["pid"], log):
            (host.execution("job") / "work/go").touch()
            wait_until(lambda: b"called" in (host.execution("job") / "stdout").read_bytes(), "the call")
        (host.execution("job") / "work/end").touch()
        assert agent.finished(channel)["state"] == "succeeded"
        assert agent.close() == 0
    calls = calls_in(log)
    made = [text for text in made_objects(calls) if "/stdout" not in text]
    assert len(made) == files, made
    assert [text for name, text in calls if "sync" in name or name.startswith(("clone", "fork", "vfork", "exec"))] == []
