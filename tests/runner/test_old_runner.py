"""State directories that 0.1.0 made, read by this version."""

from pathlib import Path

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
