"""State directories that 0.1.0 made, read by this version."""

import stat
from pathlib import Path

import pytest

from old_runner import as_old_runner
from runner_process import Host


def test_old_runner_is_0_1_0(host: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    assert old.run("version").stdout.split()[1] == b"0.1.0"


def test_record_of_old_runner_is_read(host: Host, tmp_path: Path) -> None:
    old = as_old_runner(host, tmp_path / "old")
    made = old.run_json(host.script("cronium.output 7"), "--execution-id", "old-1")
    assert made["state"] == "succeeded"
    again = host.run_json(host.folder / "script.sh", "--execution-id", "old-1")
    assert (again["state"], again["output"], again["startedAt"]) == ("succeeded", 7, made["startedAt"])


@pytest.mark.parametrize(("umask", "left"), [(0o002, 0o775), (0o000, 0o755)])
def test_state_of_old_runner_under_any_umask_is_read(host: Host, tmp_path: Path, umask: int, left: int) -> None:
    """0.1.0 made the directories above the state directory with the login's umask. What all may write is closed."""
    host.state = tmp_path / "home" / ".local" / "state" / "cronium-runner"
    host.state.parent.parent.parent.mkdir()
    host.environment["CRONIUM_STATE_DIR"] = str(host.state)
    old = as_old_runner(host, tmp_path / "old")
    made = old.run_json(host.script("cronium.output 7"), "--execution-id", "old-1", umask=umask)
    above = host.state.parent, host.state.parent.parent
    assert [stat.S_IMODE(path.stat().st_mode) for path in above] == [0o777 & ~umask] * 2
    again = host.run_json(host.folder / "script.sh", "--execution-id", "old-1")
    assert (again["state"], again["output"], again["startedAt"]) == ("succeeded", 7, made["startedAt"])
    assert [stat.S_IMODE(path.stat().st_mode) for path in above] == [left] * 2
