"""Signing payloads: by a file, a passphrase or an agent, for a run and for an event's versions."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import preloaded
import signing as keys
from cronium_controller import payloads, signing
from cronium_controller.deploy.health_check import check_health
from cronium_controller.errors import PayloadError
from cronium_controller.job import Job
from cronium_runner.wire.sshsig import NAMESPACE
from openssh import sshd_path
from remote_host import RemoteHost

pytestmark = keys.needs_ssh_keygen


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keys.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "job.sh"
    path.write_text("echo one\n")
    return path


def is_by(folder: Path, key: Path, armored: str, content: bytes) -> bool:
    return keys.accepts(folder, f"alice {keys.public(key)}\n", "alice", armored, content)


def bytes_of(payload: payloads.Payload) -> bytes:
    return b"".join(payload.pieces())


def test_a_key_in_a_file_signs(tmp_path: Path, key: Path, script: Path) -> None:
    payload = payloads.load(script)
    armored = signing.sign(payload.pieces(), str(key))
    assert is_by(tmp_path, key, armored, bytes_of(payload))
    assert not is_by(tmp_path, key, armored, b"other")


def test_a_key_with_a_passphrase_signs(tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = keys.key(tmp_path, passphrase="open sesame")
    asking = tmp_path / "asking"
    asking.write_text("#!/bin/sh\necho open sesame\n")
    asking.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(asking))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    payload = payloads.load(script)
    assert is_by(tmp_path, locked, signing.sign(payload.pieces(), str(locked)), bytes_of(payload))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    socket = f"/tmp/cronium-test-agent-{os.urandom(4).hex()}"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it listens
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        yield
        process.terminate()


@pytest.mark.usefixtures("agent")
def test_a_key_in_an_agent_signs(tmp_path: Path, script: Path) -> None:
    path = keys.key(tmp_path)
    subprocess.run(["ssh-add", "-q", str(path)], check=True)
    path.unlink()
    payload = payloads.load(script)
    assert is_by(tmp_path, path, signing.sign(payload.pieces(), f"{path}.pub"), bytes_of(payload))


def test_what_cannot_sign_is_said(tmp_path: Path, script: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    payload = payloads.load(script)
    other = tmp_path / "other.pub"
    other.write_text(f"{keys.public(key)}\n")
    for named, why in ((tmp_path / "none", "there is no key"), (script, "did not sign"), (other, "did not sign")):
        with pytest.raises(PayloadError, match=why) as refused:
            signing.sign(payload.pieces(), str(named))
        assert refused.value.code == "payload.signing"
    monkeypatch.setattr(signing, "PROGRAM", "ssh-keygen-that-is-not-there")
    with pytest.raises(PayloadError, match="is not installed here"):
        signing.sign(payload.pieces(), str(key))


def test_a_short_rsa_key_is_refused_before_anything_is_sent(tmp_path: Path, script: Path) -> None:
    with pytest.raises(PayloadError, match="2048 to 16384 bits, not 1024") as refused:
        signing.sign(payloads.load(script).pieces(), str(keys.key(tmp_path, "rsa:1024")))
    assert refused.value.code == "payload.signature_invalid"


def test_the_signature_beside_a_payload_travels(tmp_path: Path, script: Path, key: Path) -> None:
    path = tmp_path / "job.tar.gz"
    path.write_bytes(content := bytes_of(payloads.load(script)))
    assert "signature" not in Job(payloads.load(path)).submission("one", follow=True)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(path)], check=True)
    loaded = payloads.load(path)
    body = Job(loaded).submission("one", follow=True)
    assert is_by(tmp_path, key, body["signature"], content)
    assert "signature" not in Job(loaded).submission("one", follow=True, is_signed=False)
    beside = Path(f"{path}.sig")
    beside.write_text(keys.signature(key, content, "file"))
    with pytest.raises(PayloadError, match="was made for 'file'") as refused:
        payloads.load(path)
    assert refused.value.code == "payload.signature_invalid"
    beside.write_bytes(b"\x89another program's")
    assert payloads.load(path).signature is None


def test_versions_of_an_event_are_signed(tmp_path: Path, script: Path, key: Path) -> None:
    environment = {**os.environ, "CRONIUM_CONTROLLER_STATE": str(tmp_path / "state"), "HOME": str(tmp_path)}
    environment.pop("CRONIUM_PAYLOADS", None)

    def cronium(*words: object) -> "subprocess.CompletedProcess[str]":
        return preloaded.run("cronium", ["payload", *words], env=environment, text=True)

    built = json.loads(cronium("build", 7, script, "--sign", key, "--json").stdout)
    assert built["isSigned"]
    path = Path(built["path"])
    beside = Path(f"{path}.sig")
    assert is_by(tmp_path, key, beside.read_text(), path.read_bytes())
    assert cronium("verify").returncode == 0
    assert cronium("list").stdout.rstrip().endswith("  signed")
    beside.write_text(keys.signature(key, b"other"))
    done = cronium("verify")
    assert (done.returncode, "is not its signature" in done.stdout) == (1, True)
    assert not json.loads(cronium("build", 7, script, "--sign", key, "--json").stdout)["isNew"]
    assert cronium("verify").returncode == 0
    script.write_text("echo two\n")
    assert not json.loads(cronium("build", 7, script, "--json").stdout)["isSigned"]
    assert cronium("gc", "--keep", "1").returncode == 0
    assert not path.exists()
    assert not beside.exists()
    done = cronium("build", 8, script, "--sign", tmp_path / "none")
    assert (done.returncode, "[payload.signing]" in done.stderr) == (125, True)


@pytest.mark.sshd
@pytest.mark.skipif(keys.why_no_own_etc() is not None, reason=str(keys.why_no_own_etc()))
def test_a_host_over_ssh_runs_what_is_signed(tmp_path: Path, carrier: Path, key: Path) -> None:
    """Raw commands need no runner, and so no signature."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    etc = keys.Etc(tmp_path / "etc")
    etc.allow(f"alice {keys.public(key)}")
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", mounts={etc.path: "/etc"}) as remote:
        script = remote.script(f"echo ran; touch {tmp_path}/ran\n")
        done = remote.run(script)
        assert (done.returncode, done.stdout) == (125, b""), done.stderr
        assert b"[payload.unsigned]" in done.stderr
        done = remote.run("--sign", keys.key(tmp_path), script)
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"[payload.signer_unknown]" in done.stderr
        assert not (tmp_path / "ran").exists()
        done = remote.run("--sign", key, script)
        assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
        done = remote.cronium("exec", "--host", remote.server.target, "--", "echo raw")
        assert (done.returncode, done.stdout) == (0, b"raw\n")

        async def look() -> None:
            async with remote.controller() as controller:
                await check_health(controller, remote.host)

        asyncio.run(look())
        # As docs/signatures.md has it: this key may start the agent, and nothing else.
        keys_file = remote.server.folder / "authorized_keys"
        keys_file.write_text(f'command="sh {carrier} agent",restrict {keys_file.read_text()}')
        done = remote.run("--sign", key, script)
        assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
        done = remote.run(script)
        assert (done.returncode, done.stdout, b"[payload.unsigned]" in done.stderr) == (125, b"", True)
        done = remote.cronium("exec", "--host", remote.server.target, "--", "echo raw")
        assert b"raw\n" not in done.stdout
