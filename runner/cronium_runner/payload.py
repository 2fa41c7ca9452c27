"""Payload in, files of a work directory out: the digest, the names, and what may be made.

A payload is somebody else's bytes, so its digest is checked before anything is parsed, and only regular files
and folders with safe names are made. What the archive format looks like is `archive`'s business, how files
are made without following a link is `tree`'s, what the manifest says is `manifest`'s. The caller unpacks into
a fresh directory of its own and calls `remove_tree` when that fails.
"""

import os
import stat
from collections.abc import Collection, Iterator
from typing import BinaryIO, Final

from .archive import MAX_ENTRIES, MAX_UNPACKED_BYTES, GzipStream, Readable, entries, shown
from .digest import sha256
from .errors import PayloadError
from .tree import Tree, remove_tree, write_all

__all__ = [
    "contents",
    "copy_directory",
    "copy_script",
    "digest_of",
    "empty_folders",
    "member_name",
    "open_payload",
    "remove_byte_order_mark",
    "remove_tree",
    "sidecar_digest",
    "unpack",
    "verify_digest",
]

# What ext4, xfs and btrfs take for one name.
MAX_COMPONENT_BYTES: Final = 255
# PATH_MAX is 4096 for the whole path, work directory included; this leaves room for both it and the script's
# own files.
MAX_NAME_BYTES: Final = 1024
# Deeper than any source tree that people write by hand (node_modules reach about 15).
MAX_DEPTH: Final = 32
# One line is about 100 bytes; a release folder's checksums fit, a mistaken payload doesn't.
MAX_SIDECAR_BYTES: Final = 64 << 10

_CHUNK: Final = 64 << 10
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


# Digests


def open_payload(path: str, expected_hex: str | None = None) -> BinaryIO:
    """The payload opened for reading, its digest checked against `expected_hex`, else against its sidecar if
    it has one.

    The check and the later reading use the same open file, so swapping the path between them achieves
    nothing. Raises PayloadError.
    """
    if expected_hex is None:
        expected_hex = sidecar_digest(path)
    try:
        # Without O_NONBLOCK, opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise PayloadError("payload.not_found", f"no payload at {path}; check the path") from None
    except OSError as error:
        raise PayloadError("payload.unreadable", f"cannot read the payload {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PayloadError("payload.unreadable", f"the payload {path} is not a regular file; give a tar.gz file")
    source = os.fdopen(descriptor, "rb", buffering=0)  # what reads it does that in large pieces
    try:
        if expected_hex is not None:
            verify_digest(source, expected_hex)
    except BaseException:
        source.close()
        raise
    return source


def digest_of(source: BinaryIO) -> str:
    """The SHA-256 of an open payload in hex; the position is set back to the start."""
    digest = sha256()
    source.seek(0)
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
    source.seek(0)
    return digest.hexdigest()


def verify_digest(source: BinaryIO | str, expected_hex: str) -> None:
    """Raises PayloadError unless the payload (an open file, or its path) has the SHA-256 `expected_hex`, in
    any case.
    """
    expected = expected_hex.strip().lower()
    if not _is_digest(expected):
        raise PayloadError(
            "payload.digest_malformed",
            f"{shown(expected_hex)} is not a SHA-256; give its 64 hexadecimal digits",
        )
    if isinstance(source, str):
        open_payload(source, expected).close()
        return
    actual = digest_of(source)
    if actual != expected:
        raise PayloadError(
            "payload.digest_mismatch",
            f"the payload's SHA-256 is {actual}, not {expected}; send it again or correct the digest",
        )


def sidecar_digest(path: str) -> str | None:
    """The digest that `path`.sha256 states for this payload, None when there is no such file. Raises
    PayloadError.
    """
    sidecar = path + ".sha256"
    try:
        with open(sidecar, "rb") as file:
            content = file.read(MAX_SIDECAR_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PayloadError("payload.unreadable", f"cannot read {sidecar}: {error.strerror}") from None
    name = os.path.basename(os.fsencode(path))
    found = {digest for digest, of in map(_sidecar_line, content.splitlines()) if os.path.basename(of) == name}
    if len(content) > MAX_SIDECAR_BYTES or len(found) != 1 or not _is_digest(digest := found.pop()):
        raise PayloadError(
            "payload.digest_malformed",
            f"{sidecar} has no line '<64 hex digits>  {os.fsdecode(name)}'; write it with sha256sum",
        )
    return digest


def _sidecar_line(line: bytes) -> tuple[str, bytes]:
    """Digest and name of a sha256sum line: two spaces for text, ` *` for binary, a leading backslash when
    escaped.
    """
    is_escaped = line.startswith(b"\\")
    digest, _, name = line.removeprefix(b"\\").partition(b" ")
    if name[:1] not in (b" ", b"*"):
        return "", b""
    name = name[1:]
    if is_escaped:
        halves = name.split(b"\\\\")
        name = b"\\".join(half.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for half in halves)
    return digest.decode("ascii", "replace").lower(), name


def _is_digest(text: str) -> bool:
    return len(text) == 64 and not text.strip("0123456789abcdef")


# Into a work directory


def unpack(source: Readable | str, directory: int | str) -> list[str]:
    """Put the payload's files below `directory` (a descriptor or a path), which should be new, empty and
    ours.

    Returns the files' names, relative and with `/`, in the archive's order; folders and macOS `._*` members
    are not among them. Files get mode 0600, or 0700 when their owner could execute them; folders get 0700.
    Raises PayloadError for the payload's faults and StateDirectoryError for the disk's; what was made by then
    stays, for the caller to remove.
    """
    if isinstance(source, str):
        with open_payload(source) as opened:
            return unpack(opened, directory)
    with Tree(directory) as tree:
        stream = GzipStream(source)
        for entry in entries(stream):
            name = member_name(entry.name)
            if entry.is_directory:
                tree.make_directory(name)
            elif name.rpartition("/")[2].startswith("._"):
                stream.skip(entry.size)
            else:
                if not name or entry.name.endswith(b"/"):
                    raise _unsafe(entry.name, "names a folder but is a file; pack it again")
                with tree.new_file(name, entry.is_executable) as file:
                    for piece in stream.pieces(entry.size):
                        write_all(file, piece)
        return tree.files


def contents(source: BinaryIO, wanted: Collection[str], *, limit: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of the payload; the content is empty for names that are not `wanted`.

    Reads what `unpack` would write, and refuses what it would refuse, and more than `limit` bytes. Raises PayloadError.
    """
    stream = GzipStream(source)
    for entry in entries(stream):
        limit -= entry.size
        if limit < 0:
            raise PayloadError("payload.too_large", "the payload is larger than what was asked for")
        name = member_name(entry.name)
        if entry.is_directory or name.rpartition("/")[2].startswith("._"):
            stream.skip(entry.size)
        elif name in wanted:
            yield name, b"".join(stream.pieces(entry.size))
        else:
            stream.skip(entry.size)
            yield name, b""


def copy_directory(source: str, directory: int | str) -> list[str]:
    """Copy a folder that is used as a payload; same rules, caps, modes and answer as `unpack`, in sorted
    order.
    """
    total = 0
    count = 0
    with Tree(directory) as tree:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for name, found in _listing(source, folder):
                count += 1
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
                if count > MAX_ENTRIES:
                    raise PayloadError(
                        "payload.too_many_entries",
                        f"{source} has more than {MAX_ENTRIES} entries; use a smaller folder",
                    )
                if total > MAX_UNPACKED_BYTES:
                    raise PayloadError(
                        "payload.too_large",
                        f"{source} has more than {MAX_UNPACKED_BYTES >> 20} MiB; use a smaller folder",
                    )
                member_name(os.fsencode(name))
                if stat.S_ISDIR(found.st_mode):
                    # The state directory may lie inside the folder (`run .` in a home directory): not into
                    # itself.
                    if not tree.is_root(found):
                        tree.make_directory(name)
                        waiting.append(name)
                elif not stat.S_ISREG(found.st_mode):
                    raise PayloadError(
                        "payload.unsafe_type",
                        f"{os.path.join(source, name)} is a link or special file; a job's folder holds only "
                        "regular files and folders",
                    )
                elif not name.rpartition("/")[2].startswith("._"):
                    with tree.new_file(name, bool(found.st_mode & 0o100)) as file:
                        _copy_file(os.path.join(source, name), file)
        return sorted(tree.files)


def empty_folders(directory: str) -> list[str]:
    """The folders below `directory` with nothing in them, which no file's name implies; relative, in sorted order."""
    found = (folder for folder, folders, files in os.walk(directory) if not folders and not files)
    return sorted(os.path.relpath(folder, directory) for folder in found if folder != directory)


def copy_script(source: str, directory: int | str) -> str:
    """Copy one script (or what a link to one names) into `directory`; answers its name there. Raises PayloadError."""
    name = member_name(os.fsencode(os.path.basename(source)))
    with Tree(directory) as tree, tree.new_file(name, os.access(source, os.X_OK)) as file:
        _copy_file(os.path.realpath(source), file)
    return name


def remove_byte_order_mark(path: str) -> None:
    """Take the UTF-8 byte order mark off the file at `path`, if it begins with one. Raises OSError.

    Some editors put one there, invisibly: neither the kernel nor a shell then sees the `#!` line.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = len(_BYTE_ORDER_MARK)
        if os.read(descriptor, size) != _BYTE_ORDER_MARK:
            return
        at = 0
        while piece := os.pread(descriptor, _CHUNK, at + size):
            at += os.pwrite(descriptor, piece, at)
        os.ftruncate(descriptor, at)
    finally:
        os.close(descriptor)


def _listing(source: str, folder: str) -> list[tuple[str, os.stat_result]]:
    try:
        with os.scandir(os.path.join(source, folder)) as found:
            prefix = folder + "/" if folder else ""
            return sorted((prefix + each.name, each.stat(follow_symlinks=False)) for each in found)
    except OSError as error:
        code = "payload.not_found" if isinstance(error, FileNotFoundError) else "payload.unreadable"
        raise PayloadError(code, f"cannot read the folder {os.path.join(source, folder)}: {error.strerror}") from None


def _copy_file(path: str, file: BinaryIO) -> None:
    try:
        original = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PayloadError("payload.unreadable", f"cannot read {path}: {error.strerror}") from None
    try:
        while piece := os.read(original, _CHUNK):
            write_all(file, piece)
    finally:
        os.close(original)


def member_name(raw: bytes) -> str:
    """The checked, normalised name of a member: relative, `/` between components, "" for the top folder
    itself.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _unsafe(raw, "is not UTF-8; rename it") from None
    if not name:
        raise _unsafe(raw, "is empty; pack it again")
    if "\x00" in name:
        raise _unsafe(raw, "has a NUL in it; rename it")
    if name.startswith("/"):
        raise _unsafe(raw, "is absolute; pack relative names")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _unsafe(raw, "has '..' in it; pack from the job's own folder")
    if len(parts) > MAX_DEPTH:
        raise _unsafe(raw, f"is more than {MAX_DEPTH} folders deep; pack a flatter tree")
    if len(raw) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        raise _unsafe(raw, f"is longer than {MAX_NAME_BYTES} bytes, or {MAX_COMPONENT_BYTES} in one part; shorten it")
    return "/".join(parts)


def _unsafe(raw: bytes, why: str) -> PayloadError:
    return PayloadError("payload.unsafe_name", f"the name of payload member {shown(raw)} {why}")
