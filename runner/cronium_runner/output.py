"""The spool of one output stream: bytes as the script wrote them, in a file, up to a cap.

Writing never raises: when the disk refuses, the script goes on and the loss is flagged in the result.
Who reads the spool, and when, is `follow`'s matter.
"""

import errno
import os
from typing import Final

from .digest import sha256
from .errors import StateDamagedError
from .state_files import open_file
from .wire.results import StreamSummary

DEFAULT_CAP: Final = 1024 * 1024 * 1024
"""Bytes a stream. More output than that in one job is a runaway, not a log."""
TAIL: Final = 64 * 1024
"""Bytes of the end that are kept beside a truncated head: the last words say why a job failed."""
RESERVE: Final = 1024 * 1024
"""Bytes of the file system that no spool takes: the result, which says that the disk was full, must still fit."""
_REPLACED: Final = OSError(errno.EEXIST, "something else than a regular file is in its place")


class Spool:
    """Appends to `path`, which is created with the first byte: an empty stream costs no file."""

    def __init__(self, path: str, *, cap: int = DEFAULT_CAP) -> None:
        self._path = path
        self._cap = cap
        self._file = -1
        self._size = 0
        self._digest = sha256()
        self._tail = bytearray()
        self.is_truncated = False
        self.error: OSError | None = None

    def __repr__(self) -> str:
        return f"<Spool {self._path} {self._size} bytes{' truncated' if self.is_truncated else ''}>"

    def write(self, piece: bytes) -> None:
        """Adds a piece. Past the cap, or once the disk has refused, only the tail is remembered."""
        if not self.is_truncated:
            room = self._cap - self._size
            kept = self._append(piece if len(piece) <= room else piece[:room])
            if kept == len(piece):
                return
            self.is_truncated = True
            piece = piece[kept:]
        self._tail += piece
        if len(self._tail) > TAIL:
            del self._tail[:-TAIL]

    def _append(self, piece: bytes) -> int:
        """Writes what it can and says how many bytes that was."""
        kept = 0
        try:
            if self._file < 0:
                self._file = open_file(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            allowed = min(len(piece), _room(self._file))
            view = memoryview(piece)[:allowed]
            while kept < allowed:
                kept += os.write(self._file, view[kept:])
            if allowed < len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.error = error
        except StateDamagedError:
            self.error = _REPLACED
        self._size += kept
        self._digest.update(piece[:kept])
        return kept

    def close(self) -> StreamSummary:
        """Makes what was kept durable and says what it is."""
        if self._file >= 0:
            try:
                os.fsync(self._file)
                os.close(self._file)
            except OSError as error:
                # What fsync could not promise is not there: say so rather than vouch for it.
                self.is_truncated = True
                self.error = error
        if self._tail:
            self._write_tail()
        return StreamSummary(self._size, self.is_truncated, self._digest.hexdigest())

    def _write_tail(self) -> None:
        try:
            with open(self._path + ".tail", "wb", opener=open_file) as file:
                file.write(self._tail)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.error = error
        except StateDamagedError:
            self.error = _REPLACED


def _room(file: int) -> int:
    """Bytes that a spool may still take on the file system of `file`."""
    found = os.fstatvfs(file)
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail  # root may use the blocks reserved for it
    return max(0, free * found.f_frsize - RESERVE)
