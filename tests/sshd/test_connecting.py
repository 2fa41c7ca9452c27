"""Ways not to get in, each with one sentence: nobody there, nobody answers, refused, no usable key. And two ways in."""

import asyncio
import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from cronium_controller import transport
from cronium_controller.errors import AuthenticationError, ControllerError, UnreachableError
from cronium_controller.hosts import OPENSSH, Host, parse_host
from kinds import BOTH, ssh_reading
from remote_host import RemoteHost, connected
from runner_process import PATIENCE, wait_until
from ssh_connections import CARRY

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


def make_key(path: Path, passphrase: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path], check=True)
    return path


async def failure(remote: RemoteHost, host: Host, **access: object) -> ControllerError:
    with pytest.raises(ControllerError) as failed:
        await connected(host, remote.access(**access))
    message = failed.value.message
    assert message.startswith(f"{host.name}: ")
    assert "\n" not in message
    assert not re.search(r"Errno|Error\b|Exception|Traceback|asyncssh", message), message
    return failed.value


@BOTH
async def test_a_refused_key_is_offered_once(fresh: RemoteHost) -> None:
    host = parse_host(fresh.server.target, identity=str(make_key(fresh.folder / "wrong")))
    error = await failure(fresh, host)
    assert isinstance(error, AuthenticationError)
    assert error.code == "host.auth_failed"
    assert (error.exit_status, error.phase) == (255, "authentication")
    assert "--identity" in error.message
    assert fresh.server.count_in_log("Failed publickey") == 1
    assert fresh.server.count_in_log("Connection from") == 2, "ours, and the one that waited for the server"


@BOTH
def test_the_command_tries_once_as_well(fresh: RemoteHost) -> None:
    wrong = make_key(fresh.folder / "wrong")
    done = fresh.run("--identity", wrong, fresh.script("echo hi"))
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.endswith(b"[host.auth_failed]\n")
    assert done.stderr.count(b"\n") == 1
    assert fresh.server.count_in_log("Failed publickey") == 1


@BOTH
async def test_an_unknown_user_is_refused_like_a_wrong_key(shared: RemoteHost) -> None:
    host = parse_host(f"nosuchuser@{shared.server.target}", identity=str(shared.server.identity))
    assert (await failure(shared, host)).code == "host.auth_failed"


@BOTH
async def test_a_key_that_is_not_there(shared: RemoteHost) -> None:
    host = parse_host(shared.server.target, identity="/nowhere/id")
    error = await failure(shared, host)
    assert error.code == "host.config"
    assert error.exit_status == 125
    assert "/nowhere/id" in error.message


@BOTH
@pytest.mark.parametrize("content", ["", "not a key\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
async def test_a_key_that_is_none(shared: RemoteHost, tmp_path: Path, content: str) -> None:
    (tmp_path / "id").write_text(content)
    error = await failure(shared, parse_host(shared.server.target, identity=str(tmp_path / "id")))
    assert error.code == "host.config"


@BOTH
async def test_an_encrypted_key_without_anybody_to_ask(shared: RemoteHost, tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "sesame")
    error = await failure(shared, parse_host(shared.server.target, identity=str(key)))
    assert error.code == "host.config"
    assert "passphrase" in error.message.lower()
    assert "ssh-agent" in error.message


async def test_an_encrypted_key_with_somebody_to_ask(fresh: RemoteHost, tmp_path: Path) -> None:
    key = make_key(tmp_path / "id", "sesame")
    with (fresh.server.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    asked: list[str] = []

    def answer(path: str) -> str:
        asked.append(path)
        return "sesame"

    host = parse_host(fresh.server.target, identity=str(key))
    connection = await connected(host, fresh.access(passphrase=answer))
    await connection.close()
    assert [str(path) for path in asked] == [str(key)]
    error = await failure(fresh, host, passphrase=lambda _: "wrong")
    assert error.code == "host.config"


ASKED = '#!/bin/sh\necho "$1" >>{asked}\necho {answer}\n'


async def test_ssh_itself_asks_for_a_passphrase(
    fresh: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the program that SSH_ASKPASS names, where there is no terminal; it has more time than a connection."""
    key = make_key(tmp_path / "id", "sesame")
    with (fresh.server.folder / "authorized_keys").open("a") as file:
        file.write(key.with_suffix(".pub").read_text())
    host = replace(parse_host(fresh.server.target, identity=str(key)), connection=OPENSSH)
    program, asked = tmp_path / "ask", tmp_path / "asked"
    monkeypatch.setenv("SSH_ASKPASS", str(program))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")

    def answer(text: str) -> None:
        program.write_text(ASKED.format(asked=asked, answer=text))
        program.chmod(0o755)

    answer("sesame")
    connection = await connected(host, fresh.access(passphrase=lambda _: "not asked", connect_timeout=1))
    assert (await connection.run("echo there")).stdout == b"there\n"
    await connection.close()
    assert str(key) in asked.read_text()
    assert asked.read_text().count("\n") == 1
    answer("wrong")
    error = await failure(fresh, host, passphrase=lambda _: "not asked")
    assert error.code == "host.config"
    asked.unlink()
    assert (await failure(fresh, host)).code == "host.config", "nobody is there to be asked"
    assert not asked.exists()


async def test_an_account_without_a_name_is_one_sentence(shared: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's, whose uid is in no password database."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    error = await failure(shared, replace(shared.host, user=None))
    assert (error.code, error.exit_status) == ("host.config", 125)


@BOTH
async def test_nobody_listens(shared: RemoteHost) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        error = await failure(shared, parse_host(f"127.0.0.1:{port}"))
    assert isinstance(error, UnreachableError)
    assert error.code == "host.unreachable"
    assert "refused" in error.message


@BOTH
async def test_a_name_that_is_none(shared: RemoteHost) -> None:
    error = await failure(shared, parse_host("no-such-host.invalid"))
    assert error.code == "host.unreachable"


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        yield made


@BOTH
@pytest.mark.parametrize("banner", [b"", b"SSH-2.0-tarpit\r\n"])
async def test_a_port_that_never_answers_costs_no_more_than_the_timeout(
    shared: RemoteHost, listening: socket.socket, banner: bytes
) -> None:
    """The kernel accepts; nobody says anything, or nothing after the greeting."""
    listening.setblocking(False)
    loop = asyncio.get_running_loop()

    async def greet() -> socket.socket:
        accepted, _ = await loop.sock_accept(listening)
        await loop.sock_sendall(accepted, banner)
        return accepted

    greeting = asyncio.ensure_future(greet())
    began = time.monotonic()
    error = await failure(shared, parse_host(f"127.0.0.1:{listening.getsockname()[1]}"), connect_timeout=0.3)
    assert time.monotonic() - began < 3
    assert error.code == "host.unreachable"
    (await greeting).close()


@BOTH
@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-1.5-old\r\n", b"\xff" * 70000, b"SSH-2.0-x\r\n\0\0\0\x05"]
)
async def test_something_else_answers(shared: RemoteHost, listening: socket.socket, said: bytes) -> None:
    listening.setblocking(False)
    loop = asyncio.get_running_loop()

    async def answer() -> None:
        accepted, _ = await loop.sock_accept(listening)
        with accepted:
            await loop.sock_sendall(accepted, said)

    answering = asyncio.ensure_future(answer())
    error = await failure(shared, parse_host(f"127.0.0.1:{listening.getsockname()[1]}"), connect_timeout=2)
    assert error.code == "host.unreachable"
    answering.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await answering


@BOTH
async def test_giving_up_while_connecting_leaves_nothing(shared: RemoteHost, listening: socket.socket) -> None:
    host = parse_host(f"127.0.0.1:{listening.getsockname()[1]}")
    async with shared.controller() as controller:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(controller.status("x", host), 0.2)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)
    assert not asyncio.all_tasks() - {asyncio.current_task()}


@pytest.fixture
def ssh_folder(connection: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's own ~/.ssh (`_own_account` says where)."""
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    if connection == OPENSSH:
        monkeypatch.setenv("PATH", f"{ssh_reading(tmp_path / 'bin', folder / 'config')}:{os.environ['PATH']}")
    return folder


@BOTH
async def test_ssh_config_says_who_where_and_with_which_key(fresh: RemoteHost, ssh_folder: Path) -> None:
    (ssh_folder / "config").write_text(
        f"Host web01\n  HostName 127.0.0.1\n  Port {fresh.server.port}\n  IdentityFile {fresh.server.identity}\n"
        "  IdentitiesOnly yes\n  RequestTTY force\n"
    )
    for _ in range(2):
        connection = await connected(parse_host("web01"), fresh.access())
        assert (await connection.run("echo there")).stdout == b"there\n"
        await connection.close()
    assert len(fresh.known_hosts.read_text().splitlines()) == 1


@BOTH
async def test_a_broken_ssh_config_is_named(shared: RemoteHost, ssh_folder: Path) -> None:
    (ssh_folder / "config").write_text("Host *\n  Port many\n")
    error = await failure(shared, parse_host("web01"))
    assert error.code == "host.config"
    assert "config" in error.message


@BOTH
async def test_a_jump_host_of_ssh_config_is_used(
    fresh: RemoteHost, new_host: Callable[..., RemoteHost], ssh_folder: Path
) -> None:
    jump = new_host()
    (ssh_folder / "config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {fresh.server.port}\n  ProxyJump jump\n"
        f"Host jump\n  HostName 127.0.0.1\n  Port {jump.server.port}\n"
        f"Host *\n  IdentityFile {fresh.server.identity}\n  HashKnownHosts no\n"
    )
    (jump.server.folder / "authorized_keys").write_text(fresh.server.identity.with_suffix(".pub").read_text())
    error = await failure(fresh, parse_host("inner"), host_keys="strict")
    assert error.code == "host.key_unknown"
    assert error.message.startswith("inner: at the jump host jump: the host's key ")
    assert not fresh.known_hosts.exists()
    connection = await connected(parse_host("inner"), fresh.access())
    assert f"[127.0.0.1]:{jump.server.port} " in fresh.known_hosts.read_text()
    assert (await connection.run("echo there")).stdout == b"there\n"
    await connection.close()
    assert jump.server.count_in_log("Accepted publickey") >= 1
    assert fresh.server.count_in_log("Accepted publickey") == 1


@BOTH
async def test_a_changed_key_behind_a_jump_host_is_refused(
    fresh: RemoteHost, new_host: Callable[..., RemoteHost], ssh_folder: Path
) -> None:
    jump = new_host()
    (ssh_folder / "config").write_text(
        f"Host inner\n  HostName 127.0.0.1\n  Port {fresh.server.port}\n  ProxyJump jump\n"
        f"Host jump\n  HostName 127.0.0.1\n  Port {jump.server.port}\n"
        f"Host *\n  IdentityFile {fresh.server.identity}\n  HashKnownHosts no\n"
    )
    (jump.server.folder / "authorized_keys").write_text(fresh.server.identity.with_suffix(".pub").read_text())
    key = " ".join((jump.server.folder / "host_key.pub").read_text().split()[:2])
    fresh.known_hosts.write_text(f"[127.0.0.1]:{fresh.server.port} {key}\n")
    assert (await failure(fresh, parse_host("inner"))).code == "host.key_changed"
    assert fresh.server.count_in_log("Accepted publickey") == 0


@BOTH
async def test_a_proxy_command_carries_and_says_why_not(fresh: RemoteHost, ssh_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "carry 100%.py").write_text(CARRY)
    carried = f"{sys.executable} '{tmp_path}/carry 100%%.py' %h %p # by the shell"
    where = f"Host web01\n  HostName 127.0.0.1\n  Port {fresh.server.port}\n  IdentityFile {fresh.server.identity}\n"
    (ssh_folder / "config").write_text(f"{where}  ProxyCommand {carried}\n")
    connection = await connected(parse_host("web01"), fresh.access())
    assert (await connection.run("echo there")).stdout == b"there\n"
    await connection.close()
    (ssh_folder / "config").write_text(f"{where}  ProxyCommand sh -c 'echo the gate is shut >&2; exit 3'\n")
    error = await failure(fresh, parse_host("web01"))
    assert error.message == "web01: ProxyCommand said: the gate is shut"


def test_a_closed_connection_has_waited_for_its_carrier(
    shared: RemoteHost, ssh_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ProxyCommand ends after its streams; asyncio had no event loop left to tell that to."""
    monkeypatch.setattr(transport, "LAST_WORDS_SECONDS", PATIENCE)
    (tmp_path / "carry.py").write_text(CARRY)
    carried = f"sh -c '{sys.executable} {tmp_path}/carry.py %h %p; sleep 0.3; echo >{tmp_path}/ended'"
    (ssh_folder / "config").write_text(
        f"Host web01\n  HostName 127.0.0.1\n  Port {shared.server.port}\n  IdentityFile {shared.server.identity}\n"
        f"  ProxyCommand {carried}\n"
    )

    async def come_and_go() -> None:
        connection = await connected(parse_host("web01"), shared.access())
        await connection.close()

    asyncio.run(come_and_go())
    assert (tmp_path / "ended").exists()


def _listens(path: Path) -> bool:
    """Whether somebody listens there; a socket's file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@BOTH
async def test_the_agent_s_key_opens_the_door(
    fresh: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real ssh-agent, with a key whose file is encrypted."""
    key = make_key(tmp_path / "id", "sesame")
    with (fresh.server.folder / "authorized_keys").open("w") as file:
        file.write(key.with_suffix(".pub").read_text())
    path = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        wait_until(partial(_listens, path), "the agent to listen")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        asking = tmp_path / "ask"
        asking.write_text("#!/bin/sh\necho sesame\n")
        asking.chmod(0o700)
        environment = {**os.environ, "SSH_ASKPASS": str(asking), "SSH_ASKPASS_REQUIRE": "force"}
        subprocess.run(["ssh-add", "-q", key], env=environment, check=True, stdin=subprocess.DEVNULL)
        connection = await connected(parse_host(fresh.server.target), fresh.access())
        await connection.close()
        # Named by its file, too: what is encrypted there is open in the agent.
        connection = await connected(parse_host(fresh.server.target, identity=str(key)), fresh.access())
        await connection.close()
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait()


@BOTH
async def test_without_any_key_the_advice_is_to_give_one(shared: RemoteHost) -> None:
    error = await failure(shared, parse_host(shared.server.target))
    assert error.code == "host.auth_failed"
    assert "--identity" in error.message


@BOTH
async def test_a_name_that_is_no_address_may_be_one_of_the_hosts_file(shared: RemoteHost) -> None:
    error = await failure(shared, parse_host("web01.invalid"))
    assert error.code == "host.unreachable"
    assert error.message.startswith("web01.invalid: cannot connect to web01.invalid: ")
    assert error.message.endswith("; check the name; one of your hosts file is given with --on")


@BOTH
async def test_a_dead_agent_socket_does_not_matter(shared: RemoteHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere/agent")
    connection = await connected(shared.host, shared.access())
    await connection.close()


@BOTH
async def test_a_nul_in_a_command_is_refused_and_the_connection_lives(shared: RemoteHost) -> None:
    connection = await connected(shared.host, shared.access())
    with pytest.raises(ControllerError):
        await connection.run("echo \0")
    assert (await connection.run("printf 'a\\0b'; exit 3")).stdout == b"a\0b"
    with pytest.raises(UnreachableError, match="longer than"):
        await connection.run("sleep 5", timeout=0.2)
    assert (await connection.run("echo still")).stdout == b"still\n"
    await connection.close()
