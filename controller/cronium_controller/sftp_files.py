"""Files on a host by SFTP. What the server answers is checked: `sftp` and `remote_file` say how."""

import contextlib
import hashlib
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Awaitable
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

from . import remote_file, sftp
from .remote_file import PIECE, Entry, Found, Partial, Tell
from .sessions import Connection
from .ssh_library import asyncssh

_Answer = TypeVar("_Answer")
_MOST_ENTRIES: Final = 16
"""Of a partial copy's folder, which has one or two: a listing may have no end."""


class BySftp:
    """By an SFTP session that is open."""

    name = "sftp"

    def __init__(self, connection: Connection, session: "asyncssh.SFTPClient") -> None:
        self._connection = connection
        self._session = session

    def close(self) -> None:
        """Ends the session without waiting: a server that hangs would keep us from giving up."""
        self._session.exit()

    async def find_source(self, remote: str) -> Found:
        path = sftp.checked_path(await self._ask(self._session.realpath(sftp.path(remote))))
        return self._file(path, await self._stat(path))

    async def find_target(self, remote: str, name: str) -> Found:
        """Links on the way are followed by the host's kernel first, which may refuse those of others."""
        typed = sftp.path(remote)
        found = await self._stat(typed)
        if remote.endswith("/") or found.is_folder:
            typed = posixpath.join(typed, name)
        if found.size is None:
            await self._ask(self._session.stat(posixpath.dirname(typed) or "."))
        folder = sftp.checked_path(await self._ask(self._session.realpath(posixpath.dirname(typed) or ".")))
        path = posixpath.join(folder, posixpath.basename(typed))
        itself = await self._stat(path, follow=False)
        if itself.is_link:
            above = await self._stat(folder)
            if remote_file.leads_elsewhere(above.mode, above.uid, itself.uid):
                raise remote_file.link_error(self._connection, path)
            path = sftp.checked_path(await self._ask(self._session.realpath(path)))
            itself = await self._stat(path)
        return self._file(path, itself)

    def _file(self, path: str, found: "_Stat") -> Found:
        if found.is_folder:
            raise remote_file.folder_error(self._connection, path)
        if found.is_special:
            raise remote_file.special_error(self._connection, path)
        return Found(path, found.size, found.changed, found.mode & 0o777)

    async def begin(self, folder: str) -> Partial:
        await self._ask(self._session.mkdir(folder, asyncssh.SFTPAttrs(permissions=0o700)))
        made = await self._entry(folder)
        if not remote_file.is_own_folder(made, made.uid):  # a server may leave the mode to the umask
            with contextlib.suppress(asyncssh.SFTPError):
                await self._ask(self._session.chmod(folder, 0o700))
            made = await self._entry(folder)
        if not remote_file.is_written_by_us_alone(made, made.uid):
            with contextlib.suppress(asyncssh.SFTPError):
                await self._ask(self._session.rmdir(folder))
            raise remote_file.open_folder_error(self._connection, folder)
        return Partial(folder, made.uid)

    async def usable(self, partial: Partial) -> int | None:
        """Counts less than there is, as pieces may have arrived out of order."""
        try:
            inside = [entry async for entry in self._entries(partial.folder)]
            size = remote_file.usable_size(await self._entry(partial.folder), inside, partial.uid)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied):
            return None
        return None if size is None else max(0, size - sftp.WINDOW)

    async def write(self, partial: Partial, source: BinaryIO, offset: int | None, tell: Tell) -> None:
        """Nothing is cut off: another copy of the same bytes may be under way there."""
        attributes = asyncssh.SFTPAttrs(permissions=0o600)
        flags = asyncssh.FXF_WRITE | (asyncssh.FXF_CREAT | asyncssh.FXF_EXCL if offset is None else 0)
        at = done = offset or 0
        descriptor, size = source.fileno(), sftp.piece_of(self._session.limits.max_write_len)
        patience = sftp.Patience(self._connection)
        async with self._opened(partial.file, flags, attributes) as there:

            async def write_some() -> None:
                nonlocal at, done
                while piece := os.pread(descriptor, size, at):
                    mine, at = at, at + len(piece)
                    await sftp.write(there, piece, mine)
                    patience.note()
                    done += len(piece)
                    tell(done)

            await sftp.in_parallel(write_some, patience, size)

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        """When it fails, what is in the target is without gaps."""
        async with self._opened(path, asyncssh.FXF_READ) as there:
            reading = _Reading(self._connection, there, path, target, offset, tell)
            await reading.until(size, sftp.piece_of(self._session.limits.max_read_len))
            at = reading.done
            while at >= size and (piece := await self._ask(sftp.read(there, sftp.PIECE, at))):
                os.pwrite(target.fileno(), piece, at)
                at += len(piece)
                if at > size + remote_file.MOST_GROWTH:
                    raise remote_file.endless_error(self._connection, path, size)
                tell(at)

    async def place(self, partial: Partial, target: str, mode: int, sha256: str | None) -> bool:
        """To be verified the file is read back, so this is for hosts without a shell."""
        claimed = partial.file
        if sha256 is not None:
            claimed = partial.claimed()
            await self._ask(self._session.posix_rename(partial.file, claimed))
            if await self._digest(claimed) != sha256:
                await self.discard(partial)
                return False
        await self._ask(self._session.chmod(claimed, mode))
        await self._ask(self._session.posix_rename(claimed, target))
        with contextlib.suppress(asyncssh.SFTPError):  # another copy of the same may have its claim there
            await self._ask(self._session.rmdir(partial.folder))
        return True

    async def _digest(self, path: str) -> str:
        digest, at = hashlib.sha256(), 0
        async with self._opened(path, asyncssh.FXF_READ) as there:
            while piece := await self._ask(sftp.read(there, PIECE, at)):
                digest.update(piece)
                at += len(piece)
        return digest.hexdigest()

    async def discard(self, partial: Partial) -> None:
        try:
            folder = await self._entry(partial.folder)
            if not remote_file.is_written_by_us_alone(folder, folder.uid if partial.uid is None else partial.uid):
                return
            names = [entry.name async for entry in self._entries(partial.folder)]
            for name in names:
                if name == remote_file.PART or name.startswith(f"{remote_file.PART}."):
                    await self._ask(self._session.remove(f"{partial.folder}/{name}"))
            await self._ask(self._session.rmdir(partial.folder))
        except asyncssh.SFTPNoSuchFile:
            pass

    async def _ask(self, asking: Awaitable[_Answer]) -> _Answer:
        return await sftp.ask(self._connection, asking)

    @contextlib.asynccontextmanager
    async def _opened(
        self, path: str, flags: int, attributes: "asyncssh.SFTPAttrs | None" = None
    ) -> AsyncIterator[Any]:
        """An open file. Its close is waited for as everything else, and not at all after a failure."""
        opening = self._session.open(path, flags, attributes or asyncssh.SFTPAttrs(), encoding=None, block_size=0)
        there = await self._ask(opening)
        try:
            yield there
        except BaseException:
            raise  # the session ends soon, and its files with it
        else:
            await self._ask(there.close())

    async def _entry(self, path: str) -> Entry:
        found = await self._ask(self._session.lstat(path))
        return Entry(path, stat.filemode(_mode(found)), found.nlink, found.uid, found.size or 0)

    async def _entries(self, folder: str) -> AsyncIterator[Entry]:
        count = 0
        names = self._session.scandir(folder)
        try:
            while (name := await self._ask(anext(names, None))) is not None and count < _MOST_ENTRIES:
                if name.filename in (".", ".."):
                    continue
                count += 1
                attrs = name.attrs
                mode = stat.filemode(_mode(attrs))
                yield Entry(str(name.filename), mode, _links(name.longname), attrs.uid, attrs.size or 0)
        finally:
            with contextlib.suppress(asyncssh.Error):
                await self._ask(names.aclose())  # type: ignore[attr-defined] # it is a generator

    async def _stat(self, path: str, *, follow: bool = True) -> "_Stat":
        try:
            found = await self._ask(self._session.stat(path) if follow else self._session.lstat(path))
        except asyncssh.SFTPNoSuchFile:
            return _Stat(None, 0, 0o600)
        mode = _mode(found) or 0o600
        is_folder, is_link = stat.S_ISDIR(mode), stat.S_ISLNK(mode)
        is_special = not is_folder and not is_link and stat.S_IFMT(mode) not in (0, stat.S_IFREG)
        return _Stat(found.size or 0, found.mtime or 0, mode & 0o7777, found.uid, is_folder, is_link, is_special)


_TYPES: Final = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFLNK}
"""What the types of files are in SFTP (draft-ietf-secsh-filexfer-13, section 7.2)."""


def _mode(found: "asyncssh.SFTPAttrs") -> int:
    mode = found.permissions or 0
    return mode if stat.S_IFMT(mode) else mode | _TYPES.get(found.type, 0)


def _links(longname: Any) -> int | None:
    """A file's number of links, which version 3 of SFTP tells in the line for people only: as `ls -l` has it."""
    text = longname.decode("ascii", "replace") if isinstance(longname, bytes) else str(longname or "")
    words = text.split(None, 2)
    return (
        int(words[1]) if len(words) == 3 and words[1].isascii() and words[1].isdigit() and len(words[1]) < 9 else None
    )


class _Stat(NamedTuple):
    size: int | None
    changed: int
    mode: int
    uid: int | None = None
    is_folder: bool = False
    is_link: bool = False
    is_special: bool = False


class _Reading:
    """A file that is read in many pieces at once into one here."""

    def __init__(
        self, connection: Connection, there: Any, path: str, target: BinaryIO, offset: int, tell: Tell
    ) -> None:
        self._connection = connection
        self._there = there
        self._path = path
        self._descriptor = target.fileno()
        self._offset = offset
        self._tell = tell
        self._patience = sftp.Patience(connection)
        self._under_way: set[int] = set()
        self._ends_at: int | None = None
        """Where the file has ended, should that be before its size."""
        self._furthest = offset
        self.done = offset
        """How many bytes are there: up to here there is no gap, when all is read."""

    async def until(self, size: int, step: int) -> None:
        """Reads up to a size, or to the file's end before it."""
        offsets = iter(range(self._offset, size, step))

        async def read_some() -> None:
            for at in offsets:
                if self._ends_at is not None:  # the size was not true: there may be no end of offsets
                    return
                self._under_way.add(at)
                await self._read(at, min(at + step, size))
                self._under_way.discard(at)

        try:
            await sftp.in_parallel(read_some, self._patience, step)
            if self._ends_at is not None and self._furthest > self._ends_at:
                self._under_way.add(self._ends_at)
                raise remote_file.gap_error(self._connection, self._path)
        except BaseException:
            if self._under_way:
                os.ftruncate(self._descriptor, min(self._under_way))
            raise

    async def _read(self, at: int, end: int) -> None:
        while at < end:  # a server may answer with less
            piece = await sftp.read(self._there, end - at, at)
            self._patience.note()
            if not piece:
                self._ends_at = at if self._ends_at is None else min(self._ends_at, at)
                return
            os.pwrite(self._descriptor, piece, at)
            at += len(piece)
            self.done += len(piece)
            self._furthest = max(self._furthest, at)
            self._tell(self.done)
