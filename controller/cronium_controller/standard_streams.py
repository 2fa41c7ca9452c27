"""The command's own three streams: open before anything else is, and never a traceback when one cannot be written.

A descriptor below 3 that is closed (`>&-`) would become the next file or socket that is opened, and a host's output
would be written into that. What goes to standard output and cannot be kept (a full disk) is an error, as a result that
is cut off must not look whole; a reader that has gone away (`| head -1`) is none, and the work goes on.
"""

import errno
import io
import os
import sys
from typing import Any, Final

from .errors import ControllerError

_NOBODY_READS: Final = (errno.EPIPE, errno.EBADF)
_failures: list[ControllerError] = []
"""What was said of standard output; once is enough."""


def prepare() -> None:
    """Called once, by the command, before it does anything."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, so this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - ours to the end
    sys.stdout = _text(_Output(1, is_vital=True))
    sys.stderr = _text(_Output(2, is_vital=False))


def failure() -> ControllerError | None:
    """What kept standard output from being written whole, if anything did."""
    return _failures[0] if _failures else None


def failed(error: OSError) -> ControllerError | None:
    """Notes that standard output could not be written; None when only its reader has gone."""
    if error.errno in _NOBODY_READS:
        return None
    if not _failures:
        _failures.append(
            ControllerError(
                "output.unwritable",
                f"standard output cannot be written: {os.strerror(error.errno or errno.EIO)}; what was done is done: "
                "make room, then look with cronium history and cronium logs",
            )
        )
    return _failures[0]


class _Output(io.RawIOBase):
    """A descriptor. After its first failure all that is written to it is dropped, so that no buffer fails again."""

    def __init__(self, descriptor: int, *, is_vital: bool) -> None:
        self._descriptor = descriptor
        self._is_vital = is_vital
        self._has_failed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        if not self._has_failed:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self._has_failed = True
                told = failed(error) if self._is_vital else None
                if told is not None:
                    raise told from None
        return len(data)


def _text(raw: _Output) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="surrogateescape", line_buffering=raw.isatty()
    )
