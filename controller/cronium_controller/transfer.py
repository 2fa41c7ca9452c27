"""One file to or from a host, large or small: in pieces that are kept when the connection is lost, and verified.

A copy is written beside its target under a name made of what it is a copy of, so that the same copy, begun again by
any process, goes on where it was; another one never does. It takes its target's place only when its SHA-256 is right.
What is done on the host is `far_files`'; who shows how far it is, the caller.
"""

import asyncio
import contextlib
import hashlib
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from .connections import REFUSALS, Connections
from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError, reason
from .far_files import BySftp, ByShell, Tell, digest, hashed, hashed_aside, way_to
from .hosts import Host
from .memory import account
from .sessions import Connection
from .sftp import explained, refused
from .ssh_library import asyncssh

PAUSES: Final = (2.0, 4.0)
"""Seconds before the second and the third attempt after a lost connection: those of a deployment (contracts §8)."""
_LONGEST_NAME: Final = 200
"""Bytes of a target's name in that of its partial file: file systems take 255."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied. `sent` is how many bytes travelled: 0 when the same file was there, fewer after a resumption.

    `is_verified` says whether both ends have the same SHA-256; it is False only where a host can't compute one.
    """

    path: str
    bytes: int
    sent: int
    sha256: str
    method: str
    attempts: int = 1
    is_verified: bool = True


class Source:
    """A file here that is to be copied to any number of hosts: opened and hashed once."""

    def __init__(self, path: str) -> None:
        """Raises ControllerError when it can't be read, or is a folder."""
        self.path = os.path.expanduser(path)
        self.name = os.path.basename(os.path.abspath(self.path))
        try:
            if os.path.isdir(self.path):
                raise ControllerError(
                    "files.refused", f"{path} is a folder, and one file is copied at a time; pack it: tar czf …"
                )
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # a device or a pipe has no end, or no second reading
                raise ControllerError("files.refused", f"{path} is not a regular file; write it to one first")
            self.file: BinaryIO = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__
            self.size = os.fstat(self.file.fileno()).st_size
            self.mode = os.fstat(self.file.fileno()).st_mode & 0o777
            self.sha256 = hashed(self.path)
        except OSError as error:
            raise ControllerError("files.refused", f"cannot read {path}: {reason(error)}") from None

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.file.close()


async def put(connections: Connections, host: Host, source: Source, remote: str, tell: Tell) -> Copied:
    """Copies a file to a host, with its permission bits; into `remote` where that is a folder or ends in `/`.

    `tell` is called with how many of the bytes are there. Raises ControllerError (`files.…`), and UnreachableError
    after three attempts; what has arrived by then is gone on from by the next call.
    """

    async def attempt(connection: Connection) -> Copied:
        return await _put(connection, source, remote, tell)

    return await _attempts(connections, host, remote, attempt)


async def get(connections: Connections, host: Host, remote: str, local: str, tell: Tell) -> Copied:
    """Copies a file from a host, likewise; into `local` where that is a folder or ends in `/`."""

    async def attempt(connection: Connection) -> Copied:
        return await _get(connection, remote, local, tell)

    return await _attempts(connections, host, remote, attempt)


async def _attempts(
    connections: Connections, host: Host, remote: str, attempt: Callable[[Connection], Awaitable[Copied]]
) -> Copied:
    refusals, attempts = 0, 0
    while True:
        attempts += 1
        try:
            async with connections.lease(host) as lease:
                try:
                    with explained(lease.connection, remote):
                        return _counted(await attempt(lease.connection), attempts)
                except asyncssh.ChannelOpenError as error:
                    lease.note_refused()
                    refusals, attempts = refusals + 1, attempts - 1
                    if refusals == REFUSALS:
                        raise UnreachableError(
                            "host.unreachable", f"the server opens no session: {reason(error)}", host=host.name
                        ) from None
                except UnreachableError:
                    lease.retire()
                    raise
        except (HostKeyError, AuthenticationError):
            raise
        except UnreachableError as error:
            if error.code != "channel.lost" or attempts > len(PAUSES):
                raise
            await asyncio.sleep(PAUSES[attempts - 1])


def _counted(copied: Copied, attempts: int) -> Copied:
    return replace(copied, attempts=attempts)


# -- there ------------------------------------------------------------------------------------------------------------


async def _put(connection: Connection, source: Source, remote: str, tell: Tell) -> Copied:
    far = await way_to(connection)
    with contextlib.closing(far):
        target = await far.find(remote, source.name)
        partial = posixpath.join(posixpath.dirname(target.path), partial_name(target.path, source.sha256))
        begun = min(await far.size(partial), source.size)
    if target.size == source.size and await digest(connection, target.path) == source.sha256:
        tell(source.size)
        return Copied(target.path, source.size, 0, source.sha256, far.name)
    for offset in (begun, 0):  # once more, whole, should what was there not be what it seemed
        await _send(connection, source, partial, offset, tell)
        if await _is_placed(connection, source, partial, target.path):
            return Copied(target.path, source.size, source.size - offset, source.sha256, far.name)
    raise ControllerError(
        "files.mismatch",
        f"what arrived at {target.path} is not what {source.path} was; nothing was replaced: "
        "see whether the file is being written to, then try again",
        host=connection.host.name,
    )


async def _send(connection: Connection, source: Source, partial: str, offset: int, tell: Tell) -> None:
    far = await way_to(connection)
    with contextlib.closing(far):
        try:
            tell(offset)
            await far.write(partial, source.file, offset, tell)
        except (UnreachableError, asyncio.CancelledError, asyncssh.SFTPConnectionLost, ConnectionError):
            raise  # what is there is gone on from
        except BaseException:  # a full disk above all: what is there helps nobody
            with contextlib.suppress(asyncssh.Error, ControllerError, OSError):
                await far.remove(partial)
            raise


async def _is_placed(connection: Connection, source: Source, partial: str, target: str) -> bool:
    """Puts a partial file in its place if it is right, else removes it."""
    placed = await ByShell(connection).place(partial, target, source.mode, source.sha256)
    if placed is not None:
        return placed
    far = await way_to(connection)
    with contextlib.closing(far):
        if isinstance(far, BySftp):
            return await far.place(partial, target, source.mode, source.sha256)
        await far.remove(partial)
    raise refused(connection, target, "the host has no sha256sum, shasum or openssl to verify it with; install one")


# -- back -------------------------------------------------------------------------------------------------------------


async def _get(connection: Connection, remote: str, local: str, tell: Tell) -> Copied:
    for is_afresh in (False, True):
        copied = await _fetched(connection, remote, local, tell, is_afresh=is_afresh)
        if copied is not None:
            return copied
    raise ControllerError(
        "files.mismatch",
        f"{remote} is not what arrived of it; nothing was replaced: "
        "see whether the file is being written to, then try again",
        host=connection.host.name,
    )


async def _fetched(connection: Connection, remote: str, local: str, tell: Tell, *, is_afresh: bool) -> Copied | None:
    """The copy, in its place; None when it isn't what the host has."""
    far = await way_to(connection)
    with contextlib.closing(far):
        found = await far.find(remote, None)
        if found.size is None:
            raise refused(connection, remote, "No such file or directory")
        target = _local_target(local, posixpath.basename(found.path))
        if target.exists() and not target.is_file():  # /dev/null would be a file from then on
            raise refused(connection, str(target), "it is not a regular file; name another target")
        key = hashlib.sha256(f"{account(connection.host)}\n{found.path}\n{found.size}\n{found.changed}".encode())
        partial = target.with_name(partial_name(str(target), key.hexdigest()))
        with _here(connection, partial):
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_afresh:
                partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(descriptor, "r+b", buffering=0) as file:
                offset = min(os.fstat(descriptor).st_size, found.size)
                tell(offset)
                await far.read(found.path, file, offset, found.size, tell)
    there = await digest(connection, found.path)
    with _here(connection, target):
        here = await hashed_aside(partial)
        if there is not None and there != here:
            partial.unlink()
            return None
        size = partial.stat().st_size
        partial.chmod(found.mode & ~_umask())
        partial.replace(target)
    return Copied(str(target), size, size - offset, here, far.name, is_verified=there is not None)


def _local_target(local: str, name: str) -> Path:
    path = Path(local).expanduser()
    return path / name if local.endswith("/") or path.is_dir() else path


@contextlib.contextmanager
def _here(connection: Connection, path: Path) -> Iterator[None]:
    """What our own file system refuses, told as such; a lost connection is an OSError, too, but not of a file."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise refused(connection, str(path), reason(error)) from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def partial_name(target: str, key: str) -> str:
    """What a partial copy is called, beside its target. `key` is hex and tells what it is a copy of."""
    name = posixpath.basename(target).encode("utf-8", "surrogateescape")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return f".{name}.{key[:16]}.part"
