"""Real processes: starting the script, naming a process so that a reused pid is never mistaken for it, finding and
signalling our descendants.

What is decided about them (deadlines, grace, outcomes) is the supervisor's; a dead supervisor's are `orphans`'s.
"""

import _signal  # type: ignore[import-not-found]
import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from .digest import sha256
from .errors import NotExecutableError, RunnerError

PR_SET_DUMPABLE: Final = 4  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER: Final = 36

DUMPABLE: Final = "CRONIUM_DUMPABLE"
"""`1` in the environment leaves the runner's processes dumpable, for whoever has to trace them without being root."""

_RESTORED_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
"""An ignored signal stays ignored over exec: Python ignores two, and whoever started us may ignore any."""


on_signal: Callable[[int, "int | Callable[[int, Any], object]"], object] = _signal.signal
"""`signal.signal` without its enumerations, which cost more than the call; takes IGNORED, DEFAULT or a function."""
IGNORED: Final = int(signal.SIG_IGN)
DEFAULT: Final = int(signal.SIG_DFL)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, however often they fork or call setsid.

    So none can leave the tree. A kernel without it (before Linux 3.4) leaves us with the process group.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


_prctl_address = 0
"""Looked for once, by an agent for all its supervisors."""


def _prctl(option: int, value: int) -> None:
    """The standard library has no prctl, and importing all of ctypes costs a start-up 4 ms; its core does it in one."""
    global _prctl_address
    import _ctypes

    with contextlib.suppress(OSError, AttributeError):
        if not _prctl_address:
            _prctl_address = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None: ourselves
        _ctypes.call_function(_prctl_address, (option, value, 0, 0, 0))


_login_core_limit: tuple[int, int] | None = None
"""RLIMIT_CORE before `forbid_core_dumps`; None while that hasn't happened."""


def forbid_core_dumps() -> None:
    """Keeps the memory of this process, which holds secrets, out of core files; forked processes inherit that.

    Two ways, because a core_pattern with a pipe takes no notice of RLIMIT_CORE. Not being dumpable also keeps other
    processes of the account from reading our memory (ptrace, /proc/PID/mem). Both end with an exec, the limit by
    `login_core_limit`. See docs/decisions/0026-not-dumpable.md.
    """
    global _login_core_limit
    if _login_core_limit is not None or os.environ.get(DUMPABLE) == "1":
        return
    _login_core_limit = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, _login_core_limit[1]))
    _prctl(PR_SET_DUMPABLE, 0)


@contextlib.contextmanager
def login_core_limit() -> Iterator[None]:
    """What is executed within the block has the login's own RLIMIT_CORE."""
    if _login_core_limit is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_CORE, _login_core_limit)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (0, _login_core_limit[1]))


def detach(kept: int) -> None:
    """For a forked process that outlives its parent: a session of its own, default signals, no descriptor but `kept`.

    Neither of the parent's own (ends of pairs that it waits for) nor of those it was started with: they would reach
    the script, or keep somebody's pipe open for as long as it runs.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        on_signal(number, IGNORED)  # drops what came between fork and setsid: it was meant for the parent
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        on_signal(number, DEFAULT)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


Step = tuple[str, Callable[[], object]]
"""What a process does to itself before it executes the script: a name for the refusal, and the call."""


class StepRefusedError(Exception):
    """The kernel refused a step between fork and exec. Nothing of the script has run."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}: {os.strerror(number)}")
        self.name = name
        self.number = number


def start_script(
    argv: list[str], *, environment: Mapping[str, str], stdout: int, stderr: int, steps: Sequence[Step] = ()
) -> int:
    """Starts the script in our working directory, in a session of its own, with standard input from /dev/null.

    Returns its pid; the script has begun by then. Raises NotExecutableError when the kernel refuses to execute it,
    RunnerError `execution.too_large` when its arguments or environment are the reason, StepRefusedError when it refuses
    one of the `steps` that come before. Without steps posix_spawn does it, which doesn't copy our page tables as fork
    does: 0.3 ms instead of 2 on the host this was measured on.
    """
    with login_core_limit():
        if steps:
            return _fork_script(argv, environment, stdout, stderr, steps)
        return _spawn_script(argv, environment, stdout, stderr)


def _spawn_script(argv: list[str], environment: Mapping[str, str], stdout: int, stderr: int) -> int:
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
    except OSError as error:
        if error.errno == errno.EPERM:  # a container's filter may refuse clone3, and the C library tries no other way
            return _fork_script(argv, environment, stdout, stderr, ())
        raise _not_executable(argv, environment, error.errno) from None
    except ValueError as error:
        raise NotExecutableError(f"cannot execute {argv[0]}: {error}") from None


def _not_executable(argv: list[str], environment: Mapping[str, str], number: int | None) -> RunnerError:
    if number == errno.E2BIG:
        return RunnerError("execution.too_large", _what_is_too_large(argv, environment))
    reason = os.strerror(number or errno.EINVAL)
    if number == errno.ENOEXEC:
        reason = "it is no program and has no '#!' line; begin it with one, or name an interpreter"
    return NotExecutableError(f"cannot execute {argv[0]}: {reason}")


def _what_is_too_large(argv: list[str], environment: Mapping[str, str]) -> str:
    """Which word of a command that the kernel didn't take; its value may be a secret, so it isn't in the sentence."""
    sizes = {f"argument {number} of the script's command": len(os.fsencode(word)) for number, word in enumerate(argv)}
    sizes |= {
        f"environment variable {name[:80]}": len(os.fsencode(name + value)) + 1 for name, value in environment.items()
    }
    largest = max(sizes, key=sizes.__getitem__)
    most = 32 * os.sysconf("SC_PAGESIZE") - 1  # MAX_ARG_STRLEN in <linux/binfmts.h>, with a NUL
    if sizes[largest] > most:
        too_large = f"{largest} has {sizes[largest]} bytes, and Linux takes {most} for one"
    else:
        too_large = (
            f"the script's arguments and environment have {sum(sizes.values())} bytes, more than this host takes for "
            f"all together (the largest, {largest}, has {sizes[largest]})"
        )
    return f"{too_large}; nothing was started; hand large values over as input, which cronium.input reads"


def _fork_script(
    argv: list[str], environment: Mapping[str, str], stdout: int, stderr: int, steps: Sequence[Step]
) -> int:
    """Like posix_spawn, with the steps before the exec. What fails in the child comes back through a pipe.

    child → us    nothing: exec has closed the pipe   |   ERRNO NAME of the step, or of `exec`
    """
    told, telling = os.pipe2(os.O_CLOEXEC)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no handler of ours runs in the child
    try:
        pid = os.fork()
        if pid == 0:
            _become_script(argv, environment, stdout, stderr, steps, telling)
        os.close(telling)
        with open(told, "rb") as report:
            number, _, name = report.read().decode("ascii").partition(" ")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not number:
        return pid
    os.waitpid(pid, 0)
    if name == "exec":
        raise _not_executable(argv, environment, int(number))
    raise StepRefusedError(name, int(number))


def _become_script(
    argv: list[str],
    environment: Mapping[str, str],
    stdout: int,
    stderr: int,
    steps: Sequence[Step],
    telling: int,
) -> NoReturn:
    """The forked child's side, up to the exec. Never returns into the supervisor's code."""
    doing = "setup"
    try:
        signal.set_wakeup_fd(-1)
        for number in _RESTORED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for doing, step in steps:  # noqa: B007 - the handler tells which one it was
            step()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        doing = "exec"
        os.execve(argv[0], argv, environment)
    except OSError as error:
        os.write(telling, f"{error.errno} {doing}".encode("ascii"))
    except ValueError:  # what `resource` makes of EPERM and EINVAL, and execve of a NUL
        os.write(telling, f"{errno.EPERM if doing != 'exec' else errno.EINVAL} {doing}".encode("ascii"))
    finally:
        os._exit(127)


def identity(pid: int) -> dict[str, Any]:
    """What names a process for good: pid, start time in clock ticks since boot; which boot, pid namespace, machine."""
    return {
        "pid": pid,
        "start": _start_time(pid),
        "boot": boot_id(),
        "namespace": namespace(),
        "machine": machine(),
    }


def is_alive(who: Any) -> bool:
    """Whether the process that `identity` named is seen to run. A zombie does not.

    One that `is_of_here` and isn't seen has ended; another may run where its pid is not seen.
    """
    if not isinstance(who, dict) or not isinstance(who.get("pid"), int):
        return False
    if who.get("boot") != boot_id():
        return False
    fields = stat_fields(who["pid"])
    return fields is not None and is_living(fields) and int(fields[19]) == who.get("start")


def is_of_here(who: Mapping[str, Any]) -> bool:
    """Whether the pid that `identity` noted is one of this boot and pid namespace."""
    return bool(boot_id() and namespace()) and (who.get("boot"), who.get("namespace")) == (boot_id(), namespace())


def descendants(root: int, *, outside: int | None = None) -> list[int]:
    """Every living descendant of `root`, parents before children. Zombies and process group `outside` are left out."""
    children: dict[int, list[int]] = {}
    members = set()
    for pid, parent, group in living():
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


def kill_children(seconds: float, reap: Callable[[], bool]) -> None:
    """SIGKILL to each child of ours as soon as it is one, for so many seconds, or until none comes any more.

    Orphans become our children the moment their parent ends. One that forks and ends for ever is faster than any look
    at all of /proc; this is a few hundredths of a millisecond behind it. `reap` collects the dead and says whether
    children are left. A kernel without the list (CONFIG_PROC_CHILDREN) leaves it to `descendants`.
    """
    own = os.getpid()
    try:
        listing = os.open(f"/proc/{own}/task/{own}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        until = time.monotonic() + seconds
        before: list[bytes] = []
        while time.monotonic() < until:
            children = os.pread(listing, 65536, 0).split()
            if children == before:
                return
            send_signal([int(child) for child in children], signal.SIGKILL)
            if not reap():
                return
            before = children
    finally:
        os.close(listing)


def living() -> Iterator[tuple[int, int, int]]:
    """pid, parent and process group of every process that /proc shows, zombies left out."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = stat_fields(int(name))
                if fields is not None and is_living(fields):
                    yield int(name), int(fields[1]), int(fields[2])


def is_living(fields: list[bytes]) -> bool:
    """Whether the process does anything yet. One whose first thread has ended shows as a zombie while others run on."""
    return fields[0] != b"X" and (fields[0] != b"Z" or int(fields[17]) > 1)


def stat_fields(pid: int) -> list[bytes] | None:
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
    fields = stat_fields(pid)
    return int(fields[19]) if fields else None


_boot: str | None = None
_namespace: str | None = None
_machine: str | None = None


def boot_id() -> str:
    """Which boot of which kernel this is; empty when that cannot be told. All containers of a machine have the same."""
    global _boot
    if _boot is None:
        _boot = _line("/proc/sys/kernel/random/boot_id")
    return _boot


def namespace() -> str:
    """Our pid namespace, like `pid:[4026531836]`; empty when that cannot be told, or /proc shows another one."""
    global _namespace
    if _namespace is None:
        _namespace = ""
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self") == str(os.getpid()):
                _namespace = os.readlink("/proc/self/ns/pid")
    return _namespace


def machine() -> str:
    """Which machine this is, the same after a reboot: a digest of /etc/machine-id, which is to stay confidential.

    Empty where there is none.
    """
    global _machine
    if _machine is None:
        found = _line("/etc/machine-id")
        _machine = sha256(b"cronium-runner " + found.encode()).hexdigest()[:16] if len(found) == 32 else ""
    return _machine


def _line(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(256).strip().decode("ascii", "replace")
    except OSError:
        return ""
