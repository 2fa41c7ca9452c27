"""One file to or from a host, large or small: in pieces that are kept when the connection is lost, and verified.

A copy is written in a new folder of mode 0700 beside its target, whose random name is kept in the store, so that the
same copy, begun again by any process here, goes on where it was; another one never does. It takes its target's place
only when its SHA-256 is right. What is done on the host is `far_files`', here `destination`'s; who shows how far it is,
the caller.
"""

import asyncio
import contextlib
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO, Final, NamedTuple

from cronium_runner.wire.sizes import readable

from .connections import REFUSALS, Connections
from .destination import Destination, LocalPartial, NameRefusedError, discard_at
from .errors import AuthenticationError, ControllerError, HostKeyError, UnreachableError, reason
from .far_files import digest, hashed, hashed_aside, way_to
from .hosts import Host
from .memory import account
from .partial_copies import HERE, PartialCopies, key_of
from .remote_file import Found, Partial, Tell, new_folder
from .sessions import Connection
from .sftp import explained, refused
from .sftp_files import BySftp
from .shell_files import ByShell
from .ssh_library import asyncssh
from .store import Store

_CUT: Final = (UnreachableError, asyncssh.SFTPConnectionLost, asyncssh.DisconnectError, ConnectionError)
_LOST: Final = (asyncio.CancelledError, *_CUT)
"""What ends an attempt, and leaves a copy that the next one goes on with."""
PAUSES: Final = (2.0, 4.0)
"""Seconds before the second and the third attempt after a lost connection: those of a deployment (contracts §8)."""


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
    """Copies a file from a host, likewise; into `local` where that is a folder or ends in `/`.

    It is then called as in `remote`, whatever the host says. With `below`, the name of a host, it goes into a folder
    of that name in `local`. Modes are the host's, without what the umask takes away and without set-id bits.
    """
    wanted = _local_target(host, remote, local, below)

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
        sending = _Sending(connection, partials, source, target, tell)
        if target.size == source.size and await digest(connection, target.path, source.size) == source.sha256:
            tell(source.size)
            copied = Copied(target.path, source.size, 0, source.sha256, far.name)
        else:
            copied = Copied(target.path, source.size, await sending.send(), source.sha256, far.name)
        await sending.tidy()
    return copied


class _Sending:
    """One file on its way to its target on one host."""

    def __init__(
        self, connection: Connection, partials: PartialCopies, source: Source, target: Found, tell: Tell
    ) -> None:
        self._connection = connection
        self._partials = partials
        self._source = source
        self._target = target
        self._tell = tell

    async def send(self) -> int:
        """Sends what is not there yet and puts it in its place; how many bytes that was."""
        partial, offset = await self._resumed()
        if partial is not None and await self._is_sent(partial, offset):
            return self._source.size - offset
        if await self._is_sent(None, 0):  # whole, should what was there not have been what it seemed
            return self._source.size
        raise ControllerError(
            "files.mismatch",
            f"what arrived at {self._target.path} is not what {self._source.path} was; nothing was replaced: "
            "see whether the file is being written to, then try again",
            host=self._connection.host.name,
        )

    async def _resumed(self) -> tuple[Partial | None, int]:
        """An earlier copy that can be gone on with, and from where on; one that can't is removed."""
        partial = self._partials.resumable()
        if partial is None:
            return None, 0
        far = await way_to(self._connection)
        with contextlib.closing(far):
            size = await far.usable(partial)
            if size is not None:
                return partial, min(size, self._source.size)
            await self._removed(far, partial)
        return None, 0

    async def _is_sent(self, partial: Partial | None, offset: int) -> bool:
        far = await way_to(self._connection)
        with contextlib.closing(far):
            self._tell(offset)
            if partial is None:
                partial = await self._begun(far)
                await self._write(far, partial, None)
            else:
                await self._write(far, partial, offset)
        is_placed = await self._is_placed(partial)
        self._partials.forget(partial.folder)
        return is_placed

    async def _begun(self, far: BySftp | ByShell) -> Partial:
        folder = new_folder(self._target.path)
        self._partials.begin(folder)
        try:
            partial = await far.begin(folder)
        except _LOST:
            raise
        except BaseException:
            self._partials.forget(folder)
            raise
        self._partials.note_owner(partial)
        return partial

    async def _write(self, far: BySftp | ByShell, partial: Partial, offset: int | None) -> None:
        try:
            await far.write(partial, self._source.file, offset, self._tell)
        except _LOST:
            raise  # what is there is gone on from
        except BaseException:  # a full disk above all: what is there is of no use
            await self._removed(far, partial)
            raise

    async def _removed(self, far: BySftp | ByShell, partial: Partial) -> None:
        """Removes a partial copy as far as that works. One that can't be removed is not tried again."""
        try:
            await far.discard(partial)
        except _CUT:
            return
        except (asyncssh.Error, ControllerError, OSError, ValueError):
            pass
        self._partials.forget(partial.folder)

    async def _is_placed(self, partial: Partial) -> bool:
        """Puts a partial copy in its place if it is right, else removes it."""
        target, source = self._target.path, self._source
        by_shell = ByShell(self._connection)
        placed = await by_shell.place(partial, target, source.mode, source.sha256, source.size)
        if placed is not None:
            return placed
        far = await way_to(self._connection)
        with contextlib.closing(far):
            if isinstance(far, BySftp):
                return await far.place(partial, target, source.mode, source.sha256)
            await self._removed(far, partial)
        why = "the host has no sha256sum, shasum or openssl to verify it with; install one"
        raise refused(self._connection, target, why)

    async def tidy(self) -> None:
        """Removes what earlier copies have left on this host, as far as that works."""
        abandoned = self._partials.abandoned()
        if not abandoned:
            return
        with contextlib.suppress(asyncssh.Error, ControllerError, OSError, ValueError):
            far = await way_to(self._connection)
            with contextlib.closing(far):
                for partial in abandoned:
                    await self._removed(far, partial)


# -- back -------------------------------------------------------------------------------------------------------------


class _Wanted(NamedTuple):
    """Where a file is to be put here: a folder, a host's folder in it, a name. All of it was typed."""

    folder: str
    below: str | None
    name: str

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.below or "", self.name)

    def open(self) -> Destination:
        """The folder, made where it is missing."""
        folder = Destination.open(self.folder)
        if self.below is None:
            return folder
        with folder:
            return folder.folder(self.below)


def _local_target(host: Host, remote: str, local: str, below: str | None) -> _Wanted:
    name, folder = posixpath.basename(remote.rstrip("/")), os.path.expanduser(local)
    if below is None and not local.endswith("/") and not os.path.isdir(folder):
        return _Wanted(os.path.dirname(folder), None, os.path.basename(folder))
    if name in ("", ".", "..", "~"):
        sentence = f"{remote} names no file; name one, or the file here that it is to become"
        raise ControllerError("files.refused", sentence, host=host.name)
    if below is not None and (below in ("", ".", "..") or "/" in below or "\0" in below):
        sentence = f"{below!r:.80} cannot be a folder's name; name the host otherwise"
        raise ControllerError("files.refused", sentence, host=host.name)
    return _Wanted(folder, below, name)


async def _get(connection: Connection, store: Store, remote: str, wanted: _Wanted, tell: Tell) -> Copied:
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
    connection: Connection, store: Store, remote: str, wanted: _Wanted, tell: Tell, *, is_afresh: bool
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
                fetching = opened.enter_context(_Fetching(connection, store, found, folder, wanted.name))
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


class _Fetching:
    """One file on its way from a host to its place here."""

    def __init__(self, connection: Connection, store: Store, found: Found, folder: Destination, name: str) -> None:
        self._connection = connection
        self._found = found
        self._folder = folder
        self._name = name
        target = os.path.abspath(folder.path_of(name))
        where = account(connection.host)
        key = key_of("get", where, found.path, found.size, found.changed, target)
        self._partials = PartialCopies(store.database, HERE, target, key)
        self._above = os.path.dirname(target)
        self._partial: LocalPartial | None = None
        self.size = 0

    def __enter__(self) -> "_Fetching":
        self._partials.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._partials.__exit__()
        if self._partial is not None:
            self._partial.close()

    def begin(self, *, is_afresh: bool) -> None:
        """An earlier copy that can be gone on with, else a new one."""
        known = self._partials.resumable()
        if known is not None:
            name = os.path.basename(known.folder)
            self._partial = None if is_afresh else self._folder.resume(name)
            if self._partial is not None:
                return
            self._folder.discard(name)
            self._partials.forget(known.folder)
        name = self._folder.new_name(self._name)
        self._partials.begin(self._path_of(name))
        try:
            self._partial = self._folder.begin(name)
        except BaseException:
            self._partials.forget(self._path_of(name))
            raise

    def _path_of(self, name: str) -> str:
        return os.path.join(self._above, name)

    async def read(self, far: BySftp | ByShell, size: int, tell: Tell) -> int:
        """Reads what is not there yet; how many bytes that was."""
        partial = self._known
        offset = min(partial.size, size)
        os.ftruncate(partial.file.fileno(), offset)
        if self._folder.room() < size - offset:
            self._removed()
            why = f"{readable(size - offset)} are needed, and {readable(self._folder.room())} are free; make room"
            raise refused(self._connection, self._folder.path_of(self._name), why)
        tell(offset)
        try:
            await far.read(self._found.path, partial.file, offset, size, tell)
        except _LOST:
            raise  # what is there is gone on from
        except BaseException:
            self._removed()
            raise
        return partial.size - offset

    async def placed(self, there: str | None) -> str | None:
        """The SHA-256 of what is in its place now; None when it isn't what is there, and is removed."""
        partial = self._known
        here = await hashed_aside(partial.file)
        if there is not None and there != here:
            self._removed()
            return None
        self.size = partial.size
        try:
            self._folder.place(partial, self._name, self._found.mode)
        except BaseException:
            self._removed()
            raise
        self._partials.forget(self._path_of(partial.name))
        return here

    @property
    def _known(self) -> LocalPartial:
        assert self._partial is not None, "begun before"
        return self._partial

    def _removed(self) -> None:
        name = self._known.name
        self._folder.discard(name)
        self._partials.forget(self._path_of(name))

    def tidy(self) -> None:
        """Removes what earlier copies have left here."""
        for partial in self._partials.abandoned():
            discard_at(partial.folder)
            self._partials.forget(partial.folder)


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
