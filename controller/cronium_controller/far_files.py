"""How a host's files are reached: by SFTP, else through the shell. Digests are computed on the host, always in sh."""

import asyncio
import hashlib
import os
from typing import BinaryIO

from . import sftp
from .remote_file import PIECE
from .sessions import Connection
from .sftp_files import BySftp
from .shell_files import ByShell


async def way_to(connection: Connection) -> BySftp | ByShell:
    """SFTP, else the shell. Raises asyncssh.ChannelOpenError when the server has no room for a session."""
    session = await sftp.open_sftp(connection)
    return ByShell(connection) if session is None else BySftp(connection, session)


async def digest(connection: Connection, path: str, size: int) -> str | None:
    """The SHA-256 of a file on the host, computed there; None where nothing can. `size` says how long it may take."""
    return await ByShell(connection).digest(path, size)


def hashed(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file here. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def hashed_aside(file: BinaryIO) -> str:
    """The SHA-256 of an open file here, without holding up the connections. Raises OSError."""

    def read() -> str:
        digest, at = hashlib.sha256(), 0
        while piece := os.pread(file.fileno(), PIECE, at):
            digest.update(piece)
            at += len(piece)
        return digest.hexdigest()

    return await asyncio.to_thread(read)
