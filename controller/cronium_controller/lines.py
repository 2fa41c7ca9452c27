"""Output of many hosts at once, made readable: whole lines with the host in front, or equal outputs folded into one.

Bytes in, bytes out. Which stream they go to, and in what colour, is the caller's matter.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from cronium_runner.wire.names import STDERR, STDOUT

LONGEST_LINE: Final = 64 * 1024
"""Bytes. A longer line is shown in pieces: a host that never ends its line must not fill our memory."""
FOLDED_BYTES: Final = 1024 * 1024
"""Bytes of each stream of a host that are shown folded. All are compared; the host has the rest (`cronium logs`)."""

FOLDED_ROOM: Final = 64 * 1024 * 1024
"""Bytes of all different outputs together that are shown folded. When they are used up, later ones are cut at once."""


BAR: Final = "-" * 15
"""Above and below the hosts of a folded output."""


_LIKE_BAR: Final = re.compile(rb"^(?=-{%d,}[ \t\r]*$)" % len(BAR), re.MULTILINE)


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
    """Hosts whose outputs are equal, and that ended alike."""

    hosts: list[str]
    ending: str
    output: bytes
    is_cut: bool


class _Kept:
    """One stream of one host: its beginning, and what tells it from others."""

    def __init__(self) -> None:
        self.beginning = bytearray()
        self._length = 0
        self._digest = hashlib.sha256()

    def take(self, piece: bytes, room: int) -> int:
        """Keeps what there is `room` for; how much that was."""
        self._length += len(piece)
        self._digest.update(piece)
        kept = piece[: max(0, min(room, FOLDED_BYTES - len(self.beginning)))]
        self.beginning += kept
        return len(kept)

    @property
    def is_cut(self) -> bool:
        return self._length > len(self.beginning)

    @property
    def identity(self) -> bytes:
        return self._digest.digest() if self._length else b""


class Folder:
    """Groups hosts by what they printed. Keeps one copy of each different output.

    What a host wrote to standard output comes before what it wrote to standard error: which came first of two streams
    is chance, and two hosts that wrote the same must not differ by it.
    """

    def __init__(self, room: int = FOLDED_ROOM) -> None:
        """`room` is how many bytes of all outputs together are kept."""
        self._room = room
        self._open: dict[str, dict[int, _Kept]] = {}
        self._folds: dict[tuple[bytes, bytes, str], Fold] = {}

    def has_heard(self, host: str) -> bool:
        """Whether a host that has not ended printed anything."""
        return host in self._open

    def feed(self, host: str, stream: int, piece: bytes) -> None:
        """Takes output of a host."""
        self._room -= self._open.setdefault(host, {}).setdefault(stream, _Kept()).take(piece, self._room)

    def end(self, host: str, ending: str) -> None:
        """The host has ended, in this way; its output is compared with the others' now."""
        streams = self._open.pop(host, {})
        kept = [streams.get(stream) or _Kept() for stream in (STDOUT, STDERR)]
        key = (kept[0].identity, kept[1].identity, ending)
        if key not in self._folds:
            output = b"".join(_whole(bytes(each.beginning)) for each in kept)
            self._folds[key] = Fold([], ending, output, any(each.is_cut for each in kept))
        else:
            self._room += sum(len(each.beginning) for each in kept)
        self._folds[key].hosts.append(host)

    def folds(self) -> Iterable[Fold]:
        """The groups, the largest first."""
        return sorted(self._folds.values(), key=lambda fold: (-len(fold.hosts), fold.hosts[0]))


def without_bars(output: bytes) -> bytes:
    """Output in which no line can be taken for the bar around another host's name: a space stands in front of it."""
    return _LIKE_BAR.sub(b" ", output) if BAR.encode() in output else output


def _whole(output: bytes) -> bytes:
    """With an end of its last line, or what follows would stand on it."""
    return output if not output or output.endswith(b"\n") else output + b"\n"
