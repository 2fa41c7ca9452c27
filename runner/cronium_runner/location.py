"""Where on this host the runner installs itself: which directories are tried, and whether one can be trusted.

The one-file binary's launcher has the same rules in C (build/launcher/install_root.c). `version` needs this, so it
imports `os` and what is built into Python, and raises its own error, which `install` turns into a `RunnerError`.
What is put there is in `bundle`.
"""

from __future__ import annotations

import os
import stat

from . import safe_path

TYPE_CHECKING = False  # typing's own would cost `version` the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable

PRIVATE = safe_path.PRIVATE
"""The mode of every directory that holds something we execute: nobody else may write, list or replace it."""

PROBED = ("/var/tmp", "/run/user/{uid}", "/dev/shm", "/tmp")  # noqa: S108 - checked like all others
"""Parents tried when the home directory cannot be used: the one that survives a reboot first."""


class UnusableError(Exception):
    """A directory cannot hold the runner. The text says which one and why, in a form that follows "because"."""


def roots() -> list[str]:
    """The directories that may hold installed runners, in the order in which they are tried.

    `CRONIUM_INSTALL_DIR` stands alone: who names a directory doesn't want another one used behind their back.
    The home directory is the password database's, because $HOME differs between a login and an SSH channel.
    """
    chosen = os.environ.get("CRONIUM_INSTALL_DIR")
    if chosen:
        return [os.path.abspath(chosen)]
    from . import password_database  # few starts look for a place

    uid = os.geteuid()
    try:
        home = password_database.by_uid(uid).pw_dir
    except KeyError:  # a uid without an account, as in some containers
        home = ""
    in_home = _roots_in_home(home) if os.path.isdir(home) else []
    return in_home + [root for root in _probed_roots(uid) if os.path.isdir(os.path.dirname(root))]


def roots_of(uid: int, home: str) -> list[str]:
    """The same for any account: nothing is looked at, so some of it may not exist, and no variable is heeded."""
    return _roots_in_home(home) + _probed_roots(uid)


def _roots_in_home(home: str) -> list[str]:
    if not home.startswith("/"):
        return []
    return [os.path.join(home, ".local/lib/cronium-runner"), os.path.join(home, ".cache/cronium-runner")]


def _probed_roots(uid: int) -> list[str]:
    return [os.path.join(parent.format(uid=uid), f"cronium-runner-{uid}") for parent in PROBED]


def make_private(path: str) -> None:
    """Make `path` (and what is missing above it) a directory that only we can change, or find it to be one.

    A directory that another user made first is refused, and so is a link; so is a place that another user could
    exchange it in (see `safe_path`). Raises UnusableError.
    """
    try:
        if not os.path.lexists(path):
            safe_path.make(os.path.dirname(path))
            safe_path.make_one(path)
        check_private(path)
        safe_path.check(path)
    except safe_path.UnsafePathError as error:
        raise UnusableError(_advised(error)) from error
    except OSError as error:
        raise UnusableError(f"{path} cannot be made ({_reason(error)})") from error


def check_private(path: str) -> None:
    """`path` is a directory of ours with mode 0700, and no link. Raises UnusableError; OSError when it is absent."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableError(f"{path} is not a directory")
    if found.st_uid != os.geteuid():
        raise UnusableError(f"{path} belongs to uid {found.st_uid}, not to us (uid {os.geteuid()})")
    if stat.S_IMODE(found.st_mode) != PRIVATE:
        raise UnusableError(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, not 0700")


def make_parent(path: str) -> None:
    """Make the folder that `path` goes into, and find that no other user can exchange files in it, and that they can be
    executed. Raises UnusableError."""
    parent = os.path.dirname(path)
    try:
        safe_path.make(parent)
        check_executable(parent)
    except safe_path.UnsafePathError as error:
        raise UnusableError(_advised(error)) from error
    except OSError as error:
        raise UnusableError(f"{parent} cannot be made ({_reason(error)})") from error


def check_installed(directory: str) -> None:
    """No other user can exchange an installed form. Raises UnusableError and OSError."""
    try:
        safe_path.check(directory)
    except safe_path.UnsafePathError as error:
        raise UnusableError(_advised(error)) from error


def check_executable(path: str) -> None:
    """Files in the directory `path` can be executed: it is not mounted noexec. Raises UnusableError."""
    if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):  # macOS, where payloads are validated, has no name for it
        raise UnusableError(f"{path} is on a file system mounted noexec")


def first_usable(attempt: Callable[[str], str]) -> str:
    """What `attempt(root)` returns for the first root that is private, executable, and for which it doesn't fail.

    Raises UnusableError naming every root that was tried and what was wrong with it.
    """
    failures = []
    for root in roots():
        try:
            make_private(root)
            check_executable(root)
            return attempt(root)
        except UnusableError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{root} cannot be used ({_reason(error)})")
    raise UnusableError("; ".join(failures))


def advice(failure: UnusableError) -> str:
    """The one sentence that a user sees."""
    return f"the runner cannot be installed because {failure}: set CRONIUM_INSTALL_DIR to a directory that it may use"


def _advised(error: safe_path.UnsafePathError) -> str:
    return f"{error} (`{error.remedy}` changes that)" if error.remedy else str(error)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
