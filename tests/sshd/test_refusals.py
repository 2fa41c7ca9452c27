"""A refused authentication is refused once, with the words of the host: sshd, and a server that hangs up."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from cronium_controller.connection import open_connection
from cronium_controller.connections import Connections
from cronium_controller.errors import AuthenticationError
from cronium_controller.hosts import Host, parse_host
from cronium_controller.memory import Memory
from remote_host import RemoteHost

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
CAN_MOUNT = os.geteuid() == 0 and not subprocess.run(["unshare", "-m", "true"], check=False).returncode
BANNER = b"Only for staff of B\xfcro\n\x1b[31m\nYour account has expired.\n"


def wrong_keys(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"wrong{number}" for number in range(count)]
    for path in paths:
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(path)
        path.chmod(0o600)
    return paths


async def refused(remote: RemoteHost, host: Host) -> AuthenticationError:
    with pytest.raises(AuthenticationError) as caught:
        await Connections(remote.access(), Memory()).open(host)
    error = caught.value
    assert (error.code, error.exit_status, error.phase) == ("host.auth_failed", 255, "authentication")
    assert error.message.startswith(f"{host.name}: the host refused our authentication")
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    return error


async def test_too_many_failures_are_a_refusal(
    new_host: Callable[..., RemoteHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "banner").write_bytes(BANNER)
    remote = new_host(options=["MaxAuthTries 2", f"Banner {tmp_path / 'banner'}"])
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "config").write_text("".join(f"IdentityFile {path}\n" for path in wrong_keys(tmp_path, 4)))
    error = await refused(remote, parse_host(remote.server.target))
    assert "Too many authentication failures" in error.message
    assert "it said: Only for staff of B\\xfcro \\x1b[31m Your account has expired." in error.message
    assert remote.server.count_in_log("Connection from") == 2, "ours, and the one that waited for the server"
    connection = await open_connection(remote.host, remote.access())
    await connection.close()


async def test_the_banner_is_told_with_a_plain_refusal(new_host: Callable[..., RemoteHost], tmp_path: Path) -> None:
    (tmp_path / "banner").write_bytes(b"x" * 5000 + b"\nMaintenance until noon.\n")
    remote = new_host(options=[f"Banner {tmp_path / 'banner'}"])
    [wrong] = wrong_keys(tmp_path, 1)
    error = await refused(remote, parse_host(remote.server.target, identity=str(wrong)))
    assert "Maintenance until noon." in error.message
    assert len(error.message) < 1000
    assert remote.server.count_in_log("Connection from") == 2
    assert remote.server.count_in_log("Failed publickey") == 1


class _Door(asyncssh.SSHServer):
    """Hangs up once our signature has come, as sshd does for an account that PAM lets in no further."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._asked = 0

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn

    def begin_auth(self, username: str) -> bool:
        del username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        del username, key
        self._asked += 1
        if self._asked > 1:  # the first time is the question whether the key is known
            if self._words:
                self._conn.send_auth_banner(self._words)
            transport = self._conn._transport
            assert isinstance(transport, asyncio.Transport)
            transport.close()
        return True


@asynccontextmanager
async def door(words: str) -> AsyncIterator[tuple[Host, list[_Door]]]:
    opened: list[_Door] = []

    def make() -> _Door:
        opened.append(_Door(words))
        return opened[-1]

    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh.listen("127.0.0.1", 0, server_factory=make, server_host_keys=[key]) as server:
        yield parse_host(f"me@127.0.0.1:{server.get_port()}"), opened


@pytest.mark.parametrize("words", ["System is going down.\n", ""])
async def test_a_host_that_hangs_up_has_refused_us(shared: RemoteHost, words: str) -> None:
    """So sshd tells of an account that PAM lets in no further; root's next test has the real one."""
    async with door(words) as (host, opened):
        error = await refused(
            shared, parse_host(f"me@{host.address}:{host.port}", identity=str(shared.server.identity))
        )
    assert ("it said: System is going down." in error.message) == bool(words)
    assert "it closed the connection" in error.message
    assert len(opened) == 1


PAM = """
auth required pam_permit.so
account required pam_nologin.so file={folder}/nologin
account required pam_unix.so
session required pam_permit.so
"""


@pytest.mark.skipif(not CAN_MOUNT, reason="only root can give sshd another shadow file, and needs a mount namespace")
@pytest.mark.parametrize(
    ("nologin", "said"),
    [
        ("Down until noon.\n", "it said: Down until noon."),
        (None, "it said: Your account has expired; please contact your system administrator."),
    ],
)
async def test_what_pam_says_is_told(
    nologin: str | None, said: str, new_host: Callable[..., RemoteHost], tmp_path: Path
) -> None:
    """A nologin file, and an account that expired in 1970."""
    (tmp_path / "pam").write_text(PAM.format(folder=tmp_path))
    entries = Path("/etc/shadow").read_text().splitlines()
    expired = ["nobody:*:19000:0:99999:7::1:" if line.startswith("nobody:") else line for line in entries]
    (tmp_path / "shadow").write_text("\n".join(expired) + "\n")
    (tmp_path / "shadow").chmod(0o600)
    if nologin is not None:
        (tmp_path / "nologin").write_text(nologin)
    [key] = wrong_keys(tmp_path, 1)
    public = asyncssh.read_private_key(key).export_public_key().decode().strip()
    remote = new_host(
        options=["UsePAM yes", f"AuthorizedKeysCommand /bin/echo {public}", "AuthorizedKeysCommandUser root"],
        mounts={tmp_path / "pam": "/etc/pam.d/sshd", tmp_path / "shadow": "/etc/shadow"},
    )
    target = f"nobody@{remote.server.target}"
    error = await refused(remote, parse_host(target, identity=str(key)))
    assert said in error.message
    assert remote.server.count_in_log("Connection from") == 2, "ours, and the one that waited for the server"
