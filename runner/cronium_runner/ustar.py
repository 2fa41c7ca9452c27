"""Writes tar archives: headers in, bytes out. No I/O.

The standard library's tarfile is not in the binary, which needs next to nothing of it. What we write is what every
tar reads: regular files, folders and symbolic links, no owners and no times, so that equal content gives equal bytes.
Reading foreign archives is `archive`'s, and much stricter.
"""

from typing import Final

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
"""Two empty blocks end an archive."""

_NAME_BYTES: Final = 100
"""What a header has room for; a longer name travels in front, as GNU tar has it."""


def file_header(name: str, size: int, mode: int) -> bytes:
    """What stands in front of a file's `size` bytes; `padding` goes behind them."""
    return _long_name(name) + _header(name, b"0", size, mode)


def folder(name: str) -> bytes:
    """A folder, whole: what a file's name implies needs none."""
    return _long_name(f"{name}/") + _header(f"{name}/", b"5", 0, 0o755)


def link(name: str, target: str) -> bytes:
    """A symbolic link, whole. Raises ValueError for a target that is too long for a header."""
    if len(target.encode()) > _NAME_BYTES:
        raise ValueError(f"the link target {target!r} is too long")
    return _long_name(name) + _header(name, b"2", 0, 0o777, target)


def padding(size: int) -> bytes:
    """What fills the last block of a file of `size` bytes."""
    return bytes(-size % BLOCK)


def _long_name(name: str) -> bytes:
    raw = _raw(name)
    if len(raw) <= _NAME_BYTES:
        return b""
    content = raw + b"\0"
    return _header("././@LongLink", b"L", len(content), 0o644) + content + padding(len(content))


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # as os.fsencode does where file names are UTF-8


def _header(name: str, kind: bytes, size: int, mode: int, target: str = "") -> bytes:
    fields = b"".join(
        (
            _raw(name)[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0"),
            _octal(mode, 8),
            _octal(0, 8),  # owner and group: nobody in particular
            _octal(0, 8),
            _octal(size, 12),
            _octal(0, 12),  # time
            b" " * 8,  # the checksum counts itself as spaces
            kind,
            target.encode().ljust(_NAME_BYTES, b"\0"),
            b"ustar  \0",  # GNU's form, which knows long names
        )
    ).ljust(BLOCK, b"\0")
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)
