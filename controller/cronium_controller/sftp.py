"""An SFTP session on a connection: opened where the server has it, many requests at once, its errors in our words.

What is copied, and what becomes of it, is `copying`'s (one small file) and `transfer`'s (resumed and verified).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

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


class Leaving:
    """Ends an SFTP session without waiting: a server that hangs would keep us from giving up."""

    def __init__(self, sftp: asyncssh.SFTPClient) -> None:
        self.close = sftp.exit


async def open_sftp(connection: Connection) -> asyncssh.SFTPClient | None:
    """A session; None where the server has no SFTP. Raises asyncssh.ChannelOpenError when it has no room."""
    try:
        return await connection.open_session(connection.start_sftp)
    except asyncssh.SFTPError:
        return None
    except asyncssh.ChannelOpenError as error:
        if error.code != asyncssh.OPEN_REQUEST_SESSION_FAILED:
            raise  # no room, which says nothing about SFTP
        return None


def piece_of(most: int) -> int:
    """Bytes of one request to a server that says that it takes `most`."""
    return min(most, LARGE_PIECE) if most > PIECE else PIECE


async def in_parallel(work: Callable[[], Awaitable[None]], piece: int = PIECE) -> None:
    """Many at once; all have ended when the first failure is raised, so that none cries out later."""
    count = _IN_FLIGHT if piece == PIECE else _LARGE_IN_FLIGHT
    for outcome in await asyncio.gather(*[work() for _ in range(count)], return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def read(there: Any, count: int, offset: int | None) -> bytes:
    """asyncssh's types have text here, which a file that was opened for bytes never gives."""
    piece: bytes = await there.read(count, offset)
    return piece


def path(remote: str) -> str:
    """SFTP knows no `~`, and begins in the home directory."""
    return "." if remote == "~" else remote.removeprefix("~/") or "."


@contextlib.contextmanager
def explained(connection: Connection, remote: str) -> Iterator[None]:
    """Errors of a copy as ours, but for asyncssh.ChannelOpenError: the caller may try that on another connection."""
    try:
        yield
    except asyncssh.SFTPConnectionLost as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None
    except asyncssh.SFTPError as error:
        raise refused(connection, remote, reason(error)) from None
    except asyncssh.ChannelOpenError:
        raise
    except (asyncssh.Error, ConnectionError) as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None


def refused(connection: Connection, path: str, why: str) -> ControllerError:
    """A file that can't be read or written."""
    return ControllerError("files.refused", f"cannot copy {path}: {why}", host=connection.host.name)
