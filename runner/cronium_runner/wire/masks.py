"""Which values are masked in a script's output, by the names of variables: both ends say and do the same about it.

How a value is found in a stream of bytes is the runner's `masking`.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from . import exactjson

DEFAULT_NAMES: Final = (
    "*PASSWORD*",
    "*PASSPHRASE*",
    "TOKEN",
    "*_TOKEN",
    "SECRET",
    "*_SECRET",
    "SECRET_KEY",
    "*_SECRET_KEY",
    "ACCESS_KEY",
    "*_ACCESS_KEY",
    "API_KEY",
    "*_API_KEY",
    "PRIVATE_KEY",
    "*_PRIVATE_KEY",
)
"""Names of variables and of environment variables whose values are masked like secrets, in any case of letters."""

MASK: Final = "***"

MOST_PATHS: Final = 64 << 10
"""Bytes of all paths of a result that are listed one by one; a result is one frame."""

HANDED_BACK: Final = ("output", "variables", "summary", "progress")
"""The keys of a result that hold what the script said by its helpers."""

SHORTEST: Final = 6
"""Characters. A shorter value is not masked: it would turn up in innocent text, and its masks would tell where."""


def is_masked_name(name: str, globs: tuple[str, ...] = DEFAULT_NAMES) -> bool:
    """Whether the values of a variable of this name are masked."""
    known, name = _sorted(globs), name.upper()
    return (
        name in known.whole
        or name.endswith(known.ends)
        or name.startswith(known.beginnings)
        or any(part in name for part in known.parts)
        or (bool(known.others) and _expression(known.others).match(name) is not None)
    )


def masked_names(names: Iterable[str], globs: tuple[str, ...] = DEFAULT_NAMES) -> list[str]:
    """Those of the names whose values are masked. Most often none; then it is told by one look at all together."""
    names, known = list(names), _sorted(globs)
    together = "\n".join(names).upper()
    if not known.others and not any(text in together for text in known.texts):
        return []
    return [name for name in names if is_masked_name(name, globs)]


def too_short(secrets: Mapping[str, Any], variables: Mapping[str, Any], globs: tuple[str, ...]) -> list[str]:
    """The names whose values ask for a mask and are too short for one: for a warning to the caller."""
    named = {name: variables[name] for name in masked_names(variables, globs)}
    return [name for name, value in {**named, **secrets}.items() if len(text_of(value)) < SHORTEST]


def short_sentence(names: Iterable[str]) -> str:
    """What is said of `too_short`'s names."""
    return f"not masked in the output, because a value has fewer than {SHORTEST} characters: {', '.join(names)}"


def text_of(value: Any) -> str:
    """A value as a helper prints it."""
    return value if isinstance(value, str) else exactjson.dumps(value)


def paths_of(result: Mapping[str, Any], holds: Callable[[str], bool], is_masked: Callable[[str], bool]) -> list[str]:
    """The paths of what a script handed back that hold a secret, such as `output.token` or `variables.CFG.0`.

    That is its outputs and variables, its summary and the text of its progress. A path stands for all that is below it.
    `holds` says whether a text holds a secret, `is_masked` whether the values of a variable of this name are secrets.
    """
    variables = result.get("variables") or {}
    found = [f"variables.{name}" for name in variables if is_masked(name) and not holds(name)]
    others = [(whole, result.get(whole)) for whole in HANDED_BACK if whole != "variables"]
    for whole, value in (*others, ("variables", variables)):
        if value not in (None, {}) and holds(exactjson.dumps(value)):  # seldom, so the places are looked for after that
            found += _holding(whole, value, holds)
    found = list(dict.fromkeys(found))
    return found if sum(map(len, found)) * 4 <= MOST_PATHS else sorted({path.partition(".")[0] for path in found})


def _holding(path: str, value: Any, holds: Callable[[str], bool]) -> list[str]:
    if isinstance(value, dict):
        if any(holds(key) for key in value):
            return [path]  # the path of what is below it would tell the secret
        return [found for key, item in value.items() for found in _holding(f"{path}.{key}", item, holds)]
    if isinstance(value, list):
        return [found for at, item in enumerate(value) for found in _holding(f"{path}.{at}", item, holds)]
    return [path] if holds(text_of(value)) else []


def hidden(result: dict[str, Any]) -> dict[str, Any]:
    """A result as JSON, for screens, history, logs and reports: `***` in the places that its `masked` lists."""
    masked = result.get("masked")
    if not isinstance(masked, list) or not masked:
        return result
    paths = frozenset(path for path in masked if isinstance(path, str))
    shown = {key: _hidden(key, result[key], paths) for key in HANDED_BACK if result.get(key) is not None}
    if shown.get("variables") == MASK:
        shown["variables"] = {MASK: MASK}  # readers expect a mapping; a name in it is, or holds, a secret
    if shown.get("progress") == MASK:
        shown["progress"] = {**result["progress"], "text": MASK}
    return {**result, **shown}


def hidden_status(status: dict[str, Any]) -> dict[str, Any]:
    """The status of an execution with its result as `hidden` shows it."""
    result = status.get("result")
    return {**status, "result": hidden(result)} if isinstance(result, dict) and "masked" in result else status


def _hidden(path: str, value: Any, paths: frozenset[str]) -> Any:
    if path in paths:
        return MASK
    if isinstance(value, dict):
        return {key: _hidden(f"{path}.{key}", item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_hidden(f"{path}.{at}", item, paths) for at, item in enumerate(value)]
    return value


class _Sorted(NamedTuple):
    """Globs by what it takes to compare a name with them; compiling an expression of all is a hundred times that."""

    whole: frozenset[str]
    ends: tuple[str, ...]
    beginnings: tuple[str, ...]
    parts: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """What names have in them that match any but `others`."""
        return (*self.whole, *self.ends, *self.beginnings, *self.parts)


@functools.lru_cache(maxsize=64)
def _sorted(globs: tuple[str, ...]) -> _Sorted:
    whole: list[str] = []
    ends: list[str] = []
    beginnings: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    for glob in map(str.upper, globs):
        text = glob.strip("*")
        if not text or any(character in text for character in "*?["):
            kind = others
        elif text == glob:
            kind = whole
        elif glob.endswith("*"):
            kind = parts if glob.startswith("*") else beginnings
        else:
            kind = ends
        kind.append(glob if kind is others else text)
    return _Sorted(frozenset(whole), tuple(ends), tuple(beginnings), tuple(parts), tuple(others))


@functools.lru_cache(maxsize=64)
def _expression(globs: tuple[str, ...]) -> re.Pattern[str]:
    import fnmatch  # few have such globs

    return re.compile("|".join(map(fnmatch.translate, globs)))
