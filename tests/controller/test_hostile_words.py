"""What words, streams and databases can do to `cronium`: always one sentence with a code, never a traceback."""

import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import preloaded
from cronium_controller.store import Store
from openssh import sshd_path
from remote_host import RemoteHost

_MAIN = "import sys; from cronium_controller.cli import main; main()"
PATIENCE = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    return kept | {"HOME": str(tmp_path), "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state")}


def shell(environment: dict[str, str], line: str) -> "subprocess.CompletedProcess[bytes]":
    """A line of sh in which `cronium` is ours."""
    function = f"cronium() {{ '{sys.executable}' -c '{_MAIN}' \"$@\"; }}\n"
    return subprocess.run(
        ["bash", "-c", function + line],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def refused(done: "subprocess.CompletedProcess[bytes]", code: str, status: int = 125) -> None:
    assert done.returncode == status, done
    assert done.stdout == b""
    assert done.stderr.endswith(f"[{code}]\n".encode()), done.stderr
    assert done.stderr.startswith(b"cronium: ")
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "attach $'\\xff'",
        "payload list $'\\xff'",
        "payload build x /bin/true --name $'\\xff'",
        "api audit $'\\xff'",
        "api variables set X $'\\xff'",
        "metrics --listen $'\\xff:1'",
    ],
)
def test_bytes_that_are_no_text_are_named(environment: dict[str, str], line: str) -> None:
    refused(shell(environment, f"cronium {line}"), "usage.invalid")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("run --host h ''", "payload.not_found"),
        ("payload verify nosuch", "payload.not_found"),
        ("payload list nosuch", "payload.not_found"),
        ("api variables get NOPE", "input.invalid"),
        ("api variables get NOPE --user default", "input.invalid"),
        ("exec --host a..b -- true", "host.unreachable"),
        ("put --host h /dev/zero x", "files.refused"),
    ],
)
def test_what_is_not_there_is_said(environment: dict[str, str], line: str, code: str) -> None:
    status = 255 if code == "host.unreachable" else 125
    refused(shell(environment, f"cronium {line}"), code, status)


def test_a_guess_at_a_variable_is_told_where_scripts_write(environment: dict[str, str]) -> None:
    assert b"--user default" in shell(environment, "cronium api variables get NOPE").stderr


@pytest.mark.parametrize("line", ["api audit nosuch", "api audit", "payload list"])
def test_nothing_is_said_to_be_nothing(environment: dict[str, str], line: str) -> None:
    done = shell(environment, f"cronium {line}")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"cronium: n")


@pytest.mark.parametrize("number", ["nan", "inf", "x", "-1"])
def test_a_number_can_be_counted_to(environment: dict[str, str], number: str) -> None:
    for line in ("exec --host h --timeout {} -- true", "gc --host h --older-than {}"):
        done = shell(environment, f"cronium {line.format(number)}")
        assert done.returncode == 125
        assert b"Error: Invalid value for '--" in done.stderr
    assert shell(environment, "cronium history -n 99999999999999999999").returncode == 125


@pytest.mark.parametrize("line", ["history", "version", "metrics", "--help"])
def test_standard_output_that_is_full_is_an_error(environment: dict[str, str], line: str) -> None:
    done = shell(environment, f"cronium {line} > /dev/full")
    refused(done, "output.unwritable")
    assert b"No space left on device" in done.stderr


def test_a_full_or_closed_standard_error_changes_no_exit_status(environment: dict[str, str]) -> None:
    for where in ("2> /dev/full", "2>&-", ">&- 2>&- <&-"):
        done = shell(environment, f"cronium status nosuch {where}")
        assert (done.returncode, done.stdout, done.stderr) == (125, b"", b"")


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_that_cannot_erase_gets_no_line_that_moves(environment: dict[str, str], kind: str) -> None:
    ours, theirs = pty.openpty()
    words = ["exec", "--host", "127.0.0.1:1", "--host", "127.0.0.2:1", "--", "true"]
    done = preloaded.run("cronium", words, env=environment | {"TERM": kind}, stderr=theirs, timeout=PATIENCE)
    os.close(theirs)
    said = os.read(ours, 65536)
    os.close(ours)
    assert done.returncode == 255
    assert b"FAILED: 0 succeeded, 2 failed of 2 hosts" in said
    assert (b"\x1b" in said) == (kind == "xterm")


@pytest.mark.parametrize("kind", ["garbage", "half", "newer", "a folder", "no folder", "read by others"])
def test_a_database_that_cannot_be_used_is_one_sentence(environment: dict[str, str], tmp_path: Path, kind: str) -> None:
    file = tmp_path / "state/controller.db"
    Store(file).close()
    match kind:
        case "garbage":
            file.write_bytes(b"garbage" * 1000)
        case "half":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "newer":
            with closing(sqlite3.connect(file)) as database, database:
                database.execute("PRAGMA user_version = 999")
        case "a folder":
            file.unlink()
            file.mkdir()
        case "no folder":
            shutil.rmtree(file.parent)
            file.parent.write_text("")
        case "read by others":
            file.chmod(0o644)
    for line in ("history", "attach x", "metrics", "deploy --history", "payload list", "exec --host h -- true"):
        refused(shell(environment, f"cronium {line}"), "store.unusable")


def test_a_defect_is_no_script_that_ended_with_one(environment: dict[str, str]) -> None:
    broken = "import cronium_controller.store as store; store.Store.recent = None; "
    code = broken + "from cronium_controller.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "history"], env=environment, capture_output=True, check=False)
    refused(done, "controller.internal")
    environment["CRONIUM_TRACEBACK"] = "1"
    done = subprocess.run([sys.executable, "-c", code, "history"], env=environment, capture_output=True, check=False)
    assert b"Traceback" in done.stderr


# -- with a host -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reached(remote: RemoteHost) -> dict[str, str]:
    """The environment of a line of sh that reaches the host as `$H`."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    where = f"--host {remote.server.target} --identity {remote.server.identity}"
    return remote.environment | {"H": where}


@pytest.mark.sshd
def test_streams_that_cannot_be_written_with_a_host(
    remote: RemoteHost, reached: dict[str, str], tmp_path: Path
) -> None:
    script = remote.script("echo words\n")
    for line in ("exec $H -- echo words", f"run $H {script}", f"run $H --json {script}", "ps $H --json"):
        refused(shell(reached, f"cronium {line} > /dev/full"), "output.unwritable")
        # A closed one would be the number of our next file or connection, and what is printed would go there.
        for closed in (">&-", ">&- <&-"):
            done = shell(reached, f"cronium {line} {closed}")
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        done = shell(reached, f"cronium {line} | true; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (0, b"")
    assert shell(reached, "cronium exec $H -- 'echo words; echo more >&2' 2>&-").stdout == b"words\n"
    assert Store(remote.remembered / "controller.db").recent(1)[0].state in ("accepted", "succeeded")


@pytest.mark.sshd
def test_a_device_is_neither_copied_nor_replaced(remote: RemoteHost, reached: dict[str, str], tmp_path: Path) -> None:
    source, pipe = tmp_path / "file", tmp_path / "pipe"
    source.write_text("words")
    os.mkfifo(pipe)
    for line in (f"put $H {pipe} there", f"put $H {source} {pipe}", f"get $H {pipe} ./", f"get $H {source} {pipe}"):
        done = shell(reached, f"cronium {line}")
        refused(done, "files.refused")
        assert b"not a regular file" in done.stderr
    assert pipe.is_fifo()


@pytest.mark.sshd
def test_bytes_that_are_no_text_do_not_reach_the_host(remote: RemoteHost, reached: dict[str, str]) -> None:
    for line in ("exec $H -- $'printf \\xff'", "exec $H --env $'X=\\xff' -- true", "get $H $'/tmp/\\xff' ./"):
        refused(shell(reached, f"cronium {line}"), "usage.invalid")
    refused(shell(reached, "cronium deploy $H --version ../../x"), "deploy.no_version")
