"""A tree that does all it can to stay: 21 descendants that ignore SIGTERM in sessions of their own, and 8 that fork,
call setsid and end for ever. However it comes to its end, none is alive when the end is told, in the promised time.

As root and as an ordinary account, held by a group and by the subreaper alone; all four with CRONIUM_FAULTS=full.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cronium_runner import cgroup
from faults.figures import is_full, record
from runner_process import ROOT, AgentProcess, Host, is_running, wait_until

IS_FULL = os.environ.get("CRONIUM_FAULTS") == "full"
COMMAND = "scripts/test --faults tests/faults/test_tree.py"
NOBODY = 65534
GRACE, DRAIN, SLACK = 5.0, 2.0, 1.0
"""Seconds; what is promised is grace + 1 after a deadline or cancel, drain + grace + 1 after a normal end."""
ALLOWED = SLACK if is_full() else 30 * SLACK
"""The ordinary suite may share its processors and its disk with anything; the full one measures the promise."""
DEAF, LOOPS = 21, 8
HELD = 0.0 if is_full() else GRACE - 0.5
"""How long after SIGTERM the ordinary suite keeps the loops from turning: they take every processor there is, and what
is to be seen is that SIGKILL gets them while they do."""

_PROGRAM: Final = """
import os, signal, sys, time
folder, mode = sys.argv[1:3]
beats = os.open(folder + "/beats", os.O_RDWR | os.O_CREAT, 0o600)
gate, keeper = os.pipe()
deaf = "import signal, time\\nsignal.signal(15, signal.SIG_IGN)\\nopen({path!r}, 'w').close()\\ntime.sleep(600)\\n"
for number in range(DEAF):
    if os.fork() == 0:
        os.close(keeper)
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            path = f"{folder}/deaf-{os.getpid()}"
            if mode.startswith("scrubbed") and number % 3 == 0:
                os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", deaf.format(path=path)], {})
            open(path, "w").close()
            time.sleep(600)
        os._exit(0)
for number in range(LOOPS):
    if os.fork() == 0:
        os.close(keeper)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        turn = 0
        while True:
            turn += 1
            os.pwrite(beats, turn.to_bytes(8, "little"), 8 * number)
            os.read(gate, 1)  # blocks until the gate's keeper ends; no byte is ever written
            if os.fork():
                os._exit(0)
            os.setsid()
if HELD and os.fork() == 0:  # the gate's keeper, which the first SIGTERM makes leave a little before SIGKILL is due
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.setsid()
    open(folder + "/kept", "w").close()
    signal.sigwait([signal.SIGTERM])
    time.sleep(HELD)
    os.close(keeper)
    time.sleep(600)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.close(keeper)
wanted = DEAF + (HELD > 0)
while len([name for name in os.listdir(folder) if name.startswith(("deaf-", "kept"))]) < wanted:
    time.sleep(0.01)
print(time.monotonic(), flush=True)
if not mode.endswith("ends"):
    time.sleep(600)
"""
TREE: Final = _PROGRAM.replace("DEAF", str(DEAF)).replace("LOOPS", str(LOOPS)).replace("HELD", str(HELD))


class Account:
    """A host as one account, whose executions are held in one way."""

    def __init__(self, folder: Path, *, is_root: bool, by: str) -> None:
        self.host = Host(folder, folder / "install")
        self.host.environment["CRONIUM_CONTAINMENT"] = by
        self.name = f"{'root' if is_root else 'ordinary'}, {by}"
        self.has_group = by == "cgroup"
        self._home: Path | None = None
        if not is_root:
            self._become_ordinary(folder)

    def _become_ordinary(self, folder: Path) -> None:
        import click
        import yaml

        python = next(filter(is_executable_by_others, (sys.executable, "/usr/bin/python3")), None)
        if python is None:
            pytest.skip("no Python that everybody may execute")
        modules = [Path(str(module.__file__)).parents[1] for module in (click, yaml)]
        os.chown(folder, NOBODY, NOBODY)
        self.host.executable = [python, "-m", "cronium_runner"]
        self.host.environment["PYTHONPATH"] = ":".join(map(str, [ROOT / "runner", ROOT / "helpers", *modules]))
        self.host.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        if self.has_group:
            self._home = delegated_group()
            entrance = self._home / "cgroup.procs"
            # Popen changes the user first and may then not write there, so the whole command enters by a shell of root.
            self.host.user = {}
            words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *self.host.executable]
            self.host.executable = ["/bin/sh", "-c", f'echo $$ >{entrance} && exec "$@"', "sh", *words]

    def close(self) -> None:
        if self._home is not None:
            with contextlib.suppress(OSError):
                (self._home / "cgroup.kill").write_text("1")
            cgroup.Group(str(self._home)).remove()


def delegated_group() -> Path:
    """A group as a service manager hands one to an ordinary account."""
    mount = cgroup.mount_point()
    assert mount is not None
    group = Path(tempfile.mkdtemp(prefix="cronium-delegated-", dir=mount))
    for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control", group / "cgroup.threads"):
        os.chown(path, NOBODY, NOBODY)
    return group


def is_executable_by_others(python: str) -> bool:
    try:
        command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        return subprocess.run(command, user=NOBODY, cwd="/", check=False).returncode == 0
    except OSError:
        return False


WAYS = [(True, "cgroup"), (False, "subreaper")] + ([(True, "subreaper"), (False, "cgroup")] if IS_FULL else [])
"""Account and containment; the other two pairs in full only."""


@pytest.fixture(scope="module", params=WAYS, ids=[f"{'root' if root else 'ordinary'}-{by}" for root, by in WAYS])
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    is_root, by = request.param
    if os.geteuid() != 0:
        pytest.skip("only root can start it as another account")
    if by == "cgroup" and cgroup.place() is None:
        pytest.skip("no control group with cgroup.kill can be made here")
    with tempfile.TemporaryDirectory(prefix="tree-") as folder:
        made = Account(Path(folder), is_root=is_root, by=by)
        try:
            yield made
        finally:
            made.close()


_numbers = itertools.count()


class Tree:
    """One execution with the whole tree, up and ready."""

    def __init__(self, account: Account, agent: AgentProcess, mode: str, **keys: Any) -> None:
        self.host = account.host
        self.id = f"tree-{next(_numbers)}"
        self.folder = self.host.folder / self.id
        self.folder.mkdir()
        os.chmod(self.folder, 0o777)
        payload = self.host.payload(TREE, interpreter=f"[{sys_python(self.host)}]")
        self.channel = agent.start(payload, self.id, args=[str(self.folder), mode], **keys)
        self.claim = self.host.wait_running(self.id, b"\n")
        self.ready_at = float((self.host.execution(self.id) / "stdout").read_bytes())
        """The script's own clock (monotonic, so ours as well) when all were there: its end, where it ends by itself."""
        assert ("group" in self.claim) == account.has_group

    def kill_supervisor(self) -> None:
        os.kill(self.claim["supervisor"]["pid"], signal.SIGKILL)

    def check_gone(self) -> None:
        """None of the tree lives, and none beats any more."""
        deaf = [int(path.name.split("-")[1]) for path in self.folder.glob("deaf-*")]
        assert len(deaf) == DEAF
        assert [pid for pid in deaf if is_running(pid)] == []
        beats = self.folder / "beats"
        before = beats.read_bytes()
        assert len(before) == 8 * LOOPS
        time.sleep(0.2)  # a loop turns in a few milliseconds
        assert beats.read_bytes() == before
        assert self.host.processes() == [] or all(
            f"CRONIUM_EXECUTION_ID={self.id}\0".encode() not in environment_of(pid) for pid in self.host.processes()
        )
        if "group" in self.claim:
            wait_until(lambda: not os.path.exists(self.claim["group"]), "the group to be removed")


def sys_python(host: Host) -> str:
    """The Python that the host's runner has: one that its account may execute."""
    return next(word for word in host.executable if "python" in os.path.basename(word))


def environment_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def note(account: Account, how: str, seconds: float) -> None:
    record(f"tree gone ({account.name}; {how})", f"{seconds:.2f} s, {DEAF} deaf and {LOOPS} forking for ever", COMMAND)


def test_after_the_script_has_ended(account: Account) -> None:
    with account.host.agent() as agent:
        tree = Tree(account, agent, "scrubbed-ends")
        result = agent.finished(tree.channel)
        took = time.monotonic() - tree.ready_at
        tree.check_gone()
    assert result["state"] == "succeeded"
    assert result["strays"] >= DEAF
    assert took <= DRAIN + GRACE + ALLOWED
    note(account, "normal end", took)


def test_after_a_cancel(account: Account) -> None:
    with account.host.agent() as agent:
        tree = Tree(account, agent, "scrubbed")
        began = time.monotonic()
        agent.send(5, tree.channel, {})
        result = agent.finished(tree.channel)
        took = time.monotonic() - began
        tree.check_gone()
    assert (result["state"], result["signal"]) == ("cancelled", signal.SIGKILL)
    assert took <= GRACE + ALLOWED
    note(account, "cancel", took)


def test_after_a_deadline(account: Account) -> None:
    with account.host.agent() as agent:
        tree = Tree(account, agent, "scrubbed", timeout=15.0)
        result = agent.finished(tree.channel)
        took = result["durationMs"] / 1000 - 15.0
        tree.check_gone()
    assert result["state"] == "timed_out"
    assert took <= GRACE + ALLOWED
    note(account, "deadline", took)


def test_when_the_supervisor_is_killed(account: Account) -> None:
    """Its guardian does it, also for those that have cleaned their environment."""
    with account.host.agent() as agent:
        tree = Tree(account, agent, "scrubbed")
        began = time.monotonic()
        tree.kill_supervisor()
        result = agent.finished(tree.channel)
        took = time.monotonic() - began
        tree.check_gone()
    assert result["state"] == "lost"
    assert took <= GRACE + ALLOWED
    note(account, "supervisor killed", took)


def test_when_supervisor_and_guardian_are_killed(account: Account) -> None:
    """The next contact does it. Without a group it knows them by the environment that they inherited."""
    with account.host.agent() as agent:
        tree = Tree(account, agent, "scrubbed" if account.has_group else "stays")
        os.kill(guardian_of(tree), signal.SIGKILL)
        tree.kill_supervisor()
    began = time.monotonic()
    done = account.host.run("status", "--json", tree.id)
    took = time.monotonic() - began
    assert b'"lost"' in done.stdout
    tree.check_gone()
    # Nothing is promised but the grace period; the command starts while eight loops keep the processors busy.
    assert took <= GRACE + ALLOWED + 15
    note(account, "supervisor and guardian killed", took)


def guardian_of(tree: Tree) -> int:
    """The agent, which may have been started by a shell that became it."""
    stat = Path(f"/proc/{tree.claim['supervisor']['pid']}/stat").read_bytes()
    return int(stat.rpartition(b") ")[2].split()[1])
