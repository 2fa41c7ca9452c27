"""The installed form of the runner: what belongs to it, and how it gets into a directory, whole or not at all.

A bundle is a directory with `cronium-runner`, `_internal/` and `helpers/`, and a file `contents` that lists them. The
one-file binary carries the same files; its launcher (build/launcher/form.c) puts them in place by the same rules.

Imports `os` and what is built in, which SHA-256 isn't: `version` needs no more. Where a bundle goes is in `location`.
"""

from __future__ import annotations

import os
import stat
import time

from . import location

TYPE_CHECKING = False  # typing's own would cost `version` the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable

EXECUTABLE = "cronium-runner"
LIBRARIES = "_internal"
HELPERS = "helpers"
CONTENTS = "contents"
MAGIC = "cronium-runner bundle 1"
ADOPTED_IS_DAMAGED = "has libraries that its owner exchanged, and is damaged: mend it and adopt it, or remove it"


class Bundle:
    """A list of contents: who this build is, and its entries.

    Text, one item a line: the magic line; version, build id, commit and build time separated by spaces; then
    `l TARGET PATH` for a symbolic link, `f MODE SIZE PATH` for a file (0.1.0 has `p` for most), in the order of the
    one-file binary's pack; `s SHA256 PATH` for each file again, which 0.1.0 neither writes nor reads. Behind them, in
    an adopted form only, `a SIZE SHA256 PATH` for each library that its owner has exchanged: what that file is now (see
    `adopting`). No path has a space.

    `files` and `digests` say what is to be found; `adopted` has the paths of exchanged libraries.
    """

    def __init__(self, text: str) -> None:
        magic, identity, *lines = text.splitlines()
        if magic != MAGIC:
            raise location.UnusableError("its list of contents is of another kind")
        self.text = text
        end = text.find("\na ") + 1 or len(text)
        self.built_text = text[:end]
        self._digests: dict[str, str] | None = None
        self.version, self.build_id, self.commit, self.built_at = identity.split(" ")
        fields = [line.split(" ") for line in lines if not line.startswith("s ")]
        self.links = [(path, target) for _, target, path in (f for f in fields if f[0] == "l")]
        files = [f for f in fields if f[0] in ("f", "p")]
        self.files = [(path, int(mode, 8), int(size)) for _, mode, size, path in files]
        self._adopted = _read_adopted(text, end) if end < len(text) else {}
        self.adopted = sorted(self._adopted)
        if self.adopted:
            if self._adopted.keys() - {path for path, _, _ in self.files}:
                raise location.UnusableError("its list of contents has an exchanged library that is not in it")
            self.files = [(path, mode, self._adopted.get(path, (size,))[0]) for path, mode, size in self.files]

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file by its path: read when one is asked for, which few starts do."""
        if self._digests is None:
            lines = [line.split(" ") for line in self.text.splitlines() if line.startswith("s ")]
            self._digests = {path: digest for _, digest, path in lines}
            self._digests |= {path: digest for path, (_, digest) in self._adopted.items()}
        return self._digests

    @property
    def folder(self) -> str:
        """The name of its directory below an install root: a build never replaces another that may be in use."""
        return f"{self.version}-{self.build_id}"

    def damage(self, directory: str, is_right: Callable[[str], bool], *, thorough: bool = False) -> str | None:
        """The path of the first file or link in `directory` that isn't as it was built; None when all are.

        Types, modes, sizes and times always: a start can afford 50 lstats, not a digest of 8 MiB. The content, by
        `is_right(path)`, of each file that was changed since `stamp`; of all files with `thorough`.
        """
        listing = _lstat(directory, CONTENTS)
        if listing is None:
            return CONTENTS
        has_changed = False
        for path, mode, size in self.files:
            found = _lstat(directory, path)
            if found is None or found.st_mode != stat.S_IFREG | mode or found.st_size != size:
                return path
            is_new = found.st_mtime_ns != listing.st_mtime_ns or found.st_ctime_ns > listing.st_ctime_ns
            if (is_new or thorough) and not is_right(path):
                return path
            has_changed = has_changed or is_new
        for path, target in self.links:
            if not _is_link(os.path.join(directory, path), target):
                return path
        if has_changed:
            self.stamp(directory)
        return None

    def stamp(self, directory: str) -> None:
        """Note that all files are as they were built: they get one time, the list of contents last.

        A write changes the first of a file's two times, and setting that one back changes the other, so `damage` sees
        both without a digest.
        """
        now = time.time_ns()
        for path in (*(path for path, _, _ in self.files), CONTENTS):
            try:
                os.utime(os.path.join(directory, path), ns=(now, now))
            except OSError:  # a read-only file system: each start compares contents
                return

    def is_as_built(self, directory: str, path: str) -> bool:
        """Whether a file has the SHA-256 that it was built with; a list of 0.1.0 has none, and sizes must do."""
        from .digest import sha256  # few starts need one

        expected = self.digests.get(path)
        if expected is None:
            return True
        digest = sha256()
        try:
            with open(os.path.join(directory, path), "rb") as file:
                while piece := file.read(1024 * 1024):
                    digest.update(piece)
        except OSError:
            return False
        return digest.hexdigest() == expected


def _lstat(directory: str, path: str) -> os.stat_result | None:
    try:
        return os.lstat(f"{directory}/{path}")  # os.path.join costs as much as the call
    except OSError:
        return None


def _is_link(path: str, target: str) -> bool:
    try:
        return os.readlink(path) == target
    except OSError:
        return False


def is_library(path: str) -> bool:
    """Whether that file of a form is a shared library, which its owner may exchange, by its name."""
    return path.startswith(f"{LIBRARIES}/") and ".so" in path


def _read_adopted(text: str, start: int) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by path from the lines that begin there. Raises UnusableError for any other line."""
    found = {}
    for line in text[start - 1 :].split("\n")[1:-1]:
        kind, *words = line.split(" ")
        if kind != "a" or len(words) != 3 or not words[0].isdigit() or len(words[1]) != 64 or not is_library(words[2]):
            break
        found[words[2]] = int(words[0]), words[1]
    else:
        if text.endswith("\n") and text[start - 2] != "\n":
            return found
    raise location.UnusableError("its list of contents has something else than libraries as exchanged")


def read(path: str) -> Bundle:
    """The bundle whose list of contents is the file `path`. Exchanged libraries count where they may be used only.

    Raises OSError, ValueError, UnusableError.
    """
    with open(path, encoding="ascii") as file:
        found = Bundle(file.read())
    if found.adopted:
        from . import adopting

        if adopting.why_not() is not None:
            return Bundle(found.built_text)
    return found


def place(bundle: Bundle, directory: str, read_file: Callable[[str], bytes]) -> None:
    """Make `directory` the installed form. `read_file` gives the content of a file by its path in the bundle.

    Written beside it under a name of our own and renamed, so that it is there whole or not at all, and any number
    of processes may do this at once: one rename wins, the others find it complete. Raises UnusableError, OSError.
    """
    if is_installed(bundle, directory, read_file):
        return
    temporary = f"{directory}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    os.mkdir(temporary, location.PRIVATE)
    try:
        os.chmod(temporary, location.PRIVATE)
        _fill(bundle, temporary, read_file)
        bundle.stamp(temporary)
        _rename(bundle, temporary, directory, read_file)
    except BaseException:
        remove(temporary)
        raise


def is_installed(bundle: Bundle, directory: str, read_file: Callable[[str], bytes]) -> bool:
    """Whether `directory` is ours alone and holds all of `bundle`. Raises UnusableError when it is somebody else's.

    Files that have changed since they were installed are compared with what `read_file` gives; libraries that were
    exchanged, here or there, with what the list there says of them.
    """
    try:
        location.check_private(directory)
    except FileNotFoundError:
        return False
    there = _same_build(bundle, directory)
    if there is None:
        return False

    def is_right(path: str) -> bool:
        if path in bundle.adopted or path in there.adopted:
            return there.is_as_built(directory, path)
        try:
            with open(os.path.join(directory, path), "rb") as file:
                return file.read() == read_file(path)
        except OSError:
            return False

    return there.damage(directory, is_right) is None


def remove(directory: str) -> None:
    """Remove a directory and all below it; what is already gone is no error. Links are removed, not followed."""
    for folder, subfolders, files in os.walk(directory, topdown=False):
        for name in files:
            _quietly(os.unlink, os.path.join(folder, name))
        for name in subfolders:
            path = os.path.join(folder, name)
            _quietly(os.unlink if os.path.islink(path) else os.rmdir, path)
    _quietly(os.rmdir, directory)


def _fill(bundle: Bundle, directory: str, read_file: Callable[[str], bytes]) -> None:
    for path, mode, size in bundle.files:
        content = read_file(path)
        if len(content) != size:
            raise location.UnusableError(f"{path} is not as it was built: get the runner again")
        _write(os.path.join(directory, path), content, mode)
    for path, target in bundle.links:
        destination = os.path.join(directory, path)
        _make_folder(os.path.dirname(destination))
        os.symlink(target, destination)
    _write(os.path.join(directory, CONTENTS), bundle.text.encode("ascii"), 0o600)


def _make_folder(path: str) -> None:
    """With the mode we want, whatever the umask: os.makedirs heeds a mode for the last folder only."""
    if not os.path.isdir(path):
        _make_folder(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, location.PRIVATE)


def _write(path: str, content: bytes, mode: int) -> None:
    _make_folder(os.path.dirname(path))
    with open(path, "xb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)


def _rename(bundle: Bundle, temporary: str, directory: str, read_file: Callable[[str], bytes]) -> None:
    for _ in range(3):  # a second round is for a damaged bundle that we moved away, a third for a rival doing the same
        try:
            os.rename(temporary, directory)  # also over an empty directory, which an administrator may have made
            return
        except OSError:
            if not os.path.lexists(directory):
                raise
        if is_installed(bundle, directory, read_file):
            remove(temporary)
            return
        there = _same_build(bundle, directory)
        if there is None and os.path.basename(directory) != bundle.folder:
            raise location.UnusableError(f"{directory} already holds something else")
        if there is not None and there.adopted:
            raise location.UnusableError(f"{directory} {ADOPTED_IS_DAMAGED}")
        set_aside = f"{temporary}.old"
        _quietly(os.rename, directory, set_aside)
        remove(set_aside)
    raise location.UnusableError(f"{directory} keeps changing while the runner is being installed")


def _same_build(bundle: Bundle, directory: str) -> Bundle | None:
    """The list of contents there when it is this very build's, whatever became of the files: a cleaner of temporary
    files may have gone through them, or their owner have exchanged libraries."""
    try:
        there = read(os.path.join(directory, CONTENTS))
    except (OSError, ValueError, location.UnusableError):
        return None
    return there if there.built_text == bundle.built_text else None


def _quietly(action: Callable[..., object], *paths: str) -> None:
    try:  # noqa: SIM105 - contextlib would cost `version` its import
        action(*paths)
    except OSError:
        pass
