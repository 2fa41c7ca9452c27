"""Real processes: starting the script, naming a process so that a reused pid is never mistaken for it, ending a tree.

What is decided about them (deadlines, grace, outcomes) is the supervisor's.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .errors import NotExecutableError

PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>

_RESTORED_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
"""An ignored signal stays ignored over exec: Python ignores two, and whoever started us may ignore any."""


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, however often they fork or call setsid.

    So none can leave the tree. A kernel without it (before Linux 3.4) leaves us with the process group.
    The standard library has no prctl, and importing all of ctypes costs a start-up 4 ms; its core does it in one.
    """
    import _ctypes

    with contextlib.suppress(OSError, AttributeError):
        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None is this process itself
        _ctypes.call_function(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def detach(kept: int) -> None:
    """For a forked process that outlives its parent: a session of its own, default signals, no descriptor but `kept`.

    Neither of the parent's own (ends of pairs that it waits for) nor of those it was started with: they would reach
    the script, or keep somebody's pipe open for as long as it runs.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)  # drops what came between fork and setsid: it was meant for the parent
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def start_script(argv: list[str], *, environment: Mapping[str, str], stdout: int, stderr: int) -> int:
    """Starts the script in our working directory, in a session of its own, with standard input from /dev/null.

    Returns its pid; the script has begun by then. Raises NotExecutableError when the kernel refuses to execute it.
    posix_spawn doesn't copy our page tables as fork does: 0.3 ms instead of 2 on the host this was measured on.
    """
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, stdout, 1),
                (os.POSIX_SPAWN_DUP2, stderr, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_RESTORED_SIGNALS,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno == errno.ENOEXEC:
            reason = "it is no program and has no '#!' line; begin it with one, or name an interpreter"
        raise NotExecutableError(f"cannot execute {argv[0]}: {reason}") from None


def identity(pid: int) -> dict[str, Any]:
    """What names a process for good: pid, start time in clock ticks since boot, and which boot."""
    return {"pid": pid, "start": _start_time(pid), "boot": _boot_id()}


def is_alive(who: Any) -> bool:
    """Whether the process that `identity` named still runs. A zombie does not."""
    if not isinstance(who, dict) or not isinstance(who.get("pid"), int):
        return False
    if who.get("boot") != _boot_id():
        return False
    fields = _stat_fields(who["pid"])
    return fields is not None and _is_living(fields) and int(fields[19]) == who.get("start")


def descendants(root: int, *, outside: int | None = None) -> list[int]:
    """Every living descendant of `root`, parents before children. Zombies and process group `outside` are left out."""
    children: dict[int, list[int]] = {}
    members = set()
    for pid, parent, group in _living():
        children.setdefault(parent, []).append(pid)
        if group == outside:
            members.add(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return [pid for pid in found if pid not in members]


def send_signal(pids: Sequence[int], number: int) -> None:
    """Signals each of our own descendants that still lives.

    Descendants found a moment ago: one that ended since is a zombie until we, their reaper, collect it, so its pid
    cannot have been reused.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def send_signal_to_group(group: int, number: int) -> None:
    """Signals a process group whose leader we have not yet collected, so that its number cannot have been reused.

    At once, which signals one by one are not: those miss a child that is forked in between.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def has_orphans(marker: str | None, guardian: int | None) -> bool:
    """Whether anything of an execution is left whose supervisor is dead; see `signal_orphans`."""
    return bool(_orphans(marker, guardian))


def signal_orphans(marker: str | None, guardian: int | None, number: int) -> int:
    """Signals what is left of an execution whose supervisor is dead; says how many there were.

    Those are the processes that inherited `marker` (NAME=VALUE) in their environment, which is this execution's alone.
    And, when `guardian` is the subreaper they were handed to, its children that are no supervisors of its own: so one
    that cleaned its environment is found as well.
    """
    found = _orphans(marker, guardian)
    for pid in found:
        # Held by a descriptor, and looked at again through it: a pid that was reused in between is left alone.
        try:
            held = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        except OSError:  # before Linux 5.3 there is no such descriptor; the moment between two looks remains
            send_signal([pid], number)
            continue
        try:
            if pid in _orphans(marker, guardian, among=[pid]):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signal.pidfd_send_signal(held, number)
        finally:
            os.close(held)
    return len(found)


def _orphans(marker: str | None, guardian: int | None, among: Sequence[int] | None = None) -> list[int]:
    own = os.getpid()
    living = {pid: parent for pid, parent, _ in _living() if pid != own}
    adopted: set[int] = set()
    if guardian is not None:
        # Supervisors and undertakers are forked and execute no other program: their command line is the guardian's.
        command = _command(guardian)
        tops = [pid for pid, parent in living.items() if parent == guardian and _command(pid) != command]
        adopted = {*tops, *(below for top in tops for below in descendants(top))}
    word = None if marker is None else os.fsencode(marker)
    asked = living if among is None else [pid for pid in among if pid in living]
    return [pid for pid in asked if pid in adopted or (word is not None and word in _environment(pid))]


def _command(pid: int) -> bytes | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return None


def _environment(pid: int) -> list[bytes]:
    """What the process was started with; empty when it is gone or another user's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _living() -> Iterator[tuple[int, int, int]]:
    """pid, parent and process group of every process that /proc shows, zombies left out."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = _stat_fields(int(name))
                if fields is not None and _is_living(fields):
                    yield int(name), int(fields[1]), int(fields[2])


def _is_living(fields: list[bytes]) -> bool:
    """Whether the process does anything yet. One whose first thread has ended shows as a zombie while others run on."""
    return fields[0] != b"X" and (fields[0] != b"Z" or int(fields[17]) > 1)


def _stat_fields(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from `state` on (proc(5) counts that one as 3), or None when it is gone.

    Raises OSError when it cannot be seen for want of descriptors: that must not pass for its end.
    """
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None
    try:
        # The command's name may hold spaces and parentheses, so cut behind the last one.
        return os.read(file, 4096).rpartition(b") ")[2].split()
    except OSError:
        return None
    finally:
        os.close(file)


def _start_time(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


_boot: str | None = None


def _boot_id() -> str:
    global _boot
    if _boot is None:
        try:
            with open("/proc/sys/kernel/random/boot_id", "rb") as file:
                _boot = file.read().strip().decode("ascii")
        except OSError:
            _boot = ""
    return _boot
