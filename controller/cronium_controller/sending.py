"""Upload of one file to one host: resumed or started anew beside its target, verified, and renamed to it.

Attempts are `transfer`'s; how a host's files are reached is `sftp_files`' and `shell_files`'.
"""

import contextlib
from typing import TYPE_CHECKING

from .errors import ControllerError
from .far_files import way_to
from .partial_copies import PartialCopies
from .remote_file import Found, Partial, Tell, new_folder
from .sessions import Connection
from .sftp import cut, lost, refused
from .sftp_files import BySftp
from .shell_files import ByShell
from .ssh_library import asyncssh

if TYPE_CHECKING:
    from .transfer import Source


class Sending:
    """Upload of one file to its target on one host."""

    def __init__(
        self, connection: Connection, partials: PartialCopies, source: "Source", target: Found, tell: Tell
    ) -> None:
        self._connection = connection
        self._partials = partials
        self._source = source
        self._target = target
        self._tell = tell

    async def send(self) -> int:
        """Sends the bytes that are missing and renames the file; returns how many bytes were sent."""
        partial, offset = await self._resumed()
        if partial is not None and await self._is_sent(partial, offset):
            return self._source.size - offset
        if await self._is_sent(None, 0):  # the partial copy did not verify: all of it
            return self._source.size
        raise ControllerError(
            "files.mismatch",
            f"what arrived at {self._target.path} is not what {self._source.path} was; nothing was replaced: "
            "see whether the file is being written to, then try again",
            host=self._connection.host.name,
        )

    async def _resumed(self) -> tuple[Partial | None, int]:
        """The partial copy of an earlier attempt, and the offset to resume at. One that can't be used is removed."""
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
        except lost():
            raise
        except BaseException:
            self._partials.forget(folder)
            raise
        self._partials.note_owner(partial)
        return partial

    async def _write(self, far: BySftp | ByShell, partial: Partial, offset: int | None) -> None:
        try:
            await far.write(partial, self._source.file, offset, self._tell)
        except lost():
            raise  # the next attempt resumes
        except BaseException:  # a full disk, for one: the partial copy is of no use
            await self._removed(far, partial)
            raise

    async def _removed(self, far: BySftp | ByShell, partial: Partial) -> None:
        """Removes a partial copy if possible. One that can't be removed is not tried again."""
        try:
            await far.discard(partial)
        except cut():
            return
        except (asyncssh.Error, ControllerError, OSError, ValueError):
            pass
        self._partials.forget(partial.folder)

    async def _is_placed(self, partial: Partial) -> bool:
        """Renames a partial copy to its target if its digest is right, else removes it. Whether it was renamed."""
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
        """Removes abandoned partial copies on this host, if possible."""
        abandoned = self._partials.abandoned()
        if not abandoned:
            return
        with contextlib.suppress(asyncssh.Error, ControllerError, OSError, ValueError):
            far = await way_to(self._connection)
            with contextlib.closing(far):
                for partial in abandoned:
                    await self._removed(far, partial)
