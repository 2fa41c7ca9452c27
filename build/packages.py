"""The Debian packages that a runner binary's Python, C library and other libraries come from.

In:  `packages.lock`: name, version, architecture, source package and SHA-256 of a package on each line; and the archive
     that has them (see archive.py).
Out: for each architecture a directory with its packages unpacked, and which of them are not the locked ones.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from archive import Archive, Package, UnavailableError, command, described

LOCK: Final = Path(__file__).resolve().with_name("packages.lock")

PYTHON: Final = (3, 11)
"""The version of Python that the packages have."""
SUITES: Final = ("bookworm", "trixie")
"""One has that Python. The other has the newest C library: modules of hosts that find accounts are linked with theirs,
and an older one of ours could not load them."""
NAMES: Final = (
    "gcc-14-base", "libc6", "libexpat1", "libffi8", "libgcc-s1", "libpython3.11", "libpython3.11-minimal",
    "libpython3.11-stdlib", "libssl3", "zlib1g",
)  # fmt: skip
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's names of them."""


class Unpacked(NamedTuple):
    """The packages of an architecture in one directory. `owners`: the package of each file, by its path below that."""

    root: Path
    owners: dict[str, Package]
    unlocked: tuple[str, ...]
    """What is there in place of a locked package: a sentence for each."""


def unpack(architecture: str, archive: Archive, root: Path) -> Unpacked:
    """Unpack the packages of an architecture (`x86_64`, `aarch64`) in a new directory. Raises UnavailableError."""
    if shutil.which("dpkg-deb") is None:
        raise UnavailableError("dpkg-deb, which unpacks Debian packages, is not installed")
    wanted = [package for package in locked() if package.architecture == ARCHITECTURES[architecture]]
    root.mkdir(parents=True)
    owners = {}
    unlocked = []
    for package, path in found(wanted, archive):
        there = described(path)
        if there.sha256 != package.sha256:
            unlocked.append(f"{package.name} ({package.architecture}) is {there.version}, not {package.version}")
        for line in command(["dpkg-deb", "--vextract", str(path), str(root)]).splitlines():
            owners[line.removeprefix("./")] = there
    return Unpacked(root, owners, tuple(unlocked))


def found(wanted: list[Package], archive: Archive) -> Iterator[tuple[Package, Path]]:
    """Each package with its file, or with the file of the current one where the archive has it no more."""
    files = {package: archive.exact(package) for package in wanted}
    gone = [package for package, path in files.items() if path is None]
    current = archive.current([(one.name, one.architecture) for one in gone]) if gone else []
    files.update(zip(gone, current, strict=True))
    for package, path in files.items():
        if path is not None:
            yield package, path


def locked() -> list[Package]:
    """The packages of the lock. Raises SystemExit."""
    packages = []
    for number, line in enumerate(LOCK.read_text().splitlines(), 1):
        words = line.split()
        if len(words) != len(Package._fields):
            raise SystemExit(f"{LOCK} line {number}: not name, version, architecture, source and SHA-256")
        packages.append(Package(*words))
    if sorted((one.architecture, one.name) for one in packages) != sorted(wanted_names()):
        raise SystemExit(f"{LOCK} does not have each package once; renew it with scripts/build --relock")
    return packages


def relock(archive: Archive) -> None:
    """Write the lock with the packages that the archive has now. Raises SystemExit."""
    try:
        files = archive.current([(name, architecture) for architecture, name in wanted_names()])
        packages = sorted(described(path) for path in files)
    except UnavailableError as error:
        raise SystemExit(f"the lock was not renewed: {error}") from None
    LOCK.write_text("".join(f"{' '.join(package)}\n" for package in packages))


def wanted_names() -> list[tuple[str, str]]:
    """Architecture and name of all packages."""
    return [(architecture, name) for architecture in ARCHITECTURES.values() for name in NAMES]
