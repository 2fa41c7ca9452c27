"""Payloads of events, in versions: `event-<id>-v<N>.tar.gz` and its `.sha256` in one folder, recorded in the database.

A new version is made exactly when a member or a field of the manifest changed, which the hash of the uncompressed tar
decides. What a payload is, is `payloads`' matter; nothing here talks to a host.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cronium_runner.wire import codes
from cronium_runner.wire.results import EXIT_NOT_FOUND

from . import payloads, signing
from .database import inserting
from .errors import PayloadError
from .payloads import Payload
from .store import Store

SCHEME: Final = "event:"
"""What `cronium run` is given begins with this where it means an event's payload."""
KEPT_VERSIONS: Final = 5
"""Old versions that a collection leaves when it isn't told how many: enough to compare with, and to go back to."""
VALIDATE_SECONDS: Final = 60.0
"""For reading one payload strictly: 512 MiB at most, so some seconds on a slow disk."""
_ABANDONED_SECONDS: Final = 3600.0
"""A file that is being written is younger than that."""
_EVENT_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_REFERENCE: Final = re.compile(rf"{SCHEME}(?P<event>{_EVENT_ID.pattern})(?:@(?P<version>[1-9][0-9]{{0,8}}))?")
_FILE: Final = re.compile(rf"event-{_EVENT_ID.pattern}-v[0-9]+\.tar\.gz(\.sha256|\.sig)?|\.new-[0-9a-f]+")
_PIECE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an event's payload. `hash` is the file's SHA-256, `size` its bytes; times since the epoch."""

    event_id: str
    version: int
    hash: str
    path: Path
    size: int
    created_at: float
    is_active: bool

    @property
    def is_signed(self) -> bool:
        """Whether a signature is beside it; whose, hosts decide."""
        return signing.signature_path(self.path).is_file()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "eventId": self.event_id, "version": self.version, "hash": self.hash, "path": str(self.path),
            "size": self.size, "createdAt": self.created_at, "isActive": self.is_active, "isSigned": self.is_signed,
        }  # fmt: skip


def default_folder(store: Store) -> Path:
    """CRONIUM_PAYLOADS, else `storage/payloads` beside the controller's database."""
    chosen = os.environ.get("CRONIUM_PAYLOADS")
    return Path(chosen) if chosen else store.path.parent / "storage" / "payloads"


def load(given: str | os.PathLike[str], store: Store, fields: Mapping[str, Any] | None = None) -> Payload:
    """A payload from what a command is given: `event:ID`, `event:ID@VERSION`, or a path as for `payloads.load`.

    `fields` are of a script's manifest. Raises PayloadError.
    """
    if not str(given).startswith(SCHEME):
        return payloads.load(given, fields)
    if fields:
        raise PayloadError(
            "usage.invalid", f"{given} has a manifest of its own: say {', '.join(fields)} to `cronium payload build`"
        )
    return PayloadVersions(store).load(str(given))


def event(given: str | os.PathLike[str], store: Store) -> dict[str, Any]:
    """What a script hears of its event when it is run as `event:ID`; nothing for a path. Raises PayloadError."""
    return PayloadVersions(store).event(str(given)) if str(given).startswith(SCHEME) else {}


class PayloadVersions:
    """The versions in one folder. Builds at once, in any number of processes, make one version of the same content."""

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self._store = store
        self._database = store.database
        self.folder = folder or default_folder(store)

    def build(self, event_id: str, payload: Payload, *, name: str | None = None) -> tuple[Version, bool]:
        """The event's active version, which is this payload; whether that was news. `name` is the event's.

        The payload's signature, if it has one, is put beside the version in place of an earlier one.
        Raises PayloadError and StoreError.
        """
        if not _EVENT_ID.fullmatch(event_id):
            raise PayloadError(
                "usage.invalid",
                f"{event_id!r:.100} is not an event id: use 1 to 64 letters, digits, '.', '_' or '-', "
                "not beginning with '.' or '-'",
            )
        tar_hash = _tar_hash(payload)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            written = self._write(payload)  # before the transaction: others needn't wait for the disk
            try:
                self._check(event_id, payload, tar_hash, written)
                with self._database.writing():
                    found = self._enter(event_id, name, payload, tar_hash, written)
                    if payload.signature is not None:
                        _place_signature(found[0].path, payload.signature, written)
                    return found
            finally:
                with contextlib.suppress(FileNotFoundError):
                    written.unlink()
        except OSError as error:
            raise PayloadError(
                "payload.storage",
                f"cannot write {error.filename or self.folder}: {error.strerror or error}; "
                "mend that, or set CRONIUM_PAYLOADS",
            ) from None

    def _check(self, event_id: str, payload: Payload, tar_hash: str, written: Path) -> None:
        """Raises PayloadError for what no host would take; what is known already was checked when it was new."""
        known = "SELECT id FROM runner_payloads WHERE event_id = :event AND tar_hash = :hash"
        if self._database.read(known, {"event": event_id, "hash": tar_hash}):
            return
        refused = _read_strictly(written, payload.sha256)
        if refused is not None:
            code, message = refused
            raise PayloadError(code, message.replace(str(written), payload.label))

    def _write(self, payload: Payload) -> Path:
        path = self.folder / f".new-{os.urandom(8).hex()}"
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                for piece in payload.pieces():
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # what filled the disk must not keep it full
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return path

    def _enter(
        self, event_id: str, name: str | None, payload: Payload, tar_hash: str, written: Path
    ) -> tuple[Version, bool]:
        """In the transaction: the version that this is, its file put in place when it is new or not as it should be."""
        event = {"event": event_id, "name": name}
        self._database.write(
            "INSERT INTO events (id, name) VALUES (:event, :name) "
            "ON CONFLICT (id) DO UPDATE SET name = coalesce(excluded.name, name)",
            event,
        )
        rows = self._database.read("SELECT * FROM runner_payloads WHERE event_id = :event", event)
        active = next((row for row in rows if row["is_active"]), None)
        if active is not None and active["tar_hash"] == tar_hash:
            return self._restored(active, payload, written), False
        number = max((row["version"] for row in rows), default=0) + 1
        path = self.folder / f"event-{event_id}-v{number}.tar.gz"
        signing.signature_path(path).unlink(missing_ok=True)  # of a file that had this number once
        _place(written, path, payload.sha256)
        self._database.write("UPDATE runner_payloads SET is_active = 0 WHERE event_id = :event", event)
        self._database.write(
            "UPDATE events SET payload_version = :number WHERE id = :event", {**event, "number": number}
        )
        made = Version(event_id, number, payload.sha256, path.absolute(), payload.size, time.time(), True)
        row = {name: getattr(made, name) for name in Version.__dataclass_fields__}
        row |= {"path": str(made.path), "tar_hash": tar_hash}
        self._database.write(inserting("runner_payloads", list(row)), row)
        return made, True

    def _restored(self, row: sqlite3.Row, payload: Payload, written: Path) -> Version:
        """An unchanged version, its file mended when it is gone or damaged."""
        version = _version(row)
        is_signed_anew = payload.signature is not None and payload.sha256 != version.hash
        if not is_signed_anew and not _problems(version):
            return version
        # Another zlib may have packed the same tar to other bytes: then it is the file that is recorded anew, and a
        # signature of the other bytes is none of these.
        if payload.sha256 != version.hash:
            signing.signature_path(version.path).unlink(missing_ok=True)
        _place(written, version.path, payload.sha256)
        mended = {"id": row["id"], "hash": payload.sha256, "size": payload.size}
        self._database.write("UPDATE runner_payloads SET hash = :hash, size = :size WHERE id = :id", mended)
        return replace(version, hash=payload.sha256, size=payload.size)

    def versions(self, event_id: str | None = None) -> list[Version]:
        """All versions, or those of one event; by event, newest first."""
        where = "" if event_id is None else "WHERE event_id = :event"
        found = f"SELECT * FROM runner_payloads {where} ORDER BY event_id, version DESC"
        return [_version(row) for row in self._database.read(found, {"event": event_id})]

    def event(self, reference: str) -> dict[str, Any]:
        """What a script is to hear of the event that a reference means: id, version, and name when it has one."""
        version = self.find(reference)
        rows = self._database.read("SELECT name FROM events WHERE id = :id", {"id": version.event_id})
        named = {"name": rows[0]["name"]} if rows and rows[0]["name"] is not None else {}
        return {"id": version.event_id, "version": version.version, **named}

    def find(self, reference: str) -> Version:
        """What `event:ID` (the active version) or `event:ID@VERSION` means. Raises PayloadError."""
        matched = _REFERENCE.fullmatch(reference)
        if matched is None:
            raise PayloadError("usage.invalid", f"{reference!r:.100} is not like event:ID or event:ID@VERSION")
        for version in self.versions(matched["event"]):
            if version.is_active if matched["version"] is None else version.version == int(matched["version"]):
                return version
        raise PayloadError(
            "payload.not_found",
            f"there is no payload {reference}; build it with: cronium payload build {matched['event']} SCRIPT",
        )

    def load(self, reference: str) -> Payload:
        """The payload that a reference means, which is what was recorded. Raises PayloadError."""
        version = self.find(reference)
        payload = payloads.load(version.path)
        if payload.sha256 != version.hash:
            payload.close()
            raise PayloadError(
                "payload.digest_mismatch",
                f"{version.path} has SHA-256 {payload.sha256}, recorded was {version.hash}; build it again",
            )
        return payload

    def verify(self, event_id: str | None = None) -> list[tuple[str, list[str]]]:
        """Each version's file (and each stray file) with what is wrong with it; nothing when all is well.

        The file is read as a host would read it: strictly, by the runner's own `validate`.
        """
        found = self.versions(event_id)
        told = []
        for version in found:
            problems = _problems(version) or _signature_problems(version) or _refusals(version)
            told.append((str(version.path), problems))
        if event_id is not None:
            return told
        return told + [(str(path), ["belongs to no version; gc removes it"]) for path in self._strays()]

    def collect(self, keep: int = KEPT_VERSIONS) -> list[Path]:
        """Removes all but the newest `keep` versions of each event, and stray files; which files went.

        Never a version that is active, or of which an execution has no result yet. Raises PayloadError, StoreError.
        """
        removed: list[Path] = []
        try:
            with self._database.writing():
                for row in self._superfluous(keep):
                    self._database.write("DELETE FROM runner_payloads WHERE id = :id", {"id": row["id"]})
                    removed.append(Path(row["path"]))
            # Files after rows: cut off in between, what is left are files without a version, and never the reverse.
            for path in removed:
                path.unlink(missing_ok=True)
                payloads.sidecar(path).unlink(missing_ok=True)
                signing.signature_path(path).unlink(missing_ok=True)
            with self._database.writing():  # nobody puts a file in place meanwhile
                strays = self._strays()
                for path in strays:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise PayloadError(
                "payload.storage",
                f"cannot remove {error.filename or self.folder}: {error.strerror or error}; "
                "mend that, then do it again",
            ) from None
        return removed + strays

    def _superfluous(self, keep: int) -> list[sqlite3.Row]:
        used = self._store.payloads_in_use()
        seen: dict[str, int] = {}
        found = []
        for row in self._database.read("SELECT * FROM runner_payloads ORDER BY version DESC"):
            seen[row["event_id"]] = seen.get(row["event_id"], 0) + 1
            if seen[row["event_id"]] > keep and not row["is_active"] and row["hash"] not in used:
                found.append(row)
        return found

    def _strays(self) -> list[Path]:
        """Files of ours that belong to no version, and that nobody is writing."""
        if not self.folder.is_dir():
            return []
        kept: set[str] = set()
        for row in self._database.read("SELECT path FROM runner_payloads"):
            path = Path(row["path"])
            kept |= {path.name, payloads.sidecar(path).name, signing.signature_path(path).name}
        old = time.time() - _ABANDONED_SECONDS
        ours = [path for path in sorted(self.folder.iterdir()) if _FILE.fullmatch(path.name)]
        return [path for path in ours if path.name not in kept and path.stat().st_mtime < old]


def _version(row: sqlite3.Row) -> Version:
    return Version(
        row["event_id"], row["version"], row["hash"], Path(row["path"]), row["size"], row["created_at"],
        bool(row["is_active"]),
    )  # fmt: skip


def _tar_hash(payload: Payload) -> str:
    """The SHA-256 of the uncompressed tar. Raises PayloadError."""
    digest = hashlib.sha256()
    unpacking = zlib.decompressobj(wbits=31)  # 31: gzip's header and trailer
    try:
        for piece in payload.pieces():
            while piece and not unpacking.eof:
                digest.update(unpacking.decompress(piece, _PIECE))
                piece = unpacking.unconsumed_tail
        if not unpacking.eof:
            raise PayloadError("payload.damaged", f"{payload.label} is cut short; pack it again")
    except zlib.error as error:
        raise PayloadError("payload.damaged", f"{payload.label} is damaged ({error}); pack it again") from None
    return digest.hexdigest()


def _place(written: Path, path: Path, sha256: str) -> None:
    """Renames a whole file into place; its sidecar first, so that there is never a payload without one."""
    beside = payloads.sidecar(path)
    temporary = written.with_name(f"{written.name}0")
    temporary.write_text(f"{sha256}  {path.name}\n")
    temporary.replace(beside)
    written.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _place_signature(path: Path, text: str, written: Path) -> None:
    """Renames the signature of a payload file into place."""
    temporary = written.with_name(f"{written.name}1")
    temporary.write_text(text)
    temporary.replace(signing.signature_path(path))


def _problems(version: Version) -> list[str]:
    """What is wrong with a version's file and its sidecar; nothing when they are as recorded."""
    found = []
    digest = hashlib.sha256()
    try:
        with version.path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
            size = file.tell()
    except OSError as error:
        return [f"cannot be read: {error.strerror}; build it again"]
    if size != version.size:
        found.append(f"has {size} bytes, recorded were {version.size}")
    if digest.hexdigest() != version.hash:
        found.append(f"has SHA-256 {digest.hexdigest()}, recorded was {version.hash}")
    beside = payloads.sidecar(version.path)
    try:
        stated = beside.read_text("utf-8", "replace").split()
    except OSError as error:
        return [*found, f"{beside.name} cannot be read: {error.strerror}"]
    if stated != [version.hash, version.path.name]:
        found.append(f"{beside.name} does not say what was recorded")
    return found


def _signature_problems(version: Version) -> list[str]:
    """What is wrong with the signature beside a version's file, if there is one."""
    if not version.is_signed:
        return []
    name = signing.signature_path(version.path).name
    try:
        signing.signature_beside(version.path)
        return [] if signing.is_signature_of(version.path) else [f"{name} is not its signature; sign it again"]
    except PayloadError as error:
        return [error.message]
    except OSError as error:
        return [f"{name} cannot be checked: {error.strerror}"]


def _refusals(version: Version) -> list[str]:
    told = _read_strictly(version.path, version.hash)
    return [] if told is None else [f"{told[1]} [{told[0]}]"]


def _read_strictly(path: Path, sha256: str) -> tuple[str, str] | None:
    """Code and message of what a runner says against the payload; None when it would take it."""
    command = [sys.executable, "-m", "cronium_runner", "validate", "--unsigned", "--sha256", sha256, str(path)]
    with tempfile.TemporaryDirectory(prefix="cronium-validate-") as state:  # it unpacks nothing, but has to have one
        environment = {**os.environ, "CRONIUM_STATE_DIR": state}
        try:
            done = subprocess.run(command, capture_output=True, timeout=VALIDATE_SECONDS, check=False, env=environment)
        except subprocess.TimeoutExpired:
            return "payload.unreadable", f"{path} could not be read within {VALIDATE_SECONDS:g} s"
    if done.returncode in (0, EXIT_NOT_FOUND):  # the interpreter has to be on the host, not here
        return None
    said = done.stderr.decode("utf-8", "replace")
    return codes.told(said) or ("payload.unreadable", f"{path}: {' '.join(said.split())[-400:]}")
