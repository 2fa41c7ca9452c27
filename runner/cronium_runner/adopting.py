"""`install --adopt DIR`: libraries that the owner of an installed form has exchanged become part of it.

The LGPL lets a user exchange the C library, and other licences more; without this the form counts as damaged. What was
exchanged is recorded behind the list of contents (see `bundle.Bundle`), never in place of what was built, so who has
the build can always tell what differs from it. The launcher has the same rules in C (build/launcher/form.c).
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from . import bundle, location, trust
from .digest import sha256
from .errors import RunnerError
from .wire import contents as lists

_BOOTLOADER: Final = f"{bundle.LIBRARIES}/boot"
_DYNAMIC: Final = b"\x03\0"
"""ELF's type of shared libraries."""
_CHUNK: Final = 1024 * 1024
_MAX_LIST: Final = 1024 * 1024
"""Bytes of a list of contents; it has some 20 KiB."""


class Exchanged(NamedTuple):
    """A library that is not what the list said: its path in the form, the SHA-256 that it had there, and its own."""

    path: str
    old: str
    new: str


class _Found(NamedTuple):
    """A file of the form as it is. `head` is what an ELF file begins with."""

    size: int
    digest: str
    head: bytes


def why_not() -> str | None:
    """Why exchanged libraries are not used by this account on this host, as it follows "because"; None: they are."""
    if os.geteuid() == 0:
        return "root's runner uses no exchanged libraries"
    if trust.is_required():
        return f"this host runs what is signed only ({trust.ALLOWED_SIGNERS}), so no exchanged libraries"
    return None


def recorded(directory: str) -> list[str]:
    """The paths that the list of contents there has as exchanged, whether they may be used or not."""
    try:
        with open(os.path.join(directory, bundle.CONTENTS), encoding="ascii") as file:
            return bundle.Bundle(file.read()).adopted
    except (OSError, ValueError, location.UnusableError):
        return []


def adopt(directory: str) -> list[Exchanged]:
    """Record the exchanged libraries of the installed form in `directory`, and return those that were news.

    Nothing is changed unless all else is as it was built. Raises RunnerError: `install.not_adoptable` where that is
    not done, `install.unusable` and `install.damaged`.
    """
    directory = os.path.abspath(directory)
    why = why_not()
    if why is not None:
        raise RunnerError("install.not_adoptable", f"{directory} is not adopted because {why}; nothing was changed")
    try:
        location.check_private(directory)
        location.check_installed(directory)
        with _locked(directory) as folder:
            return _adopt(directory, folder)
    except (OSError, location.UnusableError) as error:
        raise RunnerError(
            "install.unusable", f"{directory} cannot be adopted: {error}; nothing was changed; correct that"
        ) from error


def _adopt(directory: str, folder: int) -> list[Exchanged]:
    own = _list(folder)
    built = bundle.Bundle(own.built_text)
    found = {path: _file(folder, path, mode) for path, mode, _ in built.files}
    for path, target in built.links:
        if not _is_link(folder, path, target):
            raise _damaged(directory, path, "is not the link that it was")
    machine = found[_BOOTLOADER].head
    adopted = {path: one for path, one in found.items() if one.digest != built.digests[path]}
    for path, one in adopted.items():
        _check_library(directory, path, one, machine)
    text = built.text + "".join(f"a {adopted[path].size} {adopted[path].digest} {path}\n" for path in sorted(adopted))
    if text != own.text:
        _replace_list(folder, text)
    new = bundle.read(os.path.join(directory, bundle.CONTENTS))
    damaged = new.damage(directory, lambda path: new.is_as_built(directory, path))
    if damaged is not None:
        raise RunnerError(
            "install.damaged", f"{os.path.join(directory, damaged)} was changed meanwhile; adopt it again"
        )
    changed = (path for path in sorted(found) if found[path].digest != own.digests[path])
    return [Exchanged(path, own.digests[path], found[path].digest) for path in changed]


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    """The directory, while no other adoption of it goes on; what one left that was killed is removed."""
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for name in os.listdir(folder):
            if name.startswith(f"{bundle.CONTENTS}.") and name.endswith(".tmp"):
                os.unlink(name, dir_fd=folder)
        yield folder
    finally:
        os.close(folder)


def _list(folder: int) -> bundle.Bundle:
    """Raises RunnerError for a list that does not have all that is to be compared."""
    with open(_opened(folder, bundle.CONTENTS, 0o600), "rb") as file:
        content = file.read(_MAX_LIST)
    try:
        text = content.decode("ascii")
        lists.parse(text)
    except ValueError:
        raise RunnerError(
            "install.damaged", "its list of contents cannot be read; nothing was changed; install the runner again"
        ) from None
    if not lists.has_digests(text):
        raise RunnerError(
            "install.not_adoptable",
            "it is of version 0.1.0, whose list of contents has no digests; nothing was changed",
        )
    return bundle.Bundle(text)


def _opened(folder: int, path: str, mode: int) -> int:
    """A file of the form, which is regular, ours, and of that mode. Raises UnusableError, OSError."""
    for place in _parents(path):
        if not stat.S_ISDIR(os.stat(place, dir_fd=folder, follow_symlinks=False).st_mode):
            raise location.UnusableError(f"{place} is not a directory")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=folder)
    found = os.fstat(descriptor)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "is not a regular file"
    elif found.st_uid != os.geteuid():
        why = f"belongs to uid {found.st_uid}, not to us (uid {os.geteuid()})"
    elif stat.S_IMODE(found.st_mode) != mode:
        why = f"has mode {stat.S_IMODE(found.st_mode):04o}, not {mode:04o}"
    if why is not None:
        os.close(descriptor)
        raise location.UnusableError(f"{path} {why}")
    return descriptor


def _file(folder: int, path: str, mode: int) -> _Found:
    digest, size, head = sha256(), 0, b""
    with open(_opened(folder, path, mode), "rb") as file:
        while piece := file.read(_CHUNK):
            head = head or piece[:20]
            size += len(piece)
            digest.update(piece)
    return _Found(size, digest.hexdigest(), head)


def _parents(path: str) -> Iterator[str]:
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _is_link(folder: int, path: str, target: str) -> bool:
    try:
        return os.readlink(path, dir_fd=folder) == target
    except OSError:
        return False


def _check_library(directory: str, path: str, found: _Found, machine: bytes) -> None:
    """Raises RunnerError for what is no library, or another machine's than the bootloader."""
    if not bundle.is_library(path):
        raise _damaged(directory, path, "is not as it was built, and only shared libraries can be exchanged")
    head = found.head
    if len(head) < 20 or (head[:6], head[16:18], head[18:20]) != (machine[:6], _DYNAMIC, machine[18:20]):
        raise _damaged(directory, path, "is no shared library for this machine")


def _replace_list(folder: int, text: str) -> None:
    temporary = f"{bundle.CONTENTS}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(text.encode("ascii"))
            os.fchmod(file.fileno(), 0o600)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, bundle.CONTENTS, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _damaged(directory: str, path: str, why: str) -> RunnerError:
    return RunnerError(
        "install.damaged", f"{os.path.join(directory, path)} {why}; nothing was adopted; install the runner again"
    )
