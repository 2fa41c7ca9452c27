"""Whole builds of the binaries: twice the same bytes, with packages that are not the lock's, and with none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import signing
from releasing import cloned, needs_repository, release
from runner_process import ROOT

sys.path.insert(0, str(ROOT / "build"))

import archive
import binary
import packages

pytestmark = [pytest.mark.full, pytest.mark.frozen, needs_repository]

PATIENCE = 900


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the packages that the build of this checkout has used."""
    kept = ROOT / ".work" / "packages"
    if not all((kept / package.file).is_file() for package in packages.locked()):
        pytest.skip("the packages of packages.lock are not here: Debian's archive has others, or is out of reach")
    made = tmp_path / "packages"
    made.mkdir()
    for package in packages.locked():
        shutil.copy(kept / package.file, made)
    return made


def build(checkout: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    shutil.copytree(ROOT / ".work" / "sources", checkout / ".work" / "sources", dirs_exist_ok=True)
    environment = os.environ | {"CRONIUM_BUILD_PACKAGES": str(folder)} | variables
    command = [sys.executable, str(checkout / "build" / "binary.py")]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done


def binaries(checkout: Path) -> dict[str, bytes]:
    paths = (checkout / "dist").glob("cronium-runner-*")
    return {path.name: path.read_bytes() for path in paths}


def said_version(checkout: Path, root: Path) -> str:
    [path] = (checkout / "dist").glob(f"cronium-runner-*-linux-{os.uname().machine}")
    environment = os.environ | {"CRONIUM_INSTALL_DIR": str(root)}
    return subprocess.run([path, "version"], env=environment, capture_output=True, text=True, check=True).stdout


def test_a_second_build_elsewhere_has_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    """In another folder, time zone and umask, by packages in a folder and not from the archive."""
    first, second = cloned(tmp_path / "one"), cloned(tmp_path / "two and more")
    build(first, folder)
    build(second, folder, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    made = binaries(first)
    assert {name.rpartition("-")[2] for name in made} == {
        f"{name}{end}" for name in binary.ARCHITECTURES for end in ("", ".sha256")
    }
    assert made == binaries(second)


def test_a_build_of_newer_packages_is_unlocked(tmp_path: Path, folder: Path) -> None:
    """It runs, names itself so, and is not released."""
    checkout = cloned(tmp_path / "one")
    [old] = folder.glob("zlib1g_*_amd64.deb")
    subprocess.run(["dpkg-deb", "--raw-extract", old, tmp_path / "zlib"], check=True)
    control = tmp_path / "zlib" / "DEBIAN" / "control"
    version = archive.described(old).version
    control.write_text(control.read_text().replace(f"Version: {version}\n", "Version: 9:9.9-9\n"))
    old.unlink()
    new = folder / "zlib1g_9%3a9.9-9_amd64.deb"
    packed = ["dpkg-deb", "--root-owner-group", "--build", str(tmp_path / "zlib"), str(new)]
    subprocess.run(packed, check=True, capture_output=True)
    for _ in range(2):  # made, and found
        done = build(checkout, folder)
        assert f"zlib1g (amd64) is 9:9.9-9, not {version}" in done.stderr
    assert "-unlocked)" in said_version(checkout, tmp_path / "root")
    key = signing.key(tmp_path)
    refused = release(checkout, "--key", key, CRONIUM_BUILD_PACKAGES=str(folder))
    assert refused.returncode == 1
    assert "these binaries are not to be released" in refused.stderr
    assert not list((checkout / "dist").glob("release*"))


def test_a_build_without_packages_serves_this_machine(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    checkout = cloned(tmp_path / "one")
    done = build(checkout, tmp_path / "packages")
    others = [name for name in binary.ARCHITECTURES if name != os.uname().machine]
    assert f"the binary for {os.uname().machine} is made of this machine's Python and libraries" in done.stderr
    assert all(f"there is no binary for {name}" in done.stderr for name in others)
    assert len(binaries(checkout)) == 2
    assert "-unlocked)" in said_version(checkout, tmp_path / "root")
