"""Whether another user could exchange a directory or what is above it: the rule of OpenSSH's safe_path.

Every directory on the way, from the root on, belongs to the account or to root and can't be written by group or others.
Three exceptions. A sticky directory of root's (/tmp) passes when the next one is the account's and has mode 0700. A
group-writable one passes when the group is the account's own primary group without another member, or when a directory
above it is the account's and has mode 0700. What the account owns at or below `.local` is tightened (chmod g-w,o-w)
instead of refused: earlier versions made these directories with the login's umask.

Links are followed one by one; each must belong to the account or to root and be in a directory that passes.
`tests/safe_path_cases.json` is the table of cases, for this module and for its other implementations: the shell text in
`wire.safe_shell`, which a host's own sh runs before a runner is executed, and the launcher's `safe_path.c`.

Part of `version`, so it imports `os`, `pwd` and `stat` alone.
"""

from __future__ import annotations

import os
import pwd
import stat

TYPE_CHECKING = False  # typing's own would cost `version` the import of typing
if TYPE_CHECKING:
    from collections.abc import Iterable

PRIVATE = 0o700
"""The mode of every directory that this program makes: no other user may write, list or replace what is in it."""

MAX_LINKS = 40
"""The kernel's own limit of links on one path (path_resolution(7))."""

_LOCAL = "/.local"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UnsafePathError(Exception):
    """Another user could exchange a directory. The text names it and says how; `remedy` is a command, or empty."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


def check(path: str) -> None:
    """Check `path`, an existing directory or one's link, and everything above it; tighten what may be tightened.

    Raises UnsafePathError for the first directory that doesn't pass, OSError for what can't be looked at.
    """
    if _tightened(_faults(path)):
        _tightened(_faults(path))  # what is below a directory counts as it is once no other user can change it


def make(path: str) -> None:
    """Make `path` and what is missing above it, each with mode 0700 whatever the umask.

    What is there is checked first, so nothing is made in an unsafe place. Raises UnsafePathError and OSError.
    """
    missing = []
    there = path
    while not os.path.lexists(there):
        missing.append(there)
        there = os.path.dirname(there)
    check(there)
    for directory in reversed(missing):
        make_one(directory)


def make_one(path: str) -> bool:
    """Make one directory with mode 0700 whatever the umask; False when there is one of that name. Raises OSError."""
    try:
        os.mkdir(path, PRIVATE)
    except FileExistsError:
        return False
    os.chmod(path, PRIVATE)  # the umask may have taken the owner's own rights away
    return True


def is_private_group(gid: int, uid: int) -> bool:
    """Whether `gid` is the primary group of the account `uid`, and no other account is a member.

    Read from /etc/passwd and /etc/group: a group of a directory service isn't known to be private. Root is no other
    member, because root can do everything anyway.
    """
    try:
        own = pwd.getpwuid(uid)
        primary, names = own.pw_gid, {own.pw_name}
    except KeyError:  # a uid without an account, as in some containers
        primary, names = os.getegid(), set()
    if gid != primary:
        return False
    for fields in _lines("/etc/passwd", 4):
        if fields[2] in (str(uid), "0"):
            names.add(fields[0])
        elif fields[3] == str(gid):
            return False
    found = [fields[3] for fields in _lines("/etc/group", 4) if fields[2] == str(gid)]
    return bool(found) and all(name in names for members in found for name in members.split(",") if name)


def _lines(path: str, count: int) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            lines = [os.fsdecode(line).split(":") for line in file.read().split(b"\n")]
    except OSError:
        return []
    return [fields for fields in lines if len(fields) >= count]


def _tightened(faults: Iterable[tuple[str, os.stat_result]]) -> bool:
    """Tighten what may be; whether anything was. Raises UnsafePathError for a fault that has to stay."""
    has_changed = False
    for path, found in faults:
        if not _may_be_tightened(path, found):
            raise _unsafe(path, found)
        try:
            os.chmod(path, stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        except OSError:
            raise _unsafe(path, found) from None
        has_changed = True
    return has_changed


def _faults(path: str) -> Iterable[tuple[str, os.stat_result]]:
    """Each place on the way that doesn't pass. Links are resolved here, so the caller's path need not be real."""
    chain: list[tuple[str, os.stat_result]] = [("/", os.lstat("/"))]
    names = _names(path)
    links = 0
    while names:
        name = names.pop()
        if name == "..":
            chain = chain[:-1] or chain
            continue
        there = os.path.join(chain[-1][0], name)
        found = os.lstat(there)
        if not stat.S_ISLNK(found.st_mode):
            chain.append((there, found))
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(40, os.strerror(40), path)  # ELOOP
        yield from judge([*chain, (there, found)], os.geteuid())
        target = os.readlink(there)
        names += _names(target)
        if target.startswith("/"):
            del chain[1:]
    yield from judge(chain, os.geteuid())


def _names(path: str) -> list[str]:
    """The components of a path, last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def judge(chain: list[tuple[str, os.stat_result]], uid: int) -> Iterable[tuple[str, os.stat_result]]:
    """The places of `chain`, from the root down, that don't pass for the account `uid`. The last one may be a link."""
    is_closed = False  # a directory above is the account's and has mode 0700
    is_sticky = False  # the one above is writable by everybody, and sticky
    for path, found in chain:
        mode = stat.S_IMODE(found.st_mode)
        is_closed_itself = found.st_uid == uid and mode == PRIVATE
        if found.st_uid not in (0, uid) or (is_sticky and not is_closed_itself):
            yield path, found
        is_sticky = False
        if mode & _OTHERS_WRITE and not stat.S_ISLNK(found.st_mode):
            if mode & stat.S_ISVTX and found.st_uid == 0:
                is_sticky = True
            elif mode & stat.S_IWOTH or not (is_closed or is_private_group(found.st_gid, uid)):
                yield path, found
        is_closed = is_closed or is_closed_itself


def _may_be_tightened(path: str, found: os.stat_result) -> bool:
    """Whether it is the account's, at or below `.local`, and its mode is what is wrong with it."""
    is_writable = stat.S_ISDIR(found.st_mode) and found.st_mode & _OTHERS_WRITE
    return bool(is_writable) and found.st_uid == os.geteuid() and f"{_LOCAL}/" in f"{path}/"


def _unsafe(path: str, found: os.stat_result) -> UnsafePathError:
    uid = os.geteuid()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (0, uid):
        return UnsafePathError(f"{path} belongs to uid {found.st_uid}, who could exchange what is in it")
    if stat.S_ISLNK(found.st_mode):
        return UnsafePathError(f"{path} is a link in a directory that every user may write")
    if mode & stat.S_IWOTH:
        who, change = "every user", "g-w,o-w"
    elif mode & stat.S_IWGRP:
        who, change = f"group {found.st_gid}", "g-w"
    else:
        text = f"{path} (mode {mode:04o}, uid {found.st_uid}) is in a directory that every user may write"
        return UnsafePathError(text, f"chmod 700 {path}" if found.st_uid == uid else "")
    return UnsafePathError(f"{path} can be written by {who} (mode {mode:04o})", f"chmod {change} {path}")
