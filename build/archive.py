"""Debian's archive: as this machine's apt knows it, or a folder of packages in its place.

Both give the file of one exact package, believed by its SHA-256, or else the current one of that name. A package of the
mirror is fetched by its place there; which one is current is apt's to find, with the archive's signatures checked.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote

KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
PATIENCE: Final = 30.0
"""Seconds without a byte after which a download is given up."""


class UnavailableError(Exception):
    """Packages cannot be had; its text says why."""


class Package(NamedTuple):
    """A Debian package. Version and architecture are Debian's (`1:2.3-4`, `arm64`)."""

    name: str
    version: str
    architecture: str
    source: str
    sha256: str

    @property
    def file(self) -> str:
        """The name of its file, as apt writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"

    def places(self) -> Iterator[str]:
        """Where a mirror may have it, below the mirror's address: Debian's archive, and that of security updates."""
        start = self.source[:4] if self.source.startswith("lib") else self.source[:1]
        name = f"{self.name}_{self.version.rpartition(':')[2]}_{self.architecture}.deb"
        for pool in ("pool/main", "pool/updates/main"):
            yield quote(f"{pool}/{start}/{self.source}/{name}")


class Archive(Protocol):
    """Where packages come from."""

    def exact(self, package: Package) -> Path | None:
        """The file of this package; None when it is not there. Raises UnavailableError."""

    def current(self, wanted: Iterable[tuple[str, str]]) -> list[Path]:
        """The file of the newest package for each name and architecture, in order. Raises UnavailableError."""


class Folder:
    """A folder of packages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def exact(self, package: Package) -> Path | None:
        """As of Archive."""
        return next((path for path in self._of(*package[::2][:2]) if digest(path) == package.sha256), None)

    def current(self, wanted: Iterable[tuple[str, str]]) -> list[Path]:
        """As of Archive, where "newest" means the only one."""
        found = []
        for name, architecture in wanted:
            paths = self._of(name, architecture)
            if len(paths) != 1:
                many = f"{len(paths)} packages" if paths else "no package"
                raise UnavailableError(f"{self._folder} has {many} {name} of architecture {architecture}")
            found += paths
        return found

    def _of(self, name: str, architecture: str) -> list[Path]:
        return sorted(self._folder.glob(f"{name}_*_{architecture}.deb"))


class Mirror:
    """The mirrors that this machine's apt knows, with a folder that keeps what was fetched."""

    def __init__(self, kept: Path, suites: Iterable[str], architectures: Iterable[str]) -> None:
        self._kept = Folder(kept)
        self._folder = kept
        self._suites = tuple(suites)
        self._architectures = tuple(architectures)

    def exact(self, package: Package) -> Path | None:
        """As of Archive."""
        kept = self._kept.exact(package)
        if kept is not None:
            return kept
        self._folder.mkdir(parents=True, exist_ok=True)
        for address, _ in self.addresses():
            for place in package.places():
                content = fetched(f"{address}/{place}")
                if content is not None and hashlib.sha256(content).hexdigest() == package.sha256:
                    path = self._folder / package.file
                    path.with_suffix(".tmp").write_bytes(content)
                    return path.with_suffix(".tmp").rename(path)
        return None

    def current(self, wanted: Iterable[tuple[str, str]]) -> list[Path]:
        """As of Archive."""
        wanted = list(wanted)
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cronium-apt-") as name:
            apt = ["apt-get", "-qq", *self._options(Path(name))]
            command([*apt, "update"])
            downloads = Path(name) / "downloads"
            downloads.mkdir()
            command([*apt, "download", *(f"{name}:{architecture}" for name, architecture in wanted)], downloads)
            files = Folder(downloads).current(wanted)
            return [Path(shutil.move(path, self._folder / path.name)) for path in files]

    def addresses(self) -> list[tuple[str, bool]]:
        """The addresses of Debian's archives, and whether each has security updates.

        Where `apt-get update` never ran, apt does not know yet whose an archive is; its mirrors call it `debian`.
        """
        if shutil.which("apt-get") is None:
            raise UnavailableError("apt, which knows where Debian's archive is, is not installed")
        known = self._sources()
        found = [one for one in known if one[0] == "Debian"]
        if not known:
            found = [one for one in self._sources("--no-release-info") if re.search("/debian[^/]*$", one[2])]
        addresses = {
            (address, suite.endswith("-security")) for _, component, address, suite in found if component == "main"
        }
        if not addresses:
            raise UnavailableError("apt knows no source of Debian's packages")
        return sorted(addresses, key=lambda one: (one[1], one[0]))

    @staticmethod
    def _sources(*options: str) -> list[tuple[str, str, str, str]]:
        """Origin, component, address and suite of all that apt has packages from."""
        form = "$(ORIGIN)\t$(COMPONENT)\t$(REPO_URI)\t$(RELEASE)"
        told = command(["apt-get", "indextargets", *options, "--format", form, "Created-By: Packages"])
        lines = (line.split("\t") for line in told.splitlines())
        return [(origin, component, address.rstrip("/"), suite) for origin, component, address, suite in lines]

    def _options(self, folder: Path) -> Iterator[str]:
        """Options that give apt a state of its own in `folder`, with the suites and architectures that are wanted."""
        signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
        sources = [
            f"deb {signed}{address} {suite}{'-security' if is_security else ''} main\n"
            for address, is_security in self.addresses()
            for suite in self._suites
        ]
        (folder / "sources.list").write_text("".join(sources))
        (folder / "status").touch()
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True)
        settings = {
            "APT::Architecture": self._architectures[0],
            "APT::Sandbox::User": "root",  # nobody else can write in the folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": str(folder),
            "Dir::State::lists": str(folder / "lists"),
            "Dir::State::status": str(folder / "status"),
            "Dir::Cache": str(folder / "cache"),
            "Dir::Etc::sourcelist": str(folder / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
        }
        words = [f"{name}={value}" for name, value in settings.items()]
        words += [f"APT::Architectures::={name}" for name in self._architectures]
        for word in words:
            yield from ("-o", word)


def fetched(address: str) -> bytes | None:
    """What is at an address; None when nothing is. Raises UnavailableError when it cannot be reached."""
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:  # noqa: S310 - an address of apt's
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise UnavailableError(f"{address}: {error}") from error
    except (OSError, urllib.error.URLError) as error:
        raise UnavailableError(f"{address}: {error}") from error


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def described(path: Path) -> Package:
    """What a package's file says of itself."""
    fields = ("Package", "Version", "Architecture", "Source")
    name, version, architecture, source = (command(["dpkg-deb", "--field", str(path), field]) for field in fields)
    return Package(name, version, architecture, source.partition(" ")[0] or name, digest(path))


def command(words: list[str], folder: Path | None = None) -> str:
    """What a command prints. Raises UnavailableError with its last line of errors when it fails."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UnavailableError(f"{words[0]}: {said[-1]}")
    return done.stdout.strip()
