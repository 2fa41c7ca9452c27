"""Signed payloads with the binary: its own libcrypto checks them, and `--run-as` hands the signed archive on."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import signing
from accounts import throw_away_account
from cronium_controller.hosts import LOCAL
from runner_process import PATIENCE, Host, Payload
from signing import Etc

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.frozen,
    signing.needs_ssh_keygen,
    pytest.mark.skipif(signing.why_no_own_etc() is not None, reason=str(signing.why_no_own_etc())),
]
making_accounts = pytest.mark.skipif(shutil.which("useradd") is None, reason="needs useradd")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return {kind: signing.key(folder, kind) for kind in ("ed25519", "ecdsa:256", "rsa:2048")}


@pytest.fixture
def signed(tmp_path: Path, install_directory: Path, binary: Path, keys: dict[str, Path]) -> Iterator[Host]:
    """Root's runner on a host that trusts these keys."""
    etc = Etc(tmp_path / "etc")
    etc.allow(*(f"{kind} {signing.public(path)}" for kind, path in keys.items()))
    made = Host(tmp_path, install_directory)
    made.executable = etc.within([str(binary)])
    yield made
    made.check_nothing_left()


def files(folder: Path, payload: Payload, key: Path | None) -> Path:
    path = payload.write(folder / "job.tar.gz")
    if key is not None:
        path.with_name("job.tar.gz.sig").write_text(signing.signature(key, payload.content))
    return path


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa:256", "rsa:2048"])
def test_the_binary_runs_what_is_signed_and_nothing_else(signed: Host, keys: dict[str, Path], kind: str) -> None:
    payload = signed.payload("echo ran\n")
    done = signed.run("run", files(signed.folder, payload, keys[kind]))
    assert (done.returncode, done.stdout) == (0, b"ran\n"), done.stderr
    tampered = Payload(payload.content[:-1] + b"\1")
    tampered.write(signed.folder / "job.tar.gz")
    done = signed.run("run", signed.folder / "job.tar.gz")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[payload.signature_invalid]" in done.stderr
    done = signed.run("run", signed.script("echo ran\n"))
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"[payload.unsigned]" in done.stderr


@making_accounts
def test_run_as_hands_the_signed_archive_on(signed: Host, keys: dict[str, Path], tmp_path: Path) -> None:
    payload = signed.payload("id -un\n")
    with throw_away_account() as target:
        for name in ("passwd", "group"):  # with the new account
            shutil.copy2(f"/etc/{name}", tmp_path / "etc" / name)
        done = signed.run("run", "--run-as", target.name, files(signed.folder, payload, None))
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"[payload.unsigned]" in done.stderr
        path = files(signed.folder, payload, keys["ed25519"])
        done = signed.run("run", "--run-as", target.name, "--execution-id", "one", path)
        assert (done.returncode, done.stdout) == (0, f"{target.name}\n".encode()), done.stderr
        claim = json.loads((target.execution("one") / "state.jsonl").read_text().splitlines()[0])
        assert claim["signer"].endswith(" ed25519")
        # Both files in the target's reach are read with its rights.
        for name in ("job.tar.gz", "job.tar.gz.sig"):
            target.give(target.home / name, (signed.folder / name).read_bytes())
        done = signed.run("run", "--run-as", target.name, target.home / "job.tar.gz")
        assert (done.returncode, done.stdout) == (0, f"{target.name}\n".encode()), done.stderr
        secret = tmp_path / "secret"
        secret.write_text("nobody's to read")
        secret.chmod(0o600)
        (target.home / "job.tar.gz.sig").unlink()
        (target.home / "job.tar.gz.sig").symlink_to(secret)
        done = signed.run("run", "--run-as", target.name, target.home / "job.tar.gz")
        assert (done.returncode, done.stdout) == (125, b"")
        assert b"nobody's" not in done.stderr
        target.wait_nothing_left()


def cronium(signed: Host, tmp_path: Path, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The `cronium` command in the host's /etc, with a binary that is not in it."""
    environment: dict[str, Any] = {
        **signed.environment, "CRONIUM_CONTROLLER_STATE": str(tmp_path / "controller"), "HOME": str(tmp_path),
        "CRONIUM_RUNNER_BINARY": signed.executable[-1], "CRONIUM_RUNNER_ROOT": str(tmp_path / "lib"), **variables,
    }  # fmt: skip
    command = [*signed.executable[:-1], sys.executable, "-m", "cronium_controller", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def test_a_controller_signs_what_it_sends(signed: Host, keys: dict[str, Path], tmp_path: Path) -> None:
    """Through the agent: a script, and an event's payload that was signed when it was built."""
    script = signed.script("echo ran; cronium.output k v\n")
    done = cronium(signed, tmp_path, "run", "--host", LOCAL, script)
    assert done.returncode == 125
    assert "[payload.unsigned]" in done.stderr
    done = cronium(signed, tmp_path, "run", "--host", LOCAL, "--sign", keys["rsa:2048"], script)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    done = cronium(signed, tmp_path, "payload", "build", "7", script, "--sign", keys["ed25519"])
    assert done.returncode == 0, done.stderr
    done = cronium(signed, tmp_path, "run", "--host", LOCAL, "event:7", "--json")
    assert json.loads(done.stdout)["output"] == {"k": "v"}, done.stderr
