"""One file to or from a host: by SFTP, or through the shell where the server has none. Whole or not at all.

For the raw client. No progress, no resumption: that is for large files, and another module's.
"""

import asyncio
import contextlib
import os
import secrets
import shlex
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import asyncssh

from . import remote_shell
from .connection import Connection
from .errors import ControllerError, UnreachableError, reason

Copy = Callable[[Connection, str, str], Coroutine[Any, Any, None]]
_PIECE: Final = 256 * 1024
_SFTP_PIECE: Final = 32 * 1024
"""What every SFTP server takes in one request."""
_IN_FLIGHT: Final = 64
"""Requests without an answer yet, as OpenSSH's own client has."""


async def upload(connection: Connection, local: str, remote: str) -> None:
    """Copies a file to the host, with its permission bits. Into `remote` where that is a folder.

    Raises ControllerError (`host.config`) for files that can't be read or written, UnreachableError for a lost
    connection, and asyncssh.ChannelOpenError when the server has no room for another session; nothing was done then.
    """
    with _local(connection, local, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        with _explained(connection, remote):
            sftp = await _sftp(connection)
            if sftp is None:
                await _upload_through_shell(connection, file, remote, os.path.basename(local), mode)
                return
            with contextlib.closing(_Leaving(sftp)):
                await _upload_by_sftp(sftp, file, _sftp_path(remote), os.path.basename(local), mode)


async def download(connection: Connection, remote: str, local: str) -> None:
    """Copies a file from the host, likewise."""
    target = Path(local).expanduser()
    if target.is_dir():
        target = target / os.path.basename(remote)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _local(connection, str(temporary), "xb") as file, _explained(connection, remote):
            sftp = await _sftp(connection)
            if sftp is None:
                await _download_through_shell(connection, remote, file)
            else:
                with contextlib.closing(_Leaving(sftp)):
                    await _download_by_sftp(sftp, _sftp_path(remote), file)
        temporary.replace(target)
    except OSError as error:
        raise _refused(connection, local, reason(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


class _Leaving:
    """Ends an SFTP session without waiting: a server that hangs would keep us from giving up."""

    def __init__(self, sftp: asyncssh.SFTPClient) -> None:
        self.close = sftp.exit


async def _sftp(connection: Connection) -> asyncssh.SFTPClient | None:
    try:
        return await connection.open_session(connection.ssh.start_sftp_client)
    except asyncssh.SFTPError:
        return None
    except asyncssh.ChannelOpenError as error:
        if error.code != asyncssh.OPEN_REQUEST_SESSION_FAILED:
            raise  # no room, which says nothing about SFTP
        return None


async def _upload_by_sftp(sftp: asyncssh.SFTPClient, file: BinaryIO, remote: str, name: str, mode: int) -> None:
    target = f"{remote.rstrip('/')}/{name}" if await sftp.isdir(remote) else remote
    temporary = f"{target}.{secrets.token_hex(8)}"
    try:
        attributes = asyncssh.SFTPAttrs(permissions=0o600)
        async with sftp.open(temporary, "xb", attributes, block_size=0) as there:

            async def write_some() -> None:
                while piece := file.read(_SFTP_PIECE):
                    await there.write(piece, file.tell() - len(piece))

            await _all(write_some)
        await sftp.chmod(temporary, mode)
        await sftp.posix_rename(temporary, target)
    except BaseException:
        with contextlib.suppress(asyncssh.Error, OSError):
            await sftp.remove(temporary)
        raise


async def _download_by_sftp(sftp: asyncssh.SFTPClient, remote: str, file: BinaryIO) -> None:
    async with sftp.open(remote, "rb", block_size=0) as there:
        size = (await there.stat()).size or 0
        offsets = iter(range(0, size, _SFTP_PIECE))

        async def read_some() -> None:
            for offset in offsets:
                end = min(offset + _SFTP_PIECE, size)
                while offset < end:  # a server may answer with less
                    piece = await _read(there, end - offset, offset)
                    if not piece:
                        return
                    file.seek(offset)
                    file.write(piece)
                    offset += len(piece)

        await _all(read_some)
        at = size  # what has no size of its own (/proc), or has grown meanwhile
        while piece := await _read(there, _SFTP_PIECE, at):
            file.seek(at)
            file.write(piece)
            at += len(piece)


async def _read(there: Any, count: int, offset: int) -> bytes:
    """asyncssh's types have text here, which a file that was opened for bytes never gives."""
    piece: bytes = await there.read(count, offset)
    return piece


async def _all(work: Callable[[], Awaitable[None]]) -> None:
    """Many at once; all have ended when the first failure is raised, so that none cries out later."""
    for outcome in await asyncio.gather(*[work() for _ in range(_IN_FLIGHT)], return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


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


def _check(connection: Connection, remote: str, done: asyncssh.SSHCompletedProcess) -> None:
    if done.exit_status is None and done.exit_signal is None:
        raise UnreachableError("channel.lost", "the connection ended during the copy", host=connection.host.name)
    if done.exit_status != 0:
        said = done.stderr.decode("utf-8", "replace") if isinstance(done.stderr, bytes) else str(done.stderr)
        raise _refused(connection, remote, " ".join(said.split())[-200:] or f"exit status {done.exit_status}")


def _sftp_path(remote: str) -> str:
    """SFTP knows no `~`, and begins in the home directory."""
    return "." if remote == "~" else remote.removeprefix("~/") or "."


@contextlib.contextmanager
def _explained(connection: Connection, remote: str) -> Iterator[None]:
    try:
        yield
    except asyncssh.SFTPConnectionLost as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None
    except asyncssh.SFTPError as error:
        raise _refused(connection, remote, error.reason) from None
    except asyncssh.ChannelOpenError:
        raise
    except (asyncssh.Error, ConnectionError) as error:
        raise UnreachableError("channel.lost", reason(error), host=connection.host.name) from None


def _local(connection: Connection, path: str, mode: str) -> BinaryIO:
    try:
        return open(os.path.expanduser(path), mode)  # type: ignore[return-value]
    except OSError as error:
        raise _refused(connection, path, reason(error)) from None


def _refused(connection: Connection, path: str, why: str) -> ControllerError:
    return ControllerError("host.config", f"cannot copy {path}: {why}", host=connection.host.name)
