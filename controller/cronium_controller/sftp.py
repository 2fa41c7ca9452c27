"""An SFTP session on a connection: opened where the server has it, many requests at once, its errors in our words.

What is copied, and what becomes of it, is `copying`'s (one small file) and `transfer`'s (resumed and verified).
What a server sends is never trusted to be in the protocol, in time, or of the size that was asked for.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from .errors import ControllerError, UnreachableError, reason
from .sessions import Connection
from .ssh_library import asyncssh

PIECE: Final = 32 * 1024
"""Bytes of one request: what every SFTP server takes."""
LARGE_PIECE: Final = 256 * 1024
"""Bytes of one request where the server says that it takes so many (OpenSSH: 255 KiB), which costs a third as much."""
_IN_FLIGHT: Final = 64
"""Requests without an answer yet, as OpenSSH's own client has."""
_LARGE_IN_FLIGHT: Final = 16
WINDOW: Final = LARGE_PIECE * _LARGE_IN_FLIGHT
"""Bytes that may be on their way at once, at most."""
ANSWER_SECONDS = 120.0
"""Without any answer, after which a host is given up: a piece of LARGE_PIECE then needs 2.2 kB/s."""
_LONGEST_PATH: Final = 4096
"""Bytes: PATH_MAX of Linux."""

_Answer = TypeVar("_Answer")


def cut() -> tuple[type[BaseException], ...]:
    """The errors of a connection that ends, for an `except`."""
    return UnreachableError, asyncssh.SFTPConnectionLost, asyncssh.DisconnectError, ConnectionError


def lost() -> tuple[type[BaseException], ...]:
    """The exceptions that end an attempt, and leave a copy that the next one goes on with."""
    return asyncio.CancelledError, *cut()


class Patience:
    """How long is waited for a host that says nothing."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.note()

    def note(self) -> None:
        """The host has answered."""
        self._heard_at = asyncio.get_running_loop().time()

    @property
    def left(self) -> float:
        """Seconds until it is over; 0 when it is."""
        return max(0.0, self._heard_at + ANSWER_SECONDS - asyncio.get_running_loop().time())

    def error(self) -> UnreachableError:
        """What is raised then. It is final: the next attempt would wait as long."""
        return silent(self._connection, ANSWER_SECONDS)


def silent(connection: Connection, seconds: float) -> UnreachableError:
    """A host that has not answered for that long."""
    sentence = f"it has not answered for {seconds:g} s during a copy; see whether it hangs, then try again"
    return UnreachableError("host.unreachable", sentence, host=connection.host.name)


async def answer(connection: Connection, asking: Awaitable[_Answer]) -> _Answer:
    """What a server answers to one request. Raises UnreachableError when it doesn't in time."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await asking
    except TimeoutError:
        raise silent(connection, ANSWER_SECONDS) from None


async def ask(connection: Connection, asking: Awaitable[_Answer]) -> _Answer:
    """What a server answers to one SFTP request. Raises as `answer`, and asyncssh.SFTPError."""
    with _read_by_asyncssh():
        return await answer(connection, asking)


@contextlib.contextmanager
def _read_by_asyncssh() -> Iterator[None]:
    """An answer that asyncssh can't read is one that is not SFTP. Only its own calls belong in here: what is wrong in
    this program must not look like the server's fault."""
    try:
        yield
    except UnicodeEncodeError:  # of what was typed
        raise
    except (ValueError, LookupError) as error:
        raise asyncssh.SFTPBadMessage(reason(error)) from None


async def open_sftp(connection: Connection) -> "asyncssh.SFTPClient | None":
    """A session; None where the server has no SFTP. Raises asyncssh.ChannelOpenError when it has no room."""
    if not connection.has_sftp:
        return None
    with _read_by_asyncssh():
        try:
            return await answer(connection, connection.open_session(connection.start_sftp))
        except asyncssh.SFTPError:
            return None
        except asyncssh.ChannelOpenError as error:
            if error.code != asyncssh.OPEN_REQUEST_SESSION_FAILED:
                raise  # no room, which says nothing about SFTP
            return None


def piece_of(most: int) -> int:
    """Bytes of one request to a server that says that it takes `most`."""
    return min(most, LARGE_PIECE) if most > PIECE else PIECE


async def in_parallel(work: Callable[[], Coroutine[Any, Any, None]], patience: Patience, piece: int = PIECE) -> None:
    """Many at once. After the first failure the others are ended before it is raised, so that none cries out later."""
    count = _IN_FLIGHT if piece == PIECE else _LARGE_IN_FLIGHT
    tasks = [asyncio.ensure_future(work()) for _ in range(count)]
    waiting = set(tasks)
    try:
        while waiting:
            ended, waiting = await asyncio.wait(waiting, timeout=patience.left, return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                task.result()
            if waiting and not patience.left:
                raise patience.error()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(there: Any, count: int, offset: int) -> bytes:
    """At most `count` bytes of an open file, nothing at its end. A server that sends more is not believed at all."""
    with _read_by_asyncssh():
        piece: bytes = await there.read(count, offset)
    if len(piece) > count:
        raise asyncssh.SFTPBadMessage(f"{len(piece)} bytes were sent where {count} were asked for")
    return piece


async def write(there: Any, piece: bytes, offset: int) -> None:
    """Writes bytes to an open file."""
    with _read_by_asyncssh():
        await there.write(piece, offset)


def path(remote: str) -> str:
    """SFTP knows no `~`, and begins in the home directory."""
    return "." if remote == "~" else remote.removeprefix("~/") or "."


def checked_path(told: Any) -> str:
    """A path as a server has told it: absolute, without NUL, of a length that a path may have."""
    found = str(told)
    if not found.startswith("/") or "\0" in found or len(found) > _LONGEST_PATH:
        raise asyncssh.SFTPBadMessage(f"{found[:_LONGEST_PATH]!r} is not an absolute path")
    return found


@contextlib.contextmanager
def explained(connection: Connection, remote: str) -> Iterator[None]:
    """Errors of a copy as ours, but for asyncssh.ChannelOpenError: the caller may try that on another connection."""
    try:
        yield
    except asyncssh.SFTPConnectionLost as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None
    except asyncssh.SFTPBadMessage as error:
        raise _not_sftp(connection, remote, reason(error)) from None
    except asyncssh.SFTPError as error:
        raise refused(connection, remote, reason(error)) from None
    except asyncssh.ChannelOpenError:
        raise
    except (asyncssh.Error, ConnectionError) as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None


def _not_sftp(connection: Connection, remote: str, why: str) -> ControllerError:
    return refused(connection, remote, f"the server's answer is not SFTP ({why}); nothing was replaced")


def refused(connection: Connection, path: str, why: str) -> ControllerError:
    """A file that can't be read or written."""
    return ControllerError("files.refused", f"cannot copy {path}: {why}", host=connection.host.name)
