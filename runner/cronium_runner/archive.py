"""Reads one gzip member holding one tar archive, strictly and in bounded memory.

It knows bytes: gzip, tar headers, caps on size. What a name may be and where a file goes is `payload`'s
business, and nothing here touches a file system. Python's `tarfile` is not used: it accepts a missing tail,
trailing data and a second gzip member, and its extraction filter could be led outside (CVE-2025-4517).
"""

import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from .errors import PayloadError

# A payload is scripts and small assets; larger data is sent with `cronium put`. Half a GiB also fits a small
# /var.
MAX_UNPACKED_BYTES: Final = 512 << 20
# Logs and source compress 5 to 50 times; deflate's own ceiling is 1032, and that is what a bomb comes near.
MAX_RATIO: Final = 200
# Below this the ratio says nothing: tar pads a 20-byte script to 10 KiB, and a few MiB harm nobody.
RATIO_FREE_BYTES: Final = 8 << 20
# A job with a vendored node_modules has some thousand files; a file costs up to 0.7 ms, so this is 7 s at
# worst.
MAX_ENTRIES: Final = 10_000
# Extended attributes travel in pax headers (Linux: 64 KiB each); this is read into memory, so it stays small.
MAX_PAX_BYTES: Final = 1 << 20
# A GNU long name is a path; PATH_MAX is 4096 on Linux, so more is not a name.
MAX_LONG_NAME_BYTES: Final = 4096

_BLOCK: Final = 512
_ZERO_BLOCK: Final = bytes(_BLOCK)
_OUTPUT_CHUNK: Final = 64 << 10
_INPUT_CHUNK: Final = 16 << 10
_GZIP_MAGIC: Final = b"\x1f\x8b"
_USTAR: Final = b"ustar\x00"
_GNU: Final = b"ustar "
_V7: Final = bytes(6)

_TYPE_WORDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}


class Entry(NamedTuple):
    """One member as the archive states it. `name` is not checked yet."""

    name: bytes
    is_directory: bool
    is_executable: bool
    size: int


def shown(name: bytes | str) -> str:
    """A member's name for a message: quoted, escaped and of bounded length."""
    text = ascii(name[:100].decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name[:100])
    return text if len(text) <= 80 else text[:76] + "...'"


class Readable(Protocol):
    """All that is needed of a payload that is read."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, at most `size`."""


class GzipStream:
    """The decompressed bytes of `source`, which must hold exactly one gzip member and nothing after it."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._first = self._read(_INPUT_CHUNK)
        if not self._first.startswith(_GZIP_MAGIC):
            what = "starts with other bytes" if self._first else "is empty"
            raise PayloadError("payload.not_gzip", f"the payload is not a gzip file (it {what}); pack it as tar.gz")
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._packed = len(self._first)
        self._unpacked = 0
        self._buffer = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes; for headers, so `size` is small."""
        end = self._at + size
        if end <= len(self._buffer):
            taken = self._buffer[self._at : end]
            self._at = end
            return taken
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes in pieces of at most 64 KiB."""
        while size:
            piece = self._next_piece(size)
            if not piece:
                raise PayloadError("payload.damaged", "the payload's archive ends in the middle; it was cut short")
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes."""
        for _ in self.pieces(size):
            pass

    def is_zero_to_end(self) -> bool:
        """Whether only zero bytes are left; reads (and thereby checks) everything that is left."""
        is_zero = True
        while piece := self._next_piece(_OUTPUT_CHUNK):
            is_zero = is_zero and not piece.strip(b"\x00")
        return is_zero

    def _next_piece(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; none at the end of the member."""
        while self._at == len(self._buffer):
            if self._zlib.eof:
                return b""
            self._buffer, self._at = self._decompress(), 0
        piece = self._buffer[self._at : self._at + limit]
        self._at += len(piece)
        return piece

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except OSError as error:
            raise PayloadError("payload.unreadable", f"cannot read the payload: {error.strerror}") from None

    def _decompress(self) -> bytes:
        packed = self._first or self._zlib.unconsumed_tail
        self._first = b""
        if not packed:
            packed = self._read(_INPUT_CHUNK)
            self._packed += len(packed)
            if not packed:
                raise PayloadError("payload.damaged", "the payload ends in the middle of its gzip data; send it again")
        try:
            piece = self._zlib.decompress(packed, _OUTPUT_CHUNK)
        except zlib.error as error:
            reason = str(error).rpartition(": ")[2]
            raise PayloadError(
                "payload.damaged", f"the payload's gzip data is damaged ({reason}); send it again"
            ) from None
        self._count(len(piece))
        if self._zlib.eof:
            self._refuse_trailing_data()
        return piece

    def _count(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > MAX_UNPACKED_BYTES:
            raise PayloadError(
                "payload.too_large",
                f"the payload unpacks to over {MAX_UNPACKED_BYTES >> 20} MiB; send large files separately",
            )
        if self._unpacked > RATIO_FREE_BYTES and self._unpacked > MAX_RATIO * self._packed:
            raise PayloadError(
                "payload.ratio",
                f"the payload unpacks to more than {MAX_RATIO} times its size, as a bomb does; "
                "leave out files of repeated bytes",
            )

    def _refuse_trailing_data(self) -> None:
        trailing = self._zlib.unused_data or self._read(len(_GZIP_MAGIC))
        if trailing:
            what = "a second gzip member follows" if trailing.startswith(_GZIP_MAGIC) else "other bytes follow"
            raise PayloadError("payload.trailing_data", f"{what} the payload's gzip data; pack it again as one tar.gz")


def entries(stream: GzipStream) -> Iterator[Entry]:
    """Each file and folder of the archive, in order; links, devices and sparse files are refused.

    Take the entry's `size` bytes from `stream` before asking for the next entry. When the iteration ends, the
    whole payload was read, its checksums were right and nothing followed the archive.
    """
    long_name: bytes | None = None
    pax: dict[bytes, bytes] = {}
    count = 0
    while (header := stream.take(_BLOCK)) != _ZERO_BLOCK:
        count += 1
        if count > MAX_ENTRIES:
            raise PayloadError(
                "payload.too_many_entries",
                f"the payload has more than {MAX_ENTRIES} entries; pack fewer files",
            )
        kind, size = _checked_header(header)
        if kind in (b"x", b"L"):
            cap = MAX_PAX_BYTES if kind == b"x" else MAX_LONG_NAME_BYTES
            content = _extension(stream, size, cap)
            if kind == b"x":
                pax.update(_pax_records(content))
            else:
                long_name = content.rstrip(b"\x00")
            continue
        if kind in (b"g", b"K"):  # a global comment; the target of a link, which is itself refused
            stream.skip(_padded(size))
            continue
        name = pax.get(b"path") or long_name or _header_name(header)
        entry = _entry(name, kind, _pax_size(pax, size), header)
        pax, long_name = {}, None
        yield entry
        stream.skip(_padded(entry.size) - entry.size)
    if pax or long_name is not None:
        raise PayloadError("payload.damaged", "the payload's archive ends after a long name, without its member")
    if stream.take(_BLOCK) != _ZERO_BLOCK:
        raise PayloadError("payload.damaged", "the payload's archive has an empty header in the middle; pack it again")
    if not stream.is_zero_to_end():
        raise PayloadError("payload.trailing_data", "bytes follow the end of the payload's archive; pack it again")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _checked_header(header: bytes) -> tuple[bytes, int]:
    """The type and size of a header whose checksum and magic are right."""
    # The checksum is the sum of all bytes, its own eight counted as spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156], "checksum"):
        raise PayloadError("payload.damaged", "a header of the payload's archive has a wrong checksum; send it again")
    if header[257:263] not in (_USTAR, _GNU, _V7):
        raise PayloadError("payload.damaged", "the payload is not a tar archive of a known format; pack it as tar.gz")
    return header[156:157], _number(header[124:136], "size")


def _number(field: bytes, what: str) -> int:
    """A tar number: octal text, or base 256 when the first byte says so."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\x00", 1)[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise PayloadError(
            "payload.damaged", f"a header of the payload's archive has a malformed {what}; pack it again"
        )
    return int(digits or b"0", 8)


def _header_name(header: bytes) -> bytes:
    name = _field_text(header[0:100])
    # Only POSIX ustar keeps a prefix there; GNU keeps times.
    prefix = _field_text(header[345:500]) if header[257:263] == _USTAR else b""
    return prefix + b"/" + name if prefix else name


def _field_text(field: bytes) -> bytes:
    text, _, rest = field.partition(b"\x00")
    if rest.strip(b"\x00"):
        raise PayloadError(
            "payload.unsafe_name", f"a member's name has a NUL in it: {shown(field.rstrip(bytes(1)))}; rename it"
        )
    return text


def _extension(stream: GzipStream, size: int, cap: int) -> bytes:
    if size > cap:
        raise PayloadError(
            "payload.too_large",
            f"a header of the payload's archive has {size} bytes of names or attributes; pack it again",
        )
    return stream.take(_padded(size))[:size]


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """The records `<length> <key>=<value>\\n` that matter here; others are ignored."""
    records = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 8].partition(b" ")
        end = at + int(digits) if space and digits.isdigit() else 0
        key, equals, value = content[at + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not equals or end > len(content) or content[end - 1 : end] != b"\n":
            raise PayloadError("payload.damaged", "a pax header of the payload's archive is malformed; pack it again")
        if key.startswith(b"GNU.sparse."):
            raise PayloadError("payload.unsafe_type", "a member is a sparse file; pack without --sparse")
        if key in (b"path", b"size"):
            records[key] = value
        at = end
    return records


def _pax_size(pax: dict[bytes, bytes], size: int) -> int:
    text = pax.get(b"size")
    if text is None:
        return size
    if not text.isdigit() or len(text) > 20:
        raise PayloadError(
            "payload.damaged", "a pax header of the payload's archive has a malformed size; pack it again"
        )
    return int(text)


def _entry(name: bytes, kind: bytes, size: int, header: bytes) -> Entry:
    # Before there was a type for folders, a name that ends in a slash said it.
    is_directory = kind == b"5" or (kind == b"\x00" and name.endswith(b"/"))
    if not is_directory and kind not in (b"0", b"\x00"):
        what = _TYPE_WORDS.get(kind, f"of type {kind!r}")
        raise PayloadError(
            "payload.unsafe_type",
            f"payload member {shown(name)} is {what}; a payload holds only files and folders, pack those instead",
        )
    if is_directory and size:
        raise PayloadError("payload.damaged", f"payload member {shown(name)} is a folder with content; pack it again")
    if size > MAX_UNPACKED_BYTES:
        raise PayloadError(
            "payload.too_large",
            f"payload member {shown(name)} has {size} bytes, over {MAX_UNPACKED_BYTES >> 20} MiB; send it apart",
        )
    return Entry(name, is_directory, bool(_number(header[100:108], "mode") & 0o100), size)
