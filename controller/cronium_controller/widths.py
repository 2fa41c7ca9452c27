"""How many columns text takes on a terminal, which is not how many characters it has: 日 takes two, an accent none.

Names of hosts may be in any script (`hosts_file`), and tables of them have to stand straight.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from cronium_runner.wire.text import visible


def width(text: str) -> int:
    """The columns that a line of text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def padded(text: str, columns: int) -> str:
    """With spaces behind it, up to so many columns."""
    return text + " " * (columns - width(text))


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row, its cells below those of the others and without controls, wherever they come from."""
    rows = [[visible(cell) for cell in row] for row in rows]
    columns = [max(map(width, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(padded, row, columns)).rstrip()


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
