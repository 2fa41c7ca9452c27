"""What one run of a program costs: measured.py REPORT OUTPUT PROGRAM ARGUMENTS…; a report as JSON in the file REPORT.

`wall` and `cpu` are seconds, the latter user and system of the program and everything that came from it: orphans are
adopted, ended once the program has, and counted. `memory` is bytes: the highest sum, over the whole tree, of
proportional set sizes (PSS: shared pages count once), sampled; at least the exact peak of the largest process.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_PAUSE: Final = 0.05
"""Seconds between samples: some for the shortest run of interest, half a second."""
_SHARE: Final = 0.05
"""Of one core, at most, for sampling: some tools have hundreds of processes, and they shall not wait for us."""


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def _tree() -> list[int]:
    """All our descendants."""
    found = _children(os.getpid())
    for pid in found:
        found += _children(pid)
    return found


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        _, _, rest = Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")
        return int(rest.split()[0]) * 1024
    return 0


def _end_orphans() -> None:
    while left := _children(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.wait()


def measure(words: list[str], output: Path) -> dict[str, float]:
    """Runs a program to its end, its standard output and error in one file."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    peak = 0
    began = time.monotonic()
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=actions)
    ended = os.pidfd_open(pid)
    pause = _PAUSE
    while not select.select([ended], [], [], pause)[0]:
        sampled = time.monotonic()
        peak = max(peak, sum(map(_proportional, _tree())))
        pause = max(_PAUSE, (time.monotonic() - sampled) / _SHARE)
    wall = time.monotonic() - began
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    _end_orphans()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = max(peak, used.ru_maxrss * 1024)
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": peak, "status": status}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(sys.argv[3:], Path(sys.argv[2]))))
