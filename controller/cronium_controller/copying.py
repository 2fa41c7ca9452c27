"""Files to or from a host as `scp` copies them: by SFTP, or through the shell where the server has none. Each one
appears whole or not at all, with its permission bits.

For the raw client. The last part of a source may be a pattern; names that a host gives for one are matched again here.
No progress, no resumption: that is for large files, and `transfer`'s.
"""

import contextlib
import glob
import os
import posixpath
import re
import shlex
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, BinaryIO, Final

from . import remote_shell, shell_command
from .destination import Destination, NameRefusedError, checked_name
from .errors import ControllerError, reason
from .far_files import way_to
from .fetching import wanted_here
from .remote_file import new_folder
from .sessions import Connection
from .sftp import explained, refused
from .ssh_library import asyncssh

Copy = Callable[[Connection, str, str], Coroutine[Any, Any, None]]

_MOST_NAMES: Final = 1 << 20
"""Bytes of the names that a pattern stands for on a host."""
_IN_PATTERN: Final = re.compile(r"[^A-Za-z0-9_.,+@%:*?\[\]!^-]", re.ASCII)
"""What is quoted in a pattern that a shell is told."""


async def upload(connection: Connection, local: str, remote: str) -> None:
    """Copies a file, or those that a pattern stands for, to the host. Into `remote` where that is a folder.

    Raises ControllerError (`files.refused`) for files that can't be read or written, UnreachableError for a lost
    connection, and asyncssh.ChannelOpenError when the server has no room for another session; nothing was done then.
    """
    path = os.path.expanduser(local)
    found = [path] if os.path.lexists(path) or not glob.has_magic(path) else sorted(glob.glob(path))
    if not found:
        raise refused(connection, local, "No such file or directory")
    target = remote if len(found) == 1 else f"{remote.rstrip('/')}/"
    for each in found:
        await _upload(connection, each, target)


async def _upload(connection: Connection, local: str, remote: str) -> None:
    with _local(connection, local) as file, explained(connection, remote):
        mode = os.fstat(file.fileno()).st_mode & 0o777
        far = await way_to(connection)
        with contextlib.closing(far):
            target = await far.find_target(remote, os.path.basename(local))
            partial = await far.begin(new_folder(target.path))
            try:
                await far.write(partial, file, None, _ignore)
                await far.place(partial, target.path, mode, None)
            except BaseException:
                with contextlib.suppress(asyncssh.Error, ControllerError, OSError, ValueError):
                    await far.discard(partial)
                raise


async def download(connection: Connection, remote: str, local: str) -> None:
    """Copies a file, or those that a pattern stands for, from the host, likewise; no bits that the umask takes away."""
    folder, pattern = posixpath.split(remote)
    with _here(connection, local):
        found = await _matching(connection, remote, folder, pattern) if glob.has_magic(pattern) else []
        if not found:  # as it is written, whatever is in it
            wanted = wanted_here(connection.host, remote, local, None)
            with wanted.open() as here:
                await _download(connection, remote, here, wanted.name, is_typed=True)
            return
        if len(found) == 1 and not local.endswith("/") and not os.path.isdir(os.path.expanduser(local)):
            target, name = os.path.split(os.path.expanduser(local))
            with Destination.open(target) as here:
                await _download(connection, posixpath.join(folder, found[0]), here, name, is_typed=True)
            return
        with Destination.open(os.path.expanduser(local)) as here:
            for name in found:
                await _download(connection, posixpath.join(folder, name), here, name, is_typed=False)


async def _download(connection: Connection, remote: str, here: Destination, name: str, *, is_typed: bool) -> None:
    with explained(connection, remote):
        far = await way_to(connection)
        with contextlib.closing(far):
            found = await far.find_source(remote)
            if found.size is None:
                raise refused(connection, remote, "No such file or directory")
            here.check(name, is_typed=is_typed)
            partial = here.begin(here.new_name(name))
            try:
                await far.read(found.path, partial.file, 0, found.size, _ignore)
                here.place(partial, name, found.mode)
            except BaseException:
                here.discard(partial.name)
                raise
            finally:
                partial.close()


async def _matching(connection: Connection, remote: str, folder: str, pattern: str) -> list[str]:
    """The names of the regular files in a folder of the host that match a pattern. Raises ControllerError."""
    if glob.has_magic(folder) or "\0" in remote:
        raise refused(connection, remote, "only its last part can be a pattern; name its folder")
    told = bytearray()

    def take(piece: bytes) -> None:
        told.extend(piece)
        if len(told) > _MOST_NAMES:
            raise refused(connection, remote, f"it stands for more than {_MOST_NAMES >> 20} MiB of names")

    quoted = _IN_PATTERN.sub(lambda special: shlex.quote(special.group()), pattern)
    enter = f"cd -- {remote_shell.path(folder)} || exit 1; " if folder else ""
    script = f'{enter}for f in {quoted}; do test -f "$f" && printf "%s\\000" "$f"; done; exit 0'
    await shell_command.run(connection, script, remote, take)
    names = {name.decode("utf-8", "surrogateescape") for name in bytes(told).split(b"\0") if name}
    if names == {pattern}:  # a file that is called so; a shell leaves alone what matches nothing
        return []
    return sorted(checked_name(name, pattern) for name in names)


@contextlib.contextmanager
def _here(connection: Connection, local: str) -> Iterator[None]:
    """Errors of files here, told as those of a copy."""
    try:
        yield
    except NameRefusedError as error:
        raise refused(connection, error.name, error.why) from None
    except OSError as error:
        raise refused(connection, local, reason(error)) from None


def _ignore(_count: int) -> None:
    """The progress of a small copy is not shown."""


def _local(connection: Connection, path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise refused(connection, path, reason(error)) from None
