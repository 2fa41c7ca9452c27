"""Each example does what its header says, over real SSH servers on loopback addresses."""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from many_hosts import ManyHosts
from runner_process import PATIENCE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HOSTS = 4


@pytest.fixture
def many(tmp_path: Path, binary: Path, install_root: Path) -> Iterator[ManyHosts]:
    with ManyHosts(tmp_path / "hosts", binary, install_root, HOSTS) as made:
        yield made


def example(many: ManyHosts, name: str, *words: object) -> "subprocess.CompletedProcess[str]":
    """Runs an example that is a program of its own, with the key."""
    command = [sys.executable, str(EXAMPLES / name), "--identity", str(many.server.identity), *map(str, words)]
    return subprocess.run(command, env=many.environment, capture_output=True, text=True, timeout=PATIENCE)


def on_all(many: ManyHosts) -> list[str]:
    return [word for target in many.targets for word in ("--host", target)]


def test_disk_usage_of_all_hosts_is_one_table(many: ManyHosts) -> None:
    done = example(many, "gather_disk_usage.py", *many.targets, *many.refusing(1))
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["HOST", "USED", "SIZE", "MOUNT"], done
    shown = [re.fullmatch(r"(\S+)  +(\d+)%  +[\d.]+GiB  (/.*)", row) for row in rows]
    assert {match[1] for match in shown if match} == set(many.targets), done
    used = [int(match[2]) for match in shown if match]
    assert used == sorted(used, reverse=True)
    assert len(used) == len(rows)
    assert many.refusing(1)[0] in done.stderr
    assert done.returncode == 101, "one host of five failed"


def test_logs_of_all_hosts_are_a_file_each(many: ManyHosts) -> None:
    log, into = many.folder / "app.log", many.folder / "logs"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    done = example(many, "collect_logs.py", "--into", into, "--file", log, "--lines", 90_000, *many.targets)
    assert done.returncode == 0, done
    wanted = f"==> {log} <==\n" + "".join(f"line {number}\n" for number in range(10_000, 100_000))
    assert {path.name: path.read_text() for path in into.iterdir()} == {f"{name}.log": wanted for name in many.targets}
    log.unlink()
    done = example(many, "collect_logs.py", "--into", into, "--file", log, many.targets[0])
    assert done.returncode == 1, done
    assert (into / f"{many.targets[0]}.log.part").read_text().startswith(f"==> {log} <==")


def test_a_rolling_restart_goes_on_while_hosts_are_healthy(many: ManyHosts) -> None:
    begun, ready = many.folder / "begun", many.folder / "ready"
    words = [*on_all(many), "--serial", "1", "--stop-on-failure", EXAMPLES / "rolling-restart.sh", "--var", "SERVICE=x"]
    restart = f"RESTART=echo restarted >>{begun}; (sleep 0.6; touch {ready}) >/dev/null 2>&1 &"
    done = many.cronium("run", "--json", *words, "--var", restart, "--var", f"HEALTH=rm {ready}")
    assert done.returncode == 0, done
    results = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    assert len(results) == HOSTS
    assert all(result["output"]["seconds_until_healthy"] >= 0 for result in results)
    assert begun.read_text().split() == ["restarted"] * HOSTS


def test_a_rolling_restart_ends_with_the_first_host_that_stays_ill(many: ManyHosts) -> None:
    begun = many.folder / "begun"
    words = [*on_all(many), "--serial", "1", "--stop-on-failure", EXAMPLES / "rolling-restart.sh", "--var", "SERVICE=x"]
    ill = ["--var", f"HEALTH=test $(wc -l <{begun}) -lt 2", "--var", "PATIENCE=1"]
    done = many.cronium("run", "--json", *words, "--var", f"RESTART=echo restarted >>{begun}", *ill)
    states = [json.loads(line)["state"] for line in done.stdout.splitlines()[:-1]]
    assert states == ["succeeded", "failed", "skipped", "skipped"], done
    assert begun.read_text().split() == ["restarted"] * 2
    assert done.returncode == 103


def test_a_nightly_backup_starts_once_and_keeps_the_last(many: ManyHosts, tmp_path: Path) -> None:
    source, destination = tmp_path / "with space", tmp_path / "backup"
    source.mkdir()
    (source / "file").write_text("kept")
    words = ["run", "--host", many.targets[0], EXAMPLES / "nightly-backup.sh", "--var", f"DESTINATION={destination}"]
    words += ["--var", "KEEP=2", "--input", json.dumps({"paths": [str(source), str(EXAMPLES)]}), "--json"]
    results = []
    for night in ("01", "01", "02", "03"):
        done = many.cronium(*words, "--execution-id", f"nightly-2026-01-{night}")
        assert done.returncode == 0, done
        results.append(json.loads(done.stdout))
    assert results[0]["output"] == results[1]["output"], "the same night a second time"
    kept = [Path(result["output"]["archive"]) for result in results[2:]]
    assert sorted(destination.iterdir()) == sorted(kept)
    assert results[3]["variables"]["LAST_BACKUP"] == str(kept[-1])
    with tarfile.open(kept[-1]) as archive:
        stored = archive.extractfile(str(source / "file")[1:])
        assert stored is not None
        assert stored.read() == b"kept"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_every_example_can_be_started_and_says_how(path: Path) -> None:
    assert os.access(path, os.X_OK)
    if path.name != "hello.sh":
        assert re.search(r"^(#|) +(cronium run|examples/)", path.read_text(), re.MULTILINE)
