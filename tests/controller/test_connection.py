"""Connecting to a real OpenSSH server: host keys, authentication, ~/.ssh/config, and what is said when it fails."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_controller.connection import open_connection
from cronium_controller.errors import (
    AuthenticationError,
    ControllerError,
    HostKeyChangedError,
    HostKeyUnknownError,
    UnreachableError,
)
from cronium_controller.hostkeys import HostKeyPolicy
from cronium_controller.hosts import parse_host
from remote_host import RemoteHost

pytestmark = pytest.mark.sshd


def server_key(remote: RemoteHost) -> str:
    """The server's public key as known_hosts has it."""
    return " ".join((remote.folder / "sshd/host_key.pub").read_text().split()[:2])


def new_key(folder: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A key that the server doesn't know. PEM, because OpenSSH's own form of an encrypted key needs bcrypt to read."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-m", "PEM", "-N", passphrase, "-f", folder / "key"], check=True)
    return folder / "key"


async def test_a_first_connection_records_the_servers_key_and_strict_then_accepts_it(remote: RemoteHost) -> None:
    with pytest.raises(HostKeyUnknownError, match="--host-keys strict") as refused:
        await open_connection(remote.host, remote.access(host_keys=HostKeyPolicy.STRICT))
    assert (refused.value.phase, refused.value.host) == ("host key", remote.server.target)
    assert not remote.known_hosts.exists()
    for policy in (HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT):
        await (await open_connection(remote.host, remote.access(host_keys=policy))).close()
    assert remote.known_hosts.read_text() == f"[127.0.0.1]:{remote.server.port} {server_key(remote)}\n"
    assert remote.server.count_in_log("Accepted publickey") == 3


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
async def test_another_key_than_the_recorded_one_is_refused_before_authentication(
    remote: RemoteHost, tmp_path: Path, kind: str
) -> None:
    other = " ".join(new_key(tmp_path, kind).with_suffix(".pub").read_text().split()[:2])
    remote.known_hosts.write_text(f"[127.0.0.1]:{remote.server.port} {other}\n")
    before = remote.known_hosts.read_bytes()
    for policy in (HostKeyPolicy.ACCEPT_NEW, HostKeyPolicy.STRICT):
        with pytest.raises(HostKeyChangedError, match=r"ssh-keygen -f .* -R "):
            await open_connection(remote.host, remote.access(host_keys=policy))
    assert remote.known_hosts.read_bytes() == before
    assert remote.server.count_in_log("Accepted publickey") == 0
    await (await open_connection(remote.host, remote.access(host_keys=HostKeyPolicy.OFF))).close()
    assert len(remote.warnings) == 1


async def test_a_revoked_key_is_refused(remote: RemoteHost) -> None:
    remote.known_hosts.write_text(f"@revoked * {server_key(remote)}\n")
    with pytest.raises(HostKeyChangedError, match="revoked"):
        await open_connection(remote.host, remote.access())


async def test_a_key_recorded_by_this_connection_survives_the_renewal_of_session_keys(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["RekeyLimit 1M"]
    remote.server.start()
    connection = await open_connection(remote.host, remote.access())
    done = await connection.run("head -c 5000000 /dev/zero")
    assert (done.exit_status, len(done.stdout)) == (0, 5_000_000)
    await connection.close()


async def test_a_refused_key_is_one_attempt_and_one_clear_error(remote: RemoteHost, tmp_path: Path) -> None:
    host = replace(remote.host, identity=str(new_key(tmp_path)))
    with pytest.raises(AuthenticationError, match="--identity") as refused:
        await open_connection(host, remote.access())
    assert (refused.value.code, refused.value.phase, refused.value.exit_status) == (
        "host.auth_failed",
        "authentication",
        255,
    )
    assert remote.server.count_in_log("Connection from") == 2  # the one before is the server's own start being awaited


async def test_an_encrypted_key_needs_its_passphrase(remote: RemoteHost, tmp_path: Path) -> None:
    key = new_key(tmp_path, "rsa", passphrase="open sesame")
    (remote.folder / "sshd/authorized_keys").write_bytes(key.with_suffix(".pub").read_bytes())
    host = replace(remote.host, identity=str(key))
    with pytest.raises(ControllerError, match="private key cannot be used") as refused:
        await open_connection(host, remote.access())
    assert refused.value.code == "host.config"
    with pytest.raises(ControllerError, match="private key cannot be used"):
        await open_connection(host, remote.access(passphrase=lambda _key: "wrong"))
    assert remote.server.count_in_log("Connection from") == 1
    passphrases = {str(key): "open sesame"}
    connection = await open_connection(host, remote.access(passphrase=passphrases.__getitem__))
    await connection.close()


async def test_a_missing_key_file_is_said_before_anything_is_sent(remote: RemoteHost) -> None:
    with pytest.raises(ControllerError, match="--identity"):
        await open_connection(replace(remote.host, identity="/no/such/key"), remote.access())
    assert remote.server.count_in_log("Connection from") == 1


async def test_nobody_listening_is_unreachable(remote: RemoteHost) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        host = parse_host(f"127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(UnreachableError, match=r"Connect call failed|refused") as refused:
            await open_connection(host, remote.access())
    assert (refused.value.code, refused.value.exit_status) == ("host.unreachable", 255)


async def test_something_silent_is_given_up_in_time(remote: RemoteHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = parse_host(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UnreachableError):
            await open_connection(host, remote.access(connect_timeout=0.1))


async def test_aliases_users_ports_and_keys_of_the_ssh_configuration_are_honoured(remote: RemoteHost) -> None:
    (remote.home / ".ssh").mkdir(mode=0o700)
    (remote.home / ".ssh/config").write_text(
        f"Host web01\n  HostName 127.0.0.1\n  Port {remote.server.port}\n  IdentityFile {remote.server.identity}\n"
        "  RequestTTY force\n"
    )
    connection = await open_connection(parse_host("web01"), remote.access())
    assert (await connection.run("tty || echo none")).stdout == b"not a tty\nnone\n"
    await connection.close()
    assert remote.known_hosts.read_text().startswith(f"[127.0.0.1]:{remote.server.port} ")
    (remote.home / ".ssh/config").write_text("Host web01\n  Port nonsense\n")
    with pytest.raises(ControllerError, match=r"~/\.ssh/config") as refused:
        await open_connection(parse_host("web01"), remote.access())
    assert refused.value.code == "host.config"


async def test_a_jump_host_is_used_when_its_key_is_known_and_only_then(remote: RemoteHost) -> None:
    (remote.home / ".ssh").mkdir(mode=0o700)
    (remote.home / ".ssh/config").write_text(
        f"Host *\n  IdentityFile {remote.server.identity}\n"
        f"Host inner\n  HostName 127.0.0.1\n  Port {remote.server.port}\n  ProxyJump 127.0.0.1:{remote.server.port}\n"
    )
    with pytest.raises(HostKeyUnknownError, match="jump host"):
        await open_connection(parse_host("inner"), remote.access())
    assert remote.server.count_in_log("Accepted publickey") == 0
    (remote.home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{remote.server.port} {server_key(remote)}\n")
    connection = await open_connection(parse_host("inner"), remote.access())
    assert (await connection.run("echo $SSH_CONNECTION")).exit_status == 0
    await connection.close()
    assert remote.server.count_in_log("Accepted publickey") == 2


async def test_a_nul_in_a_command_is_refused_and_the_connection_lives_on(remote: RemoteHost) -> None:
    connection = await open_connection(remote.host, remote.access())
    with pytest.raises(ControllerError, match="NUL"):
        await connection.run("echo \0")
    assert (await connection.run("echo $((6*7))")).stdout == b"42\n"
    with pytest.raises(UnreachableError, match="longer than"):
        await connection.run("sleep 1", timeout=0.1)
    assert (await connection.run("exit 7")).exit_status == 7
    await connection.close()


async def test_a_lost_connection_is_an_error_and_no_exit_status(remote: RemoteHost) -> None:
    connection = await open_connection(remote.host, remote.access())
    done = await connection.run("kill -9 $PPID")
    assert done.exit_status is None
