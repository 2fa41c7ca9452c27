"""The Debian packages of a build: the locked ones, others, none. Whole builds: tests/faults/test_builds.py."""

import contextlib
import functools
import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from runner_process import ROOT

sys.path.insert(0, str(ROOT / "build"))

import archive
import binary
import packages

pytestmark = pytest.mark.skipif(not Path("/usr/bin/dpkg-deb").exists(), reason="dpkg-deb is not installed")

NAMES = ("libone1", "two-base")


def package(folder: Path, name: str, version: str = "1.0-1", architecture: str = "amd64", source: str = "") -> Path:
    """A Debian package with one file, which names its version."""
    made = folder / f"{name}.d"
    (made / "DEBIAN").mkdir(parents=True)
    fields = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": "t <t@example.com>"}
    fields |= {"Description": "a test"} | ({"Source": source} if source else {})
    (made / "DEBIAN" / "control").write_text("".join(f"{field}: {value}\n" for field, value in fields.items()))
    (made / "usr" / "lib").mkdir(parents=True)
    (made / "usr" / "lib" / name).write_text(version)
    path = folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", made, path], check=True, capture_output=True)
    subprocess.run(["rm", "-r", made], check=True)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two packages for each architecture, and a lock of these."""
    made = tmp_path / "packages"
    made.mkdir()
    monkeypatch.setattr(packages, "NAMES", NAMES)
    monkeypatch.setattr(packages, "LOCK", tmp_path / "packages.lock")
    for architecture in ("amd64", "arm64"):
        package(made, "libone1", "1:2.3-4", architecture, "one (2.3-3)")
        package(made, "two-base", "1.0-1", architecture)
    packages.relock(archive.Folder(made))
    return made


def test_the_lock_has_digests_and_sources_and_no_address(folder: Path) -> None:
    lines = packages.LOCK.read_text().splitlines()
    digest = hashlib.sha256((folder / "libone1_1%3a2.3-4_arm64.deb").read_bytes()).hexdigest()
    assert lines[1] == f"libone1 1:2.3-4 arm64 one {digest}"
    assert [line.split()[:4] for line in lines[2:]] == [
        ["two-base", "1.0-1", a, "two-base"] for a in ("amd64", "arm64")
    ]
    one = packages.locked()[1]
    assert one.file == "libone1_1%3a2.3-4_arm64.deb"
    assert next(one.places()) == "pool/main/o/one/libone1_2.3-4_arm64.deb"
    library = one._replace(source="libone")
    assert list(library.places())[1] == "pool/updates/main/libo/libone/libone1_2.3-4_arm64.deb"


def test_locked_packages_are_unpacked_with_their_owners(folder: Path, tmp_path: Path) -> None:
    unpacked = packages.unpack("aarch64", archive.Folder(folder), tmp_path / "root")
    assert (unpacked.root / "usr/lib/libone1").read_text() == "1:2.3-4"
    assert unpacked.owners["usr/lib/libone1"].version == "1:2.3-4"
    assert {one.architecture for one in unpacked.owners.values()} == {"arm64"}
    assert unpacked.unlocked == ()


def test_what_is_gone_is_replaced_and_said(folder: Path, tmp_path: Path) -> None:
    (folder / "libone1_1%3a2.3-4_arm64.deb").unlink()
    package(folder, "libone1", "1:2.4-1", "arm64")
    unpacked = packages.unpack("aarch64", archive.Folder(folder), tmp_path / "root")
    assert (unpacked.root / "usr/lib/libone1").read_text() == "1:2.4-1"
    assert unpacked.unlocked == ("libone1 (arm64) is 1:2.4-1, not 1:2.3-4",)
    packages.relock(archive.Folder(folder))
    assert packages.unpack("aarch64", archive.Folder(folder), tmp_path / "again").unlocked == ()


def test_another_file_of_the_same_name_is_not_the_locked_one(folder: Path, tmp_path: Path) -> None:
    path = folder / "two-base_1.0-1_amd64.deb"
    path.unlink()
    package(folder, "two-base", "1.0-1", "amd64", "elsewhere")
    assert packages.unpack("x86_64", archive.Folder(folder), tmp_path / "root").unlocked


@pytest.mark.parametrize(("left", "said"), [((), "no package two-base"), (("1.1-1", "1.2-1"), "2 packages two-base")])
def test_a_package_that_cannot_be_had(folder: Path, tmp_path: Path, left: tuple[str, ...], said: str) -> None:
    (folder / "two-base_1.0-1_arm64.deb").unlink()
    for version in left:
        package(folder, "two-base", version, "arm64")
    with pytest.raises(archive.UnavailableError, match=f"{said} of architecture arm64"):
        packages.unpack("aarch64", archive.Folder(folder), tmp_path / "root")
    with pytest.raises(SystemExit, match=r"the lock was not renewed: .* has"):
        packages.relock(archive.Folder(folder))
    assert len(packages.locked()) == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("libone1 1.0 arm64 one\n", "line 1: not name, version"),
        (f"libone1 1.0 arm64 one {'0' * 64}\n", "does not have each package once"),
    ],
)
def test_a_lock_that_is_not_one(folder: Path, changed: str, said: str) -> None:
    packages.LOCK.write_text(changed)
    with pytest.raises(SystemExit, match=said):
        packages.locked()


def test_the_lock_of_the_project_is_whole() -> None:
    assert {one.architecture for one in packages.locked()} == {"amd64", "arm64"}


# -- what a build does of it ------------------------------------------------------------------------------------------


@pytest.fixture
def build(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`binary.chosen` for an architecture, on this folder of packages: the Python, whether it is the lock's, notes."""
    monkeypatch.setenv(binary.PACKAGES, str(folder))
    monkeypatch.setattr(binary, "WORK", tmp_path / "work")
    monkeypatch.setattr(packages, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "work" / "packages").mkdir(parents=True)
    common = binary.Build("1", "c", "t", tmp_path, {"libraries": []}, tmp_path, {})

    def chosen(architecture: str) -> tuple[Path, bool, list[str]]:
        notes: list[str] = []
        python, is_locked = binary.chosen(architecture, common, notes)
        return python.standard_library, is_locked, notes

    return chosen


def test_a_build_of_locked_packages_says_nothing(build: Any, tmp_path: Path) -> None:
    for architecture in binary.ARCHITECTURES:
        standard_library, is_locked, notes = build(architecture)
        assert standard_library.is_relative_to(tmp_path / "work" / "packages" / architecture)
        assert (is_locked, notes) == (True, [])


def test_a_build_of_other_packages_is_unlocked(build: Any, folder: Path) -> None:
    (folder / "libone1_1%3a2.3-4_arm64.deb").unlink()
    package(folder, "libone1", "1:2.4-1", "arm64")
    _, is_locked, [note] = build("aarch64")
    assert not is_locked
    assert "libone1 (arm64) is 1:2.4-1, not 1:2.3-4" in note
    assert "scripts/build --relock" in note
    assert build("x86_64")[1]


def test_without_packages_only_this_machine_is_served(
    build: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.iterdir():
        path.unlink()
    standard_library, is_locked, [note] = build("x86_64")
    assert (standard_library / "os.py").exists()
    assert not is_locked
    assert note.startswith("the binary for x86_64 is made of this machine's Python and libraries: ")
    with pytest.raises(archive.UnavailableError, match="no package"):
        build("aarch64")


def test_another_python_cannot_make_use_of_the_packages(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PYTHON", (3, 99))
    assert "the packages are of Python 3.99, and this is 3." in build("x86_64")[2][0]
    with pytest.raises(archive.UnavailableError, match=r"the packages are of Python 3\.99"):
        build("aarch64")


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")
def test_mirrors_are_found_where_apt_has_no_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sources.list").write_text(
        "deb http://mirror.example/debian bookworm main contrib\n"
        "deb http://mirror.example/debian-security/ bookworm-security main\n"
        "deb http://other.example/node_20.x nodistro main\n"
        "deb http://docker.example/linux/debian bookworm stable\n"
    )
    (tmp_path / "lists").mkdir()
    settings = {"Dir::State::lists": "lists", "Dir::Etc::sourcelist": "sources.list", "Dir::Etc::sourceparts": "none"}
    lines = (f'{name} "{tmp_path / path}";\n' for name, path in settings.items())
    (tmp_path / "apt.conf").write_text("".join(lines))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    mirror = archive.Mirror(tmp_path, ("bookworm",), ("amd64",))
    assert mirror.addresses() == [
        ("http://mirror.example/debian", False),
        ("http://mirror.example/debian-security", True),
    ]
    (tmp_path / "sources.list").write_text("deb http://other.example/node_20.x nodistro main\n")
    with pytest.raises(archive.UnavailableError, match="knows no source of Debian's packages"):
        mirror.exact(packages.locked()[0])


def test_a_mirror_serves_what_has_the_digest(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real server: a package at its place, one that is gone, and one of another content."""
    root = tmp_path / "served"
    for package in packages.locked():
        place = root / unquote(list(package.places())[1])
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / package.file, place)
    gone, changed, *others = packages.locked()
    (root / unquote(list(gone.places())[1])).unlink()
    (root / unquote(list(changed.places())[1])).write_bytes(b"other")
    with serving(root) as address:
        monkeypatch.setattr(archive.Mirror, "addresses", lambda _: [(address, False)])
        mirror = archive.Mirror(tmp_path / "kept", (), ())
        assert [mirror.exact(package) for package in (gone, changed)] == [None, None]
        found = [mirror.exact(package) for package in others]
    assert [path.read_bytes() for path in found if path] == [(folder / one.file).read_bytes() for one in others]
    assert [mirror.exact(package) for package in others] == found, "kept: nothing is asked any more"
    with pytest.raises(archive.UnavailableError, match="http://127"):
        mirror.exact(gone)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address at which a folder's files are served."""
    handler = functools.partial(Silent, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Silent(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: object) -> None: ...
