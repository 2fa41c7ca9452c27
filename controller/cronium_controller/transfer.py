"""One file to or from a host, large or small: in pieces that are kept when the connection is lost, and verified.

A copy is written in a new folder of mode 0700 beside its target, whose random name is kept in the store, so that the
same copy, begun again by any process here, goes on where it was; another one never does. It takes its target's place
only when its SHA-256 is right. What is done on the host is `far_files`', here `destination`'s; who shows how far it is,
the caller.
"""

import asyncio
import contextlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO, Final

from .connections import REFUSALS, Connections
from .destination import NameRefusedError
from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError, reason
from .far_files import digest, hashed, way_to
from .fetching import Fetching, Wanted, wanted_here
from .hosts import Host
from .memory import account
from .partial_copies import PartialCopies, key_of
from .remote_file import Tell
from .sending import Sending
from .sessions import Connection
from .sftp import explained, refused
from .ssh_library import asyncssh
from .store import Store

PAUSES: Final = (2.0, 4.0)
"""Seconds before the second and the third attempt after a lost connection: those of a deployment."""


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


async def put(connections: Connections, store: Store, host: Host, source: Source, remote: str, tell: Tell) -> Copied:
    """Copies a file to a host, with its permission bits; into `remote` where that is a folder or ends in `/`.

    `tell` is called with how many of the bytes are there. Raises ControllerError (`files.…`), and UnreachableError
    after three attempts; what has arrived by then is gone on from by the next call with this store.
    """

    async def attempt(connection: Connection) -> Copied:
        return await _put(connection, store, source, remote, tell)

    return await _attempts(connections, host, remote, attempt)


async def get(
    connections: Connections, store: Store, host: Host, remote: str, local: str, tell: Tell, *, below: str | None = None
) -> Copied:
    """Copies a file from a host; into `local` where that is a folder or ends in `/`. Raises as `put` does.

    Its name is then the last part of `remote` as it was typed. With `below`, the name of a host, it goes into a folder
    of that name in `local`. Modes are the host's, without what the umask takes away and without set-id bits.
    """
    wanted = wanted_here(host, remote, local, below)

    async def attempt(connection: Connection) -> Copied:
        return await _get(connection, store, remote, wanted, tell)

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


async def _put(connection: Connection, store: Store, source: Source, remote: str, tell: Tell) -> Copied:
    far = await way_to(connection)
    with contextlib.closing(far):
        target = await far.find_target(remote, source.name)
    where = account(connection.host)
    key = key_of("put", where, target.path, source.sha256)
    with PartialCopies(store.database, where, target.path, key) as partials:
        sending = Sending(connection, partials, source, target, tell)
        if target.size == source.size and await digest(connection, target.path, source.size) == source.sha256:
            tell(source.size)
            copied = Copied(target.path, source.size, 0, source.sha256, far.name)
        else:
            copied = Copied(target.path, source.size, await sending.send(), source.sha256, far.name)
        await sending.tidy()
    return copied


# -- back -------------------------------------------------------------------------------------------------------------


async def _get(connection: Connection, store: Store, remote: str, wanted: Wanted, tell: Tell) -> Copied:
    for is_afresh in (False, True):
        copied = await _fetched(connection, store, remote, wanted, tell, is_afresh=is_afresh)
        if copied is not None:
            return copied
    raise ControllerError(
        "files.mismatch",
        f"{remote} is not what arrived of it; nothing was replaced: "
        "see whether the file is being written to, then try again",
        host=connection.host.name,
    )


async def _fetched(
    connection: Connection, store: Store, remote: str, wanted: Wanted, tell: Tell, *, is_afresh: bool
) -> Copied | None:
    """The copy, in its place; None when it isn't what the host has."""
    with contextlib.ExitStack() as opened:
        far = await way_to(connection)
        with contextlib.closing(far):
            found = await far.find_source(remote)
            if found.size is None:
                raise refused(connection, remote, "No such file or directory")
            with _here(connection, wanted.path):
                folder = opened.enter_context(wanted.open())
                folder.check(wanted.name, is_typed=True)
                fetching = opened.enter_context(Fetching(connection, store, found, folder, wanted.name))
                fetching.begin(is_afresh=is_afresh)
            with _here(connection, wanted.path):
                sent = await fetching.read(far, found.size, tell)
        there = await digest(connection, found.path, found.size)
        with _here(connection, wanted.path):
            here = await fetching.placed(there)
            if here is None:
                return None
            fetching.tidy()
            return Copied(wanted.path, fetching.size, sent, here, far.name, is_verified=there is not None)


@contextlib.contextmanager
def _here(connection: Connection, path: str) -> Iterator[None]:
    """What our own file system refuses, told as such; a lost connection is an OSError, too, but not of a file."""
    try:
        yield
    except ConnectionError:
        raise
    except NameRefusedError as error:
        raise refused(connection, error.name, error.why) from None
    except OSError as error:
        raise refused(connection, path, reason(error)) from None
