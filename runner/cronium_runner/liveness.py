"""Whether an execution's supervisor lives, as far as that can be told from here.

The same state directory may be seen from another pid namespace (a container and its host) or from another machine (a
shared home directory), where a pid means nothing. So a supervisor, and its guardian, hold a lock on `state.jsonl` for
life, and the claim names the boot, the pid namespace and the machine that its pid belongs to. Nothing is ended, and
nothing is written, unless the supervisor is DEAD.

The lock is an open file description lock (fcntl(2)): a shared one on the whole file, asked for without being taken. Its
descriptor is close-on-exec, and forked processes of ours close it (`process.detach`). See decision 0022.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from . import process
from .errors import StateDamagedError
from .state_files import open_file

LOCK: Final = "lock"
"""The key of a claim that names the locked file. A claim without it was made by 0.1.0, or where locks are refused."""
LOCKED_FILE: Final = "state.jsonl"
_FLOCK: Final = struct.Struct("hhqqi0q")
"""struct flock with 64-bit offsets: type, whence, start, length, pid."""
_FIRST_NAMESPACE: Final = "pid:[4026531836]"
"""The machine's own pid namespace, from which all others are seen (PROC_PID_INIT_INO of <linux/proc_ns.h>)."""

_SHARED_KINDS: Final = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "virtiofs", "ceph", "afs", "lustre", "gpfs", "beegfs", "ocfs2",
    "gfs2", "vboxsf", "prl_fs", "fuse",
)  # fmt: skip
"""File systems that other machines may have mounted as well; of FUSE all (`fuse.sshfs`)."""


class Liveness(Enum):
    """What is known of a supervisor."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It belongs to another machine or pid namespace, and no lock tells."""


def is_shared(path: str, mountinfo: str = "/proc/self/mountinfo") -> bool:
    """Whether other machines may see the same file: whether it is on a network or cluster file system."""
    with contextlib.suppress(OSError):
        device = os.stat(path).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open(mountinfo, encoding="utf-8", errors="replace") as file:
            for line in file:
                mounted, _, kind = line.partition(" - ")
                if mounted.split(" ", 3)[2:3] == [number]:
                    return kind.split(" ")[0].partition(".")[0] in _SHARED_KINDS
    return False


def hold(opened: int) -> bool:
    """Takes a shared lock that lasts as long as the open file. Whether the file system has such locks."""
    try:
        fcntl.fcntl(opened, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return False
    return True


def hold_file(path: str, flags: int = os.O_RDONLY) -> int | None:
    """Opens a state.jsonl and takes the lock; the descriptor to keep. None when that is not possible."""
    opened = None
    with contextlib.suppress(OSError, StateDamagedError):
        opened = open_file(path, flags)
        hold(opened)
    return opened


def is_held(path: str) -> bool | None:
    """Whether any process holds the lock; None when that cannot be told."""
    try:
        opened = open_file(path, os.O_RDONLY)
    except (OSError, StateDamagedError):
        return None
    try:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = fcntl.fcntl(opened, fcntl.F_OFD_GETLK, wanted)
    except OSError:
        return None
    finally:
        os.close(opened)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def of_supervisor(claim: Mapping[str, Any], path: str) -> Liveness:
    """What is known of the supervisor that made the claim; `path` is that of its state.jsonl.

    Raises OSError when this process has no descriptor to look with.
    """
    who = claim.get("supervisor")
    if not isinstance(who, dict):
        return Liveness.UNKNOWN
    if process.is_of_here(who):
        return Liveness.ALIVE if process.is_alive(who) else Liveness.DEAD
    if "namespace" not in who:
        return _of_older(who, claim.get("socket"))
    held = is_held(path) if claim.get(LOCK) else None
    if held is None:
        return Liveness.UNKNOWN
    if held:
        return Liveness.ALIVE
    # No process holds it. What the supervisor left must be visible from here as well, or have ended with its boot.
    if who.get("boot") == process.boot_id():
        is_certain = process.namespace() == _FIRST_NAMESPACE
    elif who.get("machine") or process.machine():
        is_certain = who.get("machine") == process.machine()
    else:  # neither boot had an id of the machine; a file system that no other machine sees was in this one
        is_certain = not is_shared(path)
    return Liveness.DEAD if is_certain else Liveness.UNKNOWN


def _of_older(who: Mapping[str, Any], path: Any) -> Liveness:
    """What is known of a supervisor of 0.1.0, which held no lock and did not say its pid namespace.

    A pid of that start time is the supervisor. Without one it may live in another namespace, unless its socket refuses:
    the kernel then has no listener for it, wherever that might be.
    """
    if who.get("boot") != process.boot_id():
        return Liveness.UNKNOWN
    if process.is_alive(who):
        return Liveness.ALIVE
    if not isinstance(path, str):
        return Liveness.UNKNOWN
    import socket  # an agent's start does without

    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except BlockingIOError:
            return Liveness.ALIVE
        except ConnectionRefusedError:
            return Liveness.DEAD
        except OSError:  # it is gone, or was made where we can't see it
            return Liveness.UNKNOWN if _may_be_elsewhere(who) else Liveness.DEAD
    return Liveness.ALIVE


def _may_be_elsewhere(who: Mapping[str, Any]) -> bool:
    """Whether a process of that start time may be in another namespace. From the machine's own all are seen."""
    if process.namespace() != _FIRST_NAMESPACE:
        return True
    start = who.get("start")
    return isinstance(start, int) and _is_any_of_start(start)


_taken, _starts = 0, frozenset[int]()
"""Start times of all processes, and when they were looked at, both in clock ticks since boot."""


def _is_any_of_start(start: int) -> bool:
    """Whether any process with this start time lives.

    One that was not there at a look after its start has ended, and none will ever have that start time again: so a
    look at all of /proc serves for thousands of records.
    """
    global _taken, _starts
    if start >= _taken or start in _starts:
        ticks = os.sysconf("SC_CLK_TCK")
        taken = int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks) - ticks  # a second less, to be sure
        seen = [process.stat_fields(pid) for pid, _, _ in process.living()]
        _taken, _starts = taken, frozenset(int(fields[19]) for fields in seen if fields is not None)
    return start in _starts
