"""Text from elsewhere in what `cronium` shows: one line, nothing that a terminal obeys. Raw output stays exact."""

import json
import logging
import os
import pty
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import asyncssh
import pytest

import preloaded
from cronium_controller import asking, show
from cronium_controller.api.logs import JsonLines
from cronium_controller.connection import SSHConnection
from cronium_controller.doctor import Finding, _server, _told
from cronium_controller.errors import ControllerError, UnreachableError, reason
from cronium_controller.inbox import Piece
from cronium_controller.install import _read_installed
from cronium_controller.lines import without_bars
from cronium_controller.logs import logger
from cronium_controller.patience import Patience
from cronium_controller.uploading import MARK
from cronium_controller.widths import aligned
from cronium_runner.wire.frames import Frame, Kind
from cronium_runner.wire.names import STDOUT
from cronium_runner.wire.results import Outcome, Result
from preloaded import Preloaded

EVIL = "a\x1b[2J\r\ncronium: all hosts ok\x9b1A\u202e"
SHOWN = r"a\x1b[2J\r\ncronium: all hosts ok\x9b1A\u202e"
PATIENCE = 60.0


def is_harmless(printed: bytes) -> bool:
    return all(character.isprintable() for character in printed.decode().replace("\n", ""))


def test_an_error_is_one_line_whatever_is_put_into_it() -> None:
    error = UnreachableError("host.unreachable", EVIL, host="web01")
    assert error.message == str(error) == f"web01: {SHOWN}"
    again = error.about("web02", f"at the jump host {EVIL}: ")
    assert again.message == str(again) == f"web02: at the jump host {SHOWN}: {SHOWN}"
    assert len(ControllerError("host.unreachable", "x" * 1_000_000).message) <= 4000


def test_the_words_of_a_server_are_cleaned_and_capped() -> None:
    assert reason(asyncssh.DisconnectError(2, EVIL)) == SHOWN
    assert reason(asyncssh.SFTPError(4, EVIL)) == SHOWN
    assert len(reason(asyncssh.DisconnectError(2, "x" * 1_000_000))) == 400
    assert reason(asyncssh.DisconnectError(2, "\n")) == "DisconnectError"


def test_a_table_stays_a_table() -> None:
    assert list(aligned([("HOST", "WHY"), (EVIL, "b\nc")])) == [f"HOST{' ' * (len(SHOWN) - 4)}  WHY", rf"{SHOWN}  b\nc"]


def test_json_is_exact_and_harmless(capfd: pytest.CaptureFixture[str]) -> None:
    for value in ({"text": EVIL, "tag": "\U000e0041é"}, {"text": "\x7f"}):
        show.print_json(value)
        printed = capfd.readouterr().out
        assert is_harmless(printed.encode())
        assert json.loads(printed) == value


def test_a_summary_shows_values_and_obeys_none(capfd: pytest.CaptureFixture[str]) -> None:
    show.print_summary(Result("e", Outcome.SUCCEEDED, exit_code=0, output=EVIL, variables={EVIL: EVIL}))
    assert is_harmless(capfd.readouterr().err.encode())


def test_a_log_line_is_one_line_of_json() -> None:
    record = logging.makeLogRecord({"name": "cronium", "msg": "refused", "reason": EVIL})
    line = JsonLines().format(record)
    assert is_harmless(line.encode())
    assert "\n" not in line
    assert json.loads(line)["reason"] == EVIL


def test_a_record_of_the_library_is_one_clean_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cronium.test"):
        logger("cronium.test").info("refused", extra={"reason": EVIL, "long": "x" * 10_000})
    [said] = caplog.messages
    assert is_harmless(said.encode())
    assert "\n" not in said
    assert len(said) < 500


def test_the_version_of_a_runner_is_one_clean_word() -> None:
    listing = "cronium-runner bundle 1\n0.2.0 0123456789ab c t\nf 0600 3 a"
    printed = (
        f"rc\n{MARK}\ncronium-runner 9\x1b[2J{'9' * 1000}\n{listing}\n{MARK}\n-rw------- 1 0 0 3 Jan 1 00:00 ./a\n"
    )
    version = _read_installed(SimpleNamespace(host="web01"), "folder", printed).version  # type: ignore[arg-type]
    assert version.startswith(r"9\x1b[2J9")
    assert len(version) == 80


def test_findings_of_a_host_are_clean_or_none() -> None:
    one = {"name": EVIL, "level": "ok", "seen": EVIL, "advice": EVIL}
    found, there = _told(b"rc\x1b " + json.dumps({"findings": [one], "time": 1.5}).encode())
    assert (found, there) == ([Finding(SHOWN, "ok", SHOWN, SHOWN)], 1.5)
    for findings, time in (([{}], 1), (5, 1), ([5], 1), (None, 1), ([], "x"), ([], 10**400), ([], None)):
        with pytest.raises(ValueError):
            _told(json.dumps({"findings": findings, "time": time}).encode())


async def test_the_version_of_a_server_is_clean() -> None:
    connection = SSHConnection.__new__(SSHConnection)
    connection.transport = "direct"
    connection.ssh = SimpleNamespace(get_extra_info=lambda *_: EVIL)  # type: ignore[assignment]
    found = await anext(_server(connection))
    assert found.seen.startswith(SHOWN)


def test_no_output_looks_like_the_bar_of_a_fold() -> None:
    bar = b"-" * 15
    assert (
        without_bars(bar + b"\nweb02 (1)\n" + bar + b" \r\n--\n") == b" " + bar + b"\nweb02 (1)\n " + bar + b" \r\n--\n"
    )
    assert without_bars(b"x " + bar + b"\n") == b"x " + bar + b"\n"


class Telling:
    """An agent whose one execution has a text of EVIL wherever a text may be."""

    host_name, patience = "web01", Patience()

    def converse(self) -> "Telling":
        return self

    def send(self, *_: object) -> None: ...

    def close(self) -> None: ...

    async def receive(self) -> Frame:
        size = {"bytes": 1}
        one = {"executionId": EVIL, "state": EVIL, "claimedAt": EVIL, "stdout": size, "stderr": size}
        told = {"executions": [{**one, "result": None, "error": {"code": EVIL, "message": EVIL}}]}
        return Frame(Kind.STATUS, 1, json.dumps(told).encode())


async def test_the_executions_of_a_host_are_a_line_each(capfd: pytest.CaptureFixture[str]) -> None:
    found = await asking.statuses(Telling())  # type: ignore[arg-type]
    show.print_executions(found, has_head=False)
    show.print_status(found[0], "web01")
    printed = capfd.readouterr()
    assert is_harmless((printed.out + printed.err).encode())
    assert printed.out.count("\n") == 2
    assert printed.out.startswith(SHOWN)


class Ended:
    """An execution of one host that has printed EVIL."""

    id, host, is_left = "e", "web01", False

    async def pieces(self) -> AsyncIterator[Piece]:
        yield Piece(STDOUT, 0, EVIL.encode())

    async def result(self) -> Result:
        return Result("e", Outcome.SUCCEEDED, exit_code=0)


async def test_the_output_of_one_script_is_exact_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert await show.follow(Ended(), as_json=False) == 0  # type: ignore[arg-type]
    assert capfd.readouterr().out == EVIL


# -- of several hosts --------------------------------------------------------------------------------------------------

ATTACK = r"printf 'ok\033[1A\033[2Kweb02: all ok\rweb03: ok\n\302\2331A\377\033]52;c;cm0=\007\n'"
HOSTS = ["--host", "local:", "--host", "127.0.0.1:1"]
"""One that answers, and one that makes it a run on several."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    return kept | {"HOME": str(tmp_path), "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state"), "TERM": "dumb"}


def on_terminal(environment: dict[str, str], *words: str) -> bytes:
    """What `cronium` writes to a terminal that is its standard output."""
    ours, theirs = pty.openpty()
    options = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": subprocess.DEVNULL}
    with Preloaded("cronium", [*words], env=environment, **options) as process:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # the other end is closed
            pass
        process.wait(PATIENCE)
    os.close(ours)
    return seen.replace(b"\r\n", b"\n")  # which the terminal itself has made of each newline


def test_a_line_on_a_terminal_moves_no_cursor(environment: dict[str, str]) -> None:
    seen = on_terminal(environment, "exec", *HOSTS, "--", ATTACK)
    assert is_harmless(seen), seen
    assert rb"local: ok\x1b[1A\x1b[2Kweb02: all ok\rweb03: ok" in seen
    assert rb"local: \x9b1A\xff\x1b]52;c;cm0=\x07" in seen


def test_a_fold_on_a_terminal_moves_no_cursor(environment: dict[str, str]) -> None:
    forged = f"{ATTACK}; printf '%s\\n' --------------- 'web02 (1)' ---------------"
    seen = on_terminal(environment, "exec", *HOSTS, "--fold", "--", forged)
    assert is_harmless(seen), seen
    assert [line for line in seen.split(b"\n") if line == b"-" * 15] == [b"-" * 15] * 2
    assert b"\n " + b"-" * 15 + b"\nweb02 (1)\n" in seen


def test_lines_in_a_pipe_keep_their_bytes(environment: dict[str, str]) -> None:
    done = preloaded.run("cronium", ["exec", *HOSTS, "--", ATTACK], env=environment, timeout=PATIENCE)
    assert done.stdout == b"local: ok\x1b[1A\x1b[2Kweb02: all ok\rweb03: ok\nlocal: \xc2\x9b1A\xff\x1b]52;c;cm0=\x07\n"


def test_raw_output_of_one_host_is_exact_on_a_terminal(environment: dict[str, str]) -> None:
    assert b"ok\x1b[1A\x1b[2Kweb02" in on_terminal(environment, "exec", "--host", "local:", "--", ATTACK)
