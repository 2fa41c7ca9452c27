"""Foreign text, made safe to stand in a sentence, a table or a prefixed line: no control reaches the terminal.

Foreign is everything that a server, a host, a script, a file or another program has chosen. Controls are shown the way
vis(3) does, as visible escapes: a newline is `\\n`, an escape character `\\x1b`. Backslashes stay single, so text that
is clean already is not changed, however often it is cleaned.

Every command and agent imports this, and most texts are printable ASCII: an expression is compiled, and `re` imported,
when a text needs one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import re

LONGEST: Final = 2000
"""Characters of a message: room for a path of PATH_MAX in an error of the usual length, without filling a screen."""
LONGEST_WORDS: Final = 400
"""Characters of what a program or server printed; the reason is in a line or two."""
MARK: Final = "…"
"""Stands where something was cut off."""

# Categories Cc, Cf, Cs, Zl and Zp, and what Unicode calls Default_Ignorable_Code_Point, except for the variation
# selectors U+FE00 to U+FE0F: emoji consist of them, and they change nothing but the character before. Written out
# because unicodedata differs from one Python to the next.
_INVISIBLE: Final = (
    "\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\uffff\U000110bd\U000110cd\U00013430-\U0001345f"
    "\U0001bca0-\U0001bcaf\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_CONTROLS: Final = "\x00-\x1f\x7f-\x9f"
_CONTROLS_IN_LINES: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"
"""All but the tab and the end of a line."""
_PLAIN_BYTES: Final = bytes([9, 10, *range(32, 127)])
"""ASCII without those."""
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def clean(text: str | bytes, longest: int = LONGEST) -> str:
    """One line without any control or invisible character, of at most `longest` characters.

    White space around it is removed. What is cut off at the end is marked by MARK. Bytes are read as UTF-8; those that
    are not are shown as escapes.
    """
    if isinstance(text, bytes):
        text = _decoded(text.strip()[: 4 * longest + 4])
    return visible(text.strip(), longest)


def visible(line: str, longest: int = LONGEST) -> str:
    """As `clean`, with the white space around it: for a line of ours that has foreign text in it."""
    shown = _escaped(line[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - len(MARK)] + MARK


def last_words(printed: str | bytes, longest: int = LONGEST_WORDS) -> str:
    """The end of what a program printed, as one line: each run of white space is one space, the rest as `clean`."""
    text = _decoded(printed[-8 * longest :])
    shown = _escaped(" ".join(text.split()))
    is_whole = len(shown) <= longest and len(printed) <= 8 * longest
    return shown if is_whole else MARK + shown[max(0, len(shown) - longest + len(MARK)) :]


def clean_lines(output: bytes) -> bytes:
    """Lines of output in which nothing moves the cursor but a tab and the end of a line; all else is escaped.

    An end of line `\\r\\n` becomes `\\n`. For output that shares a terminal with that of other hosts.
    """
    if output.isascii() and not output.translate(None, _PLAIN_BYTES):
        return output
    text = _decoded(output).replace("\r\n", "\n")
    return _unsafe(_CONTROLS_IN_LINES).sub(_escape, text).encode()


def clean_json(document: str) -> str:
    """The same JSON document, its controls and invisible characters as `\\u` escapes: every value is what it was."""
    if document.isascii() and document.isprintable():
        return document
    return _unsafe(_CONTROLS).sub(lambda found: _json_escape(found.group()), document)


def is_clean_json(document: bytes) -> bool:
    """Whether no text in a JSON document needs cleaning: a quick look, which may say no where all is well."""
    if not document.isascii() or b"\\" in document or b"\x7f" in document:
        return False
    return len(document) <= LONGEST or max(map(len, document.split(b'"'))) <= LONGEST


def clean_values(value: Any, document: bytes = b"\\") -> Any:
    """A value of JSON with every text in it cleaned, keys included, but for what a script handed back.

    That is under `output` and `variables`, and stays exact. `document` is what the value was read from: with one that
    is clean nothing is copied.
    """
    if is_clean_json(document):
        return value
    whole = [value]
    left: list[tuple[Any, Any, Any]] = [(whole, 0, value)]
    """Texts and containers, and where the clean one is to go. No recursion: the other side chooses the depth."""
    while left:
        place, key, item = left.pop()
        if isinstance(item, str):
            place[key] = clean(item)
        elif isinstance(item, list):
            place[key] = items = list(item)
            left += [(items, number, each) for number, each in enumerate(items)]
        elif isinstance(item, dict):
            named = {clean(name): (each, name in _EXACT) for name, each in item.items()}
            place[key] = values = {name: each for name, (each, _) in named.items()}
            left += [(values, name, each) for name, (each, is_exact) in named.items() if not is_exact]
    return whole[0]


_EXACT: Final = ("output", "variables")


@functools.cache
def _unsafe(controls: str) -> re.Pattern[str]:
    import re

    return re.compile(f"[{controls}{_INVISIBLE}]")


def _escaped(line: str) -> str:
    return line if line.isascii() and line.isprintable() else _unsafe(_CONTROLS).sub(_escape, line)


def _decoded(text: str | bytes) -> str:
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else text


def _json_escape(character: str) -> str:
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    return f"\\u{0xD800 + ((code - 0x10000) >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _escape(found: re.Match[str]) -> str:
    character = found.group()
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
