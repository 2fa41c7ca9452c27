"""JSON that comes back as it went in: every digit of a number kept, compact, UTF-8, and nothing that is not JSON.

Python's own `json` turns 12345678901234567890123.10 into a float, writes NaN, and lets unpaired surrogates and
bottomless nesting through to where they crash later. Here a number that Python's types cannot give back as
written becomes a `NumberLiteral`, and the rest is refused at the door. Input from outside is read with `loads`;
what it returned can always be written by `encode`. No files and no sockets here.
"""

from collections.abc import Callable, Iterable
from json import JSONDecodeError, JSONDecoder, JSONEncoder
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any, Final, NoReturn

# Half of the interpreter's recursion limit (1000), which writing shares with what calls it.
MAX_DEPTH: Final = 500
# Of one value of a job. A frame and a result wrap a few objects around it and must be readable as well.
MAX_VALUE_DEPTH: Final = 480

# int() refuses more digits than this (CPython's guard against quadratic time), and `-0` has no int.
_INT_DIGITS: Final = 4300


class NotJSONError(ValueError):
    """The text is not JSON."""


class UnsupportedJSONError(ValueError):
    """JSON by its grammar, but nothing we carry: nested too deeply, an unpaired surrogate, not UTF-8."""


class NumberLiteral:
    """A number whose digits no Python number gives back: `1.10`, `1e5`, `-0`, 12345678901234567890123.5.

    `text` is the number as written. Whoever wants to compute takes `float(literal)`.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __float__(self) -> float:
        return float(self.text)

    def __repr__(self) -> str:
        return f"NumberLiteral({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberLiteral) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def loads_value(source: bytes | str) -> Any:
    """Like `loads`, for a value that will be part of a frame and of a result: input, event, output, variable."""
    return loads(source, depth=MAX_VALUE_DEPTH)


def number(text: str) -> "int | float | NumberLiteral":
    """The number that a JSON text is; `text` is in JSON's grammar."""
    return _integer(text) if text.lstrip("-").isdecimal() else _real(text)


def loads(source: bytes | str, *, depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text, nested at most `depth` levels deep.

    Raises `NotJSONError` or `UnsupportedJSONError`, both with one clear sentence.
    """
    try:
        if isinstance(source, bytes):
            source = source.decode()
        elif not source.isascii():
            source.encode()
        value = _decode(source)
    except UnicodeDecodeError as error:
        raise UnsupportedJSONError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _surrogate() from None
    except JSONDecodeError as error:
        raise NotJSONError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise _too_deep(depth) from None
    if source.count("[") + source.count("{") > depth and _is_too_deep(value, depth):
        raise _too_deep(depth)
    if "\\ud" in source or "\\uD" in source:  # perhaps half of a surrogate pair
        encode(value)
    return value


def dumps(value: Any) -> str:
    """`value` as compact JSON in one line. Raises `UnsupportedJSONError` for what JSON has no form for."""
    try:
        try:
            return "".join(_fast(value, 0))
        except _LiteralFoundError:
            parts: list[str] = []
            _write(value, parts)
            return "".join(parts)
    except RecursionError:
        raise _too_deep() from None
    except (TypeError, ValueError) as error:
        raise UnsupportedJSONError(f"no JSON value: {error}") from None


def check_value(value: Any) -> None:
    """Raises `UnsupportedJSONError` for what is no JSON value, or is nested deeper than `MAX_VALUE_DEPTH`."""
    text = encode(value)
    if text.count(b"[") + text.count(b"{") > MAX_VALUE_DEPTH and _is_too_deep([value], MAX_VALUE_DEPTH + 1):
        raise _too_deep(MAX_VALUE_DEPTH)


def encode(value: Any) -> bytes:
    """Like `dumps`, as UTF-8. Also refuses unpaired surrogates."""
    try:
        return dumps(value).encode()
    except UnicodeEncodeError:
        raise _surrogate() from None


def _decode(text: str) -> Any:
    if "-0" in text:
        return _EXACT.decode(text)
    try:
        return _PLAIN.decode(text)
    except JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than int() takes
        return _EXACT.decode(text)


def _integer(text: str) -> "int | NumberLiteral":
    return NumberLiteral(text) if text == "-0" or len(text) >= _INT_DIGITS else int(text)


def _real(text: str) -> "float | NumberLiteral":
    number = float(text)
    return number if repr(number) == text else NumberLiteral(text)


def _refuse_constant(name: str) -> NoReturn:
    raise JSONDecodeError(f"{name} is no JSON number", "", 0)


def _default(value: object) -> NoReturn:
    if isinstance(value, NumberLiteral):
        raise _LiteralFoundError
    raise TypeError(f"a {type(value).__name__}")


class _LiteralFoundError(Exception):
    """The fast encoder met a `NumberLiteral`, so the exact one has to do it."""


def _write(value: Any, parts: list[str]) -> None:
    if isinstance(value, NumberLiteral):
        parts.append(value.text)
    elif isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            parts.append(f"{separator}{_FAST.encode(key)}:")
            _write(item, parts)
            separator = ","
        parts.append("}" if value else "{}")
    elif isinstance(value, list):
        separator = "["
        for item in value:
            parts.append(separator)
            _write(item, parts)
            separator = ","
        parts.append("]" if value else "[]")
    else:
        parts.append(_FAST.encode(value))


def _is_too_deep(value: Any, depth: int) -> bool:
    """Level by level, because recursion is what has to be kept out."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep(depth: int = MAX_DEPTH) -> UnsupportedJSONError:
    return UnsupportedJSONError(f"nested more than {depth} levels deep")


def _surrogate() -> UnsupportedJSONError:
    return UnsupportedJSONError("an unpaired surrogate, which is no Unicode text")


_PLAIN: Final = JSONDecoder(parse_float=_real, parse_constant=_refuse_constant)
_EXACT: Final = JSONDecoder(parse_float=_real, parse_int=_integer, parse_constant=_refuse_constant)
_FAST: Final = JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), default=_default
)
# What `_FAST` makes for each value anew; it is C, and another Python may lack it.
_fast: Final[Callable[..., Iterable[str]]] = (
    c_make_encoder(None, _default, encode_basestring, None, ":", ",", False, False, False)
    if c_make_encoder
    else _FAST.iterencode
)
