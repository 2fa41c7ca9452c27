"""Which keys are offered, in which order: `ssh -v` and we, with the same configuration, against a server that has none.

The order differs on purpose in one place: a named key that the agent does not hold comes before the agent's others.
"""

import os
import pwd
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncssh
import pytest

from cronium_controller.access import Access
from cronium_controller.connection import open_connection
from cronium_controller.hosts import parse_host
from cronium_controller.identities import Identities
from cronium_controller.ssh_config import ssh_settings_of
from openssh import OpenSSHServer, sshd_path
from runner_process import wait_until

pytestmark = pytest.mark.sshd

NAMED: Final = "  IdentityFile {keys}/a\n"
CASES: Final = {
    "one named": (NAMED, ""),
    "two named": (NAMED + "  IdentityFile {keys}/b\n", ""),
    "a missing and an odd one before": ("  IdentityFile {keys}/no\n  IdentityFile {keys}/odd\n" + NAMED, ""),
    "named, and held by the agent": (NAMED, "xay"),
    "two named, the second is held": (NAMED + "  IdentityFile {keys}/b\n", "b"),
    "only the named one of the agent": (NAMED + "  IdentitiesOnly yes\n", "xay"),
    "a public key whose other half is held": ("  IdentityFile {keys}/a.pub\n  IdentitiesOnly yes\n", "xa"),
    "a missing file with its .pub, held": ("  IdentityFile {keys}/gone\n  IdentitiesOnly yes\n", "xg"),
    "an encrypted one that is held": ("  IdentityFile {keys}/locked\n  IdentitiesOnly yes\n", "xl"),
    "the agent's and the usual ones": ("", "xy"),
    "no agent": (NAMED + "  IdentityAgent none\n", "xa"),
    "no identity file": ("  IdentityFile none\n", "xy"),
    "a certificate beside it": ("  IdentityFile {keys}/c\n", ""),
    "a certificate that is named": (NAMED + "  IdentityFile {keys}/c\n  CertificateFile {keys}/c-cert.pub\n", ""),
    "a certificate for a key that is held": ("  CertificateFile {keys}/c-cert.pub\n" + NAMED, "ac"),
}


@dataclass
class World:
    """A server that lets nobody in, and keys."""

    server: OpenSSHServer
    keys: Path


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, str], None]]:
    """`hold(folder, "xy")`: an agent with these keys of a folder, in this order; without names there is none."""
    running: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, names: str) -> None:
        if not names:
            return
        path = tmp_path / "agent"
        running.append(subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL))
        wait_until(path.exists, "the agent's socket")
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        for name in names:
            subprocess.run(["ssh-add", "-q", folder / name], check=True)

    yield start
    for agent in running:
        agent.terminate()
        agent.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if sshd_path() is None:
        pytest.skip("there is no sshd; install openssh-server")
    folder = tmp_path_factory.mktemp("world")
    keys = folder / "keys"
    (keys / "held").mkdir(parents=True)
    authority = asyncssh.generate_private_key("ssh-ed25519")
    for name in ("a", "b", "c", "g", "l", "x", "y", "open"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        for path in (keys / name, keys / "held" / name):
            key.write_private_key(path)
            path.chmod(0o644 if path == keys / "open" else 0o600)
        key.write_public_key(keys / f"{name}.pub")
        if name == "c":
            certificate = authority.generate_user_certificate(key, "c", principals=["me"])
            certificate.write_certificate(keys / "c-cert.pub")
        if name == "l":
            key.write_private_key(keys / "locked", passphrase="sesame")
            (keys / "locked").chmod(0o600)
    (keys / "g").unlink()
    (keys / "g.pub").rename(keys / "gone.pub")
    (keys / "open.pub").unlink()
    (keys / "odd").write_text("this is no key\n")
    (keys / "odd").chmod(0o600)
    with OpenSSHServer(folder / "sshd", options=["MaxAuthTries 20"]) as server:
        (server.folder / "authorized_keys").write_text("")
        yield World(server, keys)


def configure(world: World, lines: str) -> Path:
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    path = folder / "config"
    path.write_text(
        f"Host web\n  HostName 127.0.0.1\n  Port {world.server.port}\n{lines.format(keys=world.keys)}"
        f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new\n"
    )
    return path


def offered_by_ssh(configuration: Path) -> list[str]:
    words = ["ssh", "-v", "-F", str(configuration), "-o", "BatchMode=yes", "web", "true"]
    said = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stderr
    assert "Permission denied" in said, said
    found = re.findall(r"Offering public key: .* (ED25519|ED25519-CERT) (SHA256:\S+)", said)
    return [f"{kind} {digest}" for kind, digest in found]


async def offered_by_us() -> list[str]:
    identities = Identities(await ssh_settings_of(parse_host("web")))
    await identities.prepare(60)
    offered = []
    while (pair := identities.following()) is not None:
        public = asyncssh.public_key.decode_ssh_public_key(pair.key_public_data)
        kind = "ED25519-CERT" if pair.has_cert else "ED25519"
        offered.append(f"{kind} {public.get_fingerprint()}")
    identities.close()
    return offered


@pytest.mark.parametrize("what", CASES, ids=[what.replace(" ", "_") for what in CASES])
async def test_ssh_and_we_offer_the_same_keys(world: World, what: str, hold: Callable[[Path, str], None]) -> None:
    lines, held = CASES[what]
    hold(world.keys / "held", held)
    by_ssh = offered_by_ssh(configure(world, lines))
    assert await offered_by_us() == by_ssh
    assert by_ssh


async def test_a_named_key_is_not_locked_out_by_the_agent(
    world: World, tmp_path: Path, hold: Callable[[Path, str], None]
) -> None:
    """A server that allows three attempts, six keys in the agent, the named one in a file only."""
    server = OpenSSHServer(tmp_path / "sshd", options=["MaxAuthTries 3"])
    (server.folder / "authorized_keys").write_text((world.keys / "a.pub").read_text())
    hold(world.keys / "held", "xybcgl")
    access = Access(known_hosts=str(server.known_hosts))
    with server:
        connection = await open_connection(parse_host(server.target, identity=str(world.keys / "a")), access)
        await connection.close()
        configure(world, "").write_text(f"IdentityFile {world.keys / 'a'}\n")
        connection = await open_connection(parse_host(server.target), access)
        await connection.close()


async def test_skipped_files_are_named_in_one_warning(world: World) -> None:
    lines = "  IdentityFile {keys}/nowhere\n  IdentityFile {keys}/odd\n  IdentityFile {keys}/open\n"
    configure(world, lines)
    settings = await ssh_settings_of(parse_host("web"))
    first, second = Identities(settings), Identities(settings)
    await first.prepare(60)
    await second.prepare(60)
    warning = first.new_warning()
    assert warning is not None
    for name, why in (("nowhere", "does not exist"), ("odd", "is not a private key"), ("open", "chmod 600")):
        assert re.search(f"{world.keys}/{name} [^;]*{why}", warning), warning
    assert second.new_warning() is None
    assert first.is_empty()


async def test_a_missing_named_file_leaves_the_usual_keys(world: World, tmp_path: Path) -> None:
    """As `ssh -i`, which warns and goes on as without."""
    server = OpenSSHServer(tmp_path / "sshd")
    folder = Path.home() / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "id_ed25519").symlink_to(world.keys / "a")
    (server.folder / "authorized_keys").write_text((world.keys / "a.pub").read_text())
    missing, warnings = tmp_path / "missing", list[str]()
    with server:
        access = Access(known_hosts=str(server.known_hosts), warn=warnings.append)
        connection = await open_connection(parse_host(server.target, identity=str(missing)), access)
        await connection.close()
    assert warnings == [f"not used as identity: {missing} does not exist"]


@pytest.mark.parametrize(
    ("kind", "is_certified", "form"),
    [("ssh-rsa", False, "pkcs1-pem"), ("ssh-rsa", True, "openssh"), ("ecdsa-sha2-nistp521", True, "pkcs8-pem")],
)
async def test_keys_of_each_kind_open_the_door(
    tmp_path: Path, kind: str, is_certified: bool, form: str, hold: Callable[[Path, str], None]
) -> None:
    """From a file and from the agent; with a certificate the server knows only the authority."""
    key = asyncssh.generate_private_key(kind)
    path = tmp_path / "held" / "k"
    path.parent.mkdir()
    key.write_private_key(path, form)
    path.chmod(0o600)
    authority = asyncssh.generate_private_key("ssh-ed25519")
    authority.write_public_key(tmp_path / "authority.pub")
    server = OpenSSHServer(tmp_path / "sshd", options=[f"TrustedUserCAKeys {tmp_path / 'authority.pub'}"])
    allowed = b"" if is_certified else key.export_public_key()
    (server.folder / "authorized_keys").write_bytes(allowed)
    if is_certified:
        certificate = authority.generate_user_certificate(key, "k", principals=[pwd.getpwuid(os.geteuid()).pw_name])
        certificate.write_certificate(tmp_path / "held" / "k-cert.pub")
    with server:
        for names in ("", "k"):  # from the file, then from the agent
            hold(path.parent, names)
            host = parse_host(server.target, identity=str(path))
            connection = await open_connection(host, Access(known_hosts=str(server.known_hosts)))
            await connection.close()
        assert server.count_in_log("Accepted publickey") == 2
