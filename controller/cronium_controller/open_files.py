"""Room for the connections of many hosts: a login usually lets a process have 1,024 files open, and a thousand hosts
need more. Raised for the commands that need it and only as far as they do, since what they start inherits it.
"""

import contextlib
import resource
from typing import Final

FILES_A_HOST: Final = 4
"""A socket; with a jump host or a tunnel's program in between, up to three more."""
OWN_FILES: Final = 64
"""Streams, the database, libraries and the event loop had 20 or so."""


def make_room(hosts: int) -> None:
    """Allows as many open files as connections to so many hosts need, or as many as this account may have."""
    needed = OWN_FILES + FILES_A_HOST * hosts
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):  # then those that found no room say so, each in its result
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
