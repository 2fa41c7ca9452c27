"""A host that runs signed payloads only: every way to start something passes the gate, and nothing else is executed."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import signing
from cronium_runner import payload as payloads
from cronium_runner import prepare, trust
from cronium_runner.errors import PayloadError
from cronium_runner.jobdir import StateDirectory
from cronium_runner.submission import Archive
from cronium_runner.wire.frames import Kind
from runner_process import Host, Payload
from signing import Etc

pytestmark = [
    signing.needs_ssh_keygen,
    pytest.mark.skipif(signing.why_no_own_etc() is not None, reason=str(signing.why_no_own_etc())),
]
FROM_SOURCE = (sys.executable, "-m", "cronium_runner")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signing.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path / "etc")


@pytest.fixture
def signed(host: Host, etc: Etc, key: Path) -> Host:
    """A host that trusts the key for payloads."""
    etc.allow(f"alice {signing.public(key)}")
    host.executable = etc.within(FROM_SOURCE)
    return host


@pytest.fixture
def job(signed: Host) -> Payload:
    """A payload that leaves a file when it runs."""
    return signed.payload(f"echo ran; touch {signed.folder}/ran\n")


def has_run(host: Host) -> bool:
    return (host.folder / "ran").exists()


def refusal(host: Host, *words: object) -> str:
    """The code of a run that was refused; nothing of it was executed, unpacked or kept."""
    result = host.run_json(*words)
    assert (result["state"], result["exit status"]) == ("rejected", 125)
    assert not has_run(host)
    assert host.executions() == []
    code: str = result["error"]["code"]
    return code


def test_a_signed_file_runs_and_its_record_names_the_signer(signed: Host, job: Payload, key: Path) -> None:
    path = job.write(signed.folder / "job.tar.gz")
    assert refusal(signed, path) == "payload.unsigned"
    Path(f"{path}.sig").write_text(signing.signature(key, job.content))
    done = signed.run("run", "--execution-id", "one", path)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
    assert re.fullmatch(r"SHA256:[\w+/]{43} alice", signed.history("one")[0]["signer"])
    Path(f"{path}.sig").unlink()
    (signed.folder / "ran").unlink()
    done = signed.run("run", "--execution-id", "one", path)
    assert (done.returncode, done.stdout) == (0, b"ran\n"), "it is joined, which starts nothing"
    assert not has_run(signed)


def test_a_tampered_payload_is_refused(signed: Host, job: Payload, key: Path) -> None:
    path = job.write(signed.folder / "job.tar.gz")
    Path(f"{path}.sig").write_text(signing.signature(key, job.content))
    text = gzip.decompress(job.content).replace(b"echo ran", b"echo own")
    path.write_bytes(gzip.compress(text, mtime=0))
    assert refusal(signed, path) == "payload.signature_invalid"
    assert refusal(signed, job.write(signed.folder / "other.tar.gz")) == "payload.unsigned"


def test_a_foreign_expired_or_revoked_key_is_refused(
    signed: Host, etc: Etc, job: Payload, key: Path, tmp_path: Path
) -> None:
    path = job.write(signed.folder / "job.tar.gz")
    beside = Path(f"{path}.sig")
    beside.write_text(signing.signature(signing.key(tmp_path), job.content))
    assert refusal(signed, path) == "payload.signer_unknown"
    beside.write_text(signing.signature(key, job.content, "file"))
    assert refusal(signed, path) == "payload.signature_invalid"
    beside.write_text(signing.signature(key, job.content))
    etc.allow(f'alice valid-before="20200101Z" {signing.public(key)}')
    assert refusal(signed, path) == "payload.signer_expired"
    etc.allow(f"alice {signing.public(key)}")
    etc.revoked.write_text(f"{signing.public(key)}\n")
    assert refusal(signed, path) == "payload.signer_revoked"


def test_files_that_root_must_correct_refuse_all(signed: Host, etc: Etc, job: Payload, key: Path) -> None:
    path = job.write(signed.folder / "job.tar.gz")
    Path(f"{path}.sig").write_text(signing.signature(key, job.content))
    etc.allowed.chmod(0o666)
    assert refusal(signed, path) == "payload.signers_unreadable"
    etc.allowed.chmod(0o644)
    os.chown(etc.own, 65534, 65534)
    assert refusal(signed, path) == "payload.signers_unreadable"
    os.chown(etc.own, 0, 0)
    etc.allow(f"alice {signing.public(key)}", "bob")
    assert refusal(signed, path) == "payload.signers_unreadable"
    done = signed.run("doctor", "--json")
    [found] = [each for each in json.loads(done.stdout)["findings"] if each["name"] == "signatures"]
    assert (done.returncode, found["level"]) == (1, "bad")
    assert "line 2" in found["seen"]
    etc.allow(f"alice {signing.public(key)}", f'bob valid-before="20200101Z" {signing.public(key)}')
    shown = signed.run("doctor").stdout.decode()
    assert "only signed payloads run here: 1 of 2 keys valid now, 0 revoked" in shown


@pytest.mark.parametrize("way", [("run",), ("test",), ()], ids=["run", "test", "bare"])
def test_folders_and_scripts_are_refused(signed: Host, way: tuple[str, ...]) -> None:
    script = signed.script(f"touch {signed.folder}/ran\n")
    folder = signed.folder / "job"
    folder.mkdir()
    (folder / "manifest.yaml").write_text("version: v1\nentrypoint: a.sh\n")
    (folder / "a.sh").write_text(f"touch {signed.folder}/ran\n")
    for what in (script, folder):
        done = signed.run(*way, what)
        assert done.returncode == 125
        assert b"[payload.unsigned]" in done.stderr
        assert not has_run(signed)
    assert signed.executions() == []


def test_an_agent_asks_for_the_signature(signed: Host, job: Payload, key: Path, tmp_path: Path) -> None:
    good = signing.signature(key, job.content)
    refused: dict[str, tuple[dict[str, Any], str]] = {
        "none": ({}, "payload.unsigned"),
        "empty": ({"signature": ""}, "payload.unsigned"),
        "foreign": ({"signature": signing.signature(signing.key(tmp_path), job.content)}, "payload.signer_unknown"),
        "other": ({"signature": signing.signature(key, b"another")}, "payload.signature_invalid"),
        "words": ({"signature": "trust me"}, "payload.signature_invalid"),
    }
    with signed.agent() as agent:
        assert "signature" in agent.hello["knows"]
        for name, (keys, code) in refused.items():
            channel = agent.submit(job, name, **keys)
            if agent.expect(channel).kind == Kind.WANT_PAYLOAD:
                agent.send_payload(channel, job.content)
                result = agent.finished(channel)
            else:
                raise AssertionError("it was in the cache")
            (signed.state / "payloads" / f"{job.sha256}.tar.gz").unlink()  # each time as if it were the first
            assert (result["state"], result["error"]["code"]) == ("rejected", code), name
            assert not has_run(signed)
        channel = agent.start(job, "good", signature=good)
        assert agent.finished(channel)["state"] == "succeeded"
        # From the cache no bytes come, and the signature is asked for again.
        assert agent.finished(agent.submit(job, "again"))["error"]["code"] == "payload.unsigned"
        channel = agent.submit(job, "more", signature=good)
        assert agent.expect(channel, Kind.ACCEPTED).json()["started"]
        assert agent.finished(channel)["state"] == "succeeded"
        # Joining starts nothing, so it asks for nothing.
        assert agent.expect(agent.submit(job, "good"), Kind.ACCEPTED).json()["started"] is False
        channel = agent.new_channel()
        agent.send(Kind.SUBMIT, channel, {"executionId": "odd", "sha256": job.sha256, "signature": 5})
        assert agent.expect(channel, Kind.REFUSED).json()["code"] == "usage.invalid"
        assert agent.close() == 0


def test_a_rotten_payload_in_the_cache_is_refused(signed: Host, job: Payload, key: Path) -> None:
    good = signing.signature(key, job.content)
    with signed.agent() as agent:
        agent.finished(agent.start(job, "one", signature=good))
        (signed.folder / "ran").unlink()
        cached = signed.state / "payloads" / f"{job.sha256}.tar.gz"
        cached.write_bytes(signed.payload(f"touch {signed.folder}/ran\n").content)
        channel = agent.submit(job, "two", signature=good)
        assert agent.finished(channel)["error"]["code"] == "payload.digest_mismatch"
        assert not has_run(signed)
        assert agent.close() == 0


def test_api_mode_passes_the_same_gate(signed: Host, job: Payload) -> None:
    access = {"endpoint": "unix:///nonexistent", "token": "t" * 40}
    with signed.agent() as agent:
        channel = agent.submit(job, "one", api=access)
        agent.expect(channel, Kind.WANT_PAYLOAD)
        agent.send_payload(channel, job.content)
        assert agent.finished(channel)["error"]["code"] == "payload.unsigned"
        assert not has_run(signed)
        assert agent.close() == 0


def test_validate_asks_for_it_unless_told_otherwise(signed: Host, job: Payload) -> None:
    path = job.write(signed.folder / "job.tar.gz")
    done = signed.run("validate", path)
    assert (done.returncode, b"[payload.unsigned]" in done.stderr) == (125, True)
    assert signed.run("validate", "--unsigned", path).returncode == 0


def test_a_file_that_changes_while_it_is_unpacked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    """What is unpacked is compared with what was signed, at its end and before anything of it starts."""
    path = host.payload("true\n").write(tmp_path / "job.tar.gz")
    other = host.payload("false\n").content
    state = StateDirectory.open(str(tmp_path / "state"))

    def check(file: object, name: str, _signature: object) -> tuple[str, str]:
        digest = payloads.digest_of(file)  # type: ignore[arg-type]
        Path(name).write_bytes(other)
        return digest, "alice"

    monkeypatch.setattr(trust, "is_required", lambda: True)
    monkeypatch.setattr(trust, "check", check)
    with pytest.raises(PayloadError, match="changed while it was unpacked"):
        prepare.inspect(state, Archive(str(path)))


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-o", os.devnull, "true"], capture_output=True).returncode != 0:
        pytest.skip("strace is not installed, or not permitted")
    return found


@pytest.fixture
def traced(host: Host, strace: str) -> Callable[..., str]:
    """Runs the runner and returns the system calls that name a file, of all its processes."""

    def run(command: tuple[str, ...], *words: object) -> str:
        log = host.folder / "trace"
        host.executable = (
            *command[: command.index(sys.executable)],
            strace,
            "-f",
            "-e",
            "trace=%file",
            "-o",
            str(log),
            *FROM_SOURCE,
        )
        done = host.run(*words)
        assert done.returncode == 0, done.stderr
        return log.read_text(errors="replace")

    return run


def test_a_host_that_asks_for_none_pays_one_look(host: Host, etc: Etc, key: Path, traced: Callable[..., str]) -> None:
    job = host.payload("true\n")
    path = job.write(host.folder / "job.tar.gz")
    Path(f"{path}.sig").write_text(signing.signature(key, job.content))
    free = traced(FROM_SOURCE, "run", path)
    assert free.count("/etc/cronium-runner") == 1
    for name in ("libcrypto", "/ctypes/", "sshsig", "allowed_signers.c", "job.tar.gz.sig"):
        assert name not in free, name
    etc.allow(f"alice {signing.public(key)}")
    gated = traced(etc.within(FROM_SOURCE), "run", path)
    assert all(name in gated for name in ("libcrypto", "/ctypes/", "sshsig", "allowed_signers.c", "job.tar.gz.sig"))
