"""A folder, a script or a payload file of ours as payload bytes for somebody who may not be able to read our files.

The rules for what may be in it are `payload`'s; this only puts it into one archive, the same bytes each time. What the
target could have put there, root reads with the target's rights and no others: a link swapped in at the right moment
would else make root hand over any file of the system.
"""

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NoReturn

from . import payload, trust, ustar
from .account import Account, become
from .digest import sha256
from .errors import PayloadError, RunnerError, SystemRefusedError
from .jobdir import StateDirectory
from .submission import LEFT_BY_A_RUN, Archive, Folder, Script, Source
from .tree import remove_tree
from .wire import sshsig  # noqa: F401 - for `trust`: as another account this process cannot read its own modules
from .wire.codes import CODES

_PIECE: Final = 256 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
"""zlib's way to ask for a gzip file; its header has no name and no time."""


@contextlib.contextmanager
def packed(state: StateDirectory, source: Source, account: Account) -> Iterator[tuple[BinaryIO, str, str | None]]:
    """The payload's bytes, their SHA-256, and the signature beside a payload file; gone afterwards.

    A payload file travels as it is, so that its signature holds. Raises RunnerError for what can't be a payload.
    """
    with _nameless_file(state) as file:
        if os.geteuid() == 0 and is_in_reach(source.path, account):
            signature = _pack_as(account, source, file)
        else:
            stage = state.stage()
            try:
                signature = _pack(source, file, stage.path)
            finally:
                stage.discard()
        file.seek(0)
        digest = sha256()
        while piece := file.read(_PIECE):
            digest.update(piece)
        file.seek(0)
        yield file, digest.hexdigest(), signature


def is_in_reach(path: str, account: Account) -> bool:
    """Whether the account could put something else at `path`: it owns, or may write to, something on the way there."""
    groups = os.getgrouplist(account.name, account.gid)
    parts = os.path.realpath(path).split("/")
    try:
        return any(
            _is_writable(os.stat("/".join(parts[:depth]) or "/"), account.uid, groups)
            for depth in range(1, len(parts) + 1)
        ) or any(_is_writable(os.lstat(each), account.uid, groups) for each in _as_written(path))
    except OSError:
        return True  # it is changing, or gone; with the target's rights it can be looked for safely


def _as_written(path: str) -> Iterator[str]:
    """The path and all above it without links resolved: who owns a link's folder decides where it leads."""
    path = os.path.abspath(path)
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _is_writable(found: os.stat_result, uid: int, groups: list[int]) -> bool:
    if found.st_uid == uid:
        return True
    if stat.S_ISLNK(found.st_mode):
        return False  # everybody may write to a link, and nobody can
    is_shared = bool(found.st_mode & 0o002) or bool(found.st_mode & 0o020 and found.st_gid in groups)
    return is_shared and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX)


def _nameless_file(state: StateDirectory) -> BinaryIO:
    path = state.new_temporary(state.executions)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return os.fdopen(descriptor, "w+b")


def _pack(source: Source, target: BinaryIO, scratch: str) -> str | None:
    """Writes the payload to `target`; the signature beside it, if any. `scratch` is an empty folder of this process."""
    signature = None
    if isinstance(source, Archive):
        with payload.open_payload(source.path, source.sha256) as file:
            while piece := file.read(_PIECE):
                target.write(piece)
        signature = trust.signature_beside(source.path)
    else:
        work = os.path.join(scratch, "work")
        os.mkdir(work, 0o700)
        generated = {}
        if isinstance(source, Folder):
            names = [name for name in payload.copy_directory(source.path, work) if name not in LEFT_BY_A_RUN]
        else:
            names = [payload.copy_script(source.path, work)]
            generated["manifest.yaml"] = _manifest_of(source, names[0])
        _write_archive(work, names, generated, target)
    target.flush()
    return signature


def _manifest_of(source: Script, name: str) -> bytes:
    if not name.isprintable() or name in ("manifest.yaml", "manifest.yml"):
        raise PayloadError(
            "payload.unsafe_name", f"a script cannot be handed over under the name {source.path!a:.200}; rename it"
        )
    # A JSON text is a YAML scalar too, so any other name comes out as it went in.
    written = (
        {"entrypoint": name}
        if source.interpreter is None
        else {
            "entrypoint": name,
            "interpreter": source.interpreter,
        }
    )
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in written.items())
    return "".join(["version: v1\n", *lines]).encode()


def _write_archive(work: str, names: list[str], generated: dict[str, bytes], target: BinaryIO) -> None:
    packer = zlib.compressobj(wbits=_GZIP)
    for name, content in generated.items():
        target.write(packer.compress(ustar.file_header(name, len(content), 0o644)))
        target.write(packer.compress(content + ustar.padding(len(content))))
    for name in payload.empty_folders(work):
        target.write(packer.compress(ustar.folder(name)))
    for name in sorted(names, key=os.fsencode):
        with open(os.path.join(work, name), "rb") as file:
            found = os.fstat(file.fileno())
            mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
            target.write(packer.compress(ustar.file_header(name, found.st_size, mode)))
            while piece := file.read(_PIECE):
                target.write(packer.compress(piece))
            target.write(packer.compress(ustar.padding(found.st_size)))
    target.write(packer.compress(ustar.END) + packer.flush())


def _pack_as(account: Account, source: Source, target: BinaryIO) -> str | None:
    """The same in a process of the account's. All that comes back are bytes that go to the account anyway."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _pack_and_exit(account, source, target, write)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        told = answer.read(64 * 1024)
    os.waitpid(pid, 0)
    said = json.loads(told or b"{}")
    if "signature" in said:
        return None if said["signature"] is None else str(said["signature"])
    if said.get("code") not in CODES:
        raise SystemRefusedError(f"{source.path} could not be read as {account.name}; nothing was started")
    raise PayloadError(said["code"], str(said["message"]))


def _pack_and_exit(account: Account, source: Source, target: BinaryIO, answer: int) -> NoReturn:
    """The forked process: only descriptors 0 to 2 survive becoming somebody else, so these are what it needs."""
    status = 125
    try:
        os.dup2(target.fileno(), 0)
        os.dup2(answer, 1)
        os.dup2(os.open("/dev/null", os.O_RDWR), 2)
        os.write(1, _told_by(account, source))
        status = 0
    finally:
        os._exit(status)


def _told_by(account: Account, source: Source) -> bytes:
    scratch = ""
    try:
        become(account)
        scratch = f"/tmp/.cronium-runner-{os.urandom(8).hex()}"  # noqa: S108 - made by mkdir, private, unguessable
        os.mkdir(scratch, 0o700)
        with os.fdopen(os.dup(0), "w+b") as target:
            return json.dumps({"signature": _pack(source, target, scratch)}).encode()
    except RunnerError as error:
        return json.dumps({"code": error.code, "message": error.message}).encode()
    except OSError as error:
        told = f"{source.path} cannot be read as {account.name}: {error.strerror} ({error.filename})"
        return json.dumps({"code": "payload.unreadable", "message": told}).encode()
    finally:
        if scratch:
            with contextlib.suppress(RunnerError):
                remove_tree(scratch)
