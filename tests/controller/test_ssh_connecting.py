"""The same configurations given to `ssh` and to us, against one server: decision, account, address and keys."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from openssh import OpenSSHServer, sshd_path
from ssh_connections import OPTIONS, REFUSED, ROWS, Network

pytestmark = [
    pytest.mark.sshd,
    pytest.mark.skipif(shutil.which("ssh") is None or sshd_path() is None, reason="OpenSSH is not installed"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("network")
    with OpenSSHServer(folder / "sshd", options=OPTIONS) as server:
        yield Network.made(server, folder)


@pytest.mark.parametrize("name", ROWS)
async def test_we_connect_as_ssh_does(
    network: Network, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.configure(name, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    theirs = network.theirs(tmp_path)
    assert theirs.is_connected is (name not in REFUSED)
    ours, error = await network.ours()
    assert ours == theirs
    if name == "a ProxyCommand that fails":
        assert error is not None
        assert error.message == "web: ProxyCommand said: shut"
