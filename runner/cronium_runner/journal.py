"""What a script in API mode has written and the platform has not confirmed: kept in `api.jsonl` of its execution.

    {"sequence": 1, "write": "variable", "key": "X", "value": …}      variable, merge (one key of the output), output,
                                                                      condition, delete, increment (value: by how much),
                                                                      append: a write, in the order of the answers
    {"delivered": 1}                                                  the platform has it
    {"refused": 2, "reason": "…"}                                     the platform does not want it, and said why
    {"base": 40, "output": …, "refused": 1, "refusal": "…"}           first line: all up to here was settled

One line is one write(2) with O_APPEND, without fsync: it outlives its supervisor, not the host's power (`sync`).
How writes reach the platform is `delivery`'s; nothing here waits for anybody.
"""

import contextlib
import errno
import fcntl
import os
import threading
from collections import deque
from typing import Any, Final, NamedTuple

from .errors import StateDamagedError
from .helpers import HelperError, Json
from .jobdir import ExecutionDirectory
from .state_files import JOURNAL_LIMIT, open_file, read_file
from .values import APPEND, DELETE, INCREMENT, MERGE, OUTPUT, VARIABLE
from .wire import exactjson

NAME: Final = "api.jsonl"
MAX_PENDING: Final = 64 << 20
"""Bytes that may wait. They are in memory too, and a platform that is away for so long may stay away."""
COMPACTED_ABOVE: Final = 1 << 20
"""Bytes of settled writes that are kept: small beside the streams, and seldom enough to rewrite."""
MAX_REASON: Final = 500
"""Characters of a refusal that are kept: a sentence, not the page that some proxy shows."""


CHANGES: Final = (DELETE, INCREMENT, APPEND)
"""Writes whose outcome the script waits for."""


class Outcome(NamedTuple):
    """What became of a write. `reason` is None for one that was applied, and `value` then what the platform told."""

    value: Json = None
    reason: str | None = None
    is_missing: bool = False
    """There was no variable to delete."""


class Entry(NamedTuple):
    """One write. `key` is the variable's name, or the output's key; `size` is in bytes."""

    sequence: int
    write: str
    key: str | None
    value: Json
    size: int

    @property
    def is_change(self) -> bool:
        """Whether it depends on what the variable is."""
        return self.write in CHANGES

    @property
    def shown(self) -> str:
        """The write for a sentence, without its value."""
        name = "" if self.key is None else f" '{self.key[:100]}'"
        what = {MERGE: OUTPUT, **dict.fromkeys(CHANGES, VARIABLE)}.get(self.write, self.write)
        return f"{what}{name}"


class Journal:
    """One execution's journal. `append` is called by any thread, `delivered` and `refused` by one."""

    def __init__(self, execution: ExecutionDirectory) -> None:
        self._execution = execution
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._outcomes: dict[int, Outcome | None] = {}
        """Of writes whose outcome is waited for; None until they are settled."""
        self._file: int | None = None
        self._pending: deque[Entry] = deque()
        self._pending_bytes = 0
        self._newest: dict[str, Entry] = {}
        self._sequence = 0
        self._output: Json = None
        self.refusals = 0
        self.refusal: str | None = None

    def __repr__(self) -> str:
        return f"<Journal of {self._execution.id}: {len(self._pending)} of {self._sequence} pending>"

    @classmethod
    def read(cls, execution: ExecutionDirectory) -> "Journal":
        """A journal as it is now, to look at. A line cut short by a crash is none.

        Raises OSError, StateDamagedError.
        """
        journal = cls(execution)
        with contextlib.suppress(FileNotFoundError):
            journal._take_all(read_file(journal._path, JOURNAL_LIMIT))
        return journal

    @classmethod
    def take_over(cls, execution: ExecutionDirectory) -> "Journal | None":
        """The journal that an execution has left, to deliver it: nobody else does at the same time.

        None while somebody else has it, or when there is none. Raises OSError, StateDamagedError.
        """
        journal = cls(execution)
        try:
            journal._file = open_file(journal._path, os.O_RDWR | os.O_APPEND)
            fcntl.flock(journal._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.path.samestat(os.fstat(journal._file), os.stat(journal._path))
        except (FileNotFoundError, BlockingIOError):
            is_current = False
        if not is_current:  # or it was rewritten just then, and whoever did that has it
            if journal._file is not None:
                os.close(journal._file)
            return None
        assert journal._file is not None
        size = os.fstat(journal._file).st_size
        if size > JOURNAL_LIMIT:
            os.close(journal._file)
            raise StateDamagedError(journal._path, f"has {size} bytes, more than the {JOURNAL_LIMIT} that it may have")
        _end_last_line(journal._file)
        journal._take_all(os.pread(journal._file, size + 1, 0))
        return journal

    # -- what the script's helpers do ----------------------------------------------------------------------------

    def append(self, write: str, key: str | None, value: Json) -> Entry:
        """Writes a write down. Raises HelperError when that is not possible; then it is not there.

        The outcome of a change has to be asked for, with `wait_outcome`.
        """
        with self._lock:
            sequence = self._sequence + 1
            line = {"sequence": sequence, "write": write, "key": key, "value": value}
            encoded = exactjson.encode(line) + b"\n"
            if self._pending_bytes + len(encoded) > MAX_PENDING:
                raise HelperError(
                    "api.unreachable",
                    f"more than {MAX_PENDING >> 20} MiB wait for the platform, which does not take them; "
                    "try again later",
                )
            try:
                self._append_line(encoded)
            except OSError as error:
                raise HelperError("store.failed", f"{NAME} could not be written: {error.strerror}") from None
            except StateDamagedError as error:
                raise HelperError("store.failed", f"{NAME} could not be written: {error.what}") from None
            entry = Entry(sequence, write, key, value, len(encoded))
            if entry.is_change:
                self._outcomes[sequence] = None
            self._add(entry)
            return entry

    def wait_outcome(self, entry: Entry, seconds: float) -> Outcome | None:
        """What became of a change that this process has appended; None when it is not settled within that time."""
        with self._settled:
            self._settled.wait_for(lambda: self._outcomes[entry.sequence] is not None, seconds)
            return self._outcomes.pop(entry.sequence)

    def wait_settled(self, entry: Entry, seconds: float) -> bool:
        """Waits until a write is settled; whether it is."""
        with self._settled:
            return self._settled.wait_for(
                lambda: not self._pending or self._pending[0].sequence > entry.sequence, seconds
            )

    def newest(self, name: str) -> Entry | None:
        """The last write or change of a variable that the platform does not have yet."""
        return self._newest.get(name)

    # -- what delivering does ------------------------------------------------------------------------------------

    @property
    def undelivered(self) -> int:
        """How many writes wait. One that is settled counts until that is written down."""
        with self._lock:
            return len(self._pending)

    def first(self) -> Entry | None:
        """The write that is to be delivered next."""
        return self._pending[0] if self._pending else None

    def output_with(self, entry: Entry) -> Json:
        """The whole output as it is after this write, which is the next."""
        if entry.write == OUTPUT:
            return entry.value
        before = self._output if isinstance(self._output, dict) else {}
        return {**before, entry.key: entry.value}

    def delivered(self, outcome: Outcome = Outcome()) -> None:  # noqa: B008 - it is immutable
        """The first write has arrived."""
        with self._lock:
            entry = self._settle(outcome)
            if entry.write in (OUTPUT, MERGE):
                self._output = self.output_with(entry)
            # Can't be noted down: after a crash it is delivered once more, which its number makes harmless.
            with contextlib.suppress(OSError, StateDamagedError):
                self._append_line(exactjson.encode({"delivered": entry.sequence}) + b"\n")
                self._compact_if_large()

    def refused(self, reason: str) -> None:
        """The first write will never arrive; `reason` is what the platform said."""
        with self._lock:
            entry = self._settle(Outcome(reason=reason))
            self._count_refusal(reason[:MAX_REASON])
            line = {"refused": entry.sequence, "reason": reason[:MAX_REASON]}
            with contextlib.suppress(OSError, StateDamagedError):
                self._append_line(exactjson.encode(line) + b"\n")

    def sync(self) -> None:
        """Makes what is written down outlive the host's power. Raises OSError."""
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)

    # -- the file ------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return os.path.join(self._execution.path, NAME)

    def _append_line(self, line: bytes) -> None:
        if self._file is None:
            self._file = open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else delivers while we live
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) != len(line):  # the disk is full: half a line would spoil the next
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def _compact_if_large(self) -> None:
        """Leaves one line of a long journal, once nothing in it waits."""
        if self._pending or self._file is None or os.fstat(self._file).st_size <= COMPACTED_ABOVE:
            return
        base = {"base": self._sequence, "output": self._output, "refused": self.refusals, "refusal": self.refusal}
        temporary = self._path + ".new"
        new = open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            view = memoryview(exactjson.encode(base) + b"\n")
            while view:
                view = view[os.write(new, view) :]
            os.rename(temporary, self._path)
        except OSError:
            os.close(new)
            os.unlink(temporary)
            raise
        os.close(self._file)
        self._file = new

    # -- what is in it -------------------------------------------------------------------------------------------

    def _take_all(self, content: bytes) -> None:
        for line in content.split(b"\n")[:-1]:
            with contextlib.suppress(ValueError, KeyError, TypeError), self._lock:
                self._take(exactjson.loads(line.decode()), len(line))

    def _take(self, line: Any, size: int) -> None:
        """One line as it was read back."""
        if "base" in line:
            self._sequence, self._output = int(line["base"]), line["output"]
            self.refusals, self.refusal = int(line["refused"]), line["refusal"]
        elif "write" in line:
            self._add(Entry(int(line["sequence"]), line["write"], line["key"], line["value"], size))
        elif "delivered" in line:
            while self._pending and self._pending[0].sequence <= int(line["delivered"]):
                entry = self._settle()
                if entry.write in (OUTPUT, MERGE):
                    self._output = self.output_with(entry)
        elif "refused" in line and self._pending and self._pending[0].sequence == int(line["refused"]):
            self._settle()
            self._count_refusal(line["reason"])

    def _add(self, entry: Entry) -> None:
        self._sequence = entry.sequence
        self._pending_bytes += entry.size
        if (entry.write == VARIABLE or entry.is_change) and entry.key is not None:
            self._newest[entry.key] = entry
        self._pending.append(entry)

    def _settle(self, outcome: Outcome = Outcome()) -> Entry:  # noqa: B008 - it is immutable
        entry = self._pending.popleft()
        if entry.sequence in self._outcomes:
            self._outcomes[entry.sequence] = outcome
        self._settled.notify_all()
        self._pending_bytes -= entry.size
        if entry.key is not None and self._newest.get(entry.key) is entry:
            del self._newest[entry.key]
        return entry

    def _count_refusal(self, reason: str) -> None:
        self.refusals += 1
        self.refusal = self.refusal or reason


def undelivered(execution: ExecutionDirectory) -> int | None:
    """How many writes of an execution wait, None when that can't be read."""
    try:
        return Journal.read(execution).undelivered
    except (OSError, StateDamagedError):
        return None


def _end_last_line(file: int) -> None:
    """A supervisor that was killed in the middle of a line must not spoil the first that follows."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")
