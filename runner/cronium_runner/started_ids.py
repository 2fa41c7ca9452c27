"""The ids whose scripts were started, remembered apart from their directories: removing one frees no id.

One file of 16 bytes for each id, appended without fsync: it is needed only when a directory has gone, which an accident
of the same boot does. A housekeeper leaves the ids out whose records are complete, once the file is large.
"""

import fcntl
import os
from collections.abc import Iterable
from typing import Final

from .digest import sha256
from .errors import StateDamagedError
from .state_files import open_file, read_file

_SIZE: Final = 16
"""Bytes of a digest: so many that no two ids will ever have the same."""
_LIMIT: Final = 64 << 20
"""Bytes that are read at most: four million ids."""
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
        while True:
            opened = self._open()
            try:
                fcntl.flock(opened, fcntl.LOCK_SH)
                if _is_at(self.path, opened):  # else it was replaced just now
                    os.write(opened, _digest(execution_id))
                    return
            finally:
                os.close(opened)

    def has(self, execution_id: str) -> bool:
        """Whether the id was remembered. A file that cannot be read remembers nothing."""
        try:
            return _digest(execution_id) in read_file(self.path, _LIMIT)
        except (OSError, StateDamagedError):
            return False

    def is_large(self) -> bool:
        """Whether `forget` is worth the trouble."""
        try:
            return os.lstat(self.path).st_size > SHRUNK_ABOVE
        except OSError:
            return False

    def forget(self, ids: Iterable[str]) -> None:
        """Leaves ids out that need no remembering. Raises OSError, StateDamagedError."""
        gone = {_digest(each) for each in ids}
        temporary = f"{self.path}.{os.urandom(4).hex()}.new"
        opened = open_file(self.path, os.O_RDWR)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            content = read_file(self.path, _LIMIT)
            kept = [content[at : at + _SIZE] for at in range(0, len(content), _SIZE)]
            with open(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
                file.write(b"".join(each for each in kept if each not in gone))
            os.rename(temporary, self.path)
        finally:
            os.close(opened)

    def _open(self) -> int:
        try:
            return open_file(self.path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return open_file(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _is_at(path: str, opened: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(opened))
    except FileNotFoundError:
        return False


def _digest(execution_id: str) -> bytes:
    return sha256(execution_id.encode()).digest()[:_SIZE]
