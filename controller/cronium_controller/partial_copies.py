"""What is remembered of copies of files that are under way or were cut off: the table `partial_copies`.

The name of a partial copy's folder is random, so this is where a later process finds it. A folder is used by one copy
at a time: that of a process that lives is left alone. Only names are kept here; whether what is there can be gone on
with is seen when it is looked at (`remote_file`, `destination`).
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .database import Database, inserting
from .remote_file import Partial

HERE: Final = ""
"""The account of a partial copy on this machine."""
KEPT_SECONDS: Final = 7 * 86400
"""After which a partial copy that is not gone on with is removed, when its host is next copied to."""
_MOST_REMOVED: Final = 8
"""At once: each costs a round trip or two, and there is a next time."""
_COLUMNS: Final = ("account", "folder", "target", "key", "uid", "owner", "used_at")
_IN_USE: Final[set[str]] = set()
"""Owners of this process that are at work."""


def key_of(*parts: object) -> str:
    """What a copy is a copy of: equal for the same bytes from the same place to the same place."""
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


class PartialCopies:
    """Partial copies to one target. Its calls raise StoreError."""

    def __init__(self, database: Database, account: str, target: str, key: str) -> None:
        """`account` is `memory.account`'s, or HERE; `key` is `key_of`'s."""
        self._database = database
        self._account = account
        self._target = target
        self._key = key
        self._owner = f"{_process(os.getpid())}/{secrets.token_hex(8)}"

    def __enter__(self) -> "PartialCopies":
        _IN_USE.add(self._owner)
        return self

    def __exit__(self, *_: object) -> None:
        _IN_USE.discard(self._owner)

    def begin(self, folder: str) -> None:
        """Writes a name down, before its folder is made."""
        values = {"account": self._account, "folder": folder, "target": self._target, "key": self._key, "uid": None}
        self._database.write(inserting("partial_copies", _COLUMNS), {**values, **self._now()})

    def note_owner(self, partial: Partial) -> None:
        """Writes down whose the folder is, as the host tells."""
        values = {"account": self._account, "folder": partial.folder, "uid": partial.uid}
        self._database.write(
            "UPDATE partial_copies SET uid = :uid WHERE account = :account AND folder = :folder", values
        )

    def forget(self, folder: str) -> None:
        """Forgets a folder that is not there any more, or is not ours."""
        self._database.write(
            "DELETE FROM partial_copies WHERE account = :account AND folder = :folder",
            {"account": self._account, "folder": folder},
        )

    def resumable(self) -> Partial | None:
        """A folder of an earlier attempt at the same copy, which is ours from now on; the newest."""
        return next(self._taken(_SAME, {"key": self._key}), None)

    def abandoned(self) -> list[Partial]:
        """Folders that nothing will go on with: of what was copied to the same target before, and old ones."""
        values = {"target": self._target, "key": self._key, "before": time.time() - KEPT_SECONDS}
        found = self._taken(_ABANDONED, values)
        return [partial for partial, _ in zip(found, range(_MOST_REMOVED), strict=False)]

    def _taken(self, statement: str, values: dict[str, object]) -> Iterator[Partial]:
        for row in self._database.read(statement, {"account": self._account, **values}):
            if row["owner"] != self._owner and not _is_at_work(row["owner"]):
                taking = {"account": self._account, "folder": row["folder"], "before": row["owner"], **self._now()}
                if self._database.write(_TAKE, taking) == 1:  # another process may have been faster
                    yield Partial(row["folder"], row["uid"])

    def _now(self) -> dict[str, object]:
        return {"owner": self._owner, "used_at": time.time()}


_SAME: Final = "SELECT * FROM partial_copies WHERE account = :account AND key = :key ORDER BY used_at DESC"
_ABANDONED: Final = (
    "SELECT * FROM partial_copies WHERE account = :account "
    "AND ((target = :target AND key <> :key) OR used_at < :before) ORDER BY used_at"
)
_TAKE: Final = (
    "UPDATE partial_copies SET owner = :owner, used_at = :used_at "
    "WHERE account = :account AND folder = :folder AND owner = :before"
)


def _process(pid: int) -> str:
    """A process of this machine, for as long as it is up: no later one with the same number is taken for it."""
    boot, start = "", ""
    with contextlib.suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot}/{pid}/{start}"


def _is_at_work(owner: str) -> bool:
    process, _, _ = owner.rpartition("/")
    pid = process.split("/")[1] if process.count("/") == 2 else ""
    if not pid.isdigit() or _process(int(pid)) != process:
        return False
    if int(pid) == os.getpid():
        return owner in _IN_USE
    try:
        os.kill(int(pid), 0)  # without /proc, as on macOS, nothing else tells whether there is such a process
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
