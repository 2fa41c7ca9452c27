"""Turns the bytes that a fuzzer invents into structure: numbers, choices, texts, JSON, and mutations of good input.

Both engines, hypothesis and atheris, drive the same bytes, so what one finds the other can repeat. When the bytes are
used up, every draw is the smallest there is, so each input ends by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TEXTS = (
    "", "a", "v1", "script.sh", "A=b", "<<", "null", "1:30", "-", "--", "é", "\U0001f600", "\x00", "\n", "\x1b[2J",
    "../x", "/etc/passwd", "a\u2028b", "\ud800", "0" * 30, "*" * 12,
)  # fmt: skip
"""What is special to somebody: a parser, a terminal, a file system."""

NUMBERS = (0, 1, -1, 2, 6, 127, 255, 4096, 86_400, 86_401, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, 0.5, 1.5, 1e300)


class Source:
    """Draws values from `data`, from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether everything was drawn."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        if self.is_empty:
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, limit: int) -> int:
        """0 to `limit` - 1."""
        drawn = self.byte() if limit <= 256 else int.from_bytes(self.take(4 if limit <= 2**32 else 9))
        return drawn % limit

    def chance(self, of: int) -> bool:
        """True once in `of` times, never when the bytes are used up."""
        return self.byte() % of == of - 1

    def choice(self, of: Sequence[T]) -> T:
        """One of them; the first is the simplest."""
        return of[self.below(len(of))]

    def take(self, size: int) -> bytes:
        """Up to `size` bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def text(self) -> str:
        """A special text, or a short one of any characters."""
        if self.chance(2):
            return self.choice(TEXTS)
        return self.take(self.below(12)).decode("utf-8", "replace")

    def several(self, draw: Callable[[], T], most: int) -> list[T]:
        """A list of up to `most`; it ends with the bytes."""
        return [draw() for _ in range(self.below(most + 1)) if not self.is_empty]

    def json(self, depth: int = 3) -> Any:
        """A JSON value, also ones that no UTF-8 can carry."""
        match self.below(9 if depth else 6):
            case 0:
                return None
            case 1:
                return self.chance(2)
            case 2:
                return self.choice(NUMBERS)
            case 3:
                return self.byte()
            case 4 | 5:
                return self.text()
            case 6 | 7:
                return {self.text(): self.json(depth - 1) for _ in range(self.below(4))}
            case _:
                return self.several(lambda: self.json(depth - 1), 3)

    def mutated(self, content: bytes, tokens: Sequence[bytes] = ()) -> bytes:
        """The content with a few bytes flipped, cut out, doubled, or replaced by one of the tokens."""
        for _ in range(self.below(4)):
            at = self.below(len(content) + 1)
            match self.below(6):
                case 0:
                    content = content[:at] + bytes([self.byte()]) + content[at + 1 :]
                case 1:
                    content = content[:at] + content[at + self.below(64) :]
                case 2:
                    content = content[:at] + content[at : at + self.below(64)] + content[at:]
                case 3:
                    content = content[:at] + self.take(self.below(8)) + content[at:]
                case 4 if tokens:
                    if self.chance(2):  # where a line begins, if there are lines
                        at = content.rfind(b"\n", 0, at) + 1
                    content = content[:at] + self.choice(tokens) + content[at:]
                case _:
                    content = content[:at]
        return content

    def cut(self, content: bytes, most: int = 8) -> list[bytes]:
        """The content in pieces, empty ones included."""
        cuts = sorted(self.below(len(content) + 1) for _ in range(self.below(most)))
        return [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
