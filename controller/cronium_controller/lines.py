"""Output of many hosts at once, made readable: whole lines with the host in front, or equal outputs folded into one.

Bytes in, bytes out. Which stream they go to, and in what colour, is the caller's matter.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

LONGEST_LINE: Final = 64 * 1024
"""Bytes. A longer line is shown in pieces: a host that never ends its line must not fill our memory."""
FOLDED_BYTES: Final = 1024 * 1024
"""Bytes of one host's output that are compared and shown folded; the host has the rest (`cronium logs`)."""


class Prefixer:
    """Cuts one stream of one host into whole lines and puts `prefix` in front of each."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._pending = bytearray()

    def feed(self, piece: bytes) -> bytes:
        """The lines that `piece` completes."""
        self._pending += piece
        end = self._pending.rfind(b"\n") + 1
        if end == 0 and len(self._pending) < LONGEST_LINE:
            return b""
        whole, self._pending = self._pending[: end or None], self._pending[end:] if end else bytearray()
        return self._prefixed(bytes(whole))

    def flush(self) -> bytes:
        """What was left without an end of line; it gets one, or the next host's line would follow on it."""
        rest, self._pending = bytes(self._pending), bytearray()
        return self._prefixed(rest)

    def _prefixed(self, lines: bytes) -> bytes:
        """One replacement for all lines of a block: looking at each of them costs ten times as much."""
        if not lines:
            return b""
        body = lines.removesuffix(b"\n")
        return self._prefix + body.replace(b"\n", b"\n" + self._prefix) + b"\n"


class PrefixedLines:
    """The same for all streams of all hosts; `label` is what goes in front."""

    def __init__(self) -> None:
        self._prefixers: dict[str, dict[int, Prefixer]] = {}

    def feed(self, label: str, stream: int, piece: bytes) -> bytes:
        """The lines that `piece` completes."""
        streams = self._prefixers.setdefault(label, {})
        if stream not in streams:
            streams[stream] = Prefixer(f"{label}: ".encode())
        return streams[stream].feed(piece)

    def end(self, label: str) -> Iterator[tuple[int, bytes]]:
        """What is left of the streams of one that has ended."""
        for stream, prefixer in self._prefixers.pop(label, {}).items():
            yield stream, prefixer.flush()


class Fold(NamedTuple):
    """Hosts whose outputs and exit status are equal."""

    hosts: list[str]
    exit_status: int
    output: bytes
    is_cut: bool


class Folder:
    """Groups hosts by what they printed. Keeps one copy of each different output."""

    def __init__(self) -> None:
        self._open: dict[str, bytearray] = {}
        self._lengths: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._folds: dict[tuple[bytes, int], Fold] = {}

    def feed(self, host: str, piece: bytes) -> None:
        """Takes output of a host, both streams as they come."""
        kept = self._open.setdefault(host, bytearray())
        self._digests.setdefault(host, hashlib.sha256()).update(piece)
        self._lengths[host] = self._lengths.get(host, 0) + len(piece)
        kept += piece[: max(0, FOLDED_BYTES - len(kept))]

    def end(self, host: str, exit_status: int) -> None:
        """The host has ended; its output is compared with the others' now."""
        kept = bytes(self._open.pop(host, b""))
        is_cut = self._lengths.pop(host, 0) > len(kept)
        digest = self._digests.pop(host, None)
        key = (digest.digest() if digest else b"", exit_status)
        fold = self._folds.setdefault(key, Fold([], exit_status, kept, is_cut))
        fold.hosts.append(host)

    def folds(self) -> Iterable[Fold]:
        """The groups, the largest first."""
        return sorted(self._folds.values(), key=lambda fold: (-len(fold.hosts), fold.hosts[0]))
