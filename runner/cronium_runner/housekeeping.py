"""Work on all records of a state directory: one process at a time, beside everything else at the lowest priority.

Collections (`retention`) and the writer of the index (`indexing`) do it. Either may be killed at any moment.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from typing import Final

from . import process
from .errors import StateDamagedError, StateDirectoryError
from .jobdir import StateDirectory
from .state_files import open_file

NICE: Final = 19
"""Housekeeping can wait for everything else."""


def start(work: Callable[[], object]) -> int:
    """Does the work in a process of its own and returns its pid at once. Raises OSError.

    What fails there is not told.
    """
    pid = os.fork()
    if pid == 0:
        try:
            process.detach(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            os.nice(NICE)
            with contextlib.suppress(Exception):
                work()
        finally:
            os._exit(0)
    return pid


@contextlib.contextmanager
def only_one(state: StateDirectory, *, waits: bool) -> Iterator[int]:
    """Holds the lock of the state directory's housekeeping; gives the descriptor of the file `collected`.

    Without `waits` raises BlockingIOError when another process holds it.
    """
    try:
        marker = open_file(state.collected, os.O_RDWR | os.O_CREAT)
    except StateDamagedError as error:
        raise StateDirectoryError(f"nothing can be collected: {error.what}; remove it, then try again") from None
    try:
        fcntl.flock(marker, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield marker
    finally:
        os.close(marker)
