"""A minute of scripts/soak beside the rest of the suite: begun with the first test, looked at by the last one.

So it costs the suite little time, and what the other tests do to the machine is part of what it has to stand. Of
several workers (xdist) one gets its test, early on: it begins it there, and the others are what runs beside it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from openssh import sshd_path

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 60
NICENESS: Final = 5
"""It has a minute for what takes ten seconds of it; the tests beside it wait for nobody."""

_running: "list[subprocess.Popen[bytes]]" = []


def is_soak(item: pytest.Item) -> bool:
    """Whether this is the test that looks at the soak."""
    return item.name == "test_a_minute_of_everything_leaves_nothing"


def is_worker() -> bool:
    """Whether this is one of several processes that share the tests out."""
    return "PYTEST_XDIST_WORKER" in os.environ


def put_last(items: list[pytest.Item]) -> None:
    """Moves it behind all others, but in a worker."""
    if not is_worker():
        items.sort(key=is_soak)


def begin(items: list[pytest.Item]) -> None:
    """Starts the soak if its test is among those that will run here, and can."""
    binary = find_binary()
    if binary is not None and sshd_path() is not None and any(map(is_soak, items)):
        words = ["nice", "-n", str(NICENESS), sys.executable, ROOT / "scripts" / "soak.py", "--binary", binary, SECONDS]
        _running.append(
            subprocess.Popen(
                list(map(str, words)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )


def end() -> None:
    """Ends a soak that nobody waits for any more, with what it has started."""
    for process in _running:
        if process.poll() is None:
            process.terminate()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    _running.clear()


def find_binary() -> Path | None:
    """The runner as scripts/build makes it."""
    named = os.environ.get("CRONIUM_TEST_BINARY")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}"))
    return found[-1] if found else None


def wait(items: list[pytest.Item]) -> tuple[int, str]:
    """The soak's exit status and words, once it is over; skips the test that asks when it cannot run."""
    if is_worker():
        begin(items)
    if not _running:
        pytest.skip("there is no runner binary in dist/, or no sshd; scripts/build makes the one")
    stdout, _ = _running[0].communicate(timeout=SECONDS * 20)  # a slow machine takes longer for the fewest waves
    return _running[0].returncode, stdout.decode()
