"""A grammar of payloads, good and hostile: tar members, pax and GNU records and gzip members, then mutated.

Headers are built by `payload_bytes`; after a mutation the checksums are put right again most of the time, else nearly
every case would end at the first header.
"""

import gzip
import struct
import zlib

import payload_bytes as pb
from faults.fuzz_source import Source

USUAL = (b"script.sh", b"a", b"b", b"a/b", b"a/b/c", b"manifest.yaml", b"lib/x", b"a/d")
"""Few, so that some are there twice, or as a file and as a folder."""
NAMES = (
    b"script.sh", b"a", b"a/b", b"a/b/c", b"./a", b"a//b", b"a/", b"manifest.yaml", b"._x", b"lib/._y",
    b"d/" * 33 + b"x",
    b"..", b"../outside/owned", b"a/../../outside/owned", b"a/..", b"/tmp/cronium-owned", b"//", b"", b".", b"./",
    b"a/.",
    b"n" * 100, b"n" * 255, b"n" * 256, b"\xff", b"a\x00b", "é".encode(), b"a\nb", b"\x1b[2Ja",
    b"/".join([b"p" * 90] * 12),
)  # fmt: skip
KINDS = b"000000\x0055501234567gxLKSVMDNQ"
KEYS = (
    b"path",
    b"size",
    b"path",
    b"size",
    b"comment",
    b"linkpath",
    b"mtime",
    b"GNU.sparse.realsize",
    b"",
    b"hdrcharset",
)
SIZES = (b"0", b"1", b"5", b"512", b"600", b"99999999999", b"9" * 30, b"-1", b"0x10", b" 5", b"")
NUMBER_FIELDS = (
    b"%011o\x00" % 5, b"\x80" + b"\x00" * 10 + b"\x05", b"\xff" * 12, b" " * 12, b"\x00" * 12, b"7" * 12,
    b"-0000000001\x00", b"\x80" + b"\xff" * 11,
)  # fmt: skip


def payload(source: Source) -> bytes:
    """The bytes of a payload, or of something near one."""
    tar = b"".join(source.several(lambda: _part(source), 9))
    tar += source.choice((pb.END, pb.END, pb.END, bytes(10240), bytes(512), b"", pb.END + b"x"))
    if source.chance(3):
        tar = source.mutated(tar, (bytes(512), b"\x80", b"../", b"\x00", pb.header(b"in", 3)))
        if not source.chance(3):
            tar = checksums_mended(tar)
    return _packed(source, tar)


def checksums_mended(tar: bytes) -> bytes:
    """The same with the right checksum in every block that looks like a header."""
    blocks = [tar[at : at + pb.BLOCK] for at in range(0, len(tar), pb.BLOCK)]
    return b"".join(
        _mended(block) if len(block) == pb.BLOCK and block[257:262] == b"ustar" else block for block in blocks
    )


def _mended(block: bytes) -> bytes:
    return block[:148] + b"%06o\x00 " % (sum(block[:148]) + 8 * 32 + sum(block[156:])) + block[156:]


def _part(source: Source) -> bytes:
    match source.below(8):
        case 0 | 1 | 2:
            return _member(source)
        case 3:
            return pb.folder(_short_name(source))
        case 4:
            return pb.gnu_long_name(_name(source))
        case 5:
            return _pax(source)
        case 6:
            return pb.member(b"K", _name(source), kind=source.choice((b"K", b"g", b"L")))
        case _:
            return source.choice((bytes(512), b"\xff" * 512, pb.END, b""))


def _name(source: Source) -> bytes:
    match source.below(4):
        case 0 | 1:
            return source.choice(USUAL)
        case 2:
            return source.choice(NAMES)
        case _ if source.chance(2):
            return b"/".join(source.several(lambda: source.choice(NAMES), 4))
        case _:
            return source.take(source.below(20))


def _short_name(source: Source) -> bytes:
    return _name(source)[:100]


def _member(source: Source) -> bytes:
    content = bytes(40_000) if source.chance(16) else source.take(source.below(24)) * source.choice((1, 1, 40))
    at = source.below(len(KINDS))
    kind = KINDS[at : at + 1] if source.chance(3) else b"0"
    head = pb.header(
        _short_name(source),
        len(content) if not source.chance(8) else source.below(2000),
        kind,
        source.below(0o10000),
        link=source.choice((b"", b"", b"../outside", b"/etc/passwd")),
        magic=source.choice((pb.USTAR, pb.USTAR, pb.GNU, pb.V7)),
        prefix=_short_name(source) if source.chance(5) else b"",
        size_field=source.choice(NUMBER_FIELDS) if source.chance(10) else None,
    )
    return head + pb.padded(content)


def _pax(source: Source) -> bytes:
    if source.chance(4):
        records = b"".join(pb.pax_record(source.choice(KEYS), source.choice(SIZES)) for _ in range(2))
        return pb.pax(source.mutated(records, (b"=", b"\n", b" ", b"0")))
    key = source.choice(KEYS)
    value = source.choice(SIZES) if key == b"size" else _name(source)
    return pb.pax({key: value}, kind=source.choice((b"x", b"x", b"x", b"g")))


def _packed(source: Source, tar: bytes) -> bytes:
    match source.below(8):
        case 0 | 1 | 2 | 3:
            return gzip.compress(tar, compresslevel=source.choice((1, 0, 6)), mtime=0)
        case 4:  # the optional fields of a gzip header: extra, name, comment, checksum
            extra = struct.pack("<H", 2) + b"ab" + b"name\x00" + b"comment\x00"
            return pb.gzip_by_hand(tar, flags=source.choice((0, 4, 8, 28, 2, 255)), extra=source.choice((b"", extra)))
        case 5:
            crc, size = source.choice(((0, 0), (1, 0), (0, 1)))
            return pb.gzip_by_hand(tar, crc=crc, size=size) + source.choice((b"", b"\x00", pb.gzipped(b""), b"tail"))
        case 6:
            return source.mutated(pb.gzipped(tar), (b"\x1f\x8b", b"\x00" * 4))
        case _:
            raw = zlib.compressobj(1, zlib.DEFLATED, -15)
            first = raw.compress(tar) + raw.flush(zlib.Z_FULL_FLUSH)
            return pb.gzip_header() + first + source.choice((b"", b"\x03\x00", b"\x01\x00\x00\xff\xff", b"\x07"))
