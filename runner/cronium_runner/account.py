"""Another account of this host: finding it, the environment it starts with, and becoming it for good.

What is executed as that account, and how the runner gets there, is `run_as`'s and `hand_over`'s.
"""

import _ctypes  # all that is needed is loaded at once: as somebody else this process can't read its own modules
import contextlib
import fcntl
import os
import signal
import sys
import termios
from typing import Final, NamedTuple

from . import password_database
from .environment import DEFAULT_PATH
from .errors import RunnerError

UMASK: Final = 0o022
"""What a login has; root's own may let nobody else read, or everybody write."""

_KEYCTL_NUMBERS: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1  # <linux/keyctl.h>


class Account(NamedTuple):
    """An entry of the password database."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """What a login would set, and nothing of ours: whoever asks for another account keeps their own secrets."""
        return {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell or "/bin/sh",
            "PATH": DEFAULT_PATH,
        }


def find(name: str) -> Account:
    """The account of that name. Raises RunnerError `run_as.unknown_user`."""
    try:
        found = password_database.by_name(name)
    except KeyError:
        raise RunnerError(
            "run_as.unknown_user",
            f"there is no account {name!r:.100} on this host; nothing was started; check the name with: getent passwd",
        ) from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir, found.pw_shell)


def other(name: str | None) -> Account | None:
    """The account that is to be changed to; None when none is named, or when it is our own. Raises RunnerError."""
    if name is None:
        return None
    found = find(name)
    return None if found.uid == os.geteuid() else found


def own_name() -> str:
    """How the password database calls us."""
    try:
        return password_database.by_uid(os.geteuid()).pw_name
    except KeyError:
        return f"#{os.geteuid()}"  # as sudo writes a uid without a name


def become(account: Account) -> None:
    """Makes this process, which is root's, one of `account`, with no way back and nothing of root's left to it.

    Left behind: groups, capabilities, the terminal (whose input one could fake), root's keyring, signals that are
    ignored or blocked, every descriptor but 0, 1 and 2. Raises RunnerError `run_as.refused`; the process must not go
    on after that.
    """
    try:
        leave_terminal()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        os.umask(UMASK)
        _default_signals()
        os.initgroups(account.name, account.gid)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise _refused(account, error.strerror or str(error)) from None
    _leave_keyring()
    _check_no_way_back(account)


def leave_terminal() -> None:
    """A session without a terminal: whoever has ours could type into it. Raises OSError."""
    try:
        os.setsid()
    except PermissionError:  # we lead a session, sshd's for one, which seldom has a terminal
        _give_terminal_up()


def _give_terminal_up() -> None:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the kernel tells the session that it has lost it
    fcntl.ioctl(terminal, termios.TIOCNOTTY)
    signal.signal(signal.SIGHUP, before)
    os.close(terminal)


def _default_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # the C library keeps two for itself
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _leave_keyring() -> None:
    """A session keyring of our own: who has root's possesses root's keys. A kernel without keyrings has none."""
    number = _KEYCTL_NUMBERS.get(os.uname().machine)
    if number is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        syscall = _ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall")  # type: ignore[arg-type]  # None: this process
        _ctypes.call_function(syscall, (number, _KEYCTL_JOIN_SESSION_KEYRING, 0))


def _check_no_way_back(account: Account) -> None:
    """Finds that all of it happened: a process with secure bits, or in a container, may keep what others lose."""
    wanted = (account.uid,) * 3, (account.gid,) * 3
    groups = set(os.getgrouplist(account.name, account.gid))
    if (os.getresuid(), os.getresgid()) != wanted or set(os.getgroups()) - groups:
        raise _refused(account, "the kernel kept some of root's ids")
    try:
        with open("/proc/self/status", "rb") as file:
            held = [line for line in file if line.startswith((b"CapPrm", b"CapEff", b"CapAmb"))]
    except OSError:
        raise _refused(account, "/proc is not mounted, so what it may still do cannot be looked at") from None
    if any(int(line.split()[1], 16) for line in held):
        raise _refused(account, "the kernel kept some of root's capabilities")
    for become_root in (os.setresuid, os.setresgid):
        with contextlib.suppress(PermissionError):
            become_root(0, 0, 0)
    if (os.getresuid(), os.getresgid()) != wanted:
        raise _refused(account, "the kernel would let it become root again")


def _refused(account: Account, why: str) -> RunnerError:
    return RunnerError(
        "run_as.refused",
        f"this root cannot become {account.name}: {why}; nothing was started; log in as {account.name}",
    )


def say(error: RunnerError) -> int:
    """Tells the error on standard error, as every command does; its exit status."""
    sys.stderr.write(f"cronium-runner: {error.message} [{error.code}]\n")
    return error.exit_status
