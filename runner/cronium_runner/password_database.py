"""Accounts of this host: by the C library, and by the host's own `getent` for those that it doesn't know.

The binary has a C library of its own. An NSS module of the host (of a directory service such as SSSD) that needs a
newer one cannot be loaded into it, and the C library then says no more than that there is no such account.
"""

from __future__ import annotations

import pwd
import sys

TYPE_CHECKING = False  # typing's own would cost `version` the import of typing
if TYPE_CHECKING:
    from collections.abc import Callable

_GETENT = "/usr/bin/getent", "/bin/getent"
_PATIENCE = 30
"""Seconds that `getent` gets: a directory service that doesn't answer has longer time limits of its own."""


def by_name(name: str) -> pwd.struct_passwd:
    """The entry of the account `name`. Raises KeyError when there is none."""
    try:
        return pwd.getpwnam(name)
    except ValueError:  # a NUL in it
        raise KeyError(name) from None
    except KeyError:
        return _asked(name, lambda entry: entry.pw_name == name)


def by_uid(uid: int) -> pwd.struct_passwd:
    """The entry of the account with that uid. Raises KeyError when there is none, as in some containers."""
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return _asked(str(uid), lambda entry: entry.pw_uid == uid)


def _asked(key: str, is_meant: Callable[[pwd.struct_passwd], bool]) -> pwd.struct_passwd:
    """What `getent` says of `key`, which it takes for a name or for a uid. Raises KeyError."""
    if not getattr(sys, "frozen", False) or key.startswith("-"):  # from source, the C library is the host's
        raise KeyError(key)
    import os
    import subprocess

    for program in _GETENT:
        if not os.path.exists(program):
            continue
        try:
            done = subprocess.run([program, "passwd", key], capture_output=True, env={}, timeout=_PATIENCE, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        entry = _parsed(done.stdout)
        if done.returncode == 0 and entry is not None and is_meant(entry):
            return entry
    raise KeyError(key)


def _parsed(answer: bytes) -> pwd.struct_passwd | None:
    """The first line, in the form of passwd(5); None when it is none."""
    import os

    fields = os.fsdecode(answer.partition(b"\n")[0]).split(":")
    if len(fields) != 7 or not (fields[2].isdecimal() and fields[3].isdecimal()):
        return None
    name, secret, uid, gid, full_name, home, shell = fields
    return pwd.struct_passwd((name, secret, int(uid), int(gid), full_name, home, shell))
