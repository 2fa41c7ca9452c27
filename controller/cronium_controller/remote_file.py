"""What is known of files on a host: where they are, of what kind, and whether a partial copy can be gone on with.

No I/O. `sftp_files` and `shell_files` ask the host; both implement the protocol `Far`.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, NamedTuple, Protocol

from cronium_runner.wire.sizes import readable

from . import sftp
from .errors import ControllerError
from .sessions import Connection

Tell = Callable[[int], None]
"""Called with how many bytes of the file are there."""
PIECE: Final = 256 * 1024
MOST_GROWTH = 64 * 1024 * 1024
"""Bytes that a file may have beyond the size that the host told: what has none (/proc), or grows while it is copied."""
PART: Final = "part"
"""The name of the file in a partial copy's folder."""
_LONGEST_NAME: Final = 200
"""Bytes of a target's name in that of its partial copy: file systems take 255."""


class Found(NamedTuple):
    """A file on a host: its absolute path, size in bytes (None: there is none), time of change and permission bits."""

    path: str
    size: int | None
    changed: int = 0
    mode: int = 0o600


class Partial(NamedTuple):
    """A partial copy on a host: its folder, of mode 0700, and that folder's owner (None: not known)."""

    folder: str
    uid: int | None

    @property
    def file(self) -> str:
        """The file in it."""
        return f"{self.folder}/{PART}"

    def claimed(self) -> str:
        """A name in the same folder that no other copy knows."""
        return f"{self.file}.{secrets.token_hex(4)}"


class Entry(NamedTuple):
    """A folder, or what is in one, not following links. `mode` is as `ls -l` writes it."""

    name: str
    mode: str
    links: int | None
    uid: int | None
    size: int


class Far(Protocol):
    """One way to a host's files, in one session: a server may allow no more. `name` is what a person calls it."""

    name: str

    async def find_source(self, remote: str) -> Found:
        """The file at a path. Raises ControllerError for a folder or a special file."""

    async def find_target(self, remote: str, name: str) -> Found:
        """Where a file of this name goes. In a folder that others can write to, a link of theirs is refused."""

    async def begin(self, folder: str) -> Partial:
        """Makes the folder of a new partial copy. Nothing is there by that name, or it fails."""

    async def usable(self, partial: Partial) -> int | None:
        """How many bytes of a partial copy can be built on; None when it is not what `begin` and `write` have made."""

    async def write(self, partial: Partial, source: BinaryIO, offset: int | None, tell: Tell) -> None:
        """Writes from an offset on; None: into a file that is not there yet."""

    async def read(self, path: str, target: BinaryIO, offset: int, size: int, tell: Tell) -> None:
        """Reads from an offset to the file's end, at least to `size` of it and at most MOST_GROWTH beyond."""

    async def place(self, partial: Partial, target: str, mode: int, sha256: str | None) -> bool | None:
        """Puts a whole copy in its place if it has this SHA-256 (None: whatever it is); False when it hasn't.

        None where nothing on the host can tell; then nothing was done.
        """

    async def discard(self, partial: Partial) -> None:
        """Removes a partial copy, if its folder is one."""

    def close(self) -> None:
        """Ends the session."""


def new_folder(target: str) -> str:
    """A name beside a target for a partial copy of it, which cannot be guessed."""
    folder, _, name = target.rpartition("/")
    kept = name.encode("utf-8", "surrogateescape")[:_LONGEST_NAME].decode("utf-8", "ignore")
    return f"{folder}/.{kept}.{secrets.token_hex(8)}.part"


def is_own_folder(folder: Entry, uid: int | None) -> bool:
    """Whether a folder is this account's and has mode 0700."""
    # Set-gid is inherited from the folder above; a dot is SELinux's, a plus an ACL's, whose mask is the group's part.
    is_private = folder.mode.rstrip(".+@") in ("drwx------", "drwx--S---")
    return is_private and folder.uid is not None and folder.uid == uid


def is_written_by_us_alone(folder: Entry, uid: int | None) -> bool:
    """Whether a new folder may be used: file systems without modes of their own (vfat, CIFS) don't make it 0700."""
    mode = folder.mode
    is_closed = len(mode) > 9 and mode[0] == "d" and mode[5] != "w" and mode[8] != "w"
    return is_closed and folder.uid is not None and folder.uid == uid


def usable_size(folder: Entry, inside: Sequence[Entry], uid: int | None) -> int | None:
    """Bytes of a partial copy, if its folder is ours alone and has exactly one regular file, which has one link."""
    if not is_own_folder(folder, uid) or len(inside) != 1:
        return None
    [part] = inside
    is_ours = part.name == PART and part.mode.startswith("-") and part.links == 1 and part.uid == uid
    return part.size if is_ours else None


def leads_elsewhere(folder_mode: int, folder_uid: int | None, link_uid: int | None) -> bool:
    """Whether a link may have been put into a folder by another account: as Linux's protected_symlinks."""
    return bool(folder_mode & 0o002) and (link_uid is None or link_uid != folder_uid)


def folder_error(connection: Connection, path: str) -> ControllerError:
    """A folder where a file is needed."""
    return sftp.refused(connection, path, "it is a folder, and one file is copied at a time; pack it: tar czf …")


def open_folder_error(connection: Connection, path: str) -> ControllerError:
    """A new folder that is not ours alone."""
    sentence = "the host makes no folder that this account alone can write to; copy to another one, then move the file"
    return sftp.refused(connection, path, sentence)


def special_error(connection: Connection, path: str) -> ControllerError:
    """A device has no end, and one that is replaced is none any more."""
    return sftp.refused(connection, path, "it is not a regular file; name another")


def link_error(connection: Connection, path: str) -> ControllerError:
    """A link that another account may have put there."""
    return sftp.refused(
        connection, path, "it is a link in a folder that others can write to; name the file that it leads to"
    )


def endless_error(connection: Connection, path: str, size: int) -> ControllerError:
    """A file that goes on where it should have ended."""
    sentence = (
        f"{readable(MOST_GROWTH)} came after the {readable(size)} that the host said it has; nothing was replaced"
    )
    return sftp.refused(connection, path, sentence)


def gap_error(connection: Connection, path: str) -> ControllerError:
    """A file that ended, and then went on."""
    return sftp.refused(connection, path, "a part in its middle did not come; nothing was replaced; try again")
