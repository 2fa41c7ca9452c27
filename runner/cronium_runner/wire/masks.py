"""Which values are masked in a script's output, by the names of variables: both ends say and do the same about it.

How a value is found in a stream of bytes is the runner's `masking`.
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from . import exactjson

DEFAULT_NAMES: Final = (
    "*PASSWORD*",
    "*PASSPHRASE*",
    "*_TOKEN",
    "*_SECRET",
    "*_SECRET_KEY",
    "*_ACCESS_KEY",
    "*_API_KEY",
    "*_PRIVATE_KEY",
)
"""Names of variables and of environment variables whose values are masked like secrets, in any case of letters."""

SHORTEST: Final = 6
"""Characters. A shorter value is not masked: it would turn up in innocent text, and its masks would tell where."""


def is_masked_name(name: str, globs: tuple[str, ...] = DEFAULT_NAMES) -> bool:
    """Whether the values of a variable of this name are masked."""
    return _expression(globs).match(name.upper()) is not None


def too_short(secrets: Mapping[str, Any], variables: Mapping[str, Any], globs: tuple[str, ...]) -> list[str]:
    """The names whose values ask for a mask and are too short for one: to be told to whoever gave them."""
    named = {name: value for name, value in variables.items() if is_masked_name(name, globs)}
    return [name for name, value in {**named, **secrets}.items() if len(text_of(value)) < SHORTEST]


def short_sentence(names: Iterable[str]) -> str:
    """What is said of `too_short`'s names."""
    return f"not masked in the output, because a value has fewer than {SHORTEST} characters: {', '.join(names)}"


def text_of(value: Any) -> str:
    """A value as a helper prints it."""
    return value if isinstance(value, str) else exactjson.dumps(value)


@functools.lru_cache(maxsize=64)
def _expression(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(glob.upper()) for glob in globs) or r"(?!)")
