"""Which runner binaries are deployed: those with their SHA-256, and, where signers are named, a signature by one."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import signing
from cronium_controller.binary_trust import NAMESPACE
from cronium_controller.errors import ControllerError, DeployError
from cronium_controller.inventory import load as load_hosts
from cronium_controller.job import Job
from cronium_controller.payloads import load
from cronium_controller.runners import Runners, read_binary
from cronium_controller.store import Store
from remote_host import RemoteHost, collect
from runner_process import with_digest

pytestmark = signing.needs_ssh_keygen
NAME = "cronium-runner-9.9.9-linux-x86_64"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return signing.keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def key(keys: Callable[[str], Path]) -> Path:
    return keys("ed25519")


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.write_bytes(b"program" * 1000)
    return with_digest(path)


@pytest.fixture
def signers(tmp_path: Path, key: Path) -> Path:
    path = tmp_path / "allowed_signers"
    path.write_text(f'release namespaces="{NAMESPACE}" {signing.public(key)}\n')
    return path


def sign(binary: Path, key: Path, namespace: str = NAMESPACE) -> None:
    text = signing.signature(key, binary.read_bytes(), namespace)
    binary.with_name(binary.name + ".sig").write_text(text)


def refusal(binary: Path, signers: Path) -> str:
    with pytest.raises(DeployError) as refused:
        read_binary(binary, str(signers))
    return refused.value.code


def test_a_binary_without_its_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(b"program")
    with pytest.raises(DeployError, match=f"sha256sum {NAME} >{NAME}.sha256") as refused:
        read_binary(path)
    assert refused.value.code == "binary.no_digest"
    with_digest(path)
    assert read_binary(path).size == 7
    path.write_bytes(b"another")
    with pytest.raises(DeployError) as refused:
        read_binary(path)
    assert refused.value.code == "deploy.digest_mismatch"


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa:256", "ecdsa:384", "ecdsa:521", "rsa:2048"])
def test_a_binary_that_a_signer_signed_is_deployed(
    binary: Path, signers: Path, keys: Callable[[str], Path], kind: str
) -> None:
    signers.write_text(f"release {signing.public(keys(kind))}\n")
    sign(binary, keys(kind))
    assert read_binary(binary, str(signers)).version == "9.9.9"


def test_a_tampered_binary_is_refused(binary: Path, signers: Path, key: Path) -> None:
    """Also with a digest that was tampered to fit."""
    sign(binary, key)
    binary.write_bytes(binary.read_bytes()[:-1] + b"\0")
    assert refusal(binary, signers) == "deploy.digest_mismatch"
    with_digest(binary)
    assert refusal(binary, signers) == "binary.signature_invalid"


def test_a_binary_with_no_signature_that_counts_is_refused(
    binary: Path, signers: Path, key: Path, keys: Callable[[str], Path]
) -> None:
    assert refusal(binary, signers) == "binary.unsigned"
    sign(binary, key, "payload@cronium-runner")
    assert refusal(binary, signers) == "binary.signature_invalid"
    binary.with_name(NAME + ".sig").write_text("trust me")
    assert refusal(binary, signers) == "binary.signature_invalid"
    sign(binary, keys("ecdsa:256"))
    assert refusal(binary, signers) == "binary.signer_untrusted"
    sign(binary, key)
    assert read_binary(binary, str(signers)).size == 7000
    public = signing.public(key)
    for line in (f'a valid-before="20200101Z" {public}', f'a namespaces="git" {public}'):
        signers.write_text(f"{line}\n")
        assert refusal(binary, signers) == "binary.signer_untrusted"
    signers.write_text(f"a {public}\n")
    signers.with_name("revoked_keys").write_text(f"{public}\n")
    assert refusal(binary, signers) == "binary.signer_untrusted"
    signers.with_name("revoked_keys").write_text("what?\n")
    assert refusal(binary, signers) == "binary.signers_unreadable"


def test_signers_that_cannot_be_read_refuse_all(binary: Path, signers: Path, key: Path) -> None:
    sign(binary, key)
    signers.chmod(0o646)
    assert refusal(binary, signers) == "binary.signers_unreadable"
    signers.chmod(0o644)
    signers.write_text(f"a cert-authority {signing.public(key)}\n")
    assert refusal(binary, signers) == "binary.signers_unreadable"
    assert refusal(binary, signers.with_name("none")) == "binary.signers_unreadable"


def test_an_older_version_beside_it_is_checked_too(
    binary: Path, signers: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRONIUM_SIGNERS", str(signers))
    older = binary.with_name(NAME.replace("9.9.9", "1.0.0"))
    older.write_bytes(b"older")
    with_digest(older)
    runners = Runners(str(binary))
    assert runners.of_version("2.0.0", "x86_64") is None
    with pytest.raises(ControllerError) as refused:
        runners.of_version("1.0.0", "x86_64")
    assert refused.value.code == "binary.unsigned"
    sign(older, key)
    assert runners.of_version("1.0.0", "x86_64") is not None


@pytest.mark.sshd
def test_what_is_refused_is_not_sent(remote: RemoteHost, tmp_path: Path, signers: Path, key: Path) -> None:
    """By the commands: nothing arrives on the host, nothing runs there."""
    binary = tmp_path / remote.binary.name
    binary.write_bytes(remote.binary.read_bytes())
    with_digest(binary)
    script = remote.script("echo works")
    options = ("--binary", binary, "--signers", signers)
    done = remote.run(*options, script)
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[binary.unsigned]" in done.stderr
    assert not [*remote.root.glob("*")], "something was sent"
    sign(binary, key)
    done = remote.run(*options, script)
    assert (done.returncode, done.stdout) == (0, b"works\n"), done.stderr


@pytest.mark.sshd
async def test_a_host_of_the_hosts_file_has_signers_of_its_own(
    remote: RemoteHost, tmp_path: Path, signers: Path, key: Path
) -> None:
    """A job, a deployment and a roll-back go by them; the other host of the controller goes without."""
    binary = tmp_path / "dist" / remote.binary.name
    binary.parent.mkdir()
    binary.write_bytes(remote.binary.read_bytes())
    with_digest(binary)
    host = replace(remote.host, signers=str(signers))
    runners = Runners(str(binary), root=str(remote.root), pauses=())
    async with remote.controller(runners=runners) as controller:
        job = Job(load(remote.script("echo works")))
        for call in (controller.submit(host, job), controller.deploy(host), controller.roll_back(host)):
            with pytest.raises(ControllerError) as refused:
                await call
            assert refused.value.code == "binary.unsigned"
        assert not [*remote.root.glob("*")], "something was sent"
        sign(binary, key)
        assert (await collect(await controller.submit(host, job)))["stdout"] == b"works\n"
        binary.with_name(binary.name + ".sig").unlink()
        assert (await collect(await controller.submit(remote.host, job)))["stdout"] == b"works\n"


def test_signers_of_a_hosts_file(
    binary: Path, signers: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path that begins at the file's folder; the option and the environment count before it."""
    monkeypatch.delenv("CRONIUM_SIGNERS", raising=False)
    (tmp_path / "hosts.yaml").write_text(
        "defaults: {signers: allowed_signers}\nhosts:\n  a:\n  b: {signers: ~/others}\n  c: {signers: '${NONE:-}'}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/zoe")
    hosts = [load_hosts("hosts.yaml").host(name) for name in "abc"]
    assert [host.signers for host in hosts] == [str(signers), "/home/zoe/others", str(signers)]
    runners = Runners(str(binary))
    assert runners.for_machine("x86_64", "").version == "9.9.9"
    trusting = runners.for_host(hosts[0])
    assert trusting is runners.for_host(hosts[2])
    with pytest.raises(ControllerError) as refused:
        trusting.for_machine("x86_64", "")
    assert refused.value.code == "binary.unsigned"
    sign(binary, key)
    assert trusting.for_machine("x86_64", "").version == "9.9.9"
    chosen = Runners(str(binary), signers=str(signers))
    assert chosen.for_host(hosts[1]) is chosen
    store = Store(tmp_path / "store.db")
    store.record("one", hosts[0], "0" * 64, "label", 0.0)
    found = store.find("one")
    store.close()
    assert found is not None
    assert found.host.signers == str(signers), "a later attach must not deploy what they have not signed"


def test_ssh_keygen_checks_the_same_signature(binary: Path, signers: Path, key: Path) -> None:
    sign(binary, key)
    words = ["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, "-f", signers, "-I", "release", "-s", f"{binary}.sig"]
    with binary.open("rb") as file:
        assert subprocess.run([*map(str, words)], stdin=file, capture_output=True).returncode == 0
    assert read_binary(binary, str(signers)).size == 7000
