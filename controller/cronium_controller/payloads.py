"""Payloads: a script, a directory or a ready tar.gz as bytes with a digest. Equal content has an equal SHA-256.

Nothing of an execution goes into a payload: no input, no variables, no token. So it is the same for all executions and
all hosts, and a host that has its digest needs no bytes.
"""

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from cronium_runner.wire.frames import DATA_PIECE
from cronium_runner.wire.names import PAYLOAD_SUFFIXES

from .errors import PayloadError
from .signing import signature_beside

DEFAULT_TIMEOUT: Final = 3600.0
"""Seconds that a runner gives a script whose job and manifest name no timeout."""
IN_MEMORY: Final = 8 * 1024 * 1024
"""A payload up to this size is built in memory, a larger one in a temporary file."""
_COMPRESSION: Final = 6
"""gzip's own default: level 9 takes twice the time for a percent or two."""
MANIFESTS: Final = ("manifest.yaml", "manifest.yml")
_LEFT_BY_A_LOCAL_RUN: Final = ("output.json", "variables.json")

_Member = tuple[str, bytes | Path | None]
"""A name in the archive, and its content: bytes, a file of it, or None for a folder that is empty."""


class Payload:
    """A payload's bytes, wherever they are. `label` is what a person calls it."""

    def __init__(self, label: str, file: IO[bytes]) -> None:
        self.label = label
        self.timeout: float | None = None
        """Seconds that its script may take, unless a job says otherwise; None where only its manifest tells."""
        self.signature: str | None = None
        """OpenSSH's signature of the bytes (`signing`), for hosts that run signed payloads only."""
        self._file = file
        # Not __del__: within a reference cycle the file would be finalized first, and complain that nobody closed it.
        self._release = weakref.finalize(self, file.close)
        digest = hashlib.sha256()
        file.seek(0)
        while piece := file.read(1024 * 1024):
            digest.update(piece)
        self.sha256 = digest.hexdigest()
        self.size = file.tell()

    def __repr__(self) -> str:
        return f"<Payload {self.label} {self.sha256[:12]} {self.size} bytes>"

    def close(self) -> None:
        """Lets go of the file. The payload must not be submitted afterwards."""
        self._release()

    def pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces as large as a frame likes them."""
        offset = 0
        while True:
            self._file.seek(offset)
            piece = self._file.read(DATA_PIECE)
            if not piece:
                return
            offset += len(piece)
            yield piece


def load(
    path: str | os.PathLike[str],
    fields: Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Payload:
    """A payload from a script, a directory with a manifest, or a tar.gz.

    `fields` and `defaults` go into the manifest that is made for a script; where there is one, `fields` are refused.
    Raises PayloadError with the path and the fix.
    """
    given = Path(path)
    try:
        if fields and not _is_script(given):
            raise PayloadError(
                "usage.invalid", f"{given} has a manifest of its own; write there what the options are to say"
            )
        if given.is_dir():
            return _from_directory(given)
        if given.exists() and not given.is_file():  # opening a FIFO would wait for ever
            raise PayloadError("payload.unsafe_type", f"{given} is not a regular file; give a script or a payload")
        with given.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        if is_gzip:
            return _from_archive(given)
        if given.name.endswith(PAYLOAD_SUFFIXES) or sidecar(given).exists():
            # Damaged, most likely: to run its bytes as a script would be the worst of answers.
            raise PayloadError(
                "payload.not_gzip",
                f"{given} is not a gzip file, though its name or the .sha256 beside it says that it is a payload; "
                "build it again",
            )
        return _from_script(given, {**(defaults or {}), **(fields or {})})
    except FileNotFoundError:
        raise PayloadError("payload.not_found", f"no script, directory or payload at {given}") from None
    except OSError as error:
        raise PayloadError(
            "payload.unreadable", f"cannot read {error.filename or given}: {error.strerror or error}"
        ) from None


def _is_script(path: Path) -> bool:
    if not path.is_file():
        return not path.is_dir()  # what is wrong with it is said where it is opened
    with path.open("rb") as file:
        return file.read(2) != b"\x1f\x8b"


def _from_archive(path: Path) -> Payload:
    payload = Payload(path.name, path.open("rb"))
    payload.signature = signature_beside(path)
    beside = sidecar(path)
    if beside.exists():
        stated = beside.read_text("utf-8", "replace").split()
        if not stated or stated[0].lower().lstrip("\\") != payload.sha256:
            payload.close()
            raise PayloadError(
                "payload.digest_mismatch",
                f"{path} has SHA-256 {payload.sha256}, which is not what {beside.name} says; build it again",
            )
    return payload


def sidecar(path: Path) -> Path:
    """Where a payload's SHA-256 is, in sha256sum's format."""
    return path.with_name(path.name + ".sha256")


def of_text(name: str, text: str, fields: Mapping[str, Any]) -> Payload:
    """The payload of a script that is in no file; `fields` are its manifest's. Always the same for the same words."""
    return _of_script(name, text.encode(), fields)


def _manifest(entrypoint: str, fields: Mapping[str, Any]) -> bytes:
    # A JSON text is YAML too, so names and fields come out as they went in.
    written = {"entrypoint": entrypoint, **{key: fields[key] for key in sorted(fields)}}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False, sort_keys=True)}\n" for key, value in written.items()]
    return "".join(["version: v1\n", *lines]).encode()


def _from_script(path: Path, fields: Mapping[str, Any]) -> Payload:
    if path.name in MANIFESTS:
        raise PayloadError("payload.not_found", f"{path} is a manifest, not a script; give its directory instead")
    if not path.name.isprintable():
        raise PayloadError("payload.unsafe_name", f"{str(path)!a:.200} has a name that no manifest can hold; rename it")
    return _of_script(path.name, path, fields)


def _of_script(name: str, content: bytes | Path, fields: Mapping[str, Any]) -> Payload:
    payload = _build(name, [("manifest.yaml", _manifest(name, fields)), (name, content)])
    timeout = fields.get("timeout", DEFAULT_TIMEOUT)
    payload.timeout = timeout if isinstance(timeout, int | float) else None
    return payload


def _from_directory(path: Path) -> Payload:
    if not any((path / name).is_file() for name in MANIFESTS):
        raise PayloadError("manifest.missing", f"{path} has no manifest.yaml; write one, or give the script itself")
    members: list[_Member] = []
    for folder, folders, files in os.walk(path, onerror=_raise):
        folders.sort()
        # Only a folder that no file's name implies has a member of its own. Macintosh members are no files to a runner.
        if not folders and all(name.startswith("._") for name in files) and not path.samefile(folder):
            members.append((Path(folder).relative_to(path).as_posix(), None))
        for name in sorted([*files, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]):
            file = Path(folder, name)
            member = file.relative_to(path).as_posix()
            if not stat.S_ISREG(file.lstat().st_mode):
                raise PayloadError(
                    "payload.unsafe_type", f"{file} is a link or special file; a payload holds only regular files"
                )
            if member not in _LEFT_BY_A_LOCAL_RUN:
                members.append((member, file))
    return _build(path.resolve().name, members)


def _build(label: str, members: Sequence[_Member]) -> Payload:
    """The archive of the members: sorted, no times, no owners, so that only names, content and the x bit count."""
    target: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - the payload owns it
    try:
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0, compresslevel=_COMPRESSION) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as archive,
        ):
            for name, content in sorted(members, key=lambda member: os.fsencode(member[0])):
                _add(archive, name, content)
    except BaseException:
        target.close()
        raise
    return Payload(label, target)


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path | None) -> None:
    entry = tarfile.TarInfo(name)
    if content is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
        return
    entry.mode = 0o644
    if isinstance(content, bytes):
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    with content.open("rb") as file:
        found = os.fstat(file.fileno())
        entry.size = found.st_size
        entry.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
        try:
            archive.addfile(entry, file)
        except OSError as error:
            if error.errno is not None:
                raise
            raise PayloadError("payload.unreadable", f"{content} became shorter while it was read; try again") from None


def _raise(error: OSError) -> None:
    """A folder that can't be listed is an error, or a payload would silently lack what is in it."""
    raise error
