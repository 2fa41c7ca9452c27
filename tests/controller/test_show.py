"""What `cronium run` and its relatives show, how they end, and what an interrupt means; over a real SSH server."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_controller import show
from cronium_controller.job import Job
from cronium_controller.payloads import load
from remote_host import RemoteHost
from runner_process import PATIENCE, wait_until
from tcp_proxy import TcpProxy

pytestmark = pytest.mark.sshd


def start(remote: RemoteHost, script: Path, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
    """`cronium run` on the host, its streams as pipes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return remote.start_cronium("run", "--host", remote.server.target, *words, script, **streams)


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


def test_a_host_that_is_not_reached_is_255(remote: RemoteHost) -> None:
    remote.server.stop()
    done = remote.run("--json", remote.script("true"))
    remote.server.start()
    assert done.returncode == 255
    told = json.loads(done.stdout)
    assert (told["state"], told["error"]["code"]) == ("unreachable", "host.unreachable")
    assert done.stderr.decode().count("\n") == 1


def test_an_interrupt_cancels_on_the_host_and_waits_for_the_end(remote: RemoteHost) -> None:
    script = remote.script("trap 'echo cleaned; exit 3' TERM\necho ready\nwhile :; do sleep 0.02; done")
    for number in (signal.SIGINT, signal.SIGTERM):
        with start(remote, script, "--execution-id", f"stop-{number}") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stdout) == (130, b"cleaned\n")
        assert b"interrupt again" in stderr
        assert b"Traceback" not in stderr
        recorded = remote.recorded(f"stop-{number}")
        assert recorded is not None
        assert recorded["state"] == "cancelled"


def test_a_reader_that_goes_away_ends_the_showing_and_nothing_else(remote: RemoteHost) -> None:
    script = remote.script("for n in $(seq 20000); do echo line $n; done; cronium.output done; exit 5")
    with start(remote, script, "--execution-id", "unread") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"line "
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 5
    recorded = remote.recorded("unread")
    assert recorded is not None
    assert recorded["output"] == "done"


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
        stdout, _ = process.communicate(b"from-stdin\n", timeout=PATIENCE)
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
        host = replace(remote.host, name="proxied", address="127.0.0.1", port=proxy.port)
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
        execution = await controller.submit(
            replace(remote.host, name="proxied", address="127.0.0.1", port=proxy.port), job, follow=False
        )
        execution.detach()
        await asyncio.to_thread(remote.wait_output, "much", b"end")
        proxy.cut_in = 1_000_000
        done = await asyncio.to_thread(remote.cronium, "cancel", "much")
        assert (done.returncode, done.stderr) == (0, b"much: cancelled\n")


def test_leaving_before_the_host_has_answered_is_unknown_and_says_how_to_look(
    remote: RemoteHost, impostor: Callable[..., Any]
) -> None:
    mute = impostor()
    script = remote.script("true")
    with start(remote, script, "--json", "--execution-id", "early", env=mute.environment) as process:
        wait_until(mute.heard, "the submission to arrive")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"interrupt again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 255
    told = json.loads(stdout)
    assert (told["executionId"], told["state"]) == ("early", "unknown")
    assert b"cronium attach early" in stderr
    assert b"Traceback" not in stderr
