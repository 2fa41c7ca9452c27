"""What the controller knows of the runners on hosts: each deployment that was made, and which runners are there now.

`Deployments` is a ledger in the controller's database; nothing here talks to a host. What is known of a host counts
for a day; after an hour it is confirmed by what the host's agent says of itself, which costs nothing.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .database import assigned, inserting
from .deploy.known_builds import KnownBuilds
from .hosts import Host
from .runners import RunnerBinary
from .store import Store

VALID_SECONDS: Final = 24 * 3600.0
"""How long a verified runner counts as unchanged; then its files are hashed again."""
CHECK_SECONDS: Final = 3600.0
"""How long not even the version that the agent tells is compared and written down."""

INSTALLED: Final = "installed"
PRESENT: Final = "present"
ROLLED_BACK: Final = "rolled back"
CHOSEN: Final = "chosen"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Known:
    """A runner on a host. `folder` is its name below the install root; times are seconds since the epoch.

    `tree_sha256` is over the digests of its installed files; `is_chosen` when jobs use it though the controller's own
    is another.
    """

    folder: str
    version: str
    sha256: str | None
    architecture: str
    said_version: str | None
    tree_sha256: str | None
    verified_at: float | None
    checked_at: float | None
    is_chosen: bool

    def to_json(self) -> dict[str, Any]:
        """For `cronium hosts --json`."""
        return {
            "version": self.version, "folder": self.folder, "architecture": self.architecture,
            "seenAt": self.checked_at, "chosen": self.is_chosen,
        }  # fmt: skip

    def is_valid(self, now: float) -> bool:
        """Whether its files count as unchanged. A clock that was set back doesn't make that last longer."""
        return self.verified_at is not None and 0 <= now - self.verified_at < VALID_SECONDS

    def is_check_due(self, now: float) -> bool:
        """Whether what the agent says of itself is to be compared and written down."""
        return self.checked_at is None or not 0 <= now - self.checked_at < CHECK_SECONDS


@dataclass(frozen=True, slots=True)
class Made:
    """One deployment as it went. `uploaded_bytes` is 0 when the runner was there; `outcome` is one of the above."""

    host: str
    version: str | None
    sha256: str | None
    architecture: str | None
    deployed_at: float
    duration_ms: float
    uploaded_bytes: int
    method: str
    attempts: int
    outcome: str
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For `cronium deploy --history --json`."""
        return {
            "host": self.host, "version": self.version, "sha256": self.sha256, "architecture": self.architecture,
            "deployedAt": self.deployed_at, "durationMs": round(self.duration_ms, 1), "bytes": self.uploaded_bytes,
            "method": self.method, "attempts": self.attempts, "outcome": self.outcome, "error": self.error,
        }  # fmt: skip


def _nobody(_made: Made) -> None:
    """Nobody wants to know."""


class Deployments:
    """The ledger. All methods raise StoreError."""

    def __init__(self, store: Store) -> None:
        self._database = store.database
        self.builds = KnownBuilds(store)
        """Which files the builds have that were deployed."""
        self.made: Callable[[Made], None] = _nobody
        """Told of each deployment that is written down."""

    def known(self, host: Host, root: str) -> list[Known]:
        """The runners that were seen below an install root of the host, last used first."""
        where = {"account": account(host), "root": root}
        return [
            Known(
                row["folder"], row["version"], row["sha256"], row["architecture"], row["said_version"],
                row["tree_sha256"], row["verified_at"], row["checked_at"], bool(row["is_chosen"]),
            )
            for row in self._database.read(f"SELECT * FROM runner_cache {_THERE} ORDER BY checked_at DESC", where)
        ]  # fmt: skip

    def seen(self, host: Host, root: str) -> Known | None:
        """The runner that jobs from here use on the host, as it was last seen; None when none was, or it went wrong."""
        known = self.known(host, root)
        chosen = next((one for one in known if one.is_chosen), None)
        return chosen or next((one for one in known if one.checked_at is not None), None)

    def note_verified(self, host: Host, root: str, binary: RunnerBinary, said_version: str, tree: str | None) -> None:
        """The runner is there whole, as we sent it or as it has been. `tree` is None where nothing there can hash."""
        now = time.time()
        self._note(
            host, root, binary.folder,
            version=binary.version, sha256=binary.sha256, architecture=binary.machine, said_version=said_version,
            tree_sha256=tree, verified_at=now, checked_at=now,
        )  # fmt: skip

    def note_rehashed(self, host: Host, root: str, known: Known) -> None:
        """The installed files are still the same."""
        now = time.time()
        self._note(host, root, known.folder, verified_at=now, checked_at=now)

    def note_checked(self, host: Host, root: str, folder: str, version: str, architecture: str, told: str) -> None:
        """An agent of it has started and told its version."""
        self._note(
            host, root, folder,
            version=version, architecture=architecture, said_version=told, checked_at=time.time(),
        )  # fmt: skip

    def invalidate(self, host: Host, root: str, folder: str) -> None:
        """Something went wrong with it: nothing that was known of it counts any more, but the choice of it."""
        self._note(host, root, folder, verified_at=None, checked_at=None)

    def forget(self, host: Host, root: str, folders: Sequence[str]) -> None:
        """These were removed from the host."""
        with self._database.writing():
            for folder in folders:
                self._database.write(f"DELETE FROM runner_cache {_THERE} AND folder = :folder", _at(host, root, folder))

    def choose(self, host: Host, root: str, folder: str | None) -> None:
        """Has jobs use this runner on the host from now on; None: the controller's own again."""
        self._database.write(
            f"UPDATE runner_cache SET is_chosen = (folder IS :folder) {_THERE}", _at(host, root, folder)
        )

    def record(self, host: Host, made: Made) -> None:
        """Writes down a deployment, whatever became of it."""
        values = {name: getattr(made, name, None) for name in _MADE}
        values |= {"account": account(host), "bytes": made.uploaded_bytes}
        self._database.write(inserting("runner_deployments", _MADE), values)
        self.made(made)

    def history(self, limit: int = 50, host: Host | None = None) -> list[Made]:
        """The last deployments, newest first; of one host, or of all."""
        where = "" if host is None else "WHERE account = :account"
        values = {"limit": limit, "account": None if host is None else account(host)}
        found = f"SELECT * FROM runner_deployments {where} ORDER BY id DESC LIMIT :limit"
        return [_made(row) for row in self._database.read(found, values)]

    def _note(self, host: Host, root: str, folder: str, **values: Any) -> None:
        row = {**_at(host, root, folder), **values}
        if {"version", "architecture"} <= values.keys():
            known = f"ON CONFLICT (account, root, folder) DO UPDATE SET {assigned(list(values), 'excluded.')}"
            self._database.write(f"{inserting('runner_cache', list(row))} {known}", row)
        else:
            self._database.write(f"UPDATE runner_cache SET {assigned(list(values))} {_THERE} AND folder = :folder", row)


_THERE: Final = "WHERE account = :account AND root = :root"
_MADE: Final = (
    "host", "account", "version", "sha256", "architecture", "deployed_at", "duration_ms", "bytes", "method",
    "attempts", "outcome", "error",
)  # fmt: skip


def _made(row: sqlite3.Row) -> Made:
    names = ("bytes" if name == "uploaded_bytes" else name for name in Made.__dataclass_fields__)
    return Made(*(row[name] for name in names))


def account(host: Host) -> str:
    """Whose runners these are: whoever logs in there, at that address."""
    return "local:" if host.is_local else f"{host.user or ''}@{host.address}:{host.port or 22}"


def _at(host: Host, root: str, folder: str | None) -> dict[str, str | None]:
    return {"account": account(host), "root": root, "folder": folder}
