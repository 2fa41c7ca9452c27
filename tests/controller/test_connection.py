"""What a connection to a real OpenSSH server survives, and what it says when it doesn't; tests/sshd has the rest."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_IGNORE

from cronium_controller.connection import open_connection
from remote_host import RemoteHost

pytestmark = pytest.mark.sshd


async def test_a_key_recorded_by_this_connection_survives_the_renewal_of_session_keys(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["RekeyLimit 1M"]
    remote.server.start()
    connection = await open_connection(remote.host, remote.access())
    for _ in range(8):  # the keys are renewed after each megabyte
        done = await connection.run("head -c 700000 /dev/zero")
        assert (done.exit_status, len(done.stdout)) == (0, 700_000)
    await connection.close()


async def test_a_lost_connection_is_an_error_and_no_exit_status(remote: RemoteHost) -> None:
    connection = await open_connection(remote.host, remote.access())
    done = await connection.run("kill -9 $PPID")
    assert done.exit_status is None


@pytest.mark.parametrize(
    ("written", "cipher"),
    [
        (None, "aes256-gcm@openssh.com"),
        ("Host *\n  Compression no\n", "aes256-gcm@openssh.com"),
        ("Host *\n  Ciphers aes128-ctr\n", "aes128-ctr"),
        ("Include own.conf\n", "aes192-ctr"),
    ],
)
async def test_the_cheapest_cipher_unless_the_account_wants_another(
    written: str | None, cipher: str, remote: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "own.conf").write_text("Ciphers aes192-ctr\n")
    if written is not None:
        (tmp_path / ".ssh" / "config").write_text(written)
    monkeypatch.setenv("HOME", str(tmp_path))
    connection = await open_connection(remote.host, remote.access())
    told = [connection.ssh.get_extra_info(f"{way}_cipher") for way in ("send", "recv")]
    await connection.close()
    assert told == [cipher, cipher]


@pytest.mark.parametrize(("cipher", "is_guarded"), [("aes256-gcm@openssh.com", False), ("aes128-cbc", True)])
async def test_empty_packets_are_for_ciphers_that_need_them(
    cipher: str, is_guarded: bool, remote: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.server.stop()
    remote.server._options = [f"Ciphers {cipher}"]
    remote.server.start()
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(f"Ciphers {cipher}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    sent: list[int] = []
    as_ever = asyncssh.SSHClientConnection.send_packet

    def send_packet(self: asyncssh.SSHClientConnection, kind: int, *content: bytes, **more: Any) -> None:
        sent.append(kind)
        as_ever(self, kind, *content, **more)

    monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", send_packet)
    connection = await open_connection(remote.host, remote.access())
    assert (await connection.run("echo works")).stdout == b"works\n"
    await connection.close()
    assert connection.ssh.get_extra_info("send_cipher") == cipher
    assert len(sent) > 8
    assert (MSG_IGNORE in sent) == is_guarded


async def test_a_server_without_that_cipher_gets_another(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["Ciphers chacha20-poly1305@openssh.com"]
    remote.server.start()
    connection = await open_connection(remote.host, remote.access())
    told = connection.ssh.get_extra_info("send_cipher")
    await connection.close()
    assert told == "chacha20-poly1305@openssh.com"


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_packets_are_described_only_for_whoever_reads_it(
    is_wanted: bool, remote: RemoteHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    described: list[int] = []
    as_ever: Callable[..., str] = vars(asyncssh.packet)["plural"]

    def plural(*words: Any) -> str:
        described.append(1)
        return as_ever(*words)

    monkeypatch.setattr(asyncssh.packet, "plural", plural)
    caplog.set_level(logging.DEBUG if is_wanted else logging.WARNING, "asyncssh")
    asyncssh.set_debug_level(3)
    try:
        connection = await open_connection(remote.host, remote.access())
        await connection.run("true")
        await connection.close()
    finally:
        asyncssh.set_debug_level(1)
    lines = [record.getMessage() for record in caplog.records if record.name == "asyncssh"]
    assert bool(described) is is_wanted
    assert any(line.startswith("[conn=") and "Sent MSG_KEXINIT (20), " in line for line in lines) is is_wanted
    assert any("  Session id" in line or "Requesting" in line for line in lines) is is_wanted
