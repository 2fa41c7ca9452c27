"""scripts/bench/fanout on a few hosts: that it ends well and prints its table. What it measures is not judged here."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
_PROGRAM = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "fanout.py"


def test_it_runs_the_job_on_every_host_and_prints_the_table(binary: Path) -> None:
    words = [str(binary), "--hosts", "5", "--rounds", "1", "--tools", "cronium,asyncssh"]
    done = subprocess.run([sys.executable, _PROGRAM, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout
    rows = [line[:16].strip() for line in done.stdout.splitlines() if "MiB" in line]
    assert rows == ["cronium", "cronium, warm", "cronium run", "asyncssh", "asyncssh, warm"]
    goals = done.stdout.partition("goals")[2]
    for goal in ("cold, wall", "warm, wall", "cold, controller CPU", "cold, memory"):
        assert goal in goals


def test_a_tool_that_nobody_knows_is_refused(binary: Path) -> None:
    words = [sys.executable, str(_PROGRAM), str(binary), "--tools", "rsh"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no tool is called rsh" in done.stderr
