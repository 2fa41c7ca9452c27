"""A full disk under the controller's database, before, between and during jobs: a tmpfs that only root can mount.

What must hold: one sentence with a code, or the work is done; nothing starts that could not be written down; what ran
is told with its own exit status, and is found again when there is room.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_runner.wire.results import Outcome
from documented import OPTIONS
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import wait_until

pytestmark = pytest.mark.sshd


class FullDisk:
    """A small disk that can be filled to its last byte, with a host beside it."""

    def __init__(self, remote: RemoteHost) -> None:
        self.remote = remote
        self.path = remote.remembered
        self.started = remote.folder / "started"
        self.go = remote.folder / "go"

    def fill(self) -> None:
        """Leaves no block."""
        with (self.path / "filling").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        """As somebody does who has read the sentence."""
        (self.path / "filling").unlink()

    def script(self, exit_code: int = 0) -> Path:
        """One that says that it has started, and waits until it is told to go on."""
        return self.remote.script(
            f"echo started >>{self.started}\necho output\n"
            f"until [ -e {self.go} ]; do sleep 0.05; done\nexit {exit_code}\n"
        )

    def starts(self) -> int:
        return self.started.read_text().count("\n") if self.started.exists() else 0

    def wait_started(self, count: int = 1) -> None:
        wait_until(lambda: self.starts() == count, f"{count} scripts to start")

    def run_meanwhile_full(self, *words: object) -> "subprocess.CompletedProcess[bytes]":
        """`cronium run WORDS`; the disk is filled when its scripts run on all the hosts that are named."""
        hosts = max(1, sum(word == "--host" for word in words))
        process = self.remote.start_cronium("run", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            self.wait_started(hosts)
            self.fill()
            self.go.touch()
            stdout, stderr = process.communicate(timeout=60)
        assert b"Traceback" not in stderr, stderr.decode()
        assert b"never retrieved" not in stderr, stderr.decode()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture
def disk(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch, as_root: None) -> Iterator[FullDisk]:
    """A megabyte: a new database and its log take a quarter of it."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", options=OPTIONS) as remote:
        remote.remembered.mkdir(mode=0o700)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", remote.remembered], check=False
        ).returncode:
            pytest.skip("this machine mounts nothing")
        try:
            yield FullDisk(remote)
        finally:
            subprocess.run(["umount", "-l", remote.remembered], check=True)


def refused(disk: FullDisk, done: "subprocess.CompletedProcess[bytes]", code: str = "store.unusable") -> None:
    """125, and one sentence that has the place, the reason and what to do."""
    said = done.stderr.decode()
    assert (done.returncode, said.count("\n")) == (125, 1), done
    assert said.endswith(f"[{code}]\n"), said
    assert str(disk.path) in said
    assert "make room" in said or "CRONIUM_PAYLOADS" in said


@pytest.mark.parametrize("is_new", [True, False], ids=["no database yet", "a database"])
def test_on_a_full_disk_nothing_starts_and_every_command_says_why(disk: FullDisk, is_new: bool, tmp_path: Path) -> None:
    remote, where = disk.remote, ("--host", disk.remote.server.target)
    disk.go.touch()
    if not is_new:
        assert remote.run("--execution-id", "before", disk.script()).returncode == 0
    starts = disk.starts()
    (tmp_path / "file").write_text("words")
    disk.fill()
    refused(disk, remote.run("--execution-id", "one", disk.script()))
    refused(
        disk, remote.run("--execution-id", "one", *where, "--host", f"127.0.0.2:{remote.server.port}", disk.script())
    )
    for words in (("status", "before"), ("logs", "before"), ("attach", "before"), ("ps", *where), ("gc", *where)):
        refused(disk, remote.cronium(*words))
    refused(disk, remote.cronium("deploy", *where))
    refused(disk, remote.cronium("doctor", *where))
    refused(disk, remote.cronium("exec", *where, "--", "true"))
    refused(disk, remote.cronium("put", *where, tmp_path / "file", "~/file"))
    refused(disk, remote.cronium("get", *where, "/etc/passwd", tmp_path / "passwd"))
    refused(disk, remote.cronium("payload", "build", "nightly", disk.script()))
    refused(disk, remote.cronium("metrics"))
    assert disk.starts() == starts
    assert not (tmp_path / "passwd").exists()
    disk.make_room()
    assert remote.run("--execution-id", "one", disk.script()).stdout == b"output\n"
    assert disk.starts() == starts + 1


def test_history_on_a_full_disk(disk: FullDisk) -> None:
    """It has no host and no option for one, so it is asked by itself."""
    disk.go.touch()
    assert disk.remote.run("--execution-id", "one", disk.script()).returncode == 0
    disk.fill()
    environment = disk.remote.environment
    done = subprocess.run(
        ["bash", "-c", f"exec {_cronium()} history"], env=environment, capture_output=True, check=False, timeout=60
    )
    refused(disk, done)


def _cronium() -> str:
    return f"{sys.executable} -c 'from cronium_controller.cli import main; main()'"


@pytest.mark.parametrize("exit_code", [0, 7])
def test_a_job_that_ran_meanwhile_tells_its_own_end_and_is_found_again(disk: FullDisk, exit_code: int) -> None:
    target = disk.remote.server.target
    done = disk.run_meanwhile_full("--host", target, "--execution-id", "one", disk.script(exit_code))
    assert (done.returncode, done.stdout) == (exit_code, b"output\n")
    said = done.stderr.decode()
    assert said.count("\n") == 1, said
    assert "the disk is full; make room" in said
    assert "cronium wait one" in said
    disk.make_room()
    again = disk.remote.cronium("wait", "one", "--json")
    assert (again.returncode, json.loads(again.stdout)["exitCode"]) == (exit_code, exit_code)
    assert disk.remote.run("--execution-id", "one", disk.script(exit_code)).returncode == exit_code
    assert disk.starts() == 1
    store = disk.remote.store()
    record = store.find("one")
    store.close()
    assert record is not None
    assert record.result is not None
    assert record.is_acknowledged


def test_a_result_as_json_is_whole(disk: FullDisk) -> None:
    done = disk.run_meanwhile_full("--host", disk.remote.server.target, "--json", disk.script(7))
    (line,) = done.stdout.splitlines()
    assert (done.returncode, json.loads(line)["exitCode"], json.loads(line)["error"]) == (7, 7, None)


@pytest.mark.parametrize("moment", ["record", "finish"])
async def test_a_disk_that_fills_between_two_writes_of_one_job(disk: FullDisk, moment: str) -> None:
    """Behind the first one the job is on its way, and behind the result there is only that the host knows of it."""
    disk.go.touch()
    remote = disk.remote
    store = remote.store()
    write = getattr(store, moment)

    def write_and_fill(*values: object, **more: object) -> object:
        written = write(*values, **more)
        disk.fill()
        return written

    setattr(store, moment, write_and_fill)
    async with remote.controller(store=store) as controller:
        job = Job(load(disk.script(7)), execution_id="one")
        (result,) = [result async for result in controller.run_many([remote.host], job)]
    store.close()
    assert (result.state, result.exit_code) == (Outcome.FAILED, 7)
    assert len(remote.warnings) == (1 if moment == "record" else 0)
    disk.make_room()
    assert remote.cronium("wait", "one").returncode == 7
    assert disk.starts() == 1


def three(disk: FullDisk) -> list[object]:
    """The options for three hosts."""
    return [word for number in (1, 2, 3) for word in ("--host", f"127.0.0.{number}:{disk.remote.server.port}")]


def test_many_hosts_whose_jobs_ran_meanwhile(disk: FullDisk) -> None:
    done = disk.run_meanwhile_full(*three(disk), "--execution-id", "many", "--json", disk.script())
    *results, summary = map(json.loads, done.stdout.splitlines())
    assert [result["state"] for result in results] == ["succeeded"] * 3
    assert (done.returncode, summary["succeeded"]) == (0, 3)
    assert done.stderr.count(b"kept on its host only") == 1, "the same of each"
    disk.make_room()
    again = disk.remote.cronium("wait", "many", "--json")
    assert (again.returncode, again.stdout.count(b'"succeeded"')) == (0, 3 + 2)  # and twice in the summary
    assert disk.starts() == 3


def test_hosts_whose_turn_came_later_are_not_begun(disk: FullDisk) -> None:
    remote = disk.remote
    process = remote.start_cronium(
        "run", *three(disk), "--serial", "1", "--execution-id", "many", "--json", disk.script(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        disk.wait_started()
        disk.fill()
        disk.go.touch()
        stdout, stderr = process.communicate(timeout=60)
    assert b"Traceback" not in stderr, stderr.decode()
    *results, summary = map(json.loads, stdout.splitlines())
    assert [result["state"] for result in results] == ["succeeded", "rejected", "rejected"]
    assert {result["error"]["code"] for result in results[1:]} == {"store.unusable"}
    assert all("make room" in result["error"]["message"] for result in results[1:])
    assert (process.returncode, summary["failed"], disk.starts()) == (102, 2, 1)
    disk.make_room()
    assert remote.cronium("run", *three(disk), "--execution-id", "many", disk.script()).returncode == 0
    assert disk.starts() == 3, "the first one was not started again"


def test_a_payload_version_is_made_whole_or_not_at_all(disk: FullDisk) -> None:
    disk.go.touch()
    remote = disk.remote
    first, large = disk.script(), remote.folder / "large"
    assert remote.cronium("payload", "build", "nightly", first).returncode == 0
    large.mkdir()
    (large / "manifest.yaml").write_text("version: v1\ninterpreter: bash\nentrypoint: job.sh\n")
    (large / "job.sh").write_text("echo large\n")
    (large / "random").write_bytes(os.urandom(2 << 20))
    refused(disk, remote.cronium("payload", "build", "nightly", large), "payload.storage")
    listed = remote.cronium("payload", "list", "--json").stdout.splitlines()
    assert [json.loads(line)["version"] for line in listed] == [1]
    folder = disk.path / "storage" / "payloads"
    assert sorted(path.name for path in folder.iterdir()) == [
        "event-nightly-v1.tar.gz",
        "event-nightly-v1.tar.gz.sha256",
    ]
    assert remote.run("event:nightly").stdout == b"output\n"


def test_what_is_fetched_onto_a_full_disk_is_refused_and_leaves_no_room_taken(disk: FullDisk, tmp_path: Path) -> None:
    """With the database elsewhere: logs by `get`, and by `logs` into a file."""
    remote, where = disk.remote, ("--host", disk.remote.server.target)
    elsewhere = {"CRONIUM_CONTROLLER_STATE": str(tmp_path / "elsewhere")}
    script = remote.script("head -c 3000000 /dev/zero | tr '\\0' x\n")
    kept = tmp_path / "kept"
    with kept.open("wb") as file:
        assert remote.run("--execution-id", "log", script, env=elsewhere, stdout=file).returncode == 0
    got = remote.cronium("get", *where, remote.execution("log") / "stdout", disk.path / "log", env=elsewhere)
    assert got.returncode == 125
    assert got.stderr.count(b"\n") == 1
    assert b"make room" in got.stderr
    assert got.stderr.endswith(b"[files.refused]\n")
    assert not (disk.path / "log").exists()
    for left in disk.path.iterdir():  # what has arrived, for the next attempt
        left.unlink()
    with (disk.path / "log").open("wb") as file:
        printed = remote.cronium("logs", "log", "--raw", env=elsewhere, stdout=file)
    assert printed.returncode == 125
    assert printed.stderr.endswith(b"[output.unwritable]\n")
    with (disk.path / "log").open("wb") as file:  # truncated, and as full again
        ran = remote.run("--execution-id", "again", script, env=elsewhere, stdout=file)
    assert ran.returncode == 125
    assert ran.stderr.endswith(b"[output.unwritable]\n")
    assert remote.cronium("get", *where, remote.execution("again") / "stdout", kept, env=elsewhere).returncode == 0
    assert kept.stat().st_size == 3_000_000
    assert remote.cronium("put", *where, kept, disk.path / "there", env=elsewhere).returncode == 125
