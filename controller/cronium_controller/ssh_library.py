"""asyncssh, loaded at its first use and without starting a compiler: `from .ssh_library import asyncssh`.

Loading it takes longer than all else that a command needs, and connections by OpenSSH's own program do without it. A
module that a command imports uses it in functions and quoted annotations only; the class of an `except` counts as a use
when an exception arrives there.

As it is imported it looks for two C libraries with ctypes.util.find_library. That runs ldconfig, and for what is not
installed gcc and ld: eleven processes for each command of ours. What ldconfig would print is in a file.
"""

import ctypes.util
import functools
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from . import ssh_windows

LONGEST_SFTP_PACKET: Final = (256 + 64) * 1024
"""Bytes of an answer that are read at all. OpenSSH's servers send 256 KiB at most; asyncssh takes 4 MiB, which as names
of a listing fill hundreds of MiB, and for each of the requests that have no answer yet."""
_CACHE: Final = Path("/etc/ld.so.cache")


def _find(name: str) -> str | None:
    """The library's file name when the dynamic linker knows one that this process can load."""
    try:
        found = re.search(rb"\blib" + re.escape(name.encode()) + rb"\.so[^\0/]*(?=\0)", _CACHE.read_bytes())
        if found is None:
            return None
        library = found[0].decode()
        ctypes.CDLL(library)  # it may be another architecture's
        return library
    except (OSError, ValueError):
        return None


@functools.cache
def _loaded() -> ModuleType:
    if "asyncssh" in sys.modules or not sys.platform.startswith("linux"):  # elsewhere no process is started for it
        import asyncssh as library
    else:
        as_ever, ctypes.util.find_library = ctypes.util.find_library, _find
        try:
            import asyncssh as library
        finally:
            ctypes.util.find_library = as_ever
    if logging.getLogger("asyncssh").level == logging.NOTSET:  # else each connection is ten lines of a program's log
        library.set_log_level(logging.WARNING)
    ssh_windows.install(library)
    log_lazily(library)
    library.sftp.MAX_SFTP_PACKET_LEN = LONGEST_SFTP_PACKET
    return library


def log_lazily(library: ModuleType) -> None:
    """Makes the library format a log line only when its level is enabled.

    It formats every line and checks the level afterwards, which is a fourteenth of all calls of a connection.
    """
    wanted = logging.getLogger("asyncssh").isEnabledFor
    log = library.logging.SSHLogger.log

    def log_if_wanted(self: Any, level: int, msg: object, *args: Any, **more: Any) -> None:
        if wanted(level):
            log(self, level, msg, *args, **more)

    library.logging.SSHLogger.log = log_if_wanted
    packets = library.packet.SSHPacketLogger
    for name in ("log_sent_packet", "log_received_packet"):
        setattr(packets, name, _if_debugged(getattr(packets, name), wanted))


def _if_debugged(log_packet: Callable[..., None], wanted: Callable[[int], bool]) -> Callable[..., None]:
    def log_if_wanted(self: Any, *packet: Any) -> None:
        if wanted(logging.DEBUG):
            log_packet(self, *packet)

    return log_if_wanted


class _Late:
    """Stands for the library until it is loaded, and has its attributes from then on."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(_loaded(), name)
        setattr(self, name, value)  # the next time it is found without a call
        return value


if TYPE_CHECKING:
    import asyncssh
else:
    asyncssh = _Late()

__all__ = ["LONGEST_SFTP_PACKET", "asyncssh"]
