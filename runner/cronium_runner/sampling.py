"""What a tree of processes takes: memory, processes and threads, as /proc shows it. Only looks, decides nothing.

Memory means what a control group's memory.max would count and could not drop: anonymous and shared pages that were
touched, and what of them is swapped out. A reserved but untouched allocation counts nothing.
"""

import contextlib
import os
from collections.abc import Iterable

from . import process

_RESIDENT = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_PROPORTIONAL = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


def tree(root: int) -> list[int]:
    """Every descendant of `root` that can be seen now. Looks only at them, however many processes the host has."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        children = _children(pid)
        if children is None:
            return process.descendants(root)
        found += children
        waiting += children
    return found


def memory(pids: Iterable[int], *, above: int) -> int:
    """Bytes that they use together.

    What processes share after a fork is first counted for each of them, which is cheap. Only when that is above `above`
    it is divided among those who share it, for which the kernel must walk their page tables.
    """
    pids = list(pids)
    most = sum(_sum(f"/proc/{pid}/status", _RESIDENT) or 0 for pid in pids)
    if most <= above:
        return most
    exact = 0
    for pid in pids:
        shared_fairly = _sum(f"/proc/{pid}/smaps_rollup", _PROPORTIONAL)
        # Absent before Linux 4.14, and unreadable for one that has changed its user: then its own count must do.
        exact += (_sum(f"/proc/{pid}/status", _RESIDENT) or 0) if shared_fairly is None else shared_fairly
    return exact


def threads(pids: Iterable[int]) -> int:
    """How many processes and threads they are: what pids.max counts. Zombies have ended, and count nothing."""
    count = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = process.stat_fields(pid)
            if fields is not None and process.is_living(fields):
                count += int(fields[17])
    return count


def threads_of(user: int) -> int:
    """How many processes and threads the account has: what RLIMIT_NPROC counts."""
    pids = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                pids.append(int(name))
    return threads(pids)


def _children(pid: int) -> list[int] | None:
    """The children of all of a process's threads; none when it is gone, None when the kernel keeps no such list."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        if pid == os.getpid() and not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
            return None
    return found


def _sum(path: str, names: tuple[bytes, ...]) -> int | None:
    """The sum of these lines of a file, in bytes; None when it can't be read or has none of them."""
    total = None
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.startswith(names):
                    total = (total or 0) + int(line.split()[1]) * 1024
    except OSError:
        return None
    return total
