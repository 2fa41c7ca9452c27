"""Index of ended executions: what a listing shows and a collection needs of each, in one file of the state directory.

The index is a cache. The directory of an execution decides: an entry holds only while that directory and every file in
it have the inode and the time of change that the entry names; otherwise the record is read. So a missing, damaged,
outdated or copied index costs time and changes no answer. What a script handed back is never in it.

    <state>/index        cronium-runner index 1\\n, then one line for each execution, sorted by id:
                         CRC TAB id TAB stamps TAB kept TAB row TAB status \\n
    <state>/index.new    the next one while it is written

`CRC` is CRC-32 of the rest of the line in 8 hexadecimal digits. `stamps` are `NAME=INODE.CTIME` (nanoseconds) separated
by spaces, `.` for the directory. `kept` is `collected BYTES`, `fetched BYTES TIME` or `unfetched BYTES TIME`. `row` and
`status` are JSON objects: the status in brief, and without output and variables.

Only one process writes: it holds the lock of the collections. A record is entered once it is final: it has ended, its
supervisor is gone, and nothing in its directory has changed for 2 s by the file system's own clock.
"""

import contextlib
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, NamedTuple

from .errors import StateDamagedError
from .jobdir import StateDirectory
from .state_files import open_file

HEADER: Final = b"cronium-runner index 1\n"
MAX_LINE: Final = 16 * 1024
"""Bytes of an entry. A longer record (a very long job id) is read each time."""
MAX_BYTES: Final = 1 << 30
"""An index of a million records; a larger file is not read."""
QUIET_NS: Final = 2_000_000_000
"""Nanoseconds between the last change and the reading. Clocks of file systems tick each 1 to 10 ms, some each 2 s: a
change within the same tick would leave the stamp as it was."""
WORTHWHILE: Final = 100
"""So many final records that had to be read are reason to write the index: a few hundredths of a second's reading."""
BLOCK: Final = 256 * 1024
FILES: Final = frozenset(
    {"state.jsonl", "result.json", "stdout", "stderr", "stdout.tail", "stderr.tail", "api.jsonl"},
)
"""What an indexed execution's directory may hold. With anything else, a kept work directory too, it is read each time:
a change in a folder below leaves no trace in the stamps."""


class Facts(NamedTuple):
    """What a collection needs of an ended execution: bytes on disk, and as in `kept_records.Kept` when it ended and
    whether that was acknowledged. A tombstone has no `ended_at`."""

    size: int
    ended_at: float | None = None
    is_acknowledged: bool = True

    def to_text(self) -> str:
        """The form in the index."""
        if self.ended_at is None:
            return f"collected {self.size}"
        return f"{'fetched' if self.is_acknowledged else 'unfetched'} {self.size} {self.ended_at!r}"

    @classmethod
    def from_text(cls, text: bytes) -> "Facts":
        """Reads what `to_text` wrote. Raises ValueError."""
        word, size, *ended_at = text.split()
        if word == b"collected":
            return cls(int(size))
        return cls(int(size), float(ended_at[0]), word == b"fetched")


class Entry(NamedTuple):
    """One line of the index. `changed_ns` is the directory's ctime; `row` and `status` are JSON objects."""

    id: str
    changed_ns: int
    kept: bytes
    row: bytes
    status: bytes
    line: bytes

    @property
    def is_collected(self) -> bool:
        """Whether only a tombstone is left."""
        return self.kept.startswith(b"collected")

    @property
    def facts(self) -> Facts:
        """What a collection needs."""
        return Facts.from_text(self.kept)


class Index:
    """The index of a state directory, read once from its beginning to its end.

    Ask for ids in ascending order. `close` it, or use it in a `with` block.
    """

    def __init__(self, state: StateDirectory) -> None:
        self._directory = os.open(state.executions, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._file = _opened(state.index)
        self._id = ""
        self._line = b""

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its files."""
        os.close(self._directory)
        self._end()

    def find(self, execution_id: str) -> Entry | None:
        """The entry of the execution; None when there is none that holds."""
        while self._file is not None and self._id < execution_id:
            self._advance()
        if self._id != execution_id:
            return None
        try:
            _, _, stamps, kept, row, status = self._line[:-1].split(b"\t")
            changed_ns = self._check(execution_id, stamps)
        except (OSError, ValueError):
            return None
        return Entry(execution_id, changed_ns, kept, row, status, self._line)

    def _advance(self) -> None:
        """Goes on to the next line that is as it was written. Without one the index is at its end."""
        assert self._file is not None
        try:
            line = self._file.readline(MAX_LINE + 1)
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self._end()
            return
        if zlib.crc32(memoryview(line)[8:]) == _number(line[:8]):
            self._id, self._line = line[9 : line.find(b"\t", 9)].decode("ascii", "replace"), line

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def _check(self, execution_id: str, stamps: bytes) -> int:
        """The directory's ctime. Raises ValueError when a stamp is another now, OSError when a file is gone."""
        changed_ns = 0
        for stamp in stamps.decode("ascii").split(" "):
            name, _, noted = stamp.partition("=")
            seen = os.stat(
                execution_id if name == "." else f"{execution_id}/{name}",
                dir_fd=self._directory,
                follow_symlinks=False,
            )
            if noted != f"{seen.st_ino}.{seen.st_ctime_ns}":
                raise ValueError(f"{execution_id}/{name} has changed")
            if name == ".":
                changed_ns = seen.st_ctime_ns
        return changed_ns


class Stamps(NamedTuple):
    """What a directory and the files in it looked like: `text` for the index, bytes on disk, the latest change."""

    text: str
    bytes: int
    changed_ns: int


def stamps_of(path: str) -> Stamps | None:
    """The stamps of an execution's directory; None when it holds something whose changes they would not show.

    Take them before the files are read: what changes in between then differs from them. Raises OSError.
    """
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries)
    if not FILES.issuperset(names):
        return None
    noted, size, changed_ns = [], 0, 0
    for name in (".", *names):
        seen = os.stat(os.path.join(path, name), follow_symlinks=False)
        if not (stat.S_ISDIR if name == "." else stat.S_ISREG)(seen.st_mode):
            return None
        noted.append(f"{name}={seen.st_ino}.{seen.st_ctime_ns}")
        size += seen.st_blocks * 512
        changed_ns = max(changed_ns, seen.st_ctime_ns)
    return Stamps(" ".join(noted), size, changed_ns)


def is_ripe(path: str) -> bool:
    """Whether the execution's directory is one that the index could hold, should its execution have ended."""
    with contextlib.suppress(OSError):
        stamps = stamps_of(path)
        return stamps is not None and stamps.changed_ns < time.time_ns() - QUIET_NS
    return False


def line_of(execution_id: str, stamps: Stamps, facts: Facts, row: bytes, status: bytes) -> bytes | None:
    """An entry as the index holds it; None when it is too long."""
    head = f"\t{execution_id}\t{stamps.text}\t{facts.to_text()}\t".encode()
    rest = b"%s%s\t%s\n" % (head, row, status)
    return None if len(rest) + 8 > MAX_LINE else b"%08x%s" % (zlib.crc32(rest), rest)


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[BinaryIO]:
    """A new file under a temporary name, which takes the name when the block is through. Not durable: it is a cache."""
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a process that died; we hold the lock
    with open(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=BLOCK) as file:
        try:
            yield file
            file.flush()
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def write(state: StateDirectory, lines: Callable[[int], Iterable[bytes]]) -> None:
    """Replaces the index by these lines. The caller holds the lock of the housekeeping. Raises OSError.

    `lines` is called with the time, in nanoseconds of the file system's own clock, since when a record must not have
    changed to be entered.
    """
    with _new_file(state.index) as file:
        file.write(HEADER)
        file.writelines(lines(os.fstat(file.fileno()).st_ctime_ns - QUIET_NS))


def _opened(path: str) -> BinaryIO | None:
    """The index, read up to the end of its header; None when there is none, or its format or owner is another."""
    with contextlib.suppress(OSError, StateDamagedError):
        file = open(open_file(path, os.O_RDONLY), "rb", buffering=BLOCK)  # noqa: SIM115 - the caller closes it
        seen = os.fstat(file.fileno())
        with contextlib.suppress(OSError):
            if seen.st_uid == os.geteuid() and seen.st_size <= MAX_BYTES and file.readline(len(HEADER)) == HEADER:
                return file
        file.close()
    return None


def _number(digits: bytes) -> int:
    try:
        return int(digits, 16)
    except ValueError:
        return -1
