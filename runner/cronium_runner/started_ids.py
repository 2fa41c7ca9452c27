"""The ids whose scripts were started, remembered apart from their directories: removing one frees no id.

One file with 16 bytes for each id, appended without fsync: it matters only where a directory was removed, and a power
loss removes none. Once the file is large, a collection drops the ids whose records are complete.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from typing import Final

from .digest import sha256
from .errors import StateDamagedError
from .state_files import open_file, read_file

_SIZE: Final = 16
"""Bytes of a digest: so many that no two ids will ever have the same."""
_NONE: Final = bytes(_SIZE)
"""Replaces the digest of an id that was taken back."""
_PIECE: Final = 1 << 16
"""Bytes that are read at a time."""
_LIMIT: Final = 64 << 20
"""Bytes that a submission reads at most: four million ids."""
SHRUNK_ABOVE: Final = 1 << 20
"""Bytes: 65,536 ids. Each submission reads the file, and so much costs it a tenth of a millisecond."""


class StartedIds:
    """The file of one state directory, by its path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"<StartedIds {self.path}>"

    def add(self, execution_id: str) -> None:
        """Remembers an id. Raises OSError, StateDamagedError."""
        opened, size = self._lock(os.O_CREAT)
        try:
            at = _whole(size)  # over what a process that died in the middle has left
            if os.pwrite(opened, _digest(execution_id), at) != _SIZE:
                os.ftruncate(opened, at)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        finally:
            os.close(opened)

    def take_back(self, execution_id: str) -> None:
        """Forgets an id that was added and whose script was not started after all. It needs no space.

        Raises OSError, StateDamagedError.
        """
        wanted = _digest(execution_id)
        with self._locked() as opened:
            for at, piece in _pieces(opened):
                for start in range(0, len(piece), _SIZE):
                    if piece[start : start + _SIZE] == wanted:
                        os.pwrite(opened, _NONE, at + start)

    def has(self, execution_id: str) -> bool:
        """Whether the id was remembered. A file that cannot be read remembers nothing."""
        try:
            return _digest(execution_id) in read_file(self.path, _LIMIT)
        except (OSError, StateDamagedError):
            return False

    def is_large(self) -> bool:
        """Whether the file is large enough for `forget`."""
        try:
            return os.lstat(self.path).st_size > SHRUNK_ABOVE
        except OSError:
            return False

    def forget(self, ids: Iterable[str]) -> None:
        """Drops ids from the file. Raises OSError, StateDamagedError."""
        gone = {_NONE, *map(_digest, ids)}
        temporary = f"{self.path}.new"
        with self._locked() as opened:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # of a process that died; we hold the lock
            try:
                with open(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                    for _, piece in _pieces(opened):
                        records = (piece[at : at + _SIZE] for at in range(0, len(piece), _SIZE))
                        file.write(b"".join(each for each in records if each not in gone))
                os.rename(temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        opened, _ = self._lock()
        try:
            yield opened
        finally:
            os.close(opened)

    def _lock(self, create: int = 0) -> tuple[int, int]:
        """The open file under an exclusive lock, and its size. `create` is O_CREAT where it may be made."""
        while True:
            opened = self._open(create)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX)
                found = os.fstat(opened)
                if _is_at(self.path, found):  # else it was replaced just now
                    return opened, found.st_size
            except BaseException:
                os.close(opened)
                raise
            os.close(opened)

    def _open(self, create: int) -> int:
        try:
            return open_file(self.path, os.O_RDWR)
        except FileNotFoundError:
            if not create:
                raise
            return open_file(self.path, os.O_RDWR | create)


def _pieces(opened: int) -> Iterator[tuple[int, bytes]]:
    """The complete records of the file, many at a time, and where each piece begins."""
    at = 0
    while piece := os.pread(opened, _PIECE, at):
        piece = piece[: _whole(len(piece))]
        if not piece:
            return
        yield at, piece
        at += len(piece)


def _whole(size: int) -> int:
    """How many of so many bytes are complete records."""
    return size - size % _SIZE


def _is_at(path: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), found)
    except FileNotFoundError:
        return False


def _digest(execution_id: str) -> bytes:
    return sha256(execution_id.encode()).digest()[:_SIZE]
