"""A folder here that files from a host are put into, below a directory descriptor, so that no link leads out of it.

Names come from what was typed. Where a name has to come from the host, `checked_name` says whether it may be used, and
`Destination` refuses what is there already unless it is a regular file. What is on its way is in a new folder of mode
0700 beside its place, where no other account can put anything, nor read what is in it.
"""

import contextlib
import errno
import os
import re
import stat
import unicodedata
from types import TracebackType
from typing import BinaryIO, Final

from .remote_file import PART, new_folder

_LONGEST: Final = 255
"""Bytes of a name: NAME_MAX of Linux."""
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PRIVATE: Final = 0o700
_SET_GID: Final = 0o2000
"""Inherited by a new folder from the one above, which harms nothing."""


class NameRefusedError(Exception):
    """A name that nothing may be written under. `name` may be the host's: it is shown cleaned."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why


def checked_name(name: str, pattern: str | None = None) -> str:
    """A name that a host has told: one component, without controls, matching the pattern that was typed for it.

    Raises NameRefusedError. The pattern is that of a shell: `*`, `?`, `[…]`; it matches a leading dot only with one.
    """
    why = _refusal(name)
    if why is None and pattern is not None and not is_match(name, pattern):
        why = f"it does not match '{pattern}'"
    if why is not None:
        raise NameRefusedError(name, why)
    return name


def _refusal(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "it names no file"
    if "/" in name:
        return "it leads to another folder"
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        return "it has a control character"
    try:
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return "it is not text"
    return "it is too long" if length > _LONGEST else None


def is_match(name: str, pattern: str) -> bool:
    """Whether a name matches a shell's pattern, case and all."""
    if name.startswith(".") and not pattern.startswith((".", "\\.")):
        return False
    try:
        return re.fullmatch(_translated(pattern), name, re.DOTALL) is not None
    except re.error:  # [z-a], which nothing matches
        return False


def _translated(pattern: str) -> str:
    """As fnmatch.translate, which knows no backslash."""
    found: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            found.append("" if found[-1:] == [".*"] else ".*")  # several in a row would be tried in every division
        elif character == "?":
            found.append(".")
        elif character == "\\" and at < len(pattern):
            found.append(re.escape(pattern[at]))
            at += 1
        elif character == "[" and (end := pattern.find("]", at + 1 + (pattern[at : at + 1] in ("!", "^")))) > 0:
            inside, at = pattern[at:end], end + 1
            is_negated = inside[0] in "!^"
            kept = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[is_negated:])
            found.append(f"[{'^' if is_negated else ''}{kept}]")
        else:
            found.append(re.escape(character))
    return "".join(found)


class LocalPartial:
    """A partial copy here: its folder's name and descriptor, and the open file in it."""

    def __init__(self, name: str, folder: int, file: BinaryIO) -> None:
        self.name = name
        self.folder = folder
        self.file = file

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Lets go of it; it stays there."""
        self.file.close()
        os.close(self.folder)


class Destination:
    """An open folder. Its calls raise OSError, and NameRefusedError where they say so."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def open(cls, path: str) -> "Destination":
        """The folder at a path that was typed, made where it is missing; links in it are the operator's own."""
        os.makedirs(path or ".", exist_ok=True)
        return cls(os.open(path or ".", _FOLDER_FLAGS), path)

    def __enter__(self) -> "Destination":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def path_of(self, name: str) -> str:
        """The path of a file in it, for people and for the store."""
        return os.path.join(self.path, name)

    def folder(self, name: str) -> "Destination":
        """A folder in it, made where it is missing. Raises NameRefusedError for a link, and for what is no folder."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._descriptor)
        try:
            found = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise NameRefusedError(self.path_of(name), "it is not a folder; remove it, or name another") from None
        return Destination(found, self.path_of(name))

    def check(self, name: str, *, is_typed: bool) -> None:
        """Raises NameRefusedError where something is that a file may not replace.

        A link that was typed is replaced, when it leads to a regular file; one under a name of the host's is refused.
        """
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if is_typed and stat.S_ISLNK(found.st_mode):
                found = os.stat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(found.st_mode):
            raise NameRefusedError(self.path_of(name), "it is a link; remove it, or name another target")
        if not stat.S_ISREG(found.st_mode):  # /dev/null would be a file from then on
            raise NameRefusedError(self.path_of(name), "it is not a regular file; name another target")

    def room(self) -> int | None:
        """Bytes that are free for this account; None where the file system does not say, as some on a network."""
        disk = os.fstatvfs(self._descriptor)
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else None

    def new_name(self, name: str) -> str:
        """A name in it for a partial copy of a file, which cannot be guessed."""
        return new_folder(f"/{name}")[1:]

    def begin(self, name: str) -> LocalPartial:
        """Makes a partial copy's folder under a new name, and an empty file in it."""
        os.mkdir(name, _PRIVATE, dir_fd=self._descriptor)
        folder = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self._descriptor)
        try:
            with contextlib.suppress(OSError):  # file systems without modes of their own refuse it
                os.fchmod(folder, _PRIVATE)  # a umask may have taken our own rights away
            made = os.fstat(folder)
            if made.st_uid != os.geteuid() or made.st_mode & 0o022:
                raise NameRefusedError(
                    self.path_of(name), "other accounts can write to a new folder there; name another target"
                )
            return LocalPartial(name, folder, _opened(folder, os.O_CREAT | os.O_EXCL))
        except BaseException:
            os.close(folder)
            raise

    def resume(self, name: str) -> LocalPartial | None:
        """An earlier partial copy; None when it isn't ours, 0700, with one regular file that has one link."""
        try:
            folder = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self._descriptor)
        except OSError:
            return None
        try:
            if _is_private(os.fstat(folder)) and os.listdir(folder) == [PART]:
                file = _opened(folder, 0)
                found = os.fstat(file.fileno())
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid():
                    return LocalPartial(name, folder, file)
                file.close()
        except OSError:
            pass
        os.close(folder)
        return None

    def place(self, partial: LocalPartial, name: str, mode: int) -> None:
        """Gives a whole copy its name, and removes its folder. It never gets more rights than the umask gives."""
        os.fchmod(partial.file.fileno(), mode & 0o777 & ~_umask())
        os.rename(PART, name, src_dir_fd=partial.folder, dst_dir_fd=self._descriptor)
        with contextlib.suppress(OSError):
            os.rmdir(partial.name, dir_fd=self._descriptor)

    def discard(self, name: str) -> None:
        """Removes a partial copy, if it is there and ours alone."""
        with contextlib.suppress(OSError):
            folder = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=self._descriptor)
            try:
                if _is_private(os.fstat(folder)):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(PART, dir_fd=folder)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=self._descriptor)


def discard_at(path: str) -> None:
    """Removes the partial copy at an absolute path, if it is there and ours alone."""
    with contextlib.suppress(OSError), Destination(os.open(os.path.dirname(path), _FOLDER_FLAGS), "") as above:
        above.discard(os.path.basename(path))


def _opened(folder: int, flags: int) -> BinaryIO:
    wanted = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags
    return open(os.open(PART, wanted, 0o600, dir_fd=folder), "r+b", buffering=0)


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & ~_SET_GID == _PRIVATE


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
