"""Short commands on a host that prints without end, or never answers: bounded in bytes and time, one sentence."""

import asyncio
import subprocess
from collections.abc import Callable

import asyncssh
import pytest

from cronium_controller import sftp, shell_command
from cronium_controller.connection import open_connection
from cronium_controller.errors import LoginShellError, UnreachableError
from cronium_controller.hosts import LOCAL_HOST
from cronium_controller.local_connection import LocalConnection
from cronium_controller.sessions import MOST_SAID, STDERR_TYPE, Connection, ShortCommand
from openssh import reads_bashrc
from peak_memory import MIB, peak_memory
from remote_host import RemoteHost

pytestmark = pytest.mark.sshd
BOUND = 128 * MIB
"""Twice what the command has when it does nothing: 160 MB/s would fill it in a second."""
PATIENCE = 120.0


@pytest.mark.skipif(not reads_bashrc(), reason="the account's login shell reads no .bashrc")
@pytest.mark.parametrize("rc", ["yes", "yes >&2", "yes | tr -d '\\n'"], ids=["lines", "errors", "no newline"])
def test_an_rc_file_without_end_is_one_sentence(remote: RemoteHost, rc: str) -> None:
    (remote.home / ".bashrc").write_text(f"{rc}\n")
    script = remote.script("true\n")
    for words in (("run", "--host", remote.server.target, script), ("deploy", "--host", remote.server.target),
                  ("doctor", "--host", remote.server.target)):  # fmt: skip
        process = remote.start_cronium(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process, peak_memory(process) as peak:
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 255, said
        assert said.endswith(b"[host.login_shell]\n"), said
        assert said.count(b"\n") == 1
        assert b"did not end ('" in said
        assert peak.bytes < BOUND, f"{words[0]} took {peak.bytes >> 20} MiB"


@pytest.fixture(params=["ssh", "local"])
def connect(request: pytest.FixtureRequest) -> Callable[[], object]:
    """Connects to a host over SSH, or to this machine: what is bounded is so on both."""
    if request.param == "local":
        return lambda: LocalConnection(LOCAL_HOST)
    remote: RemoteHost = request.getfixturevalue("remote")
    return lambda: open_connection(remote.host, remote.access())


async def opened(connect: Callable[[], object]) -> Connection:
    made = connect()
    found = await made if asyncio.iscoroutine(made) else made
    assert isinstance(found, Connection)
    return found


async def test_one_large_piece_is_kept_up_to_the_cap() -> None:
    command = ShortCommand("web01")
    command.data_received(b"x" * (MOST_SAID - 1), None)
    command.data_received(b"x" * MOST_SAID, STDERR_TYPE)
    assert sum(map(len, command._said.values())) == MOST_SAID
    with pytest.raises(LoginShellError):
        await command.output()


async def test_what_a_short_command_says_is_kept_up_to_a_cap(connect: Callable[[], object]) -> None:
    connection = await opened(connect)
    done = await connection.run(f"head -c {MOST_SAID} /dev/zero; exit 3", timeout=PATIENCE)
    assert (len(done.stdout), done.exit_status) == (MOST_SAID, 3)
    with pytest.raises(LoginShellError):
        await connection.run(f"head -c {MOST_SAID} /dev/zero; printf x >&2", timeout=PATIENCE)
    with pytest.raises(LoginShellError):
        await connection.run("yes", timeout=PATIENCE)
    assert (await connection.run("echo again", timeout=PATIENCE)).stdout == b"again\n", "the connection is usable"
    await connection.close()


async def test_a_short_command_has_a_deadline(connect: Callable[[], object]) -> None:
    connection = await opened(connect)
    with pytest.raises(UnreachableError, match=r"took longer than 0\.5 s"):
        await connection.run("sleep 5", timeout=0.5)
    async with connection.short_command("sleep 0.1; exit 4", PATIENCE) as running:
        while await running.write(b"x" * 65536):  # nobody reads it, and it ends
            pass
        assert (await running.output()).exit_status == 4
    await connection.close()


async def test_a_command_that_took_too_long_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each one would keep a session of its connection, of which a server has ten."""
    closed: list[ShortCommand] = []
    close = ShortCommand.close

    def noted(self: ShortCommand) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(ShortCommand, "close", noted)
    connection = LocalConnection(LOCAL_HOST)
    with pytest.raises(UnreachableError):
        await connection.run("exec sleep 1", timeout=0.01)
    assert len(closed) == 1
    await connection.close()


async def test_a_server_that_opens_no_session_for_a_copy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def mute(_opening: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(sftp, "ANSWER_SECONDS", 0.1)
    connection = LocalConnection(LOCAL_HOST)
    monkeypatch.setattr(connection, "open_session", mute)
    with pytest.raises(UnreachableError, match="has not answered"):
        await asyncio.wait_for(shell_command.run(connection, "true", "path", lambda _: None), PATIENCE)
    await connection.close()


async def test_of_the_errors_of_a_copy_only_the_end_is_kept() -> None:
    heard = shell_command._Heard(LocalConnection(LOCAL_HOST), lambda _: None, 1.0)
    for _ in range(100):
        heard.data_received(b"x" * 1000, STDERR_TYPE)
    heard.data_received(b"\nno \x1b[2Jspace\n", STDERR_TYPE)
    assert len(heard._words) <= 4096
    assert heard.last_words == r"no \x1b[2Jspace"


@pytest.mark.parametrize("told", ["", "relative", "/a\0b", f"/{'x' * 5000}"])
def test_what_is_no_path_of_a_server_is_not_believed(told: str) -> None:
    assert sftp.checked_path("/a b/c") == "/a b/c"
    with pytest.raises(asyncssh.SFTPBadMessage):
        sftp.checked_path(told)
