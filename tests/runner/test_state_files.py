"""Files of the state directory that became something else: one record is lost, and nothing hangs or follows a link."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cronium_runner.errors import StateDamagedError
from cronium_runner.state_files import open_file, read_file
from cronium_runner.wire.frames import Kind
from runner_process import Host

GIGABYTE = 1 << 30


def as_fifo(path: Path) -> None:
    os.mkfifo(path)


def as_link(path: Path) -> None:
    target = path.parent / f".{path.name}.target"
    target.write_text('{"state": "claimed", "supervisor": {}}\n')
    path.symlink_to(target)


def as_directory(path: Path) -> None:
    path.mkdir()


def as_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(GIGABYTE)


HARM: list[Any] = [as_fifo, as_link, as_directory, as_gigabyte]
Harm = Callable[[Path], None]


def replaced(path: Path, harm: Harm) -> None:
    """Puts something else in the file's place."""
    path.unlink(missing_ok=True)
    harm(path)


def listed(host: Host) -> dict[str, dict[str, Any]]:
    done = host.run("list", "--json")
    assert done.returncode == 0, done.stderr
    return {one["executionId"]: one for one in map(json.loads, done.stdout.splitlines())}


def two_ended(host: Host) -> None:
    for name in ("bad", "good"):
        assert host.run("run", "--execution-id", name, host.script("echo out\n")).returncode == 0


@pytest.mark.parametrize("harm", HARM)
def test_reading_what_is_no_small_file_raises(tmp_path: Path, harm: Harm) -> None:
    harm(tmp_path / "file")
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(StateDamagedError, match=str(tmp_path / "file")) as caught:
        read_file(str(tmp_path / "file"), 1000)
    assert os.listdir("/proc/self/fd") == opened
    assert caught.value.code == "state.damaged"
    if harm is as_gigabyte:
        assert f"has {GIGABYTE} bytes" in caught.value.message, "its size is looked at, and nothing of it read"


def test_a_file_that_grows_while_it_is_read_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(20_000))
    looked = os.fstat

    def before(opened: int) -> os.stat_result:
        found = looked(opened)
        return os.stat_result((*found[:6], 0, *found[7:10]))

    monkeypatch.setattr(os, "fstat", before)
    with pytest.raises(StateDamagedError, match="more than the 10000 bytes"):
        read_file(str(tmp_path / "file"), 10_000)


@pytest.mark.parametrize("harm", HARM[:3])
def test_opening_what_is_no_file_for_writing_raises(tmp_path: Path, harm: Harm) -> None:
    harm(tmp_path / "file")
    for flags in (os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_CREAT):
        with pytest.raises(StateDamagedError):
            open_file(str(tmp_path / "file"), flags)


def test_file_of_the_greatest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    assert read_file(str(tmp_path / "file"), 10_000) == bytes(10_000)
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "none"), 10)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["state.jsonl", "result.json"])
def test_replaced_record_costs_that_execution_alone(host: Host, name: str, harm: Harm) -> None:
    two_ended(host)
    before = (host.execution("bad") / "state.jsonl").read_bytes()
    replaced(host.execution("bad") / name, harm)
    found = listed(host)
    assert found["good"]["result"]["state"] == "succeeded"
    assert (found["bad"]["state"], found["bad"]["error"]["code"]) == ("unknown", "state.damaged")
    assert str(host.execution("bad") / name) in found["bad"]["error"]["message"]
    running = host.run("list", "--running")
    assert (running.returncode, running.stdout) == (0, b"")
    told = json.loads(host.run("gc", "--older-than", "0", "--json").stdout)
    assert (told["collected"], list(told["failed"])) == (["good"], ["bad"])
    with host.agent() as agent:
        assert agent.status("bad")["error"]["code"] == "state.damaged"
        channel = agent.new_channel()
        agent.send(Kind.ATTACH, channel, {"executionId": "bad", "offsets": [0, 0]})
        assert agent.expect(channel, Kind.REFUSED, Kind.ACCEPTED).channel == channel
    waited = host.run("wait", "bad")
    assert waited.returncode == 255
    assert waited.stderr.count(b"\n") == 1
    assert b"[state.damaged]" in waited.stderr
    replaced_again(host.execution("bad") / "state.jsonl", before)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make a file unreadable")
def test_unreadable_result_hides_no_other_execution(host: Host) -> None:
    two_ended(host)
    path = host.execution("bad") / "result.json"
    words = ["strace", "-f", "-o", "/dev/null", "-P", str(path), "-e", "inject=openat:error=EIO"]
    done = subprocess.run(
        [*words, *map(str, host.executable), "list", "--json"], env=host.environment, capture_output=True, check=False
    )
    if b"ptrace" in done.stderr:
        pytest.skip("tracing is forbidden here")
    found = {one["executionId"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found["good"]["result"]["state"] == "succeeded"
    assert found["bad"]["error"]["code"] == "state.damaged"
    assert "Input/output error" in found["bad"]["error"]["message"]


def replaced_again(path: Path, content: bytes) -> None:
    """The file as it was, for the check that nothing was left behind."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("harm", HARM[:3])
@pytest.mark.parametrize("name", ["stdout", "api.jsonl"])
def test_replaced_spool_or_journal_is_no_hang(host: Host, name: str, harm: Harm) -> None:
    two_ended(host)
    replaced(host.execution("bad") / name, harm)
    assert host.run("attach", "bad").returncode == (255 if name == "stdout" else 0)
    result = host.run("attach", "--json", "bad")
    assert (json.loads(result.stdout)["stdout"]["text"] is None) == (name == "stdout")
    assert listed(host)["good"]["result"]["state"] == "succeeded"


@pytest.mark.parametrize("harm", HARM[:3])
def test_replaced_settings_are_one_sentence(host: Host, harm: Harm) -> None:
    two_ended(host)
    harm(host.state / "settings.yaml")
    done = host.run("gc")
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1
    assert str(host.state / "settings.yaml").encode() in done.stderr
    assert host.run("doctor").returncode in (0, 1)
    assert len(listed(host)) == 2


@pytest.mark.parametrize("harm", HARM[:3])
def test_replaced_marker_of_collections_is_one_sentence(host: Host, harm: Harm) -> None:
    two_ended(host)
    replaced(host.state / "collected", harm)
    done = host.run("gc")
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1
    assert str(host.state / "collected").encode() in done.stderr
    assert host.run("run", host.script("true\n")).returncode == 0


def test_link_as_an_execution_is_not_followed(host: Host) -> None:
    two_ended(host)
    (host.state / "executions/link").symlink_to(host.execution("good"))
    assert host.run("status", "link").returncode == 125
    assert host.run("run", "--execution-id", "link", host.script("touch ran\n")).returncode != 0
    (host.state / "executions/link").unlink()


def test_fifo_in_place_of_values_blocks_no_supervisor(host: Host) -> None:
    """A script that makes one must not keep its supervisor from ending it."""
    script = "mkfifo .cronium/.output.json.new\ncronium.output a b || echo refused\n"
    done = host.run("run", "--execution-id", "job", "--timeout", "60", host.script(script))
    assert (done.returncode, done.stdout) == (0, b"refused\n"), done.stderr


def test_fifo_in_place_of_a_spool_blocks_no_supervisor(host: Host) -> None:
    result = host.run_json("--execution-id", "job", host.script("mkfifo ../stderr\necho out\necho err >&2\n"))
    assert (result["state"], result["error"]["code"]) == ("failed", "execution.spool")


def test_fifo_in_place_of_the_history_blocks_no_supervisor(host: Host) -> None:
    script = host.script("rm ../state.jsonl; mkfifo ../state.jsonl; sleep 60 & exit 0\n")
    done = host.run("run", "--execution-id", "job", script)
    assert b"Traceback" not in done.stderr
    replaced_again(host.execution("job") / "state.jsonl", b'{"state": "claimed"}\n')
