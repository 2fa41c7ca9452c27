"""SIGKILL at random moments: for the runner's processes and for the controller. One start, no byte lost, nobody left.

Bounded here; `CRONIUM_FAULTS=full` (scripts/test --faults) makes its full numbers. The seed is printed, and
CRONIUM_FAULT_SEED repeats a run, as far as a race can be repeated.
"""

import contextlib
import os
import random
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cronium_controller.cli import cronium
from cronium_runner.jobdir import StateDirectory
from faults.figures import is_full, record
from faults.killing import STUCK_SECONDS, Round, Tally, judge_streams, spooled
from faults.witness import SCRIPT, Witness
from remote_host import RemoteHost
from runner_process import Host, processes_with, wait_until

COMMAND = "scripts/test --faults tests/faults/test_kills.py"
RUNNER_KILLS = 300 if is_full() else 12
CONTROLLER_KILLS = 100 if is_full() else 3
HAS_WAIT = "wait" in cronium.commands


@pytest.fixture
def seed() -> int:
    """What everything is drawn from; shown when a test fails."""
    drawn = int(os.environ.get("CRONIUM_FAULT_SEED") or random.randrange(1_000_000))
    print(f"CRONIUM_FAULT_SEED={drawn}")
    return drawn


@pytest.fixture
def killed_host(tmp_path: Path, install_directory: Path) -> Iterator[Host]:
    """A host on which supervisors are killed: unlike after others, half-prepared things may be left on its disk."""
    host = Host(tmp_path, install_directory)
    yield host
    for pid in host.processes():  # only after a failure
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_killed_runners_start_nothing_twice_and_lose_nothing(killed_host: Host, seed: int) -> None:
    host = killed_host
    tally = Tally()
    began = time.monotonic()
    life = life_of_a_job(host)
    rounds = until_killed(RUNNER_KILLS, lambda number: Round(host, number, seed, 1.2 * life, tally).run(), tally, 4)
    seconds = time.monotonic() - began
    print(f"{rounds} rounds in {seconds:.0f} s: {tally}")
    wait_until(lambda: not host.processes(), "every process of the host to end")
    assert tally.violations == []
    assert tally.kills.total() >= RUNNER_KILLS
    check_leftovers_are_swept(host)
    if is_full():
        said = f"{tally.kills.total()} ({describe(tally)}), 0 violations, {seconds:.0f} s"
        record("random kills of the runner", said, COMMAND)


def describe(tally: Tally) -> str:
    """What was killed, how often."""
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(tally.kills.items()))


def until_killed(wanted: int, run: Callable[[int], None], tally: Tally, at_once: int) -> int:
    """Runs rounds, some at once since most of one is waiting, until so many kills have hit; how many rounds it took."""
    numbers = iter(range(5 * wanted))

    def work() -> None:
        while tally.kills.total() < wanted and (number := next(numbers, None)) is not None:
            run(number)

    with ThreadPoolExecutor(at_once) as pool:
        for worker in [pool.submit(work) for _ in range(at_once)]:
            worker.result()
    return sum(tally.states.values())


def life_of_a_job(host: Host) -> float:
    """Seconds from the command's start to its end, on this machine as busy as it is. Writes the rounds' script."""
    began = time.monotonic()
    witness = Witness(host.folder / "calibration", 0)
    assert host.run("run", host.script(SCRIPT, "witness.py"), "--", *witness.args).returncode == 0
    return time.monotonic() - began


def check_leftovers_are_swept(host: Host) -> None:
    """What a supervisor leaves that is killed while it prepares goes once it is certainly nobody's: after an hour."""
    state = StateDirectory(str(host.state))
    folders = [Path(state.executions), Path(state.payloads), *{Path(state.socket_path()).parent}]
    for folder in folders:
        for entry in folder.iterdir():
            if entry.name.startswith(".") or stat.S_ISSOCK(entry.stat().st_mode):
                os.utime(entry, (0, 0))
    state.sweep()
    left = [path for folder in folders for path in folder.iterdir() if path.name.startswith(".") or path.is_socket()]
    assert left == []


@pytest.mark.sshd
@pytest.mark.frozen
def test_killed_controllers_lose_nothing(new_host: Callable[..., RemoteHost], seed: int) -> None:
    host = new_host()
    tally = Tally()
    began = time.monotonic()
    life = life_of_a_command(host)
    rounds = until_killed(
        CONTROLLER_KILLS, lambda number: ControllerRound(host, number, seed, life, tally).run(), tally, 2
    )
    seconds = time.monotonic() - began
    print(f"{rounds} rounds in {seconds:.0f} s: {tally}")
    assert tally.violations == []
    assert tally.kills.total() >= CONTROLLER_KILLS
    if is_full():
        said = f"{tally.kills.total()} ({describe(tally)}), 0 violations, {seconds:.0f} s"
        record("random kills of the controller", said, COMMAND)


def life_of_a_command(host: RemoteHost) -> float:
    """The same for `cronium run`, with the runner on the host already; the rounds' script too."""
    host.cronium("deploy", "--host", host.server.target)
    witness = Witness(host.folder / "calibration", 0)
    began = time.monotonic()
    assert host.run(host.script(SCRIPT, "witness.py"), "--", *witness.args).returncode == 0
    return time.monotonic() - began


class ControllerRound:
    """One id, submitted by `cronium run`, followed by `cronium attach`, each a process; the last is left alone."""

    def __init__(self, host: RemoteHost, number: int, seed: int, life: float, tally: Tally) -> None:
        self.host = host
        self.id = f"kill-{number}"
        self.tally = tally
        self._life = life
        self._draw = random.Random(f"controller-{seed}-{number}")
        self._witness = Witness(host.folder / "starts", seed + number, leaves_stray=self._draw.random() < 0.25)
        self._script = host.folder / "witness.py"
        self._seen = tuple(host.folder / f"{self.id}.{name}" for name in ("stdout", "stderr"))

    def run(self) -> None:
        """All of it; what is wrong goes into the tally."""
        self._follow(self._submission(), is_killed=True)
        while self._draw.random() < 0.3:
            self._go_on(is_killed=True)
        ended = self._go_on(is_killed=False)
        if HAS_WAIT:
            ended = ended or self.host.cronium("wait", self.id).returncode
        self.tally.over(str((self.host.recorded(self.id) or {}).get("state")), self._judge(ended))

    def _submission(self) -> list[object]:
        words = ["run", "--host", self.host.server.target, "--execution-id", self.id]
        return [*words, self._script, "--", *self._witness.args]

    def _go_on(self, *, is_killed: bool) -> int:
        """From a new process, by id; from the beginning, by the same submission, where nothing got to the host."""
        ended = 125
        if self._is_known():
            offsets = [path.stat().st_size for path in self._seen]
            ended = self._follow(["attach", self.id, "--offset", *offsets], is_killed=is_killed)
        if ended == 125 and not is_killed and not self.host.execution(self.id).exists():
            for path in self._seen:
                path.write_bytes(b"")
            ended = self._follow(self._submission(), is_killed=False)
        return ended

    def _is_known(self) -> bool:
        store = self.host.store()
        record = store.find(self.id)
        store.close()
        return record is not None

    def _follow(self, words: list[object], *, is_killed: bool) -> int:
        """Runs `cronium WORDS`, and appends to what was seen. Its exit status; -9 when it was killed."""
        with self._seen[0].open("ab") as stdout, self._seen[1].open("ab") as stderr:
            running = self.host.start_cronium(*words, stdout=stdout, stderr=stderr)
        # The first third is the start of Python, in which nothing has been done yet.
        moment = self._draw.uniform(0.3, 1.05) * self._life if is_killed else STUCK_SECONDS
        try:
            running.wait(moment)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            self.tally.killed(str(words[0]) if is_killed else "stuck")
        return running.returncode

    def _judge(self, ended: int) -> list[str]:
        wrong = [] if ended == 0 else [f"the last one ended with {ended}: {self._seen[1].read_bytes()[-300:]!r}"]
        result = self.host.recorded(self.id) or {}
        if result.get("state") != "succeeded":
            return [f"{self.id}: {each}" for each in [*wrong, f"recorded is {result}"]]
        kept = spooled(self.host.execution(self.id))
        seen = self._seen[0].read_bytes(), self._seen[1].read_bytes()
        wrong += judge_streams(self._witness, "succeeded", result, kept, seen)
        if self._witness.starts(self.id) != 1:
            wrong.append(f"{self._witness.starts(self.id)} starts")
        store = self.host.store()
        record = store.find(self.id)
        store.close()
        if record is None or record.result is None or record.result.exit_code != 0:
            wrong.append(f"the controller remembers {record}")
        left = processes_with(f"CRONIUM_EXECUTION_ID={self.id}\0")
        if left:
            wrong.append(f"left running: {left}")
        return [f"{self.id}: {each}" for each in wrong]
