"""Killed, and refused by the kernel, at every system call of the durable path: one start, nothing lost, nobody left.

The path is gone through by the foreground command with its supervisor, by the agent with its supervisor (which receives
the payload before and hears the acknowledgement after), by a supervisor that gives its id back, by the undertaker, and
by the writer of the index.
Here a sample of the points; CRONIUM_FAULTS=full (scripts/test --faults) tries them all.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from faults import crash_points
from faults.crash_points import (
    KILL,
    SCENARIOS,
    Calls,
    Point,
    Scenario,
    Trial,
    calls_of,
    error_points,
    kill_points,
    thinned,
)
from faults.figures import is_full, record

COMMAND = "scripts/test --faults tests/faults/test_crash_points.py"
SAMPLE: Final = 5
"""Points of each scenario and kind in the bounded form: a quarter of a second each."""
AT_ONCE: Final = 5
"""Trials in flight: a process start is mostly waiting, for strace and for the disk."""
HIT_SHARE: Final = 0.8 if is_full() else 0.4
"""Of the points tried, at least so many are come by: what a run does besides the path differs a little each time, and
of a small sample's points that may be several."""
UNDERTAKERS_HIT_SHARE: Final = 0.3 if is_full() else 0.1
"""The undertaker looks at every process of the machine, and there are never twice as many."""

# What went wrong once: nothing had been started, or the script had ended well, and the outcome was another.
ONCE_WRONG: Final = {
    ("run/supervisor", "fsync", "EIO"),
    ("run/supervisor", "rename", "EIO"),
    ("run/supervisor", "epoll_create1", "EMFILE"),
    ("run/supervisor", "pipe2", "EMFILE"),
    ("run/guardian", "write", "ENOSPC"),
    ("run/guardian", "openat", "EIO"),
    ("run/guardian", "clone", "EAGAIN"),
    ("agent/guardian", "fcntl", "EMFILE"),
    ("give-back/supervisor", "pwrite64", "EIO"),
}


@pytest.fixture(autouse=True)
def _tracing() -> None:
    reason = crash_points.why_not_traced()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory, install_directory: Path) -> Callable[[Scenario], Calls]:
    """The calls of each scenario's path, learned once from a run that nothing disturbs."""
    known: dict[Scenario, Calls] = {}
    folder = tmp_path_factory.mktemp("calls")
    numbers = itertools.count()

    def learn(scenario: Scenario) -> Calls:
        if scenario not in known:
            number = next(numbers)
            if number == 0:  # makes the helper folder, which later runs find
                calls_of(SCENARIOS[0], folder / "first", install_directory)
            known[scenario] = calls_of(scenario, folder / str(number), install_directory)
        return known[scenario]

    return learn


def sample_of(points: list[Point]) -> list[Point]:
    """Every k-th, and those that have shown something once."""
    kept = [each for each in points if (str(each.scenario), each.call, each.effect) in ONCE_WRONG]
    return kept + points[:: max(1, len(points) // SAMPLE)]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("kind", ["killed", "failed"])
def test_the_path_withstands(
    scenario: Scenario,
    kind: str,
    tmp_path: Path,
    install_directory: Path,
    calls: Callable[[Scenario], Calls],
) -> None:
    every = (kill_points if kind == "killed" else error_points)(scenario, calls(scenario))
    points = thinned(every) if is_full() else sample_of(every)
    found = crash_points.try_points(points, tmp_path, install_directory, at_once=AT_ONCE)
    missed = Counter(point.call for point in found.missed)
    print(
        f"{scenario} {kind}: {found.hit} points of {len(points)} in {found.seconds:.0f} s; not come by: {dict(missed)}"
    )
    assert found.violations == []
    assert found.hit >= (UNDERTAKERS_HIT_SHARE if scenario.role == "undertaker" else HIT_SHARE) * len(points)
    if is_full():
        figure = f"{found.hit} points, 0 violations, {found.seconds:.0f} s"
        record(f"system calls {kind}: {scenario}", figure, f"{COMMAND} -k '{kind}-{scenario}'")


@pytest.mark.full
def test_a_kill_while_it_starts_up_is_harmless(tmp_path: Path, install_directory: Path) -> None:
    """Loading the interpreter and the modules: hundreds of calls that are much alike, so every tenth of them."""
    scenario = Scenario("start up", "guardian")
    calls = calls_of(scenario, tmp_path / "calls", install_directory)
    points = kill_points(scenario, calls)[::10]
    found = crash_points.try_points(points, tmp_path / "points", install_directory, at_once=AT_ONCE)
    assert found.violations == []
    assert found.hit >= HIT_SHARE * len(points)
    record(f"system calls killed: {scenario}", f"{found.hit} points, 0 violations, {found.seconds:.0f} s", COMMAND)


def test_a_second_start_would_be_noticed(tmp_path: Path, install_directory: Path) -> None:
    """The judge is judged: what it is told here is wrong in four ways."""
    scenario = Scenario("run", "guardian")

    class Wrong(Trial):
        def _first_contact(self) -> None:
            super()._first_contact()
            self.side.write_text("started\nstarted\n")
            spool = self.host.execution(crash_points.ID) / "stdout"
            spool.write_bytes(b"known")

    violations = "\n".join(
        Wrong(Point(scenario, "fsync", 1000, KILL), scenario, tmp_path / "t", install_directory).run()
    )
    assert "2 starts" in violations
    assert "stdout holds 5 bytes" in violations
    assert "cut, which is not flagged" in violations
