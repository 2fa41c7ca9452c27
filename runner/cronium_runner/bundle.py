"""The installed form of the runner: the list of what belongs to it, and how it gets into a directory, whole or not at all.

A bundle is a directory with `cronium-runner`, `_internal/` and `helpers/`, and a file `contents` that lists them.
The one-file binary carries the same files; there they lie as PyInstaller extracts them, without the `_internal`
folder, because the one-file executable needs most of them itself and nothing is carried twice.

Imports `os` and what is built in, because it is part of every one-file start. Where a bundle goes is in `location`.
"""

from __future__ import annotations

import os
import stat

from . import location

TYPE_CHECKING = False  # typing's own would cost the one-file start-up the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXECUTABLE = "cronium-runner"
LIBRARIES = "_internal"
HELPERS = "helpers"
CONTENTS = "contents"
MAGIC = "cronium-runner bundle 1"
BLOCK = 1024 * 1024


class Bundle:
    """A list of contents: who this build is, and its entries.

    Text, one item a line: the magic line; version, build id, commit and build time separated by spaces; then
    `f MODE SIZE PATH` for a file and `l TARGET PATH` for a symbolic link, sorted by path. No path has a space.
    """

    def __init__(self, text: str) -> None:
        magic, identity, *lines = text.splitlines()
        if magic != MAGIC:
            raise location.UnusableError("its list of contents is of another kind")
        self.text = text
        self.version, self.build_id, self.commit, self.built_at = identity.split(" ")
        self.files = [(path, int(mode, 8), int(size)) for _, mode, size, path in _fields(lines, "f")]
        self.links = [(path, target) for _, target, path in _fields(lines, "l")]

    @property
    def folder(self) -> str:
        """The name of its directory below an install root: a build never replaces another that may be in use."""
        return f"{self.version}-{self.build_id}"

    def is_complete(self, directory: str) -> bool:
        """Whether `directory` holds all of it. Sizes only: a start can afford 40 lstats, not a digest of 8 MiB."""
        try:
            for path, mode, size in self.files:
                found = os.lstat(os.path.join(directory, path))
                if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) != mode or found.st_size != size:
                    return False
            return all(os.readlink(os.path.join(directory, path)) == target for path, target in self.links)
        except OSError:
            return False


def read(path: str) -> Bundle:
    """The bundle whose list of contents is the file `path`. Raises OSError, UnusableError."""
    with open(path, encoding="ascii") as file:
        return Bundle(file.read())


def extracted_path(source: str, path: str) -> str:
    """Where the one-file binary has the installed file `path`, when it extracted itself into `source`."""
    return os.path.join(source, path.removeprefix(LIBRARIES + "/"))


def place(bundle: Bundle, source: str, directory: str, *, extracted: bool) -> None:
    """Make `directory` the installed form, from `source` (a bundle, or with `extracted` a one-file extraction).

    Written beside it under a name of our own and renamed, so that it is there whole or not at all, and any number
    of processes may do this at once: one rename wins, the others find it complete. Raises UnusableError, OSError.
    """
    if is_installed(bundle, directory):
        return
    temporary = f"{directory}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    os.mkdir(temporary, location.PRIVATE)
    try:
        os.chmod(temporary, location.PRIVATE)
        _fill(bundle, source, temporary, extracted)
        _rename(bundle, temporary, directory)
    except BaseException:
        remove(temporary)
        raise


def is_installed(bundle: Bundle, directory: str) -> bool:
    """Whether `directory` is ours alone and holds all of `bundle`. Raises UnusableError when it is somebody else's."""
    try:
        location.check_private(directory)
    except FileNotFoundError:
        return False
    return bundle.is_complete(directory)


def remove(directory: str) -> None:
    """Remove a directory and all below it; what is already gone is no error. Links are removed, not followed."""
    for folder, subfolders, files in os.walk(directory, topdown=False):
        for name in files:
            _quietly(os.unlink, os.path.join(folder, name))
        for name in subfolders:
            path = os.path.join(folder, name)
            _quietly(os.unlink if os.path.islink(path) else os.rmdir, path)
    _quietly(os.rmdir, directory)


def _fill(bundle: Bundle, source: str, directory: str, extracted: bool) -> None:
    for path, mode, size in bundle.files:
        origin = extracted_path(source, path) if extracted else os.path.join(source, path)
        destination = os.path.join(directory, path)
        os.makedirs(os.path.dirname(destination), location.PRIVATE, exist_ok=True)
        if _copy(origin, destination, mode) != size:
            raise location.UnusableError(f"{origin} has changed since it was unpacked")
    for path, target in bundle.links:
        destination = os.path.join(directory, path)
        os.makedirs(os.path.dirname(destination), location.PRIVATE, exist_ok=True)
        os.symlink(target, destination)
    with open(os.path.join(directory, CONTENTS), "x", encoding="ascii") as file:
        file.write(bundle.text)


def _copy(origin: str, destination: str, mode: int) -> int:
    """Copy one file and return how many bytes it has. sendfile, because a one-file start waits for it."""
    copied = 0
    with open(origin, "rb") as reader, open(destination, "xb") as writer:
        while sent := os.sendfile(writer.fileno(), reader.fileno(), None, BLOCK):
            copied += sent
        os.fchmod(writer.fileno(), mode)
    return copied


def _rename(bundle: Bundle, temporary: str, directory: str) -> None:
    for _ in range(3):  # a second round is for a damaged bundle that we moved away, a third for a rival doing the same
        try:
            os.rename(temporary, directory)  # also over an empty directory, which an administrator may have made
            return
        except OSError:
            if not os.path.lexists(directory):
                raise
        if is_installed(bundle, directory):
            remove(temporary)
            return
        if not _is_same_build(bundle, directory):
            raise location.UnusableError(f"{directory} already holds something else")
        set_aside = f"{temporary}.old"
        _quietly(os.rename, directory, set_aside)
        remove(set_aside)
    raise location.UnusableError(f"{directory} keeps changing while the runner is being installed")


def _is_same_build(bundle: Bundle, directory: str) -> bool:
    """A damaged copy of this very build (a cleaner of temporary files went through it) may be replaced."""
    if os.path.basename(directory) == bundle.folder:
        return True
    try:
        return read(os.path.join(directory, CONTENTS)).text == bundle.text
    except (OSError, ValueError, location.UnusableError):
        return False


def _fields(lines: list[str], kind: str) -> Iterator[list[str]]:
    return (line.split(" ") for line in lines if line.startswith(kind + " "))


def _quietly(action: Callable[..., object], *paths: str) -> None:
    try:  # noqa: SIM105 - contextlib would cost every one-file start its import
        action(*paths)
    except OSError:
        pass
