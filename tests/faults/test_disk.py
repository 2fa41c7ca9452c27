"""Disks that are full, too small, out of inodes or read-only, readers that never read, and more output than is kept.

Each disk is a tmpfs of its own in a mount namespace, which only root can make; where that is refused, the test is
skipped.
What must hold: the exit status is the script's own or 125, a loss is flagged, nothing starts that could not be claimed,
no success without the full result, and when there is room again the id is answered.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cronium_runner.output import TAIL
from cronium_runner.wire.frames import Kind
from faults.figures import is_full, record
from runner_process import PATIENCE, Host, wait_until

COMMAND = "scripts/test --faults tests/faults/test_disk.py"

NO_NAMESPACES: Final = 99
ROOM_AGAIN: Final = 'mount -o remount,rw,size=64m,nr_inodes=10000 "$STATE"'


class Disk:
    """A small file system for a host's state directory. `run` is a shell inside its mount namespace."""

    def __init__(self, host: Host, options: str) -> None:
        host.state.mkdir(mode=0o700)
        self.host = host
        self.environment = {
            **host.environment,
            "STATE": str(host.state),
            "RUNNER": " ".join(host.executable),
            "OPTIONS": options,
        }

    def run(self, commands: str) -> "subprocess.CompletedProcess[str]":
        """Runs shell commands with the disk mounted; $RUNNER and $STATE are set. Skips where mounting is refused."""
        inside = f'mount -t tmpfs -o "mode=0700,$OPTIONS" none "$STATE" || exit {NO_NAMESPACES}\n{commands}'
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", inside],
            cwd=self.host.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode == NO_NAMESPACES or "unshare:" in done.stderr:
            pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
        assert "Traceback" not in done.stderr
        return done

    def two_runs(self, script: Path, between: str = ROOM_AGAIN, before: str = "") -> list[tuple[int, dict[str, Any]]]:
        """The same submission twice, with something done `between`: exit status and result of both."""
        run = f'$RUNNER run --json --execution-id job "{script}" || s=$?\necho "status ${{s-0}}"\nunset s\n'
        said = self.run(f"{before}\n{run}{between} || exit 98\n{run}").stdout.splitlines()
        found = []
        for result, status in zip(said[::2], said[1::2], strict=True):
            found.append((int(status.removeprefix("status ")), json.loads(result)))
        assert len(found) == 2, said
        return found


@pytest.fixture
def side(tmp_path: Path) -> Path:
    """A file outside the small disk: a line for each start."""
    return tmp_path / "started"


def starts(side: Path) -> int:
    """How often the script was started."""
    return side.read_text().count("\n") if side.exists() else 0


def check_rejection(status: int, result: dict[str, Any], host: Host, reason: str) -> None:
    """125, and one sentence that says where and why."""
    assert (status, result["state"], result["error"]["code"]) == (125, "rejected", "state.unusable")
    assert str(host.state) in result["error"]["message"]
    assert reason in result["error"]["message"]


def test_a_disk_that_is_full_before_the_claim_starts_nothing_and_the_id_stays_free(
    host: Host, as_root: None, side: Path
) -> None:
    disk = Disk(host, "size=1m")
    script = host.script(f"echo started >>{side}\necho output\nexit 5\n")
    full = 'head -c 2000000 /dev/zero >"$STATE/filling" 2>/dev/null'
    (status, refused), (status_then, result) = disk.two_runs(script, before=full)
    check_rejection(status, refused, host, "No space left on device")
    assert (status_then, result["state"], result["exitCode"]) == (5, "failed", 5)
    assert starts(side) == 1


def judge_small_disk(host: Host, side: Path, script: Path, options: str) -> tuple[str, str]:
    """Submits on a disk of this size, and again with room: what both said is checked; the states are returned."""
    (status, first), (status_then, then) = Disk(host, options).two_runs(script)
    assert starts(side) == 1
    if first["state"] == "rejected":
        check_rejection(status, first, host, "No space left on device")
    else:
        assert {**then, "finishedAt": None} == {**first, "finishedAt": None} or first["state"] == "lost"
    for code, result in ((status, first), (status_then, then)):
        if result["state"] == "succeeded":
            assert (code, result["stdout"]["bytes"], result["error"]) == (0, 7, None)
            assert not result["stdout"]["truncated"]
        elif result["state"] == "failed":
            assert (code, result["exitCode"], result["error"]["code"]) == (125, 0, "execution.spool")
            assert result["stdout"]["truncated"]
    return first["state"], then["state"]


@pytest.mark.parametrize("limit", ["size={}k", "nr_inodes={}"], ids=["blocks", "inodes"])
def test_a_disk_of_any_small_size_refuses_or_keeps_everything(
    limit: str, tmp_path: Path, install_directory: Path, as_root: None
) -> None:
    """From one that takes nothing to one that takes all: between, each write of the path is the first that fails."""
    numbers = range(4, 100, 4) if "size" in limit else range(2, 20)
    seen = []
    for number in numbers if is_full() else numbers[::4]:
        host = Host(tmp_path / str(number), install_directory)
        host.folder.mkdir()
        side = host.folder / "started"
        script = host.script(f"echo started >>{side}\necho output\n")
        seen.append(judge_small_disk(host, side, script, limit.format(number)))
        host.check_nothing_left()
    assert seen[0][0] == "rejected"
    assert {then for _, then in seen} <= {"succeeded", "failed"}
    if is_full():
        record(f"disks of {limit.format('N')}", f"{len(seen)} sizes, 0 violations", COMMAND)


@pytest.mark.parametrize("exit_code", [0, 3])
def test_output_that_fills_the_disk_is_flagged_and_is_no_success(host: Host, as_root: None, exit_code: int) -> None:
    script = host.script(f"head -c 30000000 /dev/zero; echo complaint >&2; exit {exit_code}\n")
    (status, result), (status_then, then) = Disk(host, "size=4m").two_runs(script)
    assert (result["state"], result["exitCode"], result["error"]["code"]) == ("failed", exit_code, "execution.spool")
    assert status == status_then == (exit_code or 125)
    assert result["stdout"]["truncated"]
    assert 1 << 20 < result["stdout"]["bytes"] < 4 << 20
    assert {**then, "stdout": None} == {**result, "stdout": None}


def test_no_room_for_the_result_is_never_a_success(host: Host, as_root: None, side: Path) -> None:
    """Somebody else takes the last block while the script runs. The script's own files make room for its result."""
    script = host.script(f'echo started >>{side}\ncat /dev/zero >"$STATE/filling" 2>/dev/null\nexit 4\n')
    (status, result), (_, then) = Disk(host, "size=2m").two_runs(script)
    assert (status, result["state"], result["exitCode"]) == (4, "failed", 4)
    assert then["exitCode"] == 4
    assert starts(side) == 1


def test_a_disk_is_not_made_read_only_under_a_job(host: Host, as_root: None, side: Path) -> None:
    """The supervisor holds its record open for writing, so that the kernel refuses to. The job is not disturbed."""
    script = host.script(f'echo started >>{side}\nmount -o remount,ro "$STATE" || echo no\necho output\nexit 5\n')
    run = f'$RUNNER run --execution-id job "{script}"; echo "status $?"\n'
    done = Disk(host, "size=4m").run(f"{run}{run}$RUNNER status --json job\n")
    *lines, found = done.stdout.splitlines()
    assert lines == ["no", "output", "status 5"] * 2, done
    assert json.loads(found)["result"]["exitCode"] == 5
    assert starts(side) == 1


def test_a_limit_on_file_sizes_is_a_disk_that_refuses(host: Host) -> None:
    """As a quota would: no file of the account may grow beyond 64 KiB."""
    script = host.script("head -c 300000 /dev/zero\nexit 0\n")
    words = ["sh", "-c", 'ulimit -f 128; exec "$@"', "sh", *host.executable]
    done = subprocess.run(
        [*words, "run", "--json", str(script)], env=host.environment, capture_output=True, check=False, timeout=PATIENCE
    )
    result = json.loads(done.stdout)
    assert (done.returncode, result["state"], result["exitCode"]) == (125, "failed", 0)
    assert (result["stdout"]["bytes"], result["stdout"]["truncated"]) == (65536, True)
    assert result["error"]["code"] == "execution.spool"


# Readers


@contextlib.contextmanager
def lines_of(size: int) -> Iterator[tuple[str, str]]:
    """A script that prints numbered lines, `size` bytes of them, and their SHA-256."""
    digest = hashlib.sha256()
    for number in range(size // 1024):
        digest.update(b"%01023d\n" % number)
    yield f"import sys\nfor n in range({size // 1024}):\n sys.stdout.write('%01023d\\n' % n)\n", digest.hexdigest()


def test_a_controller_that_never_reads_does_not_hold_up_the_script(host: Host) -> None:
    size = (300 if is_full() else 32) * 1024 * 1024
    with lines_of(size) as (text, digest), host.agent() as agent:
        payload = host.payload(text, interpreter="python")
        channel = agent.submit(payload, "job")
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, payload.content)
        result = host.wait_result("job")  # nothing is read meanwhile, so nothing is granted
        assert result["state"] == "succeeded"
        assert result["stdout"] == {"bytes": size, "truncated": False, "sha256": digest}
        agent.close_input()
        agent.process.wait(PATIENCE)
    if is_full():
        record("output beside a reader that never reads", f"{size >> 20} MiB, complete", COMMAND)


# The cap


def capped(host: Host, cap: int) -> None:
    """Lowers the cap of a stream, which is no option, for the runners of this host."""
    program = f"from cronium_runner import __main__, output\noutput.Spool.__init__.__kwdefaults__['cap'] = {cap}\n"
    host.executable = (sys.executable, "-c", f"{program}__main__.leave(__main__.main())")


@pytest.mark.parametrize(
    ("cap", "size"),
    [(1_000_000, 3 << 20), pytest.param(1 << 30, 1100 << 20, marks=pytest.mark.full)],
    ids=["small", "1 GiB"],
)
def test_above_the_cap_the_head_and_the_end_are_kept_and_the_loss_is_flagged(host: Host, cap: int, size: int) -> None:
    began = time.monotonic()
    if cap != 1 << 30:
        capped(host, cap)
    script = host.script(
        f"import sys\nfor n in range({size // 1024}):\n sys.stdout.write('%01023d\\n' % n)\n", "job.py"
    )
    done = host.run("run", "--execution-id", "job", script, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    result = wait_until(lambda: host.recorded("job"), "the result")
    head = host.execution("job") / "stdout"
    assert head.stat().st_size == cap
    with head.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert result["stdout"] == {"bytes": cap, "truncated": True, "sha256": digest}
    assert (result["state"], result["exitCode"]) == ("succeeded", 0)
    whole_digest = hashlib.sha256()
    for number in range(cap // 1024):
        whole_digest.update(b"%01023d\n" % number)
    whole_digest.update((b"%01023d\n" % (cap // 1024))[: cap % 1024])
    assert digest == whole_digest.hexdigest()
    last = b"".join(b"%01023d\n" % number for number in range(size // 1024 - TAIL // 1024, size // 1024))
    assert (host.execution("job") / "stdout.tail").read_bytes() == last
    if is_full():
        record(
            f"output of {size >> 20} MiB, cap {cap}", f"head and tail exact, {time.monotonic() - began:.0f} s", COMMAND
        )
