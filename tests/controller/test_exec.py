"""`cronium exec` against real OpenSSH servers: bytes, exit status, time, interrupts; on one host and on several."""

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import remote_shell
from cronium_controller.hosts import OPENSSH
from kinds import BOTH
from openssh import reads_bashrc
from remote_host import RemoteHost
from runner_process import command_line, processes_with, wait_until

Done = subprocess.CompletedProcess[bytes]
pytestmark = pytest.mark.sshd


def execute(remote: RemoteHost, *words: object, **how: Any) -> Done:
    return remote.cronium("exec", "--host", remote.server.target, *words, **how)


def running(remote: RemoteHost, text: str) -> list[int]:
    """Processes of the host's sessions whose command line has `text`."""
    return [pid for pid in processes_with(str(remote.state)) if text.encode() in command_line(pid)]


@BOTH
def test_streams_stay_apart_byte_for_byte_and_the_exit_status_is_ours(remote: RemoteHost) -> None:
    done = execute(remote, "--", "printf 'a\\377\\000b\\n\\n'; echo words >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"a\xff\0b\n\n", b"words\n")
    # Which signal it was, OpenSSH's program does not tell; a login shell that has waited for the command does.
    killed = 255 if remote.connection == OPENSSH and reads_bashrc() else 128 + 9
    assert execute(remote, "--", "kill -9 $$").returncode == killed
    assert execute(remote, "--", "no-such-command-here").returncode == 127
    assert not remote.root.exists(), "no runner is put there for it"
    assert remote.executions() == []


def test_words_are_joined_as_ssh_does_and_options_end_where_the_command_begins(remote: RemoteHost) -> None:
    assert execute(remote, "echo", "-n", "a  b", "|", "tr", "a", "c").stdout == b"c b"
    assert execute(remote, "--", "echo", "--json").stdout == b"--json\n"
    done = execute(remote, "--cwd", "/usr", "--env", "A=it's $x", "--env", "B=", "--", 'pwd; echo "$A|$B|"')
    assert done.stdout == b"/usr\nit's $x||\n"
    assert execute(remote, "--", "cat; echo done", input=b"not for it").stdout == b"done\n"


@BOTH
def test_much_output_arrives_whole_also_when_nobody_reads_for_a_while(remote: RemoteHost) -> None:
    command = "head -c 60000000 /dev/zero | tr '\\0' x; echo end >&2"
    with remote.start_cronium(
        "exec", "--host", remote.server.target, "--", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        wait_until(lambda: is_idle(process.pid), "nothing to move while nobody reads")
        resident = next(
            int(line.split()[1])
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        rest, errors = process.communicate(timeout=60)
    assert (len(first + rest), set(first + rest), errors) == (60_000_000, {ord("x")}, b"end\n")
    assert resident < 100 * 1024, "KiB: the host is held back, and not our memory filled"


def is_idle(pid: int) -> bool:
    """Whether a process reads and writes nothing for a moment."""

    def moved() -> str:
        return Path(f"/proc/{pid}/io").read_text()

    before = moved()
    try:
        wait_until(lambda: moved() != before, "", 0.5)
    except AssertionError:
        return True
    return False


@BOTH
def test_a_timeout_is_124_with_what_was_written_and_leaves_nothing(remote: RemoteHost) -> None:
    done = execute(remote, "--timeout", "3", "--", "echo partial; (sleep 5711 &); sleep 5711")
    assert (done.returncode, done.stdout) == (124, b"partial\n")
    assert b"[command.timeout]" in done.stderr
    assert not running(remote, "5711")
    assert execute(remote, "--timeout", "0", "--", "echo no limit").stdout == b"no limit\n"


def test_a_timeout_spares_the_background_unless_told_otherwise(remote: RemoteHost) -> None:
    command = "nohup sleep 5721 >/dev/null 2>&1 & echo up; sleep 5722"
    for kill, goes_on in (("command", True), ("tree", False)):
        done = execute(remote, "--timeout", "2", "--kill", kill, "--", command)
        assert (done.returncode, done.stdout) == (124, b"up\n")
        assert not running(remote, "5722")
        left = running(remote, "5721")
        assert bool(left) == goes_on
        for pid in left:
            os.kill(pid, 9)


@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_command_on_its_host(remote: RemoteHost, number: signal.Signals) -> None:
    process = remote.start_cronium(
        "exec", "--host", remote.server.target, "--", "echo up; sleep 5712",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    wait_until(lambda: not running(remote, "5712"), "the command's end")


def test_what_a_command_says_to_its_end_is_heard(remote: RemoteHost) -> None:
    command = "trap 'echo swept; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    done = execute(remote, "--timeout", "3", "--", command)
    assert (done.returncode, done.stdout) == (124, b"up\nswept\n")
    with remote.start_cronium(
        "exec", "--host", remote.server.target, "--", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (130, b"swept\n")


def test_an_ended_command_has_its_grace_by_the_clock_also_where_looking_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grep").write_text('#!/bin/sh\nsleep 1\nexec /bin/grep "$@"\n')
    (tmp_path / "grep").chmod(0o755)
    command_id = "ab" * 16
    stubborn = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
    with subprocess.Popen(
        stubborn, env={**os.environ, remote_shell.COMMAND_ID: command_id}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        began = time.monotonic()
        assert subprocess.run(["sh", "-c", remote_shell.ending(command_id, 2, tree=True)], timeout=60).returncode == 0
        took = time.monotonic() - began
    assert process.returncode == -signal.SIGKILL
    assert 2 <= took < 40, "2 s of grace and some looks of a second, not the 40 looks that fit into 2 s elsewhere"


def test_a_command_that_is_killed_is_killed_before_its_children_of_whose_end_it_would_complain() -> None:
    """With a moment between each two signals. The shell is known by its command line, its child by its environment."""
    command_id = "cd" * 16
    script = f"export {remote_shell.COMMAND_ID}={command_id}; trap '' TERM; echo up; sleep 5718; true"
    slowly = 'kill() { for pid in $(shift; echo "$@"); do command kill $1 $pid; sleep 0.1; done; }; '
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        ending = ["sh", "-c", slowly + remote_shell.ending(command_id, 0)]
        assert subprocess.run(ending, stderr=subprocess.DEVNULL, timeout=60).returncode == 0
        _, complaint = process.communicate()
    assert (process.returncode, complaint) == (-signal.SIGKILL, b"")


def test_json_is_the_object_of_every_result(remote: RemoteHost) -> None:
    done = execute(remote, "--json", "--", "echo out; echo err >&2; exit 3")
    told = json.loads(done.stdout)
    assert (done.returncode, told["state"], told["exitCode"]) == (3, "failed", 3)
    assert (told["host"], told["transport"], told["executionId"]) == (remote.server.target, "direct", "")
    assert (told["stdout"]["text"], told["stderr"]["text"]) == ("out\n", "err\n")
    assert (told["stdout"]["bytes"], told["stdout"]["sha256"]) == (4, hashlib.sha256(b"out\n").hexdigest())
    assert told["durationMs"] > 0


def test_what_went_wrong_before_a_command_ran_is_one_sentence(remote: RemoteHost) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = remote.cronium("exec", "--json", "--host", away, "--", "true")
    assert done.returncode == 255
    assert (json.loads(done.stdout)["state"], json.loads(done.stdout)["error"]["code"]) == (
        "unreachable",
        "host.unreachable",
    )
    assert done.stderr.count(b"\n") == 1
    for words in (["--env", "novalue", "--", "true"], ["--", " "], ["--env", "A;b=c", "--", "true"], []):
        done = execute(remote, *words)
        assert done.returncode == 125, done
        assert done.stdout == b""


def test_several_hosts_each_with_its_name_in_front(remote: RemoteHost, tmp_path: Path) -> None:
    port, key = remote.server.port, remote.server.identity
    (tmp_path / "hosts.yaml").write_text(
        "\n".join(f"web{n}: {{host: 127.0.0.{n}, port: {port}, key_path: {key}}}" for n in (1, 2, 3))
        + f"\naway: {{host: 127.0.0.9, port: {port}, key_path: {key}}}\n"
    )
    there = ["exec", "--hosts", str(tmp_path / "hosts.yaml"), "--on", "web[1-3]"]
    done = remote.cronium(*there, "--", "echo one; echo two >&2")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [b"web1: one", b"web2: one", b"web3: one"]
    assert sorted(line for line in done.stderr.splitlines() if b"two" in line) == [
        b"web%d: two" % number for number in (1, 2, 3)
    ]
    folded = remote.cronium(*there, "--fold", "--", "echo same")
    assert folded.stdout.splitlines()[1:2] == [b"web[1-3] (3)"]
    lines = remote.cronium(*there, "--on", "away", "--json", "--", "echo x").stdout.splitlines()
    told = {each.get("host"): each for each in map(json.loads, lines)}
    assert told["web2"]["stdout"]["text"] == "x\n"
    assert told["away"]["error"]["code"] == "host.unreachable"
    assert (told[None]["verdict"], told[None]["exitStatus"]) == ("PARTIAL SUCCESS", 101)
    ran = tmp_path / "ran"
    rolling = remote.cronium(*there, "--serial", "1", "--stop-on-failure", "--", f"echo x >> {ran}; exit 4")
    assert rolling.returncode == 4, "the largest exit status; a host that was not begun has none"
    assert ran.read_text() == "x\n"
    assert b"1 failed, 2 not begun of 3 hosts" in rolling.stderr


@BOTH
def test_leaving_several_hosts_ends_their_commands(remote: RemoteHost, tmp_path: Path) -> None:
    port, key = remote.server.port, remote.server.identity
    (tmp_path / "hosts.yaml").write_text(
        "".join(f"web{n}: {{host: 127.0.0.{n}, port: {port}, key_path: {key}}}\n" for n in (1, 2))
    )
    gate = tmp_path / "up"
    command = f"echo x >> {shlex.quote(str(gate))}; sleep 5713"
    with remote.start_cronium(
        "exec", "--hosts", str(tmp_path / "hosts.yaml"), "--on", "web[1-2]", "--", command, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: gate.exists() and gate.read_text() == "x\nx\n", "both to run")
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, b"interrupted" in errors) == (130, True)
    wait_until(lambda: not running(remote, "5713"), "the commands' end")


@pytest.mark.parametrize(
    "words",
    [
        ("exec", "--fold", "--", "echo ran >>~/ran; echo told"),
        ("run", "--fold", "{script}"),
        ("put", "{script}", "{home}/copied"),
        ("get", "{home}/there", "{home}/fetched"),
        ("ps", "--json"),
        ("gc", "--json"),
    ],
    ids=lambda words: str(words[0]),
)
def test_two_names_of_one_account_are_one_host(remote: RemoteHost, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Also one of the hosts file and one of the command line, as with `cronium run`."""
    where = f"{{host: 127.0.0.1, port: {remote.server.port}}}"
    (tmp_path / "hosts.yaml").write_text(f"hosts:\n  one: {where}\n  two: {where}\n")
    (remote.home / "there").write_text("there")
    script = remote.script("echo ran >>~/ran; echo told")
    command, *rest = [word.format(script=script, home=remote.home) for word in words]
    hosts = ["--hosts", tmp_path / "hosts.yaml", "--on", "one,two", "--host", f"127.0.0.1:{remote.server.port}"]
    done = remote.cronium(command, *hosts, *rest)
    assert done.returncode == 0, done.stderr
    if command in ("exec", "run"):
        assert (remote.home / "ran").read_text() == "ran\n"
    if command in ("put", "gc"):
        assert done.stdout.count(b"\n") == 1
    if command == "get":
        assert (remote.home / "fetched").read_text() == "there", "as from one host"


@pytest.mark.parametrize("option", ["--serial", "--max-failures"])
@pytest.mark.parametrize("command", ["exec", "run"])
def test_a_refused_number_is_named_as_it_was_typed(remote: RemoteHost, command: str, option: str) -> None:
    words = ["--", "true"] if command == "exec" else [str(remote.script("true"))]
    done = remote.cronium(command, "--host", remote.server.target, "--host", "nobody.invalid", option, "-1", *words)
    assert done.returncode == 125
    assert done.stderr.startswith(f"cronium: {option} '-1': write a number".encode())
    assert done.stderr.endswith(b"[usage.invalid]\n")
