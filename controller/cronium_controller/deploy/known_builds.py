"""The builds of the runner that this controller knows: which files each has, with their SHA-256.

Read from our own binaries, never from a host. What was read is kept in the database, so that a form which an earlier
binary has installed can be told from a foreign one when that binary is gone from here.
"""

import asyncio
import hashlib
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cronium_runner.wire import contents, exactjson
from cronium_runner.wire.text import last_words

from ..database import inserting
from ..errors import DeployError
from ..runners import RunnerBinary, Runners
from ..store import Store

INSTALL_SECONDS: Final = 60.0
"""For one of our own binaries to install itself into a temporary folder, which takes about a second."""


@dataclass(frozen=True, slots=True)
class KnownBuild:
    """A build of the runner: its files' SHA-256 by path, and where its links lead. `sha256` is of the whole binary."""

    sha256: str
    version: str
    machine: str
    build_id: str
    files: dict[str, str]
    links: dict[str, str]

    @property
    def folders(self) -> tuple[str, str]:
        """What its installed form may be called: as a controller installs it, and as it installs itself."""
        return f"{self.version}-{self.sha256[:12]}", f"{self.version}-{self.build_id}"


class KnownBuilds:
    """The table of known builds. All methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._database = store.database

    async def note_uploaded(self, binary: RunnerBinary) -> None:
        """Keeps what a binary installs that was put on a host, where that costs next to nothing."""
        if not self.is_known(binary):
            build = await asyncio.to_thread(carried_build, binary)
            if build is not None:
                self.add(build)

    def all(self) -> list[KnownBuild]:
        """Every build that was read from a binary here, now or earlier."""
        found = []
        for row in self._database.read("SELECT * FROM known_builds"):
            listed = exactjson.loads(row["listed"])
            found.append(
                KnownBuild(
                    row["sha256"], row["version"], row["architecture"], row["build_id"], listed["files"],
                    listed["links"],
                )
            )  # fmt: skip
        return found

    def is_known(self, binary: RunnerBinary) -> bool:
        """Whether this very binary was read before."""
        return bool(self._database.read("SELECT 1 FROM known_builds WHERE sha256 = :sha256", {"sha256": binary.sha256}))

    def add(self, build: KnownBuild) -> None:
        """Keeps a build."""
        listed = exactjson.encode({"files": build.files, "links": build.links})
        row = {
            "sha256": build.sha256, "version": build.version, "architecture": build.machine,
            "build_id": build.build_id, "listed": listed,
        }  # fmt: skip
        self._database.write(f"{inserting('known_builds', list(row))} ON CONFLICT DO NOTHING", row)


def by_folder(builds: Iterable[KnownBuild]) -> dict[str, KnownBuild]:
    """The builds by the names that their installed forms have."""
    return {folder: build for build in builds for folder in build.folders}


def carried_build(binary: RunnerBinary) -> KnownBuild | None:
    """What a binary installs, by the list of contents that it carries as text; None when it carries none."""
    try:
        return _carried(binary, _content(binary))
    except (DeployError, ValueError):
        return None


def read_build(binary: RunnerBinary) -> KnownBuild:
    """The same, also of a binary that carries its list compressed: that is executed, which takes a second.

    Raises DeployError where it cannot be executed here.
    """
    content = _content(binary)
    try:
        carried = _carried(binary, content)
        if carried is not None:
            return carried
        listed, files, text = _installed(binary, content)
    except subprocess.CalledProcessError as error:
        raise _unread(binary, last_words(error.stderr)) from None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise _unread(binary, str(error)) from None
    if any(digest is not None and digest != files[path] for path, digest in listed.files.items()):
        raise _unread(binary, "it installs other files than it lists")
    return _build(binary, listed, files, text)


def _content(binary: RunnerBinary) -> bytes:
    try:
        content = binary.path.read_bytes()
    except OSError as error:
        raise _unread(binary, error.strerror or str(error)) from None
    if hashlib.sha256(content).hexdigest() != binary.sha256:
        raise _unread(binary, "it was changed meanwhile")
    return content


def _carried(binary: RunnerBinary, content: bytes) -> KnownBuild | None:
    text = contents.find(content)
    if text is None or not contents.has_digests(text):
        return None
    listed = contents.parse(text)
    return _build(binary, listed, {path: str(digest) for path, digest in listed.files.items()}, text)


def _installed(binary: RunnerBinary, content: bytes) -> tuple[contents.Listed, dict[str, str], str]:
    """Its list, the digests of what it installs, and the list's text, once it has installed itself for us."""
    with tempfile.TemporaryDirectory(prefix="cronium-") as folder:
        program, form = Path(folder) / binary.path.name, Path(folder) / "form"
        program.write_bytes(content)
        program.chmod(0o700)  # a package's data file cannot be executed where it is
        subprocess.run(
            [program, "install", form],
            stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=INSTALL_SECONDS,
        )  # fmt: skip
        text = (form / contents.FILE).read_text("ascii")
        listed = contents.parse(text)
        return listed, {path: _digest(form / path) for path in listed.files}, text


def _unread(binary: RunnerBinary, why: str) -> DeployError:
    return DeployError("install.unknown", f"what {binary.path} installs cannot be told here: {why}")


def _build(binary: RunnerBinary, listed: contents.Listed, files: dict[str, str], text: str) -> KnownBuild:
    files[contents.FILE] = hashlib.sha256(text.encode("ascii")).hexdigest()
    return KnownBuild(binary.sha256, binary.version, binary.machine, listed.build_id, files, listed.links)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def learned(store: Store, runners: Runners) -> tuple[dict[str, KnownBuild], list[str]]:
    """All known builds by folder, those of the binaries here included; and a sentence for each that can't be read."""
    known = KnownBuilds(store)
    complaints = []
    for binary in await asyncio.to_thread(runners.all):
        if not known.is_known(binary):
            try:
                known.add(await asyncio.to_thread(read_build, binary))
            except DeployError as error:
                complaints.append(error.message)
    return by_folder(known.all()), complaints
