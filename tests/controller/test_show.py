"""What `cronium run` and its relatives show, how they end, and what an interrupt means; over a real SSH server."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remote_host import RemoteHost
from runner_process import IGNORING_TERM

pytestmark = pytest.mark.sshd


def start(remote: RemoteHost, script: Path, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
    """`cronium run` on the host, its streams as pipes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return remote.start_cronium("run", "--host", remote.server.target, *words, script, **streams)


@pytest.mark.parametrize(
    ("text", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -TERM $$", 143)],
)
def test_the_scripts_end_becomes_ours(remote: RemoteHost, text: str, status: int) -> None:
    done = remote.run(remote.script(f"printf 'a\\0\\377'; printf 'b\\r' >&2; {text}"))
    assert (done.returncode, done.stdout, done.stderr) == (status, b"a\0\xff", b"b\r")


def test_what_is_not_the_scripts_end_is_told_apart(remote: RemoteHost) -> None:
    late = remote.run_json("--timeout", "0.2", remote.script("sleep 30"))
    assert (late["exit status"], late["state"], late["error"]["code"]) == (124, "timed_out", "execution.timeout")
    missing = remote.run_json(remote.script("#!/no/such/interpreter\n", "job"))
    assert (missing["exit status"], missing["state"], missing["error"]["code"]) == (
        127,
        "rejected",
        "interpreter.not_found",
    )


def test_json_is_one_object_with_the_last_64_kib_as_text(remote: RemoteHost) -> None:
    result = remote.run_json(
        "--input",
        '{"n": 12345678901234567890123.10}',
        "--var",
        "REGION=eu",
        remote.script("head -c 100000 /dev/zero | tr '\\0' x; printf '\\377'; cronium.input --json n | cronium.output"),
    )
    assert result["exit status"] == 0
    assert result["stdout"]["bytes"] == 100_001
    assert result["stdout"]["text"] == "x" * (64 * 1024 - 1) + "\ufffd"
    assert result["stderr"]["text"] == ""
    assert (result["host"], result["transport"]) == (remote.server.target, "direct")


def test_a_host_that_is_not_reached_is_255_and_unknown(remote: RemoteHost) -> None:
    remote.server.stop()
    done = remote.run("--json", remote.script("true"))
    remote.server.start()
    assert done.returncode == 255
    told = json.loads(done.stdout)
    assert (told["state"], told["error"]["code"]) == ("unknown", "host.unreachable")
    assert done.stderr.decode().count("\n") == 1


def test_an_interrupt_cancels_on_the_host_and_waits_for_the_end(remote: RemoteHost) -> None:
    script = remote.script("trap 'echo cleaned; exit 3' TERM\necho ready\nwhile :; do sleep 0.02; done")
    for number in (signal.SIGINT, signal.SIGTERM):
        with start(remote, script, "--execution-id", f"stop-{number}") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stdout) == (130, b"cleaned\n")
        assert b"interrupt again" in stderr
        recorded = remote.recorded(f"stop-{number}")
        assert recorded is not None
        assert recorded["state"] == "cancelled"


def test_a_second_interrupt_leaves_it_running_and_says_how_to_come_back(remote: RemoteHost) -> None:
    with start(remote, remote.script(IGNORING_TERM), "--execution-id", "stubborn") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert b"interrupt again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 255
    assert b"cronium attach stubborn" in stderr
    assert remote.wait_result("stubborn")["state"] == "cancelled"  # the first one still holds


def test_a_reader_that_goes_away_ends_the_showing_and_nothing_else(remote: RemoteHost) -> None:
    script = remote.script("for n in $(seq 20000); do echo line $n; done; cronium.output done; exit 5")
    with start(remote, script, "--execution-id", "unread") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"line "
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 5
    recorded = remote.recorded("unread")
    assert recorded is not None
    assert recorded["output"] == "done"


def test_detached_followed_looked_at_and_ended_from_other_processes(remote: RemoteHost, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    script = remote.script(f"printf 'one\\377'\nwhile [ ! -e {flag} ]; do sleep 0.02; done\nprintf two; exit 4")
    done = remote.run("--detach", "--execution-id", "away", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"away\n", b"")
    remote.wait_output("away", b"one")
    assert b"running" in remote.cronium("status", "away").stdout
    assert json.loads(remote.cronium("status", "--json", "away").stdout)["stdout"]["bytes"] == 4
    assert remote.cronium("logs", "away", "--raw").stdout == b"one\xff"
    assert remote.cronium("logs", "away", "--offset", "2").stdout == "e\ufffd".encode()
    assert remote.cronium("logs", "away", "--stream", "stderr").stdout == b""
    flag.touch()
    attached = remote.cronium("attach", "away", "--offset", "4", "0")
    assert (attached.returncode, attached.stdout) == (4, b"two")
    assert remote.cronium("logs", "away", "--raw").stdout == b"one\xfftwo"
    flag.unlink()
    remote.run("--detach", "--execution-id", "ended", script)
    assert remote.cronium("cancel", "ended").returncode == 0
    assert remote.cronium("attach", "ended").returncode == 130


def test_detaching_from_what_is_rejected_says_so(remote: RemoteHost) -> None:
    done = remote.run("--detach", remote.script("#!/no/such/interpreter\n", "job"))
    assert (done.returncode, done.stdout) == (127, b"")
    assert b"[interpreter.not_found]" in done.stderr


def test_a_secret_comes_from_a_file_standard_input_or_the_environment(remote: RemoteHost, tmp_path: Path) -> None:
    script = remote.script("for name in A B C; do cronium.getVariable $name | sha256sum; done")
    (tmp_path / "secret").write_text("from-file\n")
    words = ["run", "--host", remote.server.target, "--secret", f"A=@{tmp_path / 'secret'}", "--secret", "B=@-"]
    with remote.start_cronium(
        *words, "--secret", "C", script, env={"C": "from-env"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        stdout, _ = process.communicate(b"from-stdin\n", timeout=30)
    expected = subprocess.run(
        ["bash", "-c", "for value in from-file from-stdin from-env; do echo $value | sha256sum; done"],
        capture_output=True,
        check=True,
    )
    assert stdout == expected.stdout


async def test_logs_that_are_cut_off_are_not_all_there_is(
    remote: RemoteHost, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        host = through(remote, proxy)
        job = Job(load(remote.script("head -c 2000000 /dev/zero")), execution_id="cut")
        await (await controller.submit(host, job, follow=False)).result()
        for cut_in, expected in ((100_000, 255), (None, 0)):
            proxy.cut_in = cut_in
            look = await controller.attach("cut", host, follow=False)
            assert await show.print_pieces(look, only=None, raw=True) == expected
            shown = capfdbinary.readouterr()
            assert (len(shown.out) < 2_000_000) == (b"cronium attach cut" in shown.err) == (expected == 255)


async def test_cancelling_does_not_fetch_the_output(remote: RemoteHost) -> None:
    async with TcpProxy(remote.server.port) as proxy, remote.controller() as controller:
        job = Job(load(remote.script("head -c 3000000 /dev/zero; echo end; sleep 60")), execution_id="much")
        execution = await controller.submit(through(remote, proxy), job, follow=False)
        execution.detach()
        await asyncio.to_thread(remote.wait_output, "much", b"end")
        proxy.cut_in = 1_000_000
        done = await asyncio.to_thread(remote.cronium, "cancel", "much")
        assert (done.returncode, done.stderr) == (0, b"much: cancelled\n")


def test_leaving_before_the_host_has_answered_is_unknown_and_says_how_to_look(
    remote: RemoteHost, tmp_path: Path
) -> None:
    with remote.never_ready() as agent, start(remote, remote.script("true"), "--json", "--execution-id", "early") as process:
        pass


def test_leaving_what_is_followed_is_one_object_too(remote: RemoteHost) -> None:
    remote.run("--detach", "--execution-id", "on", remote.script("echo ready; sleep 60"))
    remote.wait_output("on", b"ready")
    pass
