"""Makes the files of a work directory below one descriptor, and takes such a directory away again.

Neither follows a link, whatever a script does meanwhile. It is told checked names: what a name may be is
`payload`'s.
"""

import os
from collections import deque
from typing import BinaryIO, Final, Literal

from .archive import shown
from .errors import PayloadError, StateDirectoryError

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What a name stands for while a tree is made: a file, a folder with an entry of its own, a folder above a
# member.
_Kind = Literal["file", "folder", "implied"]
_FILE: Final = "file"
_FOLDER: Final = "folder"
_IMPLIED: Final = "implied"


class Tree:
    """Makes files and folders below one directory descriptor, each once, and follows no link on the way.

    OSErrors inside its `with` block leave as StateDirectoryError: what can fail to be *read* is translated
    where it is read, so what is left is this side's disk.
    """

    def __init__(self, directory: int | str) -> None:
        self._directory = directory
        self._root = -1
        self._made: dict[str, _Kind] = {}
        self._parent = ""
        self._parent_descriptor = -1

    def __enter__(self) -> "Tree":
        try:
            if isinstance(self._directory, int):
                self._root = os.dup(self._directory)
            else:
                self._root = os.open(self._directory, _DIRECTORY_FLAGS)
        except OSError as error:
            raise self._translated(error) from None
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._close_parent()
        os.close(self._root)
        if isinstance(error, OSError):
            raise self._translated(error) from None

    @property
    def files(self) -> list[str]:
        """The names of the files made so far, in order."""
        return [name for name, kind in self._made.items() if kind == _FILE]

    def is_root(self, found: os.stat_result) -> bool:
        """Whether `found` is the directory that this tree grows in."""
        return os.path.samestat(found, os.fstat(self._root))

    def make_directory(self, name: str) -> None:
        """Make the folder of an entry. An earlier member may have implied it; it may be named only once."""
        if not name:
            return
        known = self._made.get(name)
        if known in (_FILE, _FOLDER):
            raise _duplicate(name)
        if known is None:
            self._mkdir(name)
        self._made[name] = _FOLDER

    def new_file(self, name: str, is_executable: bool) -> BinaryIO:
        """The new, empty file `name`, open for `write_all`; folders on the way are made."""
        if name in self._made:
            raise _duplicate(name)
        parent = self._open_parent(name)
        mode = 0o700 if is_executable else 0o600
        descriptor = os.open(name.rpartition("/")[2], _NEW_FILE_FLAGS, mode, dir_fd=parent)
        self._made[name] = _FILE
        return os.fdopen(descriptor, "wb", buffering=0)

    def _mkdir(self, name: str) -> None:
        os.mkdir(name.rpartition("/")[2], 0o700, dir_fd=self._open_parent(name))

    def _open_parent(self, name: str) -> int:
        """A descriptor of the folder that holds `name`. The last one is kept, as members come folder by
        folder.
        """
        folder = name.rpartition("/")[0]
        if not folder:
            return self._root
        if folder != self._parent or self._parent_descriptor < 0:
            self._make_folders(folder)
            self._close_parent()
            self._parent_descriptor, self._parent = self._descend(folder), folder
        return self._parent_descriptor

    def _make_folders(self, folder: str) -> None:
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            known = self._made.get(prefix)
            if known == _FILE:
                raise _duplicate(prefix)
            if known is None:
                self._mkdir(prefix)
                self._made[prefix] = _IMPLIED

    def _descend(self, folder: str) -> int:
        descriptor = os.dup(self._root)
        for part in folder.split("/"):
            above = descriptor
            try:
                descriptor = os.open(part, _DIRECTORY_FLAGS, dir_fd=above)
            finally:
                os.close(above)
        return descriptor

    def _close_parent(self) -> None:
        if self._parent_descriptor >= 0:
            os.close(self._parent_descriptor)
            self._parent_descriptor = -1

    def _translated(self, error: OSError) -> StateDirectoryError:
        where = "the work directory" if isinstance(self._directory, int) else self._directory
        return StateDirectoryError(f"cannot write the payload's files into {where}: {error.strerror}")


def write_all(file: BinaryIO, piece: bytes) -> None:
    """Writes a piece to a file without a buffer, which may take less at once."""
    written = file.write(piece)
    while written < len(piece):
        written += file.write(memoryview(piece)[written:])


def _duplicate(name: str) -> PayloadError:
    return PayloadError(
        "payload.duplicate_name",
        f"payload member {shown(name)} is there twice, or both as file and folder; pack it once",
    )


def remove_tree(path: str) -> None:
    """Remove `path` and all below it, whatever a script left there; nothing outside, and no error when it is
    gone already.

    Links are removed, not followed, also when they are swapped in meanwhile; folders without permissions are
    opened up; any depth works. A mount point below is not entered. Removes as much as it can, then raises
    StateDirectoryError when something is left.
    """
    try:
        root = _open_for_removal(path, None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateDirectoryError(f"cannot remove {path}: {error.strerror}") from None
    try:
        failure = _empty(root)
    finally:
        os.close(root)
    try:
        os.rmdir(path)
    except OSError as error:
        failure = failure or error
    if failure is not None:
        raise StateDirectoryError(f"cannot remove everything below {path}: {failure.strerror}; remove it by hand")


def _empty(root: int) -> OSError | None:
    """Remove all below `root`; the first failure, if any.

    A folder that isn't empty is first moved up to `root` under a number of ours and emptied there. So the
    depth costs neither recursion nor descriptors, and a mount point, which can't be moved, is never entered.
    """
    failure: OSError | None = None
    moved: deque[str] = deque()
    ours = f".removing-{os.urandom(4).hex()}-"
    count = 0
    folder = "."
    while True:
        try:
            descriptor = _open_for_removal(folder, root)
            try:
                with os.scandir(descriptor) as found:
                    for entry in found:
                        if folder == "." and entry.name.startswith(ours):
                            continue
                        count += 1
                        try:
                            if _is_moved(entry, descriptor, root, f"{ours}{count}"):
                                moved.append(f"{ours}{count}")
                        except OSError as error:
                            failure = failure or error
            finally:
                os.close(descriptor)
            if folder != ".":
                os.rmdir(folder, dir_fd=root)
        except OSError as error:
            failure = failure or error
        if not moved:
            return failure
        folder = moved.popleft()


def _is_moved(entry: "os.DirEntry[str]", parent: int, root: int, new_name: str) -> bool:
    """Remove an entry, or move it to `root` when it is a folder that isn't empty; whether it was moved."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=parent)
        return False
    try:
        os.rmdir(entry.name, dir_fd=parent)
        return False
    except OSError:
        # Not empty, usually; when it is something else, the next lines meet it again.
        os.close(_open_for_removal(entry.name, parent))  # moving a folder needs write permission on itself
        os.rename(entry.name, new_name, src_dir_fd=parent, dst_dir_fd=root)
        return True


def _open_for_removal(name: str, parent: int | None) -> int:
    """A descriptor of a real folder, given all permissions of its owner if it lacks them."""
    if not hasattr(os, "O_PATH"):  # macOS, where the controller has a payload validated
        folder = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        os.fchmod(folder, 0o700)
        return folder
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # fchmod refuses an O_PATH descriptor
        return os.open(".", _DIRECTORY_FLAGS, dir_fd=handle)
    finally:
        os.close(handle)
