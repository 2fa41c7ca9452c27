"""The one way to open and read a file of the state directory: a regular file of bounded size, reached by no link.

A job runs as the account that owns the directory, so any of these files may have become a link, a FIFO, a directory or
a gigabyte. Opening never waits, and what is not as it should be is a StateDamagedError, which concerns one file.
"""

import errno
import os
import stat
from typing import Final

from .errors import StateDamagedError

STATE_LIMIT: Final = 1 << 20
"""Bytes of state.jsonl: five lines, of which the tombstone's is the longest with a result's error in it."""
RESULT_LIMIT: Final = 32 << 20
"""Bytes of result.json: output and variables have 6 MiB each, and escapes may take as much again."""
JOURNAL_LIMIT: Final = 256 << 20
"""Bytes of api.jsonl: 64 MiB may wait, and what is settled is seldom kept for longer than that."""
_SAFELY: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE: Final = {
    errno.ELOOP: "a symbolic link",
    errno.ENXIO: "a FIFO or socket",
    errno.EISDIR: "a directory",
}
"""What open(2) answers for something else than a regular file."""
_OUR_OWN_SHORTAGE: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""These say nothing about the file."""


def open_file(path: str, flags: int, mode: int = 0o600) -> int:
    """Opens a regular file and returns its descriptor. Raises StateDamagedError when it is none, else OSError."""
    return _open(path, flags, mode)[0]


def _open(path: str, flags: int, mode: int = 0o600) -> tuple[int, os.stat_result]:
    try:
        opened = os.open(path, flags | _SAFELY, mode)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise StateDamagedError(path, f"is {_NO_FILE[error.errno]}, not a regular file") from None
        raise
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode):
        os.close(opened)
        raise StateDamagedError(path, "is not a regular file")
    return opened, found


def read_file(path: str, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises FileNotFoundError, StateDamagedError for what is no such file or cannot be read, and OSError only when this
    process has no descriptor or memory for it.
    """
    try:
        opened, found = _open(path, os.O_RDONLY)
        try:
            return _read(opened, path, found.st_size, limit)
        finally:
            os.close(opened)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _OUR_OWN_SHORTAGE:
            raise
        raise StateDamagedError(path, f"cannot be read: {error.strerror}") from None


def _read(opened: int, path: str, size: int, limit: int) -> bytes:
    if size > limit:
        raise StateDamagedError(path, f"has {size} bytes, more than the {limit} that it may have")
    content = os.read(opened, size + 1)
    if len(content) == size:  # no further byte was there
        return content
    while piece := os.read(opened, max(4096, size + 1)):
        content += piece
        if len(content) > limit:  # it grows while we read
            raise StateDamagedError(path, f"has more than the {limit} bytes that it may have")
    return content
