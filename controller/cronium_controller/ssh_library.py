"""asyncssh, loaded without starting a compiler: `from .ssh_library import asyncssh`, wherever it is needed.

As it is imported it looks for two C libraries with ctypes.util.find_library. That runs ldconfig, and for what is not
installed gcc and ld: eleven processes for each command of ours. What ldconfig would print is in a file.
"""

import ctypes.util
import re
import sys
from pathlib import Path
from typing import Final

from . import own_files, ssh_windows

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


if "asyncssh" in sys.modules or not sys.platform.startswith("linux"):  # elsewhere no process is started for it
    import asyncssh
else:
    _as_ever, ctypes.util.find_library = ctypes.util.find_library, _find
    try:
        import asyncssh
    finally:
        ctypes.util.find_library = _as_ever

ssh_windows.install(asyncssh)
own_files.leave_open_keys_out(asyncssh)

__all__ = ["asyncssh"]
