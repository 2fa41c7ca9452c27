"""One file to or from a host: by SFTP, or through the shell where the server has none. Whole or not at all.

For the raw client. No progress, no resumption: that is for large files, and `transfer`'s.
"""

import contextlib
import os
import secrets
import shlex
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, Final

from cronium_runner.wire.text import last_words

from . import remote_shell, sftp
from .errors import UnreachableError, reason
from .sessions import Connection, Ended
from .sftp import Leaving, explained, in_parallel, open_sftp, refused
from .ssh_library import asyncssh

Copy = Callable[[Connection, str, str], Coroutine[Any, Any, None]]
_PIECE: Final = 256 * 1024


async def upload(connection: Connection, local: str, remote: str) -> None:
    """Copies a file to the host, with its permission bits. Into `remote` where that is a folder.

    Raises ControllerError (`host.config`) for files that can't be read or written, UnreachableError for a lost
    connection, and asyncssh.ChannelOpenError when the server has no room for another session; nothing was done then.
    """
    with _local(connection, local, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        with explained(connection, remote):
            session = await open_sftp(connection)
            if session is None:
                await _upload_through_shell(connection, file, remote, os.path.basename(local), mode)
                return
            with contextlib.closing(Leaving(session)):
                await _upload_by_sftp(session, file, sftp.path(remote), os.path.basename(local), mode)


async def download(connection: Connection, remote: str, local: str) -> None:
    """Copies a file from the host, likewise."""
    target = Path(local).expanduser()
    if target.is_dir():
        target = target / os.path.basename(remote)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _local(connection, str(temporary), "xb") as file, explained(connection, remote):
            session = await open_sftp(connection)
            if session is None:
                await _download_through_shell(connection, remote, file)
            else:
                with contextlib.closing(Leaving(session)):
                    await _download_by_sftp(session, sftp.path(remote), file)
        temporary.replace(target)
    except OSError as error:
        raise refused(connection, local, reason(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


async def _upload_by_sftp(session: asyncssh.SFTPClient, file: BinaryIO, remote: str, name: str, mode: int) -> None:
    target = f"{remote.rstrip('/')}/{name}" if await session.isdir(remote) else remote
    temporary = f"{target}.{secrets.token_hex(8)}"
    try:
        attributes = asyncssh.SFTPAttrs(permissions=0o600)
        async with session.open(temporary, "xb", attributes, block_size=0) as there:

            async def write_some() -> None:
                while piece := file.read(sftp.PIECE):
                    await there.write(piece, file.tell() - len(piece))

            await in_parallel(write_some)
        await session.chmod(temporary, mode)
        await session.posix_rename(temporary, target)
    except BaseException:
        with contextlib.suppress(asyncssh.Error, OSError):
            await session.remove(temporary)
        raise


async def _download_by_sftp(session: asyncssh.SFTPClient, remote: str, file: BinaryIO) -> None:
    async with session.open(remote, "rb", block_size=0) as there:
        size = (await there.stat()).size or 0
        offsets = iter(range(0, size, sftp.PIECE))

        async def read_some() -> None:
            for offset in offsets:
                end = min(offset + sftp.PIECE, size)
                while offset < end:  # a server may answer with less
                    piece = await sftp.read(there, end - offset, offset)
                    if not piece:
                        return
                    file.seek(offset)
                    file.write(piece)
                    offset += len(piece)

        await in_parallel(read_some)
        at = size  # what has no size of its own (/proc), or has grown meanwhile
        while piece := await sftp.read(there, sftp.PIECE, at):
            file.seek(at)
            file.write(piece)
            at += len(piece)


async def _upload_through_shell(connection: Connection, file: BinaryIO, remote: str, name: str, mode: int) -> None:
    script = (
        f't={remote_shell.path(remote)}; test -d "$t" && t="$t"/{shlex.quote(name)}; p="$t.$$"; umask 077; '
        f'cat > "$p" && test "$(wc -c < "$p")" -eq {os.fstat(file.fileno()).st_size} && '
        f'chmod {mode:o} "$p" && mv -f "$p" "$t" || {{ rm -f "$p"; exit 1; }}'
    )
    process = await connection.start(remote_shell.in_sh(script))
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended early; its status says why
            while piece := file.read(_PIECE):
                process.stdin.write(piece)
                await process.stdin.drain()
            process.stdin.write_eof()
        done = await process.wait()
    finally:
        process.close()
    _check(connection, remote, done)


async def _download_through_shell(connection: Connection, remote: str, file: BinaryIO) -> None:
    process = await connection.start(remote_shell.in_sh(f"cat < {remote_shell.path(remote)}"))
    try:
        process.stdin.write_eof()
        while piece := await process.stdout.read(_PIECE):
            file.write(piece)
        done = await process.wait()
    finally:
        process.close()
    _check(connection, remote, done)


def _check(connection: Connection, remote: str, done: Ended) -> None:
    if done.exit_status is None and done.exit_signal is None:
        raise UnreachableError("channel.lost", "the connection ended during the copy", host=connection.host.name)
    if done.exit_status != 0:
        raise refused(connection, remote, last_words(done.stderr or b"") or f"exit status {done.exit_status}")


def _local(connection: Connection, path: str, mode: str) -> BinaryIO:
    try:
        return open(os.path.expanduser(path), mode)  # type: ignore[return-value]
    except OSError as error:
        raise refused(connection, path, reason(error)) from None
