"""Secret values in a stream of bytes become `***`, also when they are split across reads, in base64, or in JSON.

A stream filter and nothing else: it knows no files and no executions. It holds back the end of what it has seen while
that could be the beginning of a secret; `flush` lets it go.
"""

import binascii
import re
from collections.abc import Iterable
from typing import Any, Final

from .output import Spool
from .wire import exactjson
from .wire.masks import SHORTEST, text_of
from .wire.results import StreamSummary

MASK: Final = b"***"
LONGEST: Final = 16 * 1024
"""Bytes. A longer value is looked for in pieces of this size, else that much of the output would be held back."""

_URLSAFE: Final = bytes.maketrans(b"+/", b"-_")


class Masker:
    """Replaces the given secrets. One for each stream."""

    def __init__(self, secrets: Iterable[Any], *, held: bytes = b"") -> None:
        self._patterns = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._found = re.compile(b"|".join(map(re.escape, self._patterns))) if self._patterns else None
        self._first_bytes = {pattern[0] for pattern in self._patterns}
        self._longest = max(map(len, self._patterns), default=0)
        self.held = held
        """What was seen and not yet let go."""

    def __repr__(self) -> str:
        return f"<Masker of {len(self._patterns)} patterns, {len(self.held)} bytes held>"

    def feed(self, piece: bytes) -> bytes:
        """What can be let go after `piece`, secrets replaced."""
        if self._found is None:
            return piece
        seen = self.held + piece
        end = self._begin_of_prefix(seen)
        parts = []
        start = 0
        # The longest pattern comes first in the expression, so of two that begin at one place the longer one is found.
        for match in self._found.finditer(seen):
            if match.start() >= end:
                break
            parts += [seen[start : match.start()], MASK]
            start = match.end()
        end = max(start, end)
        parts.append(seen[start:end])
        self.held = seen[end:]
        return b"".join(parts)

    def flush(self) -> bytes:
        """The rest, when nothing more will come."""
        rest, self.held = self.held, b""
        return rest if self._found is None else self._found.sub(MASK, rest)

    def _begin_of_prefix(self, seen: bytes) -> int:
        """Where the earliest end of `seen` begins that a pattern could go on from."""
        for start in range(max(0, len(seen) - self._longest + 1), len(seen)):
            if seen[start] in self._first_bytes:
                tail = seen[start:]
                if any(len(pattern) > len(tail) and pattern.startswith(tail) for pattern in self._patterns):
                    return start
        return len(seen)


class MaskedSpool:
    """A spool that secrets do not reach."""

    def __init__(self, spool: Spool, masker: Masker) -> None:
        self._spool = spool
        self._masker = masker

    @property
    def error(self) -> OSError | None:
        """What the disk refused."""
        return self._spool.error

    def write(self, piece: bytes) -> None:
        """Adds a piece, masked."""
        self._spool.write(self._masker.feed(piece))

    def masking(self, secrets: Iterable[Any]) -> "MaskedSpool":
        """The same spool, masking these from here on: for a script that has given a secret a new value."""
        return MaskedSpool(self._spool, Masker(secrets, held=self._masker.held))

    def close(self) -> StreamSummary:
        """Makes what was kept durable and says what it is."""
        if held := self._masker.flush():  # an empty stream is no file
            self._spool.write(held)
        return self._spool.close()


def masked(spool: Spool | MaskedSpool, secrets: Iterable[Any]) -> MaskedSpool:
    """The spool, masking these from here on."""
    return spool.masking(secrets) if isinstance(spool, MaskedSpool) else MaskedSpool(spool, Masker(secrets))


def _forms(secret: Any) -> Iterable[bytes]:
    """The byte strings that give a secret away: each of its lines as it is, as JSON writes it, and in base64."""
    if isinstance(secret, dict | list):
        for inner in secret.values() if isinstance(secret, dict) else secret:
            yield from _forms(inner)
        return
    whole = text_of(secret).encode("utf-8", "surrogatepass")
    parts = [part for part in map(bytes.strip, whole.splitlines()) if part]
    lines = [part for part in parts if _is_long_enough(part)]
    texts = set(lines)
    if lines != parts and _is_long_enough(whole.strip()):
        texts.add(whole.strip())  # some lines are too short for a mask of their own; all of them together are not
    for text in texts:
        yield from _pieces(text)
        escaped = exactjson.encode(text.decode("utf-8", "surrogatepass"))[1:-1]
        if escaped != text:
            yield from _pieces(escaped)
    for value in {whole, *lines} if _is_long_enough(whole) else ():
        yield from _in_base64(value)


def _is_long_enough(value: bytes) -> bool:
    return len(value) >= SHORTEST and len(value.decode("utf-8", "replace")) >= SHORTEST


def _pieces(value: bytes) -> Iterable[bytes]:
    """The value, or pieces of one that is long; none of them is too short."""
    while len(value) >= LONGEST + SHORTEST:
        yield value[:LONGEST]
        value = value[LONGEST:]
    yield value


def _in_base64(value: bytes) -> Iterable[bytes]:
    """The characters that the value decides alone, for each of the three places it can begin at in a longer text."""
    for offset in range(3):
        encoded = binascii.b2a_base64(bytes(offset) + value, newline=False)
        # A character holds six bits; those that also hold bits of a neighbour are left out.
        certain = encoded[-(-8 * offset // 6) : 8 * (offset + len(value)) // 6]
        if len(certain) < SHORTEST:
            continue
        for piece in _pieces(certain):
            yield piece
            urlsafe = piece.translate(_URLSAFE)
            if urlsafe != piece:
                yield urlsafe
