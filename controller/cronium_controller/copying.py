"""One file to or from a host: by SFTP, or through the shell where the server has none. Whole or not at all.

For the raw client. No progress, no resumption: that is for large files, and `transfer`'s.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ControllerError, reason
from .far_files import way_to
from .remote_file import new_folder
from .sessions import Connection
from .sftp import explained, refused
from .ssh_library import asyncssh

Copy = Callable[[Connection, str, str], Coroutine[Any, Any, None]]


async def upload(connection: Connection, local: str, remote: str) -> None:
    """Copies a file to the host, with its permission bits. Into `remote` where that is a folder.

    Raises ControllerError (`files.refused`) for files that can't be read or written, UnreachableError for a lost
    connection, and asyncssh.ChannelOpenError when the server has no room for another session; nothing was done then.
    """
    with _local(connection, local, "rb") as file, explained(connection, remote):
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
    """Copies a file from the host, into `local` where that is a folder. Raises as `upload` does."""
    target = Path(local).expanduser()
    if target.is_dir():
        target = target / os.path.basename(remote)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with _local(connection, str(temporary), "xb") as file, explained(connection, remote):
            far = await way_to(connection)
            with contextlib.closing(far):
                found = await far.find_source(remote)
                if found.size is None:
                    raise refused(connection, remote, "No such file or directory")
                await far.read(found.path, file, 0, found.size, _ignore)
        temporary.replace(target)
    except OSError as error:
        raise refused(connection, local, reason(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _ignore(_count: int) -> None:
    """The progress of a small copy is not shown."""


def _local(connection: Connection, path: str, mode: str) -> BinaryIO:
    try:
        return open(os.path.expanduser(path), mode)  # type: ignore[return-value]
    except OSError as error:
        raise refused(connection, path, reason(error)) from None
