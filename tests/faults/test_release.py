"""Two whole releases of one commit: in different folders, by different clocks, with the same bytes."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

import signing
from releasing import cloned, git, needs_repository, release

pytestmark = signing.needs_ssh_keygen

LATER = """
import time
def later(function, default=True):
    def told(*seconds):
        return function(*seconds) if seconds or not default else function(later_time())
    return told
real, real_ns = time.time, time.time_ns
def later_time():
    return real() + 40 * 86400 + 3600
time.time, time.time_ns = later_time, lambda: real_ns() + (40 * 86400 + 3600) * 10**9
time.localtime, time.gmtime = later(time.localtime), later(time.gmtime)
"""
"""Has every Python that begins with it take the day for another one."""


@needs_repository
@pytest.mark.full
def test_a_second_release_elsewhere_and_later_is_the_same(tmp_path: Path) -> None:
    """In another folder, by a clock 40 days on and a different umask: each file has the same bytes."""
    key = signing.key(tmp_path)
    first, second = cloned(tmp_path / "one"), cloned(tmp_path / "two and more")
    assert git(first, "rev-parse", "HEAD") == git(second, "rev-parse", "HEAD")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sitecustomize.py").write_text(LATER)
    done = release(first, "--key", key)
    assert done.returncode == 0, done.stderr
    one = Path(done.stdout.splitlines()[-1])
    later = {"PYTHONPATH": str(tmp_path / "later"), "TZ": "Asia/Tokyo"}
    done = release(second, "--key", key, "--output", tmp_path / "out", umask=0o027, **later)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in one.iterdir()}
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(made) == sorted(again)
    assert [name for name in made if made[name] != again[name]] == []
    assert git(first, "tag") == "v0.2.0"
    check(one, signing.public(key))


def check(folder: Path, public: str) -> None:
    """As a person checks it who has received it."""
    names = {path.name for path in folder.iterdir()}
    binaries = [f"cronium-runner-0.2.0-linux-{architecture}" for architecture in ("x86_64", "aarch64")]
    wanted = {f"{name}{end}" for name in binaries for end in ("", ".sha256", ".sig", ".cdx.json")}
    wanted |= {"SHA256SUMS", "SHA256SUMS.sig"}
    assert wanted | {"THIRD-PARTY-LICENSES.txt", "RELEASE-NOTES.md"} <= names
    assert any(name.endswith(".whl") for name in names)
    assert any(name.endswith(".tar.gz") for name in names)
    (folder.parent / "allowed").write_text(f"release {public}\n")
    words = ["ssh-keygen", "-Y", "verify", "-f", str(folder.parent / "allowed"), "-I", "release"]
    for name, namespace in (
        *((binary, "binary@cronium-runner") for binary in binaries),
        ("SHA256SUMS", "release@cronium-runner"),
    ):
        with (folder / name).open("rb") as file:
            options = ["-n", namespace, "-s", str(folder / f"{name}.sig")]
            assert subprocess.run([*words, *options], stdin=file, capture_output=True).returncode == 0, name
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    summed = {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert summed == names - {"SHA256SUMS", "SHA256SUMS.sig"}
    for binary in binaries:
        told = json.loads((folder / f"{binary}.cdx.json").read_text())
        hashed = hashlib.sha256((folder / binary).read_bytes()).hexdigest()
        assert told["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": hashed}]
        parts = {part["name"].lower() for part in told["components"]}
        assert {"click", "httpx", "pyyaml", "pyinstaller", "ziglang", "zstandard", "libc6", "libpython3.11"} <= parts
    texts = (folder / "THIRD-PARTY-LICENSES.txt").read_text()
    assert all(
        name in texts for name in ("PYTHON SOFTWARE FOUNDATION LICENSE", "musl", "PyInstaller", "Meta Platforms")
    )
