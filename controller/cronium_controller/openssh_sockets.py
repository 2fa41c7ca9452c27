"""The control sockets of masters: their folder, what is noted beside each, and which masters live.

A note says whom a master leads to. Each process that uses the master holds a shared lock on it, so that another one
can tell, also after a kill; the time of the file is that of the last use.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .errors import ControllerError, reason
from .openssh_mux import Control, MuxError
from .own_files import LONGEST_SOCKET_PATH, stranger
from .state_path import default_path

NAME_BYTES: Final = 8
_LONGEST_PATH: Final = LONGEST_SOCKET_PATH - 17
"""Bytes of a control socket's path: what a Unix socket takes, less what ssh appends for its temporary name."""
MOST_MASTERS: Final = 10
"""Persisting masters of the same settings: as many as the pool opens connections."""
_SWEEP_SECONDS: Final = 60.0
"""Age of a socket from which on it is removed when no master answers there."""
_NOTE: Final = ".json"
_LONGEST_NOTE: Final = 4096
_END_SECONDS: Final = 5.0
"""For a master to end that was told to. It has nothing to wait for."""

used: set[str] = set()
"""The sockets of masters that this process uses. A further connection to the same host is another master."""


def _path() -> str:
    folder = str(default_path().parent / "ssh")
    longest = f"{folder}/{'0' * (2 * NAME_BYTES)}-0"
    if len(os.fsencode(longest)) > _LONGEST_PATH or "${" in folder:
        return f"/tmp/cronium-ssh-{os.geteuid()}"  # noqa: S108 - checked where it is used
    return folder


def folder(name: str) -> str:
    """The folder of control sockets, which no other user can look into or exchange.

    Raises ControllerError about the host `name`.
    """
    folder = _path()
    try:
        os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        why = _why_unsafe(folder)
    except OSError as error:
        why = reason(error)
    if why is not None:
        sentence = f"the folder of control sockets cannot be used: {why}; correct that, or set CRONIUM_CONTROLLER_STATE"
        raise ControllerError("host.config", sentence, host=name)
    return folder


def _why_unsafe(folder: str) -> str | None:
    """How another user could reach or exchange a folder, None when none can. Raises OSError."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        return f"{folder} is not a directory of this account with mode 0700"
    above = os.path.realpath(os.path.dirname(folder))
    while True:
        found = os.stat(above)
        is_sticky = found.st_uid == 0 and bool(found.st_mode & stat.S_ISVTX)
        if not is_sticky and (why := stranger(found)) is not None:
            return f"{above} {why}"
        if above == "/":
            return None
        above = os.path.dirname(above)


def published(path: str, shared: str) -> str:
    """Gives a master the first of its shared names that no other master has. Under it, later processes find it."""
    for number in range(MOST_MASTERS):
        name = f"{shared}{number}"
        if name in used:
            continue
        try:
            os.link(path, name)
        except FileExistsError:
            if answers(name):  # another process has just made one: ours ends with us
                return path
            os.replace(path, name)
        else:
            os.unlink(path)
        used.add(name)
        return name
    return path


def answers(path: str) -> bool:
    """Whether a process listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # its queue is full
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def sweep(folder: str) -> None:
    """Removes sockets at which no master answers any more, of masters that were killed or that persisted, and notes."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime >= _SWEEP_SECONDS
                if is_old and not answers(entry.path.removesuffix(_NOTE)):
                    os.unlink(entry.path)


@dataclass(frozen=True, slots=True)
class Standing:
    """A master that lives, as noted beside its socket."""

    path: str
    host: str
    address: str
    user: str
    port: int
    transport: str
    since: float
    """When it was made, by this machine's clock."""
    persist: float | None
    """Seconds that it goes on for after its last use; None without end."""
    last_used: float
    is_used: bool

    @property
    def until(self) -> float | None:
        """When it ends by itself; None while it is used, and of one that does not."""
        return None if self.is_used or self.persist is None else self.last_used + self.persist

    def to_json(self) -> dict[str, Any]:
        """As `cronium hosts --connections --json` prints it."""
        shown = {name: getattr(self, name) for name in ("host", "address", "user", "port", "transport")}
        return {**shown, "since": _told(self.since), "until": _told(self.until), "inUse": self.is_used}


class Note:
    """The note of a master that this process uses. Writing it is a courtesy: what fails keeps nothing from working."""

    def __init__(self, path: str, told: dict[str, Any], *, is_new: bool) -> None:
        """`told` are the fields of a `Standing` that are written down; of a master that was found they are already."""
        self._path = path + _NOTE
        self._held: int | None = None
        with contextlib.suppress(OSError):
            self._held = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_SH)
            if is_new or not os.fstat(self._held).st_size:
                os.ftruncate(self._held, 0)
                os.pwrite(self._held, json.dumps(told).encode(), 0)
            os.utime(self._held)

    def leave(self, *, goes_on: bool) -> None:
        """The master is used no longer, and ends now unless it `goes_on`."""
        if self._held is None:
            return
        with contextlib.suppress(OSError):
            os.utime(self._held) if goes_on else os.unlink(self._path)
        os.close(self._held)
        self._held = None


def living() -> list[Standing]:
    """The masters of this account's controller that answer, the oldest first. Raises ControllerError."""
    path = _path()
    if not os.path.isdir(path):
        return []
    found = []
    for entry in os.scandir(folder("this machine")):
        if entry.name.endswith(_NOTE) and answers(entry.path.removesuffix(_NOTE)):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(_standing(entry.path))
    return sorted(found, key=lambda one: one.since)


async def disconnected(masters: Sequence[Standing]) -> list[Standing]:
    """Ends masters, and returns those that have ended."""

    async def ends(path: str) -> bool:
        try:
            async with asyncio.timeout(_END_SECONDS):
                control = await Control.open(path)
                try:
                    control.terminate()
                    await control.ended
                finally:
                    control.close()
        except (MuxError, OSError):  # a TimeoutError is one
            return not answers(path)
        for left in (path + _NOTE, path):  # ssh removes its socket by the name that it gave it, which may be another
            with contextlib.suppress(OSError):
                os.unlink(left)
        return True

    have_ended = await asyncio.gather(*(ends(one.path) for one in masters))
    return [one for one, has_ended in zip(masters, have_ended, strict=True) if has_ended]


def _standing(path: str) -> Standing:
    """Raises ValueError and TypeError for a note of another form, and OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        told = json.loads(file.read(_LONGEST_NOTE))
        is_used = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_used = True
        used_at = os.fstat(file.fileno()).st_mtime
    return Standing(path=path.removesuffix(_NOTE), last_used=used_at, is_used=is_used, **told)


def _told(when: float | None) -> str | None:
    return None if when is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
