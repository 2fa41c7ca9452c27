"""Counts of bytes as a person reads them, the same in both command lines."""


def readable(count: int) -> str:
    """In the unit that suits it: 1 byte, 512 bytes, 21.5 kB, 3.2 MB, 10.7 GB. `count` in bytes, not negative."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return "1 byte" if count == 1 else f"{count} bytes"
