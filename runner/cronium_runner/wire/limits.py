"""What a job may use, as manifests, submissions and both command lines write it: one grammar.

`memory=512MiB cpu=2 processes=100 open_files=1024 file_size=1GiB nice=5`. How a limit is enforced is the runner's
`limits` module; here is only what can be asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from .exactjson import NumberLiteral

_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_MAX_INTEGER: Final = (1 << 63) - 1
"""The largest number setrlimit takes on every architecture."""


class LimitError(ValueError):
    """A limit that cannot be asked for. `key` says which; the message is a sentence with the key in it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Limits(NamedTuple):
    """What a job may use; None is unlimited. Sizes are bytes, `cpu` is cores, `nice` is added to ours."""

    memory: int | None = None
    cpu: float | None = None
    processes: int | None = None
    open_files: int | None = None
    file_size: int | None = None
    nice: int | None = None

    def or_else(self, other: "Limits | None") -> "Limits":
        """These, key by key, and the other's where there is none."""
        own: dict[str, Any] = self.to_json()
        return self if other is None else other._replace(**own)

    def to_json(self) -> dict[str, int | float]:
        """Only those that are set; `from_mapping` reads it again."""
        return {key: value for key, value in self._asdict().items() if value is not None}


def from_mapping(values: Mapping[str, Any]) -> Limits:
    """The limits in a mapping of JSON values. Raises LimitError naming the key."""
    for key in values:
        if key not in READERS:
            raise LimitError(str(key), f"unknown limit {str(key)[:60]!r} (known: {', '.join(READERS)})")
    return Limits(**{key: READERS[key](f"limits.{key}", value) for key, value in values.items()})


def from_words(words: Iterable[str]) -> Limits:
    """The limits in KEY=VALUE words as a command line has them; a later one wins. Raises LimitError."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise LimitError(key, f"--limit {word!r}: write KEY=VALUE, like memory=512MiB")
        values[key] = _number(text)
    return from_mapping(values)


def shown(key: str, value: float) -> str:
    """The limit for a person, as it would be written: `memory=512MiB`."""
    if key in ("memory", "file_size"):
        return f"{key}={size(int(value))}"
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"


def size(count: int) -> str:
    """A number of bytes as `_size` reads it, in the largest unit that holds it exactly."""
    for unit, factor in reversed(_UNITS.items()):
        if count >= factor and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def _number(text: str) -> Any:
    """A word as JSON would type it."""
    for kind in (int, float):
        try:
            return kind(text) if text.isascii() and "_" not in text and text.strip() == text else text
        except ValueError:
            continue
    return text


def _size(key: str, value: Any) -> int:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    unit = _UNITS.get(text[-3:], 1)
    digits = text[:-3] if unit > 1 else text
    # 19 digits hold the largest size; more would only be slow to convert.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19 and 0 < int(digits) * unit <= _MAX_INTEGER):
        raise LimitError(key, f"{key!r} must be a size like 512MiB, 1GiB or plain bytes, not {_shown(value)}")
    return int(digits) * unit


def _cores(key: str, value: Any) -> float:
    value = _computable(value)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise LimitError(key, f"{key!r} must be a number of cores above 0, not {_shown(value)}")
    return float(value)


def _count(key: str, value: Any) -> int:
    return _integer(key, value, 1, _MAX_INTEGER)


def _nice(key: str, value: Any) -> int:
    return _integer(key, value, -20, 19)


def _computable(value: Any) -> Any:
    """A number to compare with, also where it was written in a way that no Python number gives back (`1.50`)."""
    return float(value) if isinstance(value, NumberLiteral) else value


def _integer(key: str, value: Any, low: int, high: int) -> int:
    value = _computable(value)
    if type(value) not in (int, float) or not low <= value <= high or value != int(value):
        bounds = f"of at least {low}" if high == _MAX_INTEGER else f"from {low} to {high}"
        raise LimitError(key, f"{key!r} must be a whole number {bounds}, not {_shown(value)}")
    return int(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = ascii(value.text if isinstance(value, NumberLiteral) else str(value))
    return text if len(text) <= 62 else text[:58] + "...'"


READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "memory": _size,
    "cpu": _cores,
    "processes": _count,
    "open_files": _count,
    "file_size": _size,
    "nice": _nice,
}
"""What reads each limit's value: the key's name for the message, a JSON value in, the limit out."""
