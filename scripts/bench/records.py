"""What `list`, `gc` and `ps` cost with thousands of kept records: this version against 0.1.0, in turn.

Half of the records are kept, half collected; half of each were made by the runner of 0.1.0, whose sources the tests
keep. Times are whole commands, CPU is user and system time of the command and its children; both runners run with the
same Python. Of `ps` there are two lines: an agent's answers over pipes, before and now, and the whole `cronium ps` over
OpenSSH with the built runner, less the same command on an account without records, which is its connection.
"""

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from cronium_runner import housekeeping, indexing  # noqa: E402
from cronium_runner.jobdir import StateDirectory  # noqa: E402
from cronium_runner.record_index import QUIET_NS  # noqa: E402
from cronium_runner.wire.frames import Kind  # noqa: E402
from many_records import add_records  # noqa: E402
from old_runner import as_old_runner  # noqa: E402
from openssh import OpenSSHServer  # noqa: E402
from runner_process import Host  # noqa: E402

COMMANDS = (("list",), ("list", "--running"), ("list", "--all"), ("list", "--json"), ("gc",))
GOAL_SECONDS = 1.0
Measured = tuple[float, float]
"""Wall and CPU, seconds."""


def measured(work: Callable[[], object]) -> Measured:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show(what: str, old: list[Measured], new: list[Measured]) -> None:
    before, now = ([statistics.median(values) for values in zip(*each, strict=True)] for each in (old, new))
    ratio = statistics.median(b[1] / a[1] for a, b in zip(old, new, strict=True))
    print(
        f"{what:<24} {before[0]:7.2f} s {before[1]:7.2f} s   {now[0]:6.2f} s {now[1]:6.2f} s  {ratio:6.3f} ×  "
        f"{'reached' if now[0] <= GOAL_SECONDS else 'short'}"
    )


def command(host: Host, words: tuple[str, ...]) -> None:
    done = host.run(*words)
    assert done.returncode == 0, done.stderr


def all_pages(host: Host, **asked: Any) -> None:
    """An agent's whole life: it starts, answers for all executions, and leaves."""
    with host.agent() as agent:
        while True:
            channel = agent.new_channel()
            agent.send(Kind.STATUS, channel, asked)
            told = agent.expect(channel, Kind.STATUS).json()
            if "after" not in told:
                break
            asked["after"] = told["after"]
        assert agent.close() == 0


@contextlib.contextmanager
def account(folder: Path, state: Path, home: Path) -> Iterator[list[str]]:
    """The first words of a `cronium` command on an account with this state directory."""
    environment = {"CRONIUM_STATE_DIR": str(state), "HOME": str(home)}
    with OpenSSHServer(folder, environment=environment) as server:
        yield [
            "--host",
            f"127.0.0.1:{server.port}",
            "-i",
            str(server.identity),
            "--known-hosts",
            str(server.known_hosts),
        ]


def whole_ps(folder: Path, state: Path, binary: str, rounds: int) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")},
        "CRONIUM_RUNNER_BINARY": binary,
        "CRONIUM_RUNNER_ROOT": str(folder / "runner"),
        "CRONIUM_CONTROLLER_STATE": str(folder / "controller"),
    }
    home = folder / "home"
    home.mkdir()

    def ps(where: list[str], *words: str) -> Measured:
        line = [str(Path(sys.executable).with_name("cronium")), "ps", *where, *words]
        return measured(lambda: subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL))

    with account(folder / "full", state, home) as full, account(folder / "empty", folder / "none", home) as empty:
        for words in ((), ("--all",), ("--json",)):
            for where in (full, empty):
                ps(where, *words)
            pairs = [(ps(full, *words), ps(empty, *words)) for _ in range(rounds)]
            wall = statistics.median(a[0] - b[0] for a, b in pairs)
            cpu = statistics.median(a[1] - b[1] for a, b in pairs)
            whole = statistics.median(a[0] for a, _ in pairs)
            verdict = "reached" if wall <= GOAL_SECONDS else "short"
            print(f"cronium {' '.join(('ps', *words)):<12} {wall:6.2f} s more than without records, of it our CPU "
                  f"{cpu:.2f} s; whole command {whole:.2f} s  {verdict}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench/records", description="What listing kept records costs.")
    parser.add_argument("binary", help=argparse.SUPPRESS)
    parser.add_argument("records", nargs="?", type=int, default=20_000, help="how many (default 20000)")
    parser.add_argument("rounds", nargs="?", type=int, default=3, help="how many pairs of each (default 3)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cronium-bench-"))
    try:
        new = Host(folder, folder / "installed")
        old = as_old_runner(new, folder / "old")
        state = StateDirectory.open(str(new.state))
        half = given.records // 2
        add_records([new, old], folder / "models", kept=half, collected=given.records - half)
        time.sleep(QUIET_NS / 1e9)
        first = measured(lambda: command(new, ("list",)))
        with housekeeping.only_one(state, waits=True):
            indexing.refresh(state)
        size = os.stat(state.index).st_size
        print(f"{given.records} records, {given.rounds} rounds, medians; {os.cpu_count()} cores, load "
              f"{os.getloadavg()[0]:.1f}; index {size / given.records:.0f} bytes for each")  # fmt: skip
        print(f"{'':<24} {'0.1.0':>9} {'CPU':>9}   {'now':>8} {'CPU':>8}  {'CPU':>6}     goal ≤ {GOAL_SECONDS:g} s")
        for words in COMMANDS:
            pairs = [
                (measured(lambda: command(old, words)), measured(lambda: command(new, words)))  # noqa: B023
                for _ in range(given.rounds)
            ]
            show(" ".join(words), [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        pairs = [
            (measured(lambda: all_pages(old)), measured(lambda: all_pages(new, brief=True)))
            for _ in range(given.rounds)
        ]
        show("an agent's answers to ps", [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        print(f"{'list without an index':<24} {'':19}   {first[0]:6.2f} s {first[1]:6.2f} s")
        whole_ps(folder, new.state, given.binary, given.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
