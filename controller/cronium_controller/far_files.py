"""Files on a host, as a copy needs them: found, written and read from an offset on, hashed, put in place.

`BySftp` and `ByShell` do the same by different means; which one a host has, and in what order all of it is done, is
`transfer`'s. One session at a time, as a server may allow no second one.
"""

import asyncio
import contextlib
import hashlib
import os
import posixpath
import secrets
import shlex
import stat
from collections.abc import Callable
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from . import remote_shell, sftp
from .errors import ControllerError, UnreachableError
from .sessions import Connection
from .ssh_library import asyncssh

Tell = Callable[[int], None]
"""Called with how many bytes of the file are there."""
_PIECE: Final = 256 * 1024
_NOISE: Final = 1024 * 1024
"""Bytes that rc files may print before what was asked for."""
_DIGEST: Final = "{ sha256sum || shasum -a 256 || openssl dgst -sha256 -r; } 2>/dev/null | cut -c 1-64"
"""Reads standard input. One of them is on every usual Linux, busybox's included."""


class Found(NamedTuple):
    """A file on a host: its absolute path, size in bytes (None: there is none), time of change and permission bits."""

    path: str
    size: int | None
    changed: int = 0
    mode: int = 0o600


class Far(Protocol):
    """One way to a host's files. `name` is what a person calls it."""

    name: str

    async def find(self, remote: str, name: str | None) -> Found:
        """What is at a path; with `name`, of that file in it where it is a folder. Raises ControllerError for one."""

    async def size(self, path: str) -> int:
        """How much of a partial file can be built on; 0 when there is none."""

    async def write(self, path: str, source: BinaryIO, offset: int, tell: Tell) -> None:
        """Writes from an offset on, and makes the file when there is none: nobody else can read it."""

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        """Reads from an offset to the file's end, at least to `size` of it."""

    async def remove(self, path: str) -> None:
        """Removes a file, if it is there."""

    def close(self) -> None:
        """Ends the session."""


class BySftp:
    """By an SFTP session that is open."""

    name = "sftp"

    def __init__(self, connection: Connection, session: asyncssh.SFTPClient) -> None:
        self._connection = connection
        self._session = session

    def close(self) -> None:
        """Ends the session without waiting: a server that hangs would keep us from giving up."""
        self._session.exit()

    async def find(self, remote: str, name: str | None) -> Found:
        """As `Far`."""
        path = str(await self._session.realpath(sftp.path(remote)))
        found = await self._stat(path)
        if name is not None and (found.is_folder or remote.endswith("/")):
            path = posixpath.join(path, name)
            found = await self._stat(path)
        if found.is_folder:
            raise _folder(self._connection, path)
        if found.is_special:
            raise _special(self._connection, path)
        return Found(path, found.size, found.changed, found.mode)

    async def size(self, path: str) -> int:
        """As `Far`; less than there is, as pieces may have arrived out of order."""
        return max(0, ((await self._stat(path)).size or 0) - sftp.WINDOW)

    async def write(self, path: str, source: BinaryIO, offset: int, tell: Tell) -> None:
        """As `Far`. Nothing is cut off: another copy of the same bytes may be under way there."""
        attributes = asyncssh.SFTPAttrs(permissions=0o600)
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT
        at, done = offset, offset
        descriptor, size = source.fileno(), sftp.piece_of(self._session.limits.max_write_len)
        async with self._session.open(path, flags, attributes, encoding=None, block_size=0) as there:

            async def write_some() -> None:
                nonlocal at, done
                while piece := os.pread(descriptor, size, at):
                    mine, at = at, at + len(piece)
                    await there.write(piece, mine)
                    done += len(piece)
                    tell(done)

            await sftp.in_parallel(write_some, size)

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        """As `Far`. When it fails, what is in the target is without gaps."""
        descriptor, step = target.fileno(), sftp.piece_of(self._session.limits.max_read_len)
        under_way: set[int] = set()
        done = offset
        async with self._session.open(path, "rb", block_size=0) as there:
            offsets = iter(range(offset, size, step))

            async def read_some() -> None:
                nonlocal done
                for at in offsets:
                    under_way.add(at)
                    here, end = at, min(at + step, size)
                    while here < end:  # a server may answer with less
                        piece = await sftp.read(there, end - here, here)
                        if not piece:
                            return
                        os.pwrite(descriptor, piece, here)
                        here += len(piece)
                        done += len(piece)
                        tell(done)
                    under_way.discard(at)

            try:
                await sftp.in_parallel(read_some, step)
            except BaseException:
                if under_way:
                    os.ftruncate(descriptor, min(under_way))
                raise
            at = size  # what has no size of its own (/proc), or has grown meanwhile
            while piece := await sftp.read(there, sftp.PIECE, at):
                os.pwrite(descriptor, piece, at)
                at += len(piece)
                tell(at)

    async def remove(self, path: str) -> None:
        """As `Far`."""
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            await self._session.remove(path)

    async def place(self, partial: str, target: str, mode: int, sha256: str) -> bool:
        """As `ByShell`; the file travels back for it, so this is for hosts that have no shell."""
        claimed = _claimed(partial)
        await self._session.posix_rename(partial, claimed)
        digest = hashlib.sha256()
        async with self._session.open(claimed, "rb") as there:
            while piece := await sftp.read(there, _PIECE, None):
                digest.update(piece)
        if digest.hexdigest() != sha256:
            await self.remove(claimed)
            return False
        await self._session.chmod(claimed, mode)
        await self._session.posix_rename(claimed, target)
        return True

    async def _stat(self, path: str) -> "_Stat":
        try:
            found = await self._session.stat(path)
        except asyncssh.SFTPNoSuchFile:
            return _Stat(None, 0, 0o600)
        mode = found.permissions or 0o600
        is_folder = found.type == asyncssh.FILEXFER_TYPE_DIRECTORY or stat.S_ISDIR(mode)
        is_special = not is_folder and stat.S_IFMT(mode) not in (0, stat.S_IFREG)
        return _Stat(found.size or 0, found.mtime or 0, mode & 0o777, is_folder, is_special)


class _Stat(NamedTuple):
    size: int | None
    changed: int
    mode: int
    is_folder: bool = False
    is_special: bool = False


class ByShell:
    """Through commands in sh, for hosts without SFTP."""

    name = "shell"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Each command has a session of its own."""

    async def find(self, remote: str, name: str | None) -> Found:
        """As `Far`."""
        into = "false" if name is None else f'test -d "$t" -o {int(remote.endswith("/"))} = 1'
        script = (
            f't={remote_shell.path(remote)}; {into} && t="${{t%/}}"/{shlex.quote(name or "")}; '
            'case $t in /*) ;; *) t=$(pwd)/$t;; esac; r=$(readlink -f "$t" 2>/dev/null) && t=$r; '
            'if test -d "$t"; then k=folder; elif test -f "$t"; then k=file; '
            'elif test -e "$t"; then k=special; else k=none; fi; test $k = special || '
            's=$(stat -L -c "%s %Y %a" "$t" 2>/dev/null || echo "$(wc -c < "$t" 2>/dev/null) 0 644"); '
            'printf "%s\\n%s\\n%s" "$k" "$s" "$t"'
        )
        told = (await self._run(script, remote)).decode("utf-8", "surrogateescape")
        kind, numbers, path = told.split("\n", 2)
        if kind == "folder":
            raise _folder(self._connection, path)
        if kind == "special":
            raise _special(self._connection, path)
        if kind == "none":
            return Found(path, None)
        size, changed, mode = numbers.split()
        return Found(path, int(size), int(changed), int(mode, 8) & 0o777)

    async def size(self, path: str) -> int:
        """As `Far`."""
        said = await self._run(f"wc -c < {shlex.quote(path)} 2>/dev/null || echo 0", path)
        return int(said.split()[0])

    async def write(self, path: str, source: BinaryIO, offset: int, tell: Tell) -> None:
        """As `Far`. At the offset and not at the end: another copy of the same bytes may be under way there."""
        quoted = shlex.quote(path)
        seek = f"dd bs=1 seek={offset} count=0 conv=notrunc 2>/dev/null; " if offset else ""
        script = f"umask 077; : >> {quoted} && {{ {seek}cat; }} 1<> {quoted}"
        process = await self._connection.start(remote_shell.in_sh(script))
        at = offset
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended early; its status says why
                while piece := os.pread(source.fileno(), _PIECE, at):
                    process.stdin.write(piece)
                    await process.stdin.drain()
                    at += len(piece)
                    tell(at)
                process.stdin.write_eof()
            done = await process.wait()
        finally:
            process.close()
        _check(self._connection, path, done.exit_status, done.stderr)

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        """As `Far`."""
        del size
        at = offset

        def put(piece: bytes) -> None:
            nonlocal at
            os.pwrite(target.fileno(), piece, at)
            at += len(piece)
            tell(at)

        await self._hear(f"tail -c +{offset + 1} < {shlex.quote(path)}", path, put)

    async def remove(self, path: str) -> None:
        """As `Far`."""
        await self._run(f"rm -f {shlex.quote(path)}", path)

    async def digest(self, path: str) -> str | None:
        """The SHA-256 of a file; None where there is no shell, or nothing in it that computes one."""
        try:
            said = await self._run(f"{{ {_DIGEST}; }} < {shlex.quote(path)}", path)
        except _NoShellError:
            return None
        return said.decode("ascii", "replace").strip() or None

    async def place(self, partial: str, target: str, mode: int, sha256: str) -> bool | None:
        """Puts a whole file in its place if it has this SHA-256, else removes it; None where nothing can tell.

        It gets a name that nobody else knows before it is looked at: another copy of the same bytes may be under way
        under the old one. The host goes on with that when the connection is lost meanwhile.
        """
        script = (
            f"trap '' HUP PIPE; d() {{ {_DIGEST}; }}; p={shlex.quote(partial)}; t={shlex.quote(target)}; "
            f"m={shlex.quote(_claimed(partial))}; "
            # Gone: another copy has claimed it, and may have placed it already.
            f'mv "$p" "$m" 2>/dev/null || {{ test -e "$t" && test "$(d < "$t")" = {sha256} && echo placed || '
            "echo wrong; exit 0; }; "
            's=$(d < "$m"); '
            'test -n "$s" || { mv "$m" "$p"; exit 0; }; '
            f'test "$s" = {sha256} || {{ rm -f "$m"; echo wrong; exit 0; }}; '
            f'chmod {mode:o} "$m" && mv -f "$m" "$t" && echo placed && exit 0; rm -f "$m"; exit 1'
        )
        try:
            said = await self._run(script, target)
        except _NoShellError:
            return None
        return {b"placed": True, b"wrong": False}.get(said.strip())

    async def _run(self, script: str, path: str) -> bytes:
        said = bytearray()
        await self._hear(script, path, said.extend)
        return bytes(said)

    async def _hear(self, script: str, path: str, put: Callable[[bytes], Any]) -> None:
        """Hands over what a script prints, without what rc files have printed before."""
        mark = secrets.token_hex(8).encode()
        text = remote_shell.in_sh(f"echo {mark.decode()}; {script}")
        process = await self._connection.start(text)
        noise = bytearray()
        is_marked = False
        try:
            process.stdin.write_eof()
            while piece := await process.stdout.read(_PIECE):
                if is_marked:
                    put(piece)
                    continue
                noise += piece
                _, found, after = bytes(noise).partition(mark + b"\n")
                is_marked = bool(found)
                if after:
                    put(after)
                if not is_marked and len(noise) > _NOISE:
                    break
            if not is_marked and len(noise) > _NOISE:
                raise self._no_shell("it prints without end")
            done = await process.wait()
        finally:
            process.close()
        if not is_marked and done.exit_status is not None:
            raise self._no_shell(_last_line(done.stderr, done.exit_status))
        _check(self._connection, path, done.exit_status, done.stderr)

    def _no_shell(self, why: str) -> "_NoShellError":
        sentence = f"the host has no SFTP, and no shell answers to commands: {why}"
        return _NoShellError("files.refused", sentence, host=self._connection.host.name)


class _NoShellError(ControllerError):
    """Nothing that reads sh answers to commands there."""


def _folder(connection: Connection, path: str) -> ControllerError:
    return sftp.refused(connection, path, "it is a folder, and one file is copied at a time; pack it: tar czf …")


def _special(connection: Connection, path: str) -> ControllerError:
    """A device has no end, and one that is replaced is none any more."""
    return sftp.refused(connection, path, "it is not a regular file; name another")


def _check(connection: Connection, path: str, status: int | None, stderr: Any) -> None:
    if status is None:
        raise UnreachableError("channel.lost", "the connection ended during the copy", host=connection.host.name)
    if status != 0:
        raise sftp.refused(connection, path, _last_line(stderr, status))


def _last_line(stderr: Any, status: int) -> str:
    said = stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else str(stderr or "")
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip()[-200:] if lines else f"exit status {status}"


def _claimed(partial: str) -> str:
    """A name for a partial file that nobody else will think of."""
    return f"{partial.removesuffix('.part')}.{secrets.token_hex(4)}.part"


async def way_to(connection: Connection) -> BySftp | ByShell:
    """SFTP, else the shell. Raises asyncssh.ChannelOpenError when the server has no room for a session."""
    session = await sftp.open_sftp(connection)
    return ByShell(connection) if session is None else BySftp(connection, session)


async def digest(connection: Connection, path: str) -> str | None:
    """The SHA-256 of a file on the host, computed there; None where nothing can."""
    return await ByShell(connection).digest(path)


def hashed(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file here. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def hashed_aside(path: str | os.PathLike[str]) -> str:
    """The same without holding up the connections."""
    return await asyncio.to_thread(hashed, path)
