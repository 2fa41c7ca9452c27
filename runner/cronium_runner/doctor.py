"""Explaining a host: what the runner needs of it, what is there, and what to do about what isn't.

Starts nothing, and writes only what a first job would write as well: the state directory and the install directory.
"""

import contextlib
import os
import platform
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from . import __version__, install, interpreter, location, password_database
from .environment import login_environment
from .errors import RunnerError
from .jobdir import SOCKET_PATH_LIMIT, StateDirectory
from .wire.limits import size

OK: Final = "ok"
NOTE: Final = "note"
"""Works, with a difference that is worth knowing."""
BAD: Final = "bad"
"""Jobs cannot run until this is mended."""

LITTLE_SPACE: Final = 256 * 1024 * 1024
"""Bytes. Room for a payload, its files and some output; less is enough for small jobs, so it is a note."""
LITTLE_FILES: Final = 1000
"""Inodes: a job makes about ten file-system objects."""
PIDFD_KERNEL: Final = (5, 3)
GROUP_KILL_KERNEL: Final = (5, 14)


class Finding(NamedTuple):
    """One thing that was looked at. `advice` says what to do; empty when there is nothing to do."""

    name: str
    level: str
    seen: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """The finding as one JSON object."""
        return self._asdict()


def examine() -> list[Finding]:
    """Everything, in the order a person would ask. One check that fails in an unforeseen way is itself a finding."""
    found: list[Finding] = []
    for check in _CHECKS:
        try:
            found += check()
        except Exception as error:  # noqa: BLE001 - the doctor must be able to speak on a host that is ill
            found.append(Finding(check.__name__.strip("_"), NOTE, f"cannot be looked at: {error}"))
    return found


def facts() -> dict[str, Any]:
    """What a controller compares: clock (seconds since the epoch), architecture and account."""
    return {"time": time.time(), "machine": os.uname().machine, "user": os.geteuid(), "runnerVersion": __version__}


def _system() -> Iterator[Finding]:
    system = os.uname()
    yield Finding("system", OK, f"{system.sysname} {system.release}, {system.machine}, {_libc()}")
    release = _kernel()
    if release < PIDFD_KERNEL:
        yield Finding("kernel", NOTE, "before 5.3: a process is named by pid and start time, without a pidfd")
    elif release < GROUP_KILL_KERNEL:
        yield Finding("kernel", NOTE, "before 5.14: a control group cannot be ended at once; descendants are swept")
    else:
        yield Finding("kernel", OK, "has pidfds and cgroup.kill")


def _libc() -> str:
    """The host's C library, which scripts have, and the runner's where that is another."""
    if not getattr(sys, "frozen", False):
        return " ".join(platform.libc_ver()).strip() or "not the GNU C library"
    try:
        done = subprocess.run(
            ["getconf", "GNU_LIBC_VERSION"], capture_output=True, env=login_environment(os.environ), check=False
        )
        hosts = done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
    except OSError:
        hosts = ""
    return f"{hosts or 'not the GNU C library'} ({os.confstr('CS_GNU_LIBC_VERSION')} in the runner)"


def _accounts() -> Iterator[Finding]:
    """Whether the runner's C library knows this account, as the host's does."""
    if not getattr(sys, "frozen", False):
        return
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        with contextlib.suppress(KeyError):
            name = password_database.by_uid(os.geteuid()).pw_name
            yield Finding(
                "accounts",
                NOTE,
                f"{name} is known to the host's getent, and not to the runner's C library: getent is asked",
            )


def _runner() -> Iterator[Finding]:
    form = "the installed binary" if getattr(sys, "frozen", False) else "from source"
    yield Finding("runner", OK, f"{__version__}, {form}, {sys.executable}")


def _installed_files() -> Iterator[Finding]:
    if not getattr(sys, "frozen", False):
        return
    try:
        install.check(thorough=True)
    except RunnerError as error:
        yield Finding("installed files", BAD, error.message, "install the runner again: cronium deploy")
        return
    own = install.own_bundle()
    if own is not None and own.adopted:
        names = ", ".join(own.adopted)
        yield Finding(
            "installed files", NOTE, f"adopted: {names} exchanged by the owner; all others as they were built"
        )
        return
    yield Finding("installed files", OK, "as they were built, each by its SHA-256")


def _install_directory() -> Iterator[Finding]:
    failures = []
    for root in location.roots():
        try:
            location.make_private(root)
            location.check_executable(root)
        except (location.UnusableError, OSError) as error:
            failures.append(str(error))
            continue
        level = NOTE if failures else OK
        yield Finding("install directory", level, root, f"not used: {'; '.join(failures)}" if failures else "")
        return
    yield Finding(
        "install directory",
        BAD,
        "; ".join(failures),
        "set CRONIUM_INSTALL_DIR to a directory of yours on a file system that may execute",
    )


def _state_directory() -> Iterator[Finding]:
    try:
        state = StateDirectory.open()
    except RunnerError as error:
        yield Finding("state directory", BAD, error.message, "mend it, or set CRONIUM_STATE_DIR")
        return
    yield Finding("state directory", OK, state.path)
    yield _kept(state)
    yield from _room("disk of the state directory", state.path)
    folder = os.path.join(state.path, "s")
    if len(os.fsencode(folder)) + 9 > SOCKET_PATH_LIMIT:
        yield Finding("helper sockets", NOTE, f"{folder} is too long a path for sockets; they go to /tmp")


def _kept(state: StateDirectory) -> Finding:
    from . import settings

    try:
        chosen = settings.read(state)
    except RunnerError as error:
        return Finding("what is kept", NOTE, f"{error.message}; nothing is collected", "correct that value")
    return Finding("what is kept", OK, f"{chosen.days:g} days, {size(chosen.budget)} at most")


def _temporary_directory() -> Iterator[Finding]:
    path = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - looked at, not used
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding("temporary files", NOTE, f"{path} is not writable; scripts that use it will fail")
        return
    yield from _room("temporary files", path)


def _room(name: str, path: str) -> Iterator[Finding]:
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    seen = f"{free / 1e9:.1f} GB free on the disk of {path}"
    if free < LITTLE_SPACE:
        yield Finding(name, NOTE, seen, "free space: output and payloads need it")
    elif found.f_files and found.f_favail < LITTLE_FILES:
        yield Finding(name, NOTE, f"{found.f_favail} inodes left on the disk of {path}", "remove small files")
    else:
        yield Finding(name, OK, seen)


def _signatures() -> Iterator[Finding]:
    from . import libcrypto, trust

    if not trust.is_required():
        return
    try:
        policy = trust.read_policy()
        libcrypto.load()
    except RunnerError as error:
        yield Finding("signatures", BAD, error.message, "correct it as root: no payload is run meanwhile")
        return
    valid = sum(signer.is_valid_at(time.time()) for signer in policy.signers)
    revoked = len(policy.revoked.keys) + len(policy.revoked.fingerprints)
    seen = f"only signed payloads run here: {valid} of {len(policy.signers)} keys valid now, {revoked} revoked"
    advice = "" if valid else f"no key can sign now: look at {trust.ALLOWED_SIGNERS}"
    yield Finding("signatures", OK if valid else BAD, seen, advice)


def _home() -> Iterator[Finding]:
    try:
        recorded, home = password_database.by_uid(os.geteuid()).pw_dir, os.environ.get("HOME")
    except KeyError:
        yield Finding("home directory", NOTE, f"user {os.geteuid()} has no entry in the password database")
        return
    if "CRONIUM_STATE_DIR" not in os.environ and home and os.path.realpath(home) != os.path.realpath(recorded):
        yield Finding("home directory", NOTE, f"$HOME is {home}, the password database says {recorded}, which is used")


def _interpreters() -> Iterator[Finding]:
    there = []
    for name in dict.fromkeys(interpreter.ALIASES.values()):
        programs = interpreter.programs(name)
        path = next((found for program in programs if (found := shutil.which(program))), None)
        if path is not None:
            there.append(path)
    yield Finding("interpreters", OK, ", ".join(there) or "none on PATH")


def _processes() -> Iterator[Finding]:
    if not os.path.exists("/proc/self/stat"):
        yield Finding("processes", BAD, "/proc is not mounted", "mount it: what a script leaves is found there")
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = NOTE if hard != resource.RLIM_INFINITY and hard < 1024 else OK
    yield Finding("open files", level, f"{soft}, at most {'any number' if hard == resource.RLIM_INFINITY else hard}")


def _clock() -> Iterator[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    # Only the controller judges time; here a clock that was never set is all that can be told.
    if now < 1_700_000_000:  # November 2023: before this program was written
        yield Finding("clock", NOTE, shown, "set the clock: times in results will be wrong")
    else:
        yield Finding("clock", OK, shown)


_CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _system,
    _accounts,
    _runner,
    _installed_files,
    _install_directory,
    _state_directory,
    _temporary_directory,
    _signatures,
    _home,
    _interpreters,
    _processes,
    _clock,
)


def _kernel() -> tuple[int, int]:
    numbers = os.uname().release.split("-")[0].split(".")
    try:
        return int(numbers[0]), int(numbers[1])
    except (IndexError, ValueError):
        return 0, 0
