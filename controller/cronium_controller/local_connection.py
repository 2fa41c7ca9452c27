"""This machine and account as a host: commands are children of this process, and nothing travels over a network.

A command is run as sshd would run it: by a shell, in a session of its own (so no Ctrl-C of our terminal reaches it), in
the home directory, with a small environment that is made afresh: what this process has in its own, a database's
address or a token, is nobody's business there. One that is let go of goes on; it is reaped whenever it ends.
"""

import asyncio
import contextlib
import errno
import os
import pwd
import queue
import subprocess
import threading
from collections.abc import Callable
from typing import Final

from .errors import ControllerError, reason
from .hosts import Host
from .pipe_channel import PipeChannel, PipeProcess
from .sessions import Channel, Connection, Process, Session
from .ssh_library import asyncssh

LOCAL: Final = "local"
"""What results have as `transport`."""
SHELL: Final = "/bin/sh"
"""Reads every command, also for accounts whose login shell lets nobody in."""
HANDED_DOWN: Final = (
    "PATH", "LANG", "LC_ALL", "TZ",
    "CRONIUM_STATE_DIR", "CRONIUM_RETENTION_DAYS", "CRONIUM_STATE_BUDGET", "CRONIUM_DUMPABLE",
)  # fmt: skip
"""Of our environment: what makes commands be found and their output be read as here, where the runner keeps things, so
that `cronium-runner` typed beside us looks at the same ones, and whether it can be traced. Nothing here can be a
secret."""
_USUAL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What a machine says that has no room for another process, now."""
_SIGNALLED: Final = 128
"""Added to a signal's number, as shells do."""


class LocalConnection(Connection):
    """Open until it is closed; no other end can close it."""

    transport = LOCAL
    has_sftp = False

    def __init__(self, host: Host) -> None:
        """Raises ControllerError for a host that is meant as another account."""
        if host.user is not None:
            sentence = f"a local host is this account's, not {host.user}'s; take the user out, and see --run-as"
            raise ControllerError("host.config", sentence, host=host.name)
        super().__init__(host)
        self._channels: set[PipeChannel] = set()
        self._is_closed = False

    @property
    def server(self) -> None:
        return None

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._is_closed

    async def create_session(self, make: Callable[[], Session], command: str) -> Channel:
        """Starts a command. Raises asyncssh.ChannelOpenError where there is no room, ControllerError where no way."""
        return await self._started(make(), command)

    async def start_sftp(self) -> "asyncssh.SFTPClient":
        """Raises asyncssh.SFTPOpUnsupported: files are copied through the shell."""
        raise asyncssh.SFTPOpUnsupported("there is no SFTP without SSH")

    async def _start_process(self, command: str) -> Process:
        process = PipeProcess()
        await self._started(process, command)
        return process

    async def _started(self, session: Session, command: str) -> "_LocalChannel":
        if self._is_closed:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the connection is closed")
        channel = _LocalChannel(session, self._channels.discard)
        self._channels.add(channel)
        try:
            await channel.start(command)
        except BaseException as error:
            channel.abort()
            if not isinstance(error, OSError):
                raise
            if error.errno in _NO_ROOM:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason(error)) from None
            sentence = f"no command can be started on this machine: {reason(error)}"
            raise ControllerError("host.config", sentence, host=self.host.name) from None
        return channel

    def abort(self) -> None:
        """Lets go of all commands at once."""
        self._is_closed = True
        for channel in list(self._channels):
            channel.abort()

    async def close(self) -> None:
        """The same; what runs goes on, an agent until its executions have ended."""
        self.abort()
        await asyncio.sleep(0)  # asyncio closes a pipe in its next turn


def environment() -> dict[str, str]:
    """What commands get: the account's own, and what is handed down."""
    name, home = _account()
    made = {"HOME": home, "USER": name, "LOGNAME": name, "SHELL": SHELL, "PATH": _USUAL_PATH}
    return made | {name: os.environ[name] for name in HANDED_DOWN if os.environ.get(name)}


def _account() -> tuple[str, str]:
    """Name and home directory, by the password database, as for a login."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:  # containers run accounts that have no entry
        return str(os.geteuid()), os.environ.get("HOME") or "/"
    return entry.pw_name, entry.pw_dir


def described() -> str:
    """This machine and account in words."""
    return f"this machine as {_account()[0]}, without SSH"


class _LocalChannel(PipeChannel):
    """A command that is a child of this process."""

    async def _begin(self, command: str, stdin: int, stdout: int, stderr: int) -> None:
        hand_over = _reaping(asyncio.get_running_loop(), self._note_end)
        process = None
        try:
            process = _spawn(command, stdin, stdout, stderr)
        finally:
            hand_over(process)

    def _note_end(self, status: int) -> None:
        self._note_exit(status if status >= 0 else _SIGNALLED - status)


def _spawn(command: str, stdin: int, stdout: int, stderr: int) -> "subprocess.Popen[bytes]":
    made = environment()
    home = made["HOME"] if os.path.isdir(made["HOME"]) else "/"
    return subprocess.Popen(
        [SHELL, "-c", command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=made,
        cwd=home,
        start_new_session=True,
    )


def _reaping(
    loop: asyncio.AbstractEventLoop, told: Callable[[int], None]
) -> "Callable[[subprocess.Popen[bytes] | None], None]":
    """Takes over a process and tells its exit status; a thread, so that also one is reaped that outlives the loop.

    asyncio's own processes are killed when they are let go of, which an agent must survive. The thread is started
    first: where there is no room for it nothing is started. Raises OSError.
    """
    handed: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()

    def reap() -> None:
        process = handed.get()
        if process is None:
            return
        status = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks
            loop.call_soon_threadsafe(told, status)

    try:
        threading.Thread(target=reap, name="cronium-local", daemon=True).start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    return handed.put
