"""A root directory with aarch64's own programs: those of Debian's packages, a static busybox and Python."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import emulation
import host_roots as roots
from runner_process import ROOT

sys.path.insert(0, str(ROOT / "build"))

import archive
import packages

PROGRAMS: Final = ("busybox-static", "python3.11-minimal")


APPLETS: Final = ("sh", "env", "sed", "tar", "find", "sha256sum", "uname", "id", "cat", "mkdir", "rm", "sleep")
"""What of busybox jobs and `--run-as` need."""


def debian(root: Path) -> None:
    """Unpacks the programs, and what Python needs, from packages of the lock. Raises roots.UnavailableError."""
    missing = emulation.missing()
    if missing is not None:
        raise roots.UnavailableError(missing)
    architecture = packages.ARCHITECTURES["aarch64"]
    mirror = archive.Mirror(ROOT / ".work" / "packages", packages.SUITES[:1], (architecture,))
    (root / "usr" / "lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    try:
        files = [mirror.exact(package) for package in packages.locked() if package.architecture == architecture]
        files += current(mirror, architecture)
    except archive.UnavailableError as error:
        raise roots.UnavailableError(str(error)) from None
    for file in files:
        if file is None:
            raise roots.UnavailableError("Debian's archive has a package of packages.lock no more")
        subprocess.run(["dpkg-deb", "--extract", file, root], check=True)
    roots.fill(root, APPLETS)
    (root / "usr" / "bin" / "python3").symlink_to("python3.11")


def current(mirror: archive.Mirror, architecture: str) -> list[Path]:
    """The programs' packages, of which any version will do: those that an earlier run has kept, or the archive's."""
    kept = archive.Folder(ROOT / ".work" / "packages")
    wanted = [(name, architecture) for name in PROGRAMS]
    try:
        return kept.current(wanted)
    except archive.UnavailableError:
        return mirror.current(wanted)


def binary(own: Path) -> Path:
    """The binary beside this machine's. Raises roots.UnavailableError."""
    found = own.with_name(f"{own.name.rpartition('-')[0]}-aarch64")
    if not found.exists():
        raise roots.UnavailableError(f"{found.name} is not there: scripts/build makes it where it has the packages")
    return found
