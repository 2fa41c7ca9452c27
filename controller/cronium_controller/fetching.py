"""Download of one file: resumed or started anew, verified, and renamed to its final name.

The name is the one that was typed, never one that the host tells. Attempts are `transfer`'s.
"""

import os
import posixpath
from typing import NamedTuple

from cronium_runner.wire.sizes import readable

from .destination import Destination, LocalPartial, discard_at
from .errors import ControllerError
from .far_files import hashed_aside
from .hosts import Host
from .memory import account
from .partial_copies import HERE, PartialCopies, key_of
from .remote_file import Found, Tell
from .sessions import Connection
from .sftp import lost, refused
from .sftp_files import BySftp
from .shell_files import ByShell
from .store import Store


class Wanted(NamedTuple):
    """Local target of a download: folder, optional folder named after the host, file name. All of it was typed."""

    folder: str
    below: str | None
    name: str

    @property
    def path(self) -> str:
        """The target's path, for messages."""
        return os.path.join(self.folder, self.below or "", self.name)

    def open(self) -> Destination:
        """Opens the folder, which is made where it is missing."""
        folder = Destination.open(self.folder)
        if self.below is None:
            return folder
        with folder:
            return folder.folder(self.below)


def wanted_here(host: Host, remote: str, local: str, below: str | None) -> Wanted:
    """The local target of `remote`. Raises ControllerError when `remote` names no file."""
    name, folder = posixpath.basename(remote.rstrip("/")), os.path.expanduser(local)
    if below is None and not local.endswith("/") and not os.path.isdir(folder):
        return Wanted(os.path.dirname(folder), None, os.path.basename(folder))
    if name in ("", ".", "..", "~"):
        sentence = f"{remote} names no file; name one, or the file here that it is to become"
        raise ControllerError("files.refused", sentence, host=host.name)
    if below is not None and (below in ("", ".", "..") or "/" in below or "\0" in below):
        sentence = f"{below!r:.80} cannot be a folder's name; name the host otherwise"
        raise ControllerError("files.refused", sentence, host=host.name)
    return Wanted(folder, below, name)


class Fetching:
    """Download of one file into an open folder."""

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

    def __enter__(self) -> "Fetching":
        self._partials.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._partials.__exit__()
        if self._partial is not None:
            self._partial.close()

    def begin(self, *, is_afresh: bool) -> None:
        """Opens the partial copy of an earlier attempt, else a new one. `is_afresh`: always a new one."""
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
        """Reads the bytes that are missing; returns how many those were."""
        partial = self._known
        offset = min(partial.size, size)
        os.ftruncate(partial.file.fileno(), offset)
        room = self._folder.room()
        if room is not None and room < size - offset:
            self._removed()
            why = f"{readable(size - offset)} are needed, and {readable(room)} are free; make room"
            raise refused(self._connection, self._folder.path_of(self._name), why)
        tell(offset)
        try:
            await far.read(self._found.path, partial.file, offset, size, tell)
        except lost():
            raise  # the next attempt resumes
        except BaseException:
            self._removed()
            raise
        return partial.size - offset

    async def placed(self, there: str | None) -> str | None:
        """Renames the copy and returns its SHA-256; None, and it is removed, when the host's (`there`) differs."""
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
        """Removes abandoned partial copies here."""
        for partial in self._partials.abandoned():
            discard_at(partial.folder)
            self._partials.forget(partial.folder)
