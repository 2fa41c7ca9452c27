"""The forms in which a secret shows up in output: as it is, escaped, quoted, percent-encoded, in hex and in base64.

A form is a sequence of units, and a unit a few byte strings, one of which stands there: `/` is also written `\\/`. So
one form covers every mixture of an encoding's choices. How forms are found in a stream is `masking`'s.
"""

import binascii
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from .wire import exactjson
from .wire.masks import SHORTEST, text_of

Unit = tuple[bytes, ...]
LONGEST: Final = 16 * 1024
"""Bytes. A longer text is looked for in pieces of this size, else that much of the output would be held back."""
LONGEST_ENCODED: Final = 4 * 1024
"""Bytes. A longer text, of which there is no key or token, is looked for as it is and in base64 alone."""
MOST_ENCODED: Final = 16 * 1024
"""Bytes of texts of one secret that are looked for in encodings: a private key of RSA with 4096 bits is 3 KiB.

While the forms are made, which takes about 10 µs for a byte, the script's output isn't read and no time limit is kept.
"""
MOST_ENCODED_OF_ALL: Final = 64 * 1024
"""Bytes of texts of all secrets of an execution that are looked for in encodings; the shortest secrets come first."""
MOST_BASE64: Final = 256 * 1024
"""Bytes of a secret that is looked for in base64 as a whole."""
MAX_JSON: Final = 1 << 20
"""Characters of a secret that is read as JSON."""
MAX_CHOICES: Final = 12
"""Byte strings that one place of a form may be searched by."""
GOOD_ANCHOR: Final = 8
"""Bytes: a shorter string to search for turns up too often in innocent text."""
LONGEST_ANCHOR: Final = 32

_ASSIGNMENT: Final = re.compile(r"\s*(?:export\s+)?[A-Za-z_][A-Za-z0-9_.-]*\s*=\s*(.*?)\s*")
_BASH_QUOTES: Final = frozenset(" !\"#$&'()*,;<>?[]^`{|}~")
"""What bash writes a backslash before, in `printf %q`, `declare -p` or `$'…'`."""
_JSON_ESCAPES: Final = frozenset("\"&'+<>`\x7f")
"""ASCII that some writers of JSON write as \\u00xx."""
_SHORT_ESCAPES: Final = {
    "\a": (b"\\a",), "\b": (b"\\b",), "\t": (b"\\t",), "\n": (b"\\n",), "\v": (b"\\v",), "\f": (b"\\f",),
    "\r": (b"\\r",), "\x1b": (b"\\E", b"\\e"),
}  # fmt: skip
_HTML_NAMES: Final = {"&": b"&amp;", "<": b"&lt;", ">": b"&gt;", '"': b"&quot;", "'": b"&apos;"}
_HTML_ESCAPED: Final = frozenset("&<>\"'/`=")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_NEVER_IN_URLS: Final = frozenset('%"<>\\^`{|} ')


class Anchor(NamedTuple):
    """A byte string to search for. Where it is found, unit `at` of the form begins."""

    needle: bytes
    at: int


class Form(NamedTuple):
    """One form of a secret. Whatever it looks like, one of the anchors is in it."""

    units: tuple[Unit, ...]
    anchors: tuple[Anchor, ...]
    literal: bytes | None = None
    """The text itself, where this form is one of it that may look just like it."""
    bound: int = 0
    """What `longest` answers, where that is known without a look at each unit."""

    @property
    def longest(self) -> int:
        """Bytes it has at most."""
        return self.bound or sum(max(map(len, unit)) for unit in self.units)

    def find(self, seen: bytes, at: int, index: int) -> tuple[int, int] | None:
        """Where the form begins and ends whose unit `index` begins at `at`."""
        starts = {at}
        for unit in reversed(self.units[:index]):  # read backwards, more than one choice may fit: ` ` and `\\ `
            starts = {start - len(choice) for start in starts for choice in unit if seen.endswith(choice, 0, start)}
        for start in sorted(starts):
            end = self._end(seen, start)
            if end is not None:
                return start, end
        return None

    def _end(self, seen: bytes, at: int) -> int | None:
        """Where the form ends that begins there."""
        for unit in self.units:
            for choice in unit:
                if seen.startswith(choice, at):
                    at += len(choice)
                    break
            else:
                return None
        return at

    def begins_with(self, text: bytes) -> bool:
        """Whether the text is this form."""
        return self._end(text, 0) == len(text)

    def may_go_on(self, seen: bytes, at: int) -> bool:
        """Whether what begins at `at` is the beginning of the form, and more is needed to know."""
        for unit in self.units:
            left = len(seen) - at
            for choice in unit:
                if len(choice) > left:
                    if choice.startswith(seen[at:]):
                        return True
                elif seen.startswith(choice, at):
                    at += len(choice)
                    break
            else:
                return False
        return False

    def beginnings(self, size: int) -> set[bytes]:
        """Every way in which its first `size` bytes can look."""
        if len(self.units[0]) == 1 and len(self.units[0][0]) >= size:
            return {self.units[0][0][:size]}
        made = {b""}
        for unit in self.units:
            if all(len(each) >= size for each in made):
                break
            made = {each if len(each) >= size else each + choice for each in made for choice in unit}
        return {each[:size] for each in made}


def forms(secrets: Iterable[Any]) -> list[Form]:
    """All forms of all secrets. None is shorter than `masks.SHORTEST` characters."""
    found: dict[tuple[Unit, ...], Form] = {}
    room = MOST_ENCODED_OF_ALL
    for texts, whole in sorted(map(_texts_and_whole, secrets), key=_size):
        made, used = _forms_of(texts, whole, min(room, MOST_ENCODED))
        room -= used
        for form in made:
            found.setdefault(form.units, form)
    return list(found.values())


def texts(secret: Any) -> list[bytes]:
    """The texts that give a secret away, as they are. No form of one is shorter than it."""
    return [_bytes(text) for text in dict.fromkeys(_texts(secret))]


def _texts_and_whole(secret: Any) -> tuple[list[str], str]:
    return list(dict.fromkeys(_texts(secret))), secret if isinstance(secret, str) else ""


def _size(of: tuple[list[str], str]) -> int:
    return sum(map(len, of[0]))


def _forms_of(texts: list[str], whole: str, room: int) -> tuple[list[Form], int]:
    """The forms of one secret, and how many bytes of its texts have encoded ones: at most `room`."""
    made: list[Form] = []
    used = 0
    wholes = [whole] if len(whole) <= LONGEST_ENCODED else [whole, whole.strip()]  # with the line ends in it
    for each in dict.fromkeys(wholes):
        if SHORTEST <= len(each) <= MOST_BASE64:
            made += _base64_forms(_bytes(each))
    for text in texts:
        raw = _bytes(text)
        encoded: list[Form] = []
        if len(raw) <= LONGEST_ENCODED and used + len(raw) <= room:
            used += len(raw)
            encoded = [*_encoded(text, raw), *_base64_forms(raw)]
        made += encoded
        if not any(form.literal == raw for form in encoded):
            made += (_searched(((piece,),), piece) for piece in _pieces(raw, LONGEST))
    return made, used


def _base64_forms(value: bytes) -> Iterator[Form]:
    for certain in _in_base64(value):
        for piece in _pieces(certain, LONGEST):
            looks = list(dict.fromkeys((piece, piece.translate(_URL_SAFE))))
            yield _wrapped([_BASE64_UNITS[byte] for byte in piece], 20, looks, 1)


def _texts(secret: Any, depth: int = 3) -> Iterator[str]:
    """The texts that give a secret away: its lines, and the values in it where it is JSON or KEY=VALUE lines."""
    if isinstance(secret, dict | list):
        for inner in secret.values() if isinstance(secret, dict) else secret:
            yield from _texts(inner, depth)
        return
    whole = text_of(secret)
    parts = [part for part in (line.strip() for line in whole.splitlines()) if part]
    lines = [part for part in parts if len(part) >= SHORTEST]
    yield from lines
    if lines != parts and len(whole.strip()) >= SHORTEST:
        yield whole.strip()  # some lines are too short for a mask of their own; all of them together are not
    if depth:
        for inner in _values_in(whole, parts):
            yield from _texts(inner, depth - 1)


def _values_in(whole: str, lines: list[str]) -> Iterator[Any]:
    if whole.lstrip()[:1] in ("{", "[", '"') and len(whole) <= MAX_JSON:
        try:
            found = exactjson.loads(whole)
        except ValueError:  # and no assignment begins so
            return
        yield found
        return
    assigned = [_ASSIGNMENT.fullmatch(line) for line in lines if not line.startswith("#")]
    for match in assigned if all(assigned) else ():
        assert match is not None
        value = match[1]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
            yield re.sub(r"\\(.)", r"\1", value)
        yield value


def _bytes(text: str) -> bytes:
    """A text as a script's output has it. One from the environment may have bytes that are no UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _pieces(value: bytes, size: int) -> Iterator[bytes]:
    """The value, or pieces of one that is long; none of them is too short."""
    while len(value) >= size + SHORTEST:
        yield value[:size]
        value = value[size:]
    yield value


# Encodings


def _encoded(text: str, raw: bytes) -> Iterator[Form]:
    for units_of in (_escaped, _single_quoted, _in_url, _in_html):
        units = _joined(map(units_of, text))
        if len(units) > 1 or len(units[0]) > 1 or units[0][0] != raw:
            yield _searched(units, raw)
    lower, upper = raw.hex(), raw.hex().upper()
    for digits in dict.fromkeys((lower, upper)):
        units_of_hex = [_hex_unit(digits[at : at + 2], b"") for at in range(0, len(digits), 2)]
        yield _wrapped(units_of_hex, 8, [digits.encode()], 2)
    spaced = [_hex_unit(lower[at : at + 2], b" ") for at in range(0, len(lower), 2)]
    yield _wrapped(spaced, 8, [raw.hex(" ").encode()], 3, 1)


@functools.lru_cache(maxsize=4096)
def _escaped(character: str) -> Unit:
    """By a backslash: JSON, `printf %q`, `declare -p`, `$'…'`, a C or Python literal."""
    if character == "\\":
        return (b"\\\\", *_unicode_escapes(character))
    if character < "\x7f" and (character.isalnum() or character not in _ESCAPED_ASCII):
        return (character.encode(),)
    raw = _bytes(character)
    choices: list[bytes] = [raw, *_SHORT_ESCAPES.get(character, ())]
    if character in _BASH_QUOTES or character == "/":
        choices.append(b"\\" + raw)
    if character in _JSON_ESCAPES or not " " <= character < "\x7f":
        choices += _unicode_escapes(character)
    if not " " <= character < "\x7f":
        choices += [
            "".join(f"\\{byte:03o}" for byte in raw).encode(),
            "".join(f"\\x{byte:02x}" for byte in raw).encode(),
        ]
    return tuple(dict.fromkeys(choices))


_ESCAPED_ASCII: Final = _BASH_QUOTES | _JSON_ESCAPES | frozenset("/") | frozenset(map(chr, range(32)))


def _unicode_escapes(character: str) -> tuple[bytes, ...]:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    halves = [units[at : at + 4] for at in range(0, len(units), 4)]
    lower = "".join(f"\\u{half}" for half in halves).encode()
    upper = "".join(f"\\u{half.upper()}" for half in halves).encode()
    return (lower,) if lower == upper else (lower, upper)


def _single_quoted(character: str) -> Unit:
    """Between single quotes, as `set -x` and Python's shlex.quote write it."""
    return (b"'\\''", b"'\"'\"'") if character == "'" else (_bytes(character),)


@functools.lru_cache(maxsize=4096)
def _in_url(character: str) -> Unit:
    """Percent-encoded, with any choice of the characters that an encoder may leave as they are."""
    if character in _UNRESERVED:
        return (character.encode(),)
    raw = _bytes(character)
    upper = "".join(f"%{byte:02X}" for byte in raw).encode()
    choices = [upper, upper.lower()]
    if character == " ":
        choices.append(b"+")
    elif " " < character < "\x7f" and character not in _NEVER_IN_URLS:
        choices.append(raw)
    return tuple(dict.fromkeys(choices))


@functools.lru_cache(maxsize=4096)
def _in_html(character: str) -> Unit:
    """As HTML and XML have it in text and attributes."""
    if character < "\x80" and character not in _HTML_ESCAPED:
        return (_bytes(character),)
    number = ord(character)
    choices = [
        f"&#{number};".encode(),
        f"&#{number:03};".encode(),
        f"&#x{number:x};".encode(),
        f"&#x{number:X};".encode(),
    ]
    if character in _HTML_NAMES:
        choices.append(_HTML_NAMES[character])
    if character not in "&<":
        choices.append(_bytes(character))
    return tuple(dict.fromkeys(choices))


@functools.cache
def _hex_unit(digits: str, between: bytes) -> Unit:
    """Two digits, after the line end that `xxd -p` and `od` put between any two bytes."""
    plain = between + digits.encode()
    return (b"\n" + plain, plain) if not between else (b"\n" + plain, b"\n" + digits.encode(), plain)


_BASE64_UNITS: Final = {
    byte: tuple(end + bytes([each]) for end in (b"\r\n", b"\n", b"") for each in choices)
    for choices in (*(bytes([byte]) for byte in range(256) if byte not in b"+/-_"), b"+-", b"/_")
    for byte in choices[:1]
}
"""A character of base64: in either alphabet, after a line end or not."""

_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


def _in_base64(value: bytes) -> Iterator[bytes]:
    """The characters that the value decides alone, for each of the three places it can begin at in a longer text."""
    for offset in range(3):
        encoded = binascii.b2a_base64(bytes(offset) + value, newline=False)
        # A character holds six bits; those that also hold bits of a neighbour are left out.
        yield encoded[-(-8 * offset // 6) : 8 * (offset + len(value)) // 6]


# Units


def _joined(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Joins neighbouring units that have one choice each."""
    made: list[Unit] = []
    plain: list[bytes] = []
    for unit in units:
        if len(unit) == 1:
            plain += unit
            continue
        if plain:
            made.append((b"".join(plain),))
            plain = []
        made.append(unit)
    return (*made, (b"".join(plain),)) if plain else tuple(made)


def _searched(units: tuple[Unit, ...], text: bytes) -> Form:
    """The form of the text, to be searched for by the few units that cost least."""
    if units == ((text,),):
        return Form(units, (Anchor(text[:LONGEST_ANCHOR], 0),), text)
    best, best_cost = range(1), float("inf")
    for first in range(min(len(units), 24)):
        for last in range(first + 1, min(len(units), first + 12) + 1):
            made = _choices(units, range(first, last))
            if made is None:
                break
            shortest = min(map(len, made))
            cost = sum(1 / min(len(each), LONGEST_ANCHOR) for each in made) + max(0, GOOD_ANCHOR - shortest)
            if cost < best_cost:
                best, best_cost = range(first, last), cost
            if shortest >= LONGEST_ANCHOR:
                break
    needles = _choices(units, best) or units[0]
    anchors = tuple(Anchor(needle[:LONGEST_ANCHOR], best.start) for needle in dict.fromkeys(needles))
    form = Form(units, anchors, text)
    return form if form.begins_with(text) else form._replace(literal=None)


def _choices(units: tuple[Unit, ...], where: range) -> list[bytes] | None:
    """Everything that those units can be together; None when that is too much."""
    count = 1
    for index in where:
        count *= len(units[index])
        if count > MAX_CHOICES:
            return None
    return [b"".join(parts) for parts in itertools.product(*units[where.start : where.stop])]


def _wrapped(units: list[Unit], size: int, looks: list[bytes], width: int, lead: int = 0) -> Form:
    """A form that has line ends in it, but not close together: of two places side by side one has none.

    `looks` is the form without a line end, in each alphabet: `width` bytes for a unit, `lead` fewer for the first.
    """
    units[0] = tuple(dict.fromkeys(choice.lstrip() for choice in units[0]))
    size = min(size, len(units) // 2)
    anchors = [
        Anchor(look[max(0, start * width - lead) : (start + size) * width - lead], start)
        for start in (0, size)
        for look in looks
    ]
    return Form(tuple(units), tuple(dict.fromkeys(anchors)), bound=len(units) * max(map(len, units[-1])))
