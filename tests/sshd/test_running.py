"""`cronium run` as a person uses it: bytes, exit statuses, words in and results out."""

import contextlib
import getpass
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_runner.wire.results import Outcome
from kinds import BOTH
from payload_bytes import make_payload
from remote_host import RemoteHost, collect
from runner_process import PATIENCE

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


@BOTH
@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 126", 126),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ],
)
async def test_every_end_has_its_exit_status(shared: RemoteHost, text: str, status: int) -> None:
    from cronium_runner.wire.results import exit_status

    async with shared.controller() as controller:
        execution = await controller.submit(shared.host, Job(load(shared.script(text))))
        assert exit_status(await execution.result()) == status


@BOTH
def test_what_the_runner_says_by_itself(shared: RemoteHost, tmp_path: Path) -> None:
    """What the script never said comes with a reason, and with a status that no script's can be mistaken for."""
    shebang = tmp_path / "job"
    shebang.write_text("#!/no/such/interpreter\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "manifest.yaml").write_text("version: v1\ninterpreter: [/etc/passwd]\nentrypoint: x\n")
    (tmp_path / "plain" / "x").touch()
    cases: list[tuple[list[object], int, str]] = [
        ([shebang], 127, "interpreter.not_found"),
        ([tmp_path / "plain"], 126, "interpreter.not_executable"),
        ([shared.script("sleep 60", "slow.sh"), "--timeout", "0.2"], 124, "execution.timeout"),
        ([shared.script("true", "true.sh"), "--timeout", "-1"], 125, "usage.invalid"),
    ]
    for words, status, code in cases:
        done = shared.run(*words)
        assert (done.returncode, done.stdout) == (status, b""), (words, done.stderr)
        assert done.stderr.decode().strip().endswith(f"[{code}]"), done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert shared.server.target.encode() in done.stderr


@BOTH
def test_streams_stay_apart_and_nothing_is_added(shared: RemoteHost) -> None:
    done = shared.run(shared.script("printf 'out\\0\\377'; printf 'err\\n\\200' >&2; exit 3"))
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\0\xff", b"err\n\x80")


@BOTH
def test_a_script_is_told_which_server_it_runs_on(shared: RemoteHost) -> None:
    """Also what the host leaves to OpenSSH's configuration."""
    done = shared.run_json(shared.script("cronium.event server"))
    host = shared.host
    assert json.loads(done["stdout"]["text"]) == {
        "name": host.name, "address": host.address, "user": host.user or getpass.getuser(), "port": host.port or 22,
    }  # fmt: skip


@BOTH
def test_output_comes_while_the_script_runs(shared: RemoteHost, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = shared.script(f"echo first; echo aside >&2; while [ ! -e {gate} ]; do sleep 0.01; done; echo second")
    running = shared.start_cronium(
        "run", "--host", shared.server.target, script, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == b"first\n"
    assert running.stderr.readline() == b"aside\n"
    assert running.poll() is None
    gate.touch()
    assert running.stdout.read() == b"second\n"
    assert running.wait() == 0
    running.stdout.close()
    running.stderr.close()


@BOTH
def test_words_go_in_and_the_result_comes_out(shared: RemoteHost, tmp_path: Path) -> None:
    script = shared.script(
        'cronium.input; cronium.getVariable REGION; cronium.event id; echo "$1|$2"; cronium.output answer 42\n'
        "cronium.setVariable SEEN yes; cronium.setCondition true; echo aside >&2; exit 4"
    )
    (tmp_path / "in.json").write_text('{"n": 12345678901234567890123}')
    result = shared.run_json(
        "--input",
        tmp_path / "in.json",
        "--var",
        "REGION=eu",
        "--event",
        '{"id": "e7"}',
        script,
        "--",
        "-x",
        "two words",
    )
    assert result["exit status"] == result["exitCode"] == 4
    assert result["stdout"]["text"] == '{"n":12345678901234567890123}\neu\ne7\n-x|two words\n'
    assert result["stderr"]["text"] == "aside\n"
    assert (result["output"], result["variables"], result["condition"]) == ({"answer": "42"}, {"SEEN": "yes"}, True)
    assert (result["host"], result["state"], result["transport"]) == (shared.server.target, "failed", "direct")
    assert result["on stderr"] == b""


def test_a_number_as_a_job_id_is_a_result(shared: RemoteHost, tmp_path: Path) -> None:
    """It ran, and its result could never be read: `channel.lost`, 255, from every later command too."""
    (tmp_path / "manifest.yaml").write_text(
        "version: v1\nentrypoint: script.sh\nmetadata: {jobId: 77, eventId: 0123}\n"
    )
    (tmp_path / "script.sh").write_text("echo $CRONIUM_JOB_ID $CRONIUM_EVENT_ID\n")
    result = shared.run_json(tmp_path, "--execution-id", "numbered")
    assert (result["exit status"], result["jobId"], result["stdout"]["text"]) == (0, "77", "77 0123\n")
    assert shared.run_json(tmp_path, "--execution-id", "numbered")["jobId"] == "77"
    refused = shared.run_json(tmp_path, "--event", '{"jobId": []}')
    assert (refused["exit status"], refused["error"]["code"]) == (125, "input.invalid")


async def test_any_json_is_an_input(shared: RemoteHost) -> None:
    payload = load(shared.script("cronium.input --json"))
    async with shared.controller() as controller:
        for value in (None, "text", [1, 2], 17, {"a": {"b": "ü"}}):
            printed = await collect(await controller.submit(shared.host, Job(payload, input=value)))
            assert json.loads(printed["stdout"]) == value


@BOTH
def test_input_from_standard_input(shared: RemoteHost) -> None:
    large = json.dumps({"x": "y" * 3_000_000}).encode()
    done = shared.run(shared.script("cronium.input x | wc -c"), "--input", "-", input=large)
    assert (done.returncode, done.stdout.strip()) == (0, b"3000001"), done.stderr


def test_an_input_over_the_limit_is_one_sentence(shared: RemoteHost) -> None:
    done = shared.run(shared.script("true"), "--input", "-", input=json.dumps("y" * 17_000_000).encode())
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1
    assert len(done.stderr) < 1000


@BOTH
def test_a_secret_is_seen_by_the_script_alone(shared: RemoteHost, tmp_path: Path) -> None:
    secret = b"hunter2-" + os.urandom(8).hex().encode()
    (tmp_path / "secret").write_bytes(secret + b"\n")
    gate = tmp_path / "gate"
    script = shared.script(
        f"cronium.getVariable T | sha256sum; echo ready; while [ ! -e {gate} ]; do sleep 0.01; done; sleep 0.05"
    )
    name = f"secret-{shared.connection}"
    words = ["run", "--host", shared.server.target, "--secret", f"T=@{tmp_path / 'secret'}", "--execution-id", name]
    running = shared.start_cronium(*words, script, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    shared.wait_output(name, b"ready")
    seen = [path for path in Path("/proc").glob("[0-9]*/cmdline") if secret in _read(path)]
    seen += [path for path in Path("/proc").glob("[0-9]*/environ") if secret in _read(path)]
    gate.touch()
    stdout, stderr = running.communicate(timeout=PATIENCE)
    assert (running.returncode, stderr) == (0, b"")
    assert stdout.split()[0].decode() == hashlib.sha256(secret + b"\n").hexdigest()
    assert seen == []
    for folder in (shared.state, shared.remembered, shared.root):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert secret not in path.read_bytes(), path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


HUNDRED_MEGABYTES = """#!/usr/bin/env python3
import os, sys, threading
block = os.urandom(1 << 20)
def fill(descriptor):
    for number in range(100):
        view = memoryview(bytes([number]) + block)
        while view: view = view[os.write(descriptor, view):]
threads = [threading.Thread(target=fill, args=(descriptor,)) for descriptor in (1, 2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_a_hundred_megabytes_on_both_streams_in_bounded_memory(
    shared: RemoteHost, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def run(script: Path, execution_id: str) -> int:
        """The command's largest resident memory, in bytes."""
        words = ["run", "--host", shared.server.target, "--execution-id", execution_id, script]
        with (tmp_path / "stdout").open("wb") as stdout, (tmp_path / "stderr").open("wb") as stderr:
            running = shared.start_cronium(*words, stdout=stdout, stderr=stderr)
            largest = 0
            while running.poll() is None:  # `ru_maxrss` would begin at what pytest itself had when it forked
                with contextlib.suppress(OSError, StopIteration):
                    largest = next(
                        int(line.split()[1]) * 1024
                        for line in Path(f"/proc/{running.pid}/status").read_text().splitlines()
                        if line.startswith("VmHWM:")
                    )
                time.sleep(0.005)
        assert running.returncode == 0
        return largest

    idle = run(shared.script("true", "true.sh"), "memory-idle")
    grown = run(shared.script(HUNDRED_MEGABYTES, "fill.py"), "memory-busy") - idle
    recorded = shared.wait_result("memory-busy")
    for name in ("stdout", "stderr"):
        path = tmp_path / name
        assert path.stat().st_size == recorded[name]["bytes"] == 100 * ((1 << 20) + 1)
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == recorded[name]["sha256"]
        path.unlink()
    record_property("resident memory growth, MiB", round(grown / 2**20, 1))
    print(f"resident memory growth: {grown / 2**20:.1f} MiB over {idle / 2**20:.1f}")
    assert grown < 150 * 2**20


def test_a_line_of_a_hundred_megabytes_arrives_whole(shared: RemoteHost) -> None:
    script = shared.script("head -c 100000000 /dev/zero | tr '\\0' x")
    running = shared.start_cronium("run", "--host", shared.server.target, script, stdout=subprocess.PIPE)
    assert running.stdout is not None
    digest = hashlib.sha256()
    while piece := running.stdout.read(1 << 20):
        digest.update(piece)
    assert running.wait() == 0
    running.stdout.close()
    expected = hashlib.sha256()
    for _ in range(100):
        expected.update(b"x" * 1_000_000)
    assert digest.hexdigest() == expected.hexdigest()


async def test_nobody_reads_and_the_script_ends_all_the_same(shared: RemoteHost) -> None:
    """Slow readers cost the host nothing: the spool takes it."""
    async with shared.controller() as controller:
        script = shared.script("head -c 30000000 /dev/zero; echo done >&2")
        execution = await controller.submit(shared.host, Job(load(script), execution_id="unread"))
        recorded = await _in_thread(lambda: shared.wait_result("unread"))
        assert recorded["stdout"]["bytes"] == 30_000_000
        assert len((await collect(execution))["stdout"]) == 30_000_000


async def _in_thread(function: Callable[[], object]) -> "dict[str, dict[str, int]]":
    import asyncio

    return await asyncio.to_thread(function)  # type: ignore[arg-type]


GOOD = {"manifest.yaml": b"version: v1\ninterpreter: bash\nentrypoint: x\n", "x": b"true\n"}
BAD: dict[str, tuple[bytes, str]] = {
    "trailing": (make_payload(GOOD) + b"rest", "payload.trailing_data"),
    "cut": (make_payload(GOOD)[:-20], "payload.damaged"),
    "no manifest": (make_payload({"x": b"true\n"}), "manifest.missing"),
    "climbs out": (make_payload({**GOOD, "../evil": b"x"}), "payload.unsafe_name"),
    "absolute": (make_payload({**GOOD, "/evil": b"x"}), "payload.unsafe_name"),
    "no entrypoint": (make_payload({"manifest.yaml": GOOD["manifest.yaml"]}), "manifest.entrypoint"),
    "not yaml": (make_payload({**GOOD, "manifest.yaml": b"{"}), "manifest.not_yaml"),
    "alias": (make_payload({**GOOD, "manifest.yaml": b"a: &x 1\nb: *x\n"}), "manifest.alias"),
    "twice": (make_payload({**GOOD, "manifest.yaml": GOOD["manifest.yaml"] * 2}), "manifest.duplicate_key"),
    "key": (make_payload({**GOOD, "manifest.yaml": GOOD["manifest.yaml"] + b"colour: red\n"}), "manifest.unknown_key"),
    "version": (make_payload({**GOOD, "manifest.yaml": b"version: v9\nentrypoint: x\n"}), "manifest.version"),
    "interpreter": (
        make_payload({**GOOD, "manifest.yaml": b"version: v1\ninterpreter: cobol\nentrypoint: x\n"}),
        "manifest.interpreter",
    ),
    "bomb": (make_payload({**GOOD, "zero": bytes(40_000_000)}), "payload.ratio"),
}


async def test_bad_payloads_are_rejected_by_name_and_leave_nothing(shared: RemoteHost, tmp_path: Path) -> None:
    from cronium_runner.wire.results import exit_status

    async with shared.controller() as controller:
        for name, (content, code) in BAD.items():
            path = tmp_path / f"{name}.tar.gz"
            path.write_bytes(content)
            job = Job(load(path), execution_id=f"bad-{name.replace(' ', '-')}")
            execution = await controller.submit(shared.host, job)
            result = await execution.result()
            assert (result.state, result.error_code, exit_status(result)) == (Outcome.REJECTED, code, 125), name
            assert result.error_message
            assert "\n" not in result.error_message
            record = controller.store.find(execution.id)
            assert record is not None
            assert record.state == "rejected"
    assert [name for name in shared.executions() if name.startswith("bad-")] == []


def test_a_bad_payload_on_the_command_line(shared: RemoteHost, tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_bytes(BAD["trailing"][0])
    done = shared.run(tmp_path / "bad.tar.gz")
    assert (done.returncode, done.stdout) == (125, b"")
    assert done.stderr.endswith(b"[payload.trailing_data]\n")


async def test_a_payload_that_vanishes_meanwhile_starts_nothing(shared: RemoteHost, tmp_path: Path) -> None:
    """Changed on disk after it was hashed: the host sees another digest and refuses."""
    path = tmp_path / "job.tar.gz"
    path.write_bytes(make_payload({**GOOD, "n": os.urandom(100)}))
    payload = load(path)
    with path.open("r+b") as file:
        file.write(b"\x1f\x8bdifferent")
    async with shared.controller() as controller:
        from cronium_controller.errors import RefusedError

        with pytest.raises(RefusedError) as refused:
            await controller.submit(shared.host, Job(payload, execution_id="vanished"))
    assert refused.value.code == "payload.digest_mismatch"
    assert "vanished" not in shared.executions()
