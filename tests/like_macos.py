"""Makes this interpreter look like one on macOS, as far as that can be done on Linux. No pytest in it.

Takes away what CPython's documentation says is there on Linux only (and what macOS' headers lack), refuses everything
below /proc, and tells another system's name. How macOS behaves otherwise is not imitated. For a process of its own:
`python -c "import like_macos; like_macos.pretend(); ..."`, with this folder on PYTHONPATH.
"""

import builtins
import io
import os
import resource
import select
import signal
import socket
import struct
import sys
import sysconfig
import time
import urllib.request  # it would ask a module of macOS alone for proxies
from types import ModuleType
from typing import Any, Final

assert urllib.request  # only loaded

ABSENT: Final[dict[ModuleType, str]] = {
    os: "memfd_create pidfd_open sched_getaffinity sched_setaffinity fdatasync pipe2 posix_fallocate posix_fadvise "
    "getxattr setxattr listxattr removexattr eventfd eventfd_read eventfd_write splice copy_file_range getrandom "
    "getresuid getresgid setresuid setresgid unshare setns waitid P_PIDFD ST_NODEV ST_NOEXEC ST_SYNCHRONOUS "
    "ST_MANDLOCK ST_WRITE ST_APPEND ST_NOATIME ST_NODIRATIME ST_RELATIME O_TMPFILE O_PATH O_NOATIME O_DIRECT "
    "O_LARGEFILE O_RSYNC",
    socket: "SOCK_NONBLOCK SOCK_CLOEXEC SO_PEERCRED SO_PASSCRED SO_DOMAIN SO_PROTOCOL SO_MARK SO_PRIORITY "
    "SO_BINDTODEVICE TCP_QUICKACK TCP_USER_TIMEOUT TCP_KEEPIDLE TCP_DEFER_ACCEPT TCP_SYNCNT TCP_LINGER2 "
    "TCP_WINDOW_CLAMP TCP_CORK TCP_INFO AF_NETLINK AF_PACKET AF_VSOCK MSG_NOSIGNAL MSG_CMSG_CLOEXEC MSG_ERRQUEUE "
    "MSG_MORE MSG_CONFIRM",
    select: "epoll",
    signal: "SIGRTMIN SIGRTMAX SIGPOLL SIGPWR SIGSTKFLT SIGCLD sigtimedwait sigwaitinfo pidfd_send_signal",
    resource: "prlimit RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RUSAGE_THREAD",
    time: "CLOCK_BOOTTIME CLOCK_TAI",
}


_SO_PEERCRED: Final = 17


def pretend() -> None:
    """Takes it all away. What was loaded before has what it took."""
    sysconfig.get_config_vars()  # read from a file that is named by the platform
    for module, names in ABSENT.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    sys.platform = "darwin"
    told = os.uname()
    darwin = os.uname_result(("Darwin", told.nodename, "24.0.0", "Darwin Kernel Version 24.0.0", "arm64"))
    os.uname = lambda: darwin
    socket.socket.getsockopt = _peer_as_told_there  # type: ignore[assignment,method-assign]
    for owner, name in (
        (builtins, "open"),
        (io, "open"),
        (os, "open"),
        (os, "stat"),
        (os, "lstat"),
        (os, "readlink"),
        (os, "listdir"),
        (os, "scandir"),
    ):
        _refuse_proc(owner, name)


def _peer_as_told_there(sock: socket.socket, level: int, option: int, *size: int) -> Any:
    """The option LOCAL_PEERCRED of macOS: struct xucred."""
    if (level, option, *size) != (0, 1, 76):
        return socket.SocketType.getsockopt(sock, level, option, *size)
    told = socket.SocketType.getsockopt(sock, socket.SOL_SOCKET, _SO_PEERCRED, 12)
    return struct.pack("IIh2x16I", 0, struct.unpack("iII", told)[1], 0, *[0] * 16)


def _refuse_proc(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    def without_proc(path: Any = ".", *words: Any, **more: Any) -> Any:
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return original(path, *words, **more)

    setattr(owner, name, without_proc)
