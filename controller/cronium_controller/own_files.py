"""Which of this machine's files may be used: private keys by ssh's rule, and what is executed or believed by its owner.

A private key is refused when it is ours and its mode lets others in; ssh leaves alone what belongs to another user
(a key that root has put there for a group). A runner binary or a database belongs to us or root, and no other user can
write it.
"""

import os
import pwd
import stat
import sys
from pathlib import PurePath
from typing import Final

LONGEST_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103
"""Bytes of a Unix socket's path on this machine: sockaddr_un has 108 with the NUL, and 104 on macOS and the BSDs."""
ACCOUNTS_FILE: Final = "/etc/passwd"
GROUPS_FILE: Final = "/etc/group"


def is_open_key(path: str | PurePath) -> bool:
    """Whether ssh would refuse to use this private key. False for a file that can't be looked at."""
    try:
        found = os.stat(os.path.expanduser(path))
    except OSError:
        return False
    return found.st_uid == os.getuid() and bool(found.st_mode & 0o077)


def open_key_phrase(path: str | PurePath) -> str:
    """What to say of such a key, as a phrase behind its name."""
    mode = stat.S_IMODE(os.stat(os.path.expanduser(path)).st_mode)
    return f"is open to other users (mode {mode:04o}), so it is not used (chmod 600 {path})"


def stranger(found: os.stat_result) -> str | None:
    """How another user could have written a file, as a phrase behind its name; None when none could."""
    if found.st_uid not in (os.getuid(), 0):
        return f"belongs to another user (uid {found.st_uid})"
    if found.st_mode & stat.S_IWOTH:
        return f"can be written by every user (mode {stat.S_IMODE(found.st_mode):04o})"
    if found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid):
        return f"can be written by group {found.st_gid} (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _is_own_group(gid: int) -> bool:
    """Whether it is our primary group and has no other member but root, as is usual with a umask of 002.

    The runner decides the same way (its `safe_path`). Read from files alone: a group of a directory service isn't known
    to be private, and to go through all accounts of one takes minutes.
    """
    uid = os.getuid()
    try:
        own = pwd.getpwuid(uid)
        primary, names = own.pw_gid, {own.pw_name}
    except KeyError:  # a uid without an account, as in some containers
        primary, names = os.getgid(), set()
    if gid != primary:
        return False
    for account in _lines(ACCOUNTS_FILE):
        if account[2] in (str(uid), "0"):
            names.add(account[0])
        elif account[3] == str(gid):
            return False
    found = [group[3] for group in _lines(GROUPS_FILE) if group[2] == str(gid)]
    return bool(found) and all(name in names for members in found for name in members.split(",") if name)


def _lines(path: str) -> list[list[str]]:
    """The fields of each whole line of such a file; none of a file that can't be read."""
    try:
        with open(path, "rb") as file:
            lines = [os.fsdecode(line).split(":") for line in file.read().split(b"\n")]
    except OSError:
        return []
    return [fields for fields in lines if len(fields) >= 4]
