"""Builds payload bytes by hand, the well-formed and the hostile: tar headers, pax records, GNU names, gzip members.

Nothing here uses the code under test, nor `tarfile`, which is too polite to write what an attacker would.
"""

import gzip
import struct
import zlib
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)

USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)


def padded(content: bytes) -> bytes:
    """The content filled up with zeros to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def header(
    name: bytes,
    size: int = 0,
    kind: bytes = b"0",
    mode: int = 0o644,
    *,
    link: bytes = b"",
    magic: bytes = USTAR,
    prefix: bytes = b"",
    size_field: bytes | None = None,
    mode_field: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One tar header; the checksum is right unless given."""
    start = b"".join(
        (
            name.ljust(100, b"\x00"),
            mode_field if mode_field is not None else b"%07o\x00" % mode,
            b"%07o\x00" % 0,
            b"%07o\x00" % 0,
            size_field if size_field is not None else b"%011o\x00" % size,
            b"%011o\x00" % 0,
        )
    )
    end = b"".join(
        (kind, link.ljust(100, b"\x00"), magic, bytes(32), bytes(32), bytes(16), prefix.ljust(155, b"\x00"), bytes(12))
    )
    if checksum is None:
        checksum = b"%06o\x00 " % (sum(start) + 8 * 32 + sum(end))
    built = start + checksum + end
    assert len(built) == BLOCK, len(built)
    return built


def member(name: bytes, content: bytes = b"", **fields: object) -> bytes:
    """A header and its content."""
    return header(name, len(content), **fields) + padded(content)  # type: ignore[arg-type]


def folder(name: bytes, **fields: object) -> bytes:
    """A folder's header."""
    return header(name, 0, b"5", 0o755, **fields)  # type: ignore[arg-type]


def gnu_long_name(name: bytes) -> bytes:
    """The GNU extension that gives the next member its name."""
    return member(b"././@LongLink", name + b"\x00", kind=b"L", magic=GNU)


def pax_record(key: bytes, value: bytes) -> bytes:
    """One `<length> <key>=<value>` record, the length counting itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    """A pax header for the next member (`x`) or for all that follow (`g`)."""
    if not isinstance(records, bytes):
        records = b"".join(pax_record(key, value) for key, value in records.items())
    return member(b"PaxHeaders/x", records, kind=kind)


def gzipped(content: bytes) -> bytes:
    """One gzip member with nothing that changes from run to run."""
    return gzip.compress(content, mtime=0)


def archive(*parts: bytes, end: bytes = END) -> bytes:
    """A tar.gz of tar parts."""
    return gzipped(b"".join(parts) + end)


def make_payload(files: Mapping[str, bytes], executable: tuple[str, ...] = ()) -> bytes:
    """A well-formed payload of these files, in sorted order."""
    return archive(
        *(member(name.encode(), files[name], mode=0o755 if name in executable else 0o644) for name in sorted(files))
    )


def zeros(size: int, before: bytes, after: bytes = END) -> bytes:
    """A gzip member of `before`, `size` zero bytes and `after`, made without ever holding the zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    packed = [packer.compress(before)]
    chunk = bytes(1 << 20)
    for _ in range(size >> 20):
        packed.append(packer.compress(chunk))
    packed += [packer.compress(bytes(size & ((1 << 20) - 1))), packer.compress(after), packer.flush()]
    return b"".join(packed)


def gzip_header(flags: int = 0, extra: bytes = b"") -> bytes:
    """The first bytes of a gzip member."""
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\x00\x03" + extra


def gzip_by_hand(content: bytes, *, flags: int = 0, extra: bytes = b"", crc: int = 0, size: int = 0) -> bytes:
    """A gzip member whose checksum and length are off by `crc` and `size`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(content) + packer.flush()
    trailer = struct.pack("<II", zlib.crc32(content) ^ crc, (len(content) + size) & 0xFFFFFFFF)
    return gzip_header(flags, extra) + packed + trailer
