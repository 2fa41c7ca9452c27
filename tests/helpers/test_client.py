"""The command-line clients, compiled and fallback, against PROTOCOL.md."""

import os
import subprocess
from pathlib import Path

import pytest

from helper_clients import Call, compile_client, compiled_client, fallback_client, record, supervisor

DONE = record(b"X", b"\0")


@pytest.fixture(params=["c", "fallback"])
def helper(request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    client = compiled_client(tmp_path_factory) if request.param == "c" else fallback_client(tmp_path)
    link = tmp_path / "cronium.input"
    link.symlink_to(client)
    return str(link)


def run(
    helper: str, *arguments: "str | bytes", socket: str | None = None, **options: object
) -> "subprocess.CompletedProcess[bytes]":
    env = {name: value for name, value in os.environ.items() if name != "CRONIUM_SOCKET"}
    if socket is not None:
        env["CRONIUM_SOCKET"] = socket
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run([helper, *arguments], env=env, check=False, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


def complains(ran: "subprocess.CompletedProcess[bytes]", *parts: bytes) -> None:
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr.startswith(b"Error: ")
    assert ran.stderr.count(b"\n") == 1
    for part in parts:
        assert part in ran.stderr


def test_the_compiler_has_nothing_to_warn_of(tmp_path: Path) -> None:
    compile_client("-Os", "-c", "-o", str(tmp_path / "client.o"))


def test_sends_its_words_and_prints_the_answer(tmp_path: Path, helper: str) -> None:
    seen = []

    def answer(call: Call) -> None:
        seen.extend(call.words)
        call.send(record(b"E", b"err\xff"), record(b"O", b"out\0"), record(b"O"), record(b"O", b"put"), DONE)

    with supervisor(tmp_path, answer) as path:
        ran = run(helper, "a b", "", b"\xff\xfe", "ü\n", "w" * 120_000, socket=path)
    assert seen == [b"cronium.input", b"a b", b"", b"\xff\xfe", "ü\n".encode(), b"w" * 120_000]
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"out\0put", b"err\xff")


@pytest.mark.parametrize("status", [0, 1, 2, 255])
def test_exits_as_told_and_ignores_what_it_does_not_know(tmp_path: Path, helper: str, status: int) -> None:
    def answer(call: Call) -> None:
        call.send(record(b"?", b"later"), record(b"z"), record(b"X", bytes([status]) + b"some.code"))

    with supervisor(tmp_path, answer) as path:
        assert run(helper, socket=path).returncode == status


def test_large_answers_arrive_whole(tmp_path: Path, helper: str) -> None:
    content = os.urandom(1 << 20) * 20
    with supervisor(tmp_path, lambda call: call.send(record(b"O", content), record(b"O", content), DONE)) as path:
        assert run(helper, socket=path).stdout == content * 2


def test_standard_input_is_left_alone_unless_asked_for(tmp_path: Path, helper: str) -> None:
    (tmp_path / "stdin").write_bytes(b"line\n" * 100)
    with (
        supervisor(tmp_path, lambda call: call.send(DONE)) as path,
        (tmp_path / "stdin").open("rb", buffering=0) as stdin,
    ):
        assert run(helper, socket=path, stdin=stdin).returncode == 0
        assert stdin.tell() == 0


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_standard_input_is_sent_in_chunks(tmp_path: Path, helper: str, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "stdin").write_bytes(content)
    chunks = []

    def answer(call: Call) -> None:
        chunks.extend(call.stdin_chunks())
        call.send(DONE)

    with supervisor(tmp_path, answer) as path, (tmp_path / "stdin").open("rb") as stdin:
        assert run(helper, socket=path, stdin=stdin).returncode == 0
    assert b"".join(chunks) == content
    assert max(map(len, chunks), default=0) <= 1 << 20


def test_a_supervisor_that_has_read_enough_may_answer(tmp_path: Path, helper: str) -> None:
    """Too much standard input: the refusal must be shown although the client was still sending."""

    def answer(call: Call) -> None:
        call.send(record(b"I"), record(b"E", b"Error: too much\n"), record(b"X", b"\1value.invalid"))

    (tmp_path / "stdin").write_bytes(bytes(8 << 20))
    with supervisor(tmp_path, answer) as path, (tmp_path / "stdin").open("rb") as stdin:
        ran = run(helper, socket=path, stdin=stdin)
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", b"Error: too much\n")


def test_standard_input_that_cannot_be_read_is_no_empty_value(tmp_path: Path, helper: str) -> None:
    def answer(call: Call) -> None:
        with pytest.raises(EOFError):
            call.stdin_chunks()

    with supervisor(tmp_path, answer) as path:
        env = {**os.environ, "CRONIUM_SOCKET": path}
        closed = ["sh", "-c", '"$0" <&-', helper]
        ran = subprocess.run(closed, env=env, capture_output=True, check=False, timeout=60)
    complains(ran, b"standard input cannot be read")


@pytest.mark.parametrize(
    "head", [b"", b"O", record(b"O", b"half an answer"), record(b"O", b"12345")[:-1], record(b"X")[:2]]
)
def test_a_supervisor_that_goes_away(tmp_path: Path, helper: str, head: bytes) -> None:
    with supervisor(tmp_path, lambda call: call.send(head)) as path:
        complains(run(helper, socket=path), b"gone")


def test_nobody_there(tmp_path: Path, helper: str) -> None:
    complains(run(helper), b"cronium.input works only inside a job: CRONIUM_SOCKET is not set")
    complains(run(helper, socket=""), b"CRONIUM_SOCKET is not set")
    complains(run(helper, socket=str(tmp_path / "none")), b"no supervisor answers at CRONIUM_SOCKET")
    complains(run(helper, socket="/" + "x" * 200), b"no supervisor answers at CRONIUM_SOCKET")


def test_output_that_cannot_be_written_is_a_failure(tmp_path: Path, helper: str) -> None:
    with (
        supervisor(tmp_path, lambda call: call.send(record(b"O", b"x"), DONE)) as path,
        open("/dev/full", "wb") as full,
    ):
        ran = run(helper, socket=path, stdout=full)
    assert (ran.returncode, ran.stderr) == (1, b"Error: standard output cannot be written: No space left on device\n")


def test_a_reader_that_left_is_told_quietly(tmp_path: Path, helper: str) -> None:
    """`cronium.input | head -c 1`: no words, and the status a shell knows as SIGPIPE."""
    with supervisor(tmp_path, lambda call: call.send(record(b"O", bytes(1 << 20)), DONE)) as path:
        env = {**os.environ, "CRONIUM_SOCKET": path}
        pipe = '"$0" | head -c 1 >/dev/null; exit "${PIPESTATUS[0]}"'
        ran = subprocess.run(["bash", "-c", pipe, helper], env=env, capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr) == (128 + 13, b"")
