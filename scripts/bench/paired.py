"""What this version costs against another: the same work by both in turn, on one machine, again and again.

Each has its own processes: installed binaries, agents without SSH, controllers with an sshd of their own. Wall times
are medians, their ratios medians of the ratios of pairs; CPU and page faults are sums, which a busy machine changes
less.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from runner_process import AgentProcess, Host  # noqa: E402

GOAL: Final = 1.05
NO_OP: Final = ":\n"
_TICK: Final = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """A measurement: wall time and CPU time in seconds, and page faults, None where they were not counted."""

    wall: float
    cpu: float
    faults: float | None = None


Work = Callable[[], Cost]


def in_turn(before: Work, after: Work, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """The costs of both. Which is first changes, and the first of each, which warms up, is left out."""
    costs: tuple[list[Cost], list[Cost]] = [], []
    for number in range(rounds + 1):
        pair = [(before, costs[0]), (after, costs[1])]
        for work, found in pair if number % 2 else reversed(pair):
            cost = work()
            if number:
                found.append(cost)
    return costs


def show(what: str, before: Sequence[Cost], after: Sequence[Cost], cpu: str = "CPU") -> None:
    """Prints a line for the wall time, one for the CPU and one for the page faults."""
    wall = statistics.median(b.wall / a.wall for a, b in zip(before, after, strict=True))
    walls = [statistics.median(cost.wall for cost in costs) * 1000 for costs in (before, after)]
    rows: list[tuple[str, float, float, str, float]] = [(f"{what}: wall", walls[0], walls[1], "ms", wall)]
    cpus = [statistics.fmean(cost.cpu for cost in costs) * 1000 for costs in (before, after)]
    rows.append((f"{what}: {cpu}", cpus[0], cpus[1], "ms", cpus[1] / cpus[0]))
    if all(cost.faults is not None for cost in (*before, *after)):
        faults = [statistics.fmean(cost.faults or 0 for cost in costs) for costs in (before, after)]
        rows.append((f"{what}: page faults", faults[0], faults[1], "", faults[1] / faults[0]))
    for name, old, new, unit, ratio in rows:
        verdict = "reached" if round(ratio, 2) <= GOAL else "short"
        print(f"{name:<58} {old:9.2f} {new:9.2f} {unit:<2} {ratio:6.3f} ×  {verdict}", flush=True)


def started(words: list[str], environment: dict[str, str]) -> Cost:
    """A process from its start to its end, with those that it waited for."""
    began = time.perf_counter()
    pid = os.posix_spawn(
        words[0],
        words,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)],
    )
    _, status, used = os.wait4(pid, 0)
    assert status == 0, words
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_minflt)


def starts(binaries: list[str], folder: Path, rounds: int) -> None:
    """An agent without input, and `run` of a script that does nothing."""
    script = folder / "no-op.sh"
    script.write_text(NO_OP)
    installed: list[tuple[str, dict[str, str]]] = []
    for number, binary in enumerate(binaries):
        own = folder / f"installed-{number}"
        environment = {**os.environ, "CRONIUM_INSTALL_DIR": str(own), "CRONIUM_STATE_DIR": str(own / "state")}
        subprocess.run([binary, "version"], env=environment, stdout=subprocess.DEVNULL, check=True)
        (executable,) = own.glob("*/cronium-runner")
        installed.append((str(executable), environment))
    for what, words in (("an agent's start", ["agent"]), ("`run` of a no-op", ["run", str(script)])):
        before, after = (partial(started, [executable, *words], environment) for executable, environment in installed)
        show(what, *in_turn(before, after, rounds))


def used_by(pid: int) -> tuple[float, int]:
    """Seconds of CPU and page faults of a process and of those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return sum(map(int, fields[11:15])) / _TICK, int(fields[7]) + int(fields[8])


def agent_jobs(binaries: list[str], folder: Path, rounds: int) -> None:
    """Warm no-op jobs of agents that are spoken to over pipes. Their CPU is that of all together: clock ticks."""
    with ExitStack() as open_agents:
        works, agents = [], []
        for number, binary in enumerate(binaries):
            own = folder / f"agent-{number}"
            own.mkdir()
            host = Host(own, own / "install")
            host.executable = [binary]
            host.run("version")
            (executable,) = (own / "install").glob("*/cronium-runner")
            host.executable = [str(executable)]
            payload = host.payload(NO_OP, interpreter="sh")
            agent = open_agents.enter_context(host.agent())
            agents.append(agent)
            names = (f"job-{count}" for count in range(rounds * 2))

            def job(agent: AgentProcess = agent, payload: Any = payload, names: Iterator[str] = names) -> Cost:
                began = time.perf_counter()
                agent.finished(agent.start(payload, next(names)))
                wall = time.perf_counter() - began
                children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
                while children.read_text().strip():  # it removes its work directory yet
                    time.sleep(0.0005)
                return Cost(wall, 0.0)

            job()
            works.append(job)
        before = [used_by(agent.process.pid) for agent in agents]
        costs = in_turn(works[0], works[1], rounds)
        spent = [used_by(agent.process.pid) for agent in agents]
        jobs = rounds + 1
        found = []
        for number, one in enumerate(costs):
            cpu = (spent[number][0] - before[number][0]) / jobs
            faults = (spent[number][1] - before[number][1]) / jobs
            found.append([Cost(cost.wall, cpu, faults) for cost in one])
        show("a warm job, runner alone", found[0], found[1], "its CPU")


class Controller:
    """A controller of one of the checkouts, in a process of its own."""

    def __init__(self, checkout: Path, binary: str, hosts: int) -> None:
        words = [checkout / ".venv/bin/python", PROJECT / "scripts/bench/paired_controller.py", checkout, binary]
        self._process = subprocess.Popen(
            [*map(str, words), str(hosts)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.do("ready")

    def do(self, what: str) -> Cost:
        """Has it do something, and answers what that cost its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        line = self._process.stdout.readline()
        assert line, f"the controller ended with {self._process.wait()}"
        return Cost(*json.loads(line))

    def close(self) -> None:
        """Ends it, and its servers."""
        self._process.communicate()


@contextmanager
def controllers(checkouts: Sequence[Path], binaries: list[str], hosts: int) -> Iterator[list[Controller]]:
    with ExitStack() as opened:
        made = []
        for checkout, binary in zip(checkouts, binaries, strict=True):
            made.append(controller := Controller(checkout, binary, hosts))
            opened.callback(controller.close)
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/paired", description="This version against another checkout.")
    parser.add_argument("other", type=Path, metavar="OTHER", help="the other checkout's folder")
    parser.add_argument("before", help=argparse.SUPPRESS)
    parser.add_argument("after", help=argparse.SUPPRESS)
    parser.add_argument("--starts", type=int, default=40, help="pairs of starts (default 40)")
    parser.add_argument("--jobs", type=int, default=300, help="pairs of jobs (default 300)")
    parser.add_argument("--hosts", type=int, default=40, help="hosts of a fan-out (default 40)")
    parser.add_argument("--fan-outs", type=int, default=6, help="pairs of fan-outs, cold and warm (default 6)")
    given = parser.parse_args()
    binaries, checkouts = [given.before, given.after], [given.other, PROJECT]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    print(f"{'':<58} {'before':>9} {'now':>9}")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-", dir=memory))
    try:
        starts(binaries, folder, given.starts)
        agent_jobs(binaries, folder, given.jobs)
        with controllers(checkouts, binaries, given.hosts) as (before, after):
            jobs = in_turn(partial(before.do, "job"), partial(after.do, "job"), given.jobs)
            show("a warm job by the Python API", *jobs, "controller's CPU")
            for kind in ("cold", "warm"):
                many = in_turn(partial(before.do, kind), partial(after.do, kind), given.fan_outs)
                show(f"{given.hosts} {kind} hosts by the Python API", *many, "controller's CPU")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
