"""What the words of both command lines stand for: JSON or a file of it, NAME=VALUE, and where a secret comes from.

`cronium run` and `cronium-runner run` take the same options, so they are understood once, here. Files and standard
input are read by the caller's `read`: its argument is a path or `-`, its answer None when there is no such file.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from . import exactjson
from .limits import LimitError, Limits, from_words

_LINE_END: Final = re.compile(r"\r?\n\Z")
"""What an editor or `echo` puts behind a secret in a file; it is no part of the secret."""
Read = Callable[[str], bytes | None]
LONGEST_SHOWN: Final = 255
"""Characters: any file's name, and most paths."""


class WordError(Exception):
    """A word that cannot be used. `code` is one of `codes.CODES`."""

    def __init__(self, message: str, code: str = "usage.invalid") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def interpreter(text: str) -> str | list[str]:
    """What a manifest says for `--interpreter TEXT`: a name, or the words of a command where it has a path or several.

    Raises WordError for an open quote or nothing at all.
    """
    if text.strip() and not any(character in text for character in "/ \t'\"\\"):
        return text
    import shlex  # of few commands only

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise WordError(f"--interpreter: {_shown(text)}: {error}") from None
    if not words:
        raise WordError("--interpreter: an empty text is no interpreter; name one, or leave the option out")
    return words


def json_value(text: str, option: str, read: Read) -> Any:
    """The value of `FILE|JSON`: what begins with `{` or `[` is JSON, `@FILE` a file, `-` standard input. Else it is an
    existing file, or other JSON such as a number. Raises WordError naming the option.
    """
    if text.lstrip().startswith(("{", "[")):
        return _parsed(text, f"{option}: no JSON: {text[:60]!r} (a file of that name: write @ before it)")
    if text.startswith("@"):
        content = read(text[1:])
        if content is None:
            raise WordError(f"{option}: there is no file {_shown(text[1:])}", "input.invalid")
        return _parsed(content, f"{option}: {_shown(text[1:])}")
    content = read(text)
    if content is None:
        return _parsed(text, f"{option}: neither an existing file nor JSON: {text[:60]!r}")
    return _parsed(content, f"{option}: {_shown(text)}")


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return exactjson.loads_value(text)
    except ValueError as error:
        raise WordError(f"{where}: {error}", "input.invalid") from None


def json_merged(texts: Iterable[str], option: str, read: Read) -> Any:
    """The value of `FILE|JSON`, given once or several times: then of objects, whose keys are merged; a later one wins.

    Only keys of the outermost object are merged. Raises WordError.
    """
    first, *others = texts
    if not others:
        return json_value(first, option, read)
    merged: dict[str, Any] = {}
    for text in (first, *others):
        value = json_value(text, option, read)
        if not isinstance(value, dict):
            shown = _shown(text)
            raise WordError(f"{option}: {shown} is no JSON object; several are merged, and must be", "input.invalid")
        merged.update(value)
    return merged


def json_object(text: str, option: str, read: Read) -> dict[str, Any]:
    """Like `json_value`, for an option that takes an object."""
    value = json_value(text, option, read)
    if not isinstance(value, dict):
        raise WordError(f'{option}: a JSON object is needed, like \'{{"id": "7"}}\'', "input.invalid")
    return value


def variables(words: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE words as a mapping; a later one wins. Values are texts."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise WordError(f"--var {word[:60]!r}: write NAME=VALUE")
        if not _is_text(word):
            raise WordError(f"--var {name[:60]!r}: the name or the value is not UTF-8", "input.invalid")
        found[name] = value
    return found


def limits(words: Iterable[str]) -> Limits:
    """KEY=VALUE words as limits; a later one wins."""
    try:
        return from_words(words)
    except LimitError as error:
        raise WordError(str(error)) from None


def secrets(words: Iterable[str], environment: Mapping[str, str], read: Read) -> dict[str, Any]:
    """Secrets from files, standard input or the environment; never from the words themselves, which `ps` shows."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, origin = word.partition("=")
        if not _is_text(word):
            raise WordError("--secret: the name is not UTF-8")
        if not name or (equals and not origin.startswith("@")):
            # The value must not be repeated here: it would end in a terminal's history and in logs.
            raise WordError(
                f"--secret {_shown(name)}: give NAME, NAME=@FILE or NAME=@-; "
                "a value on a command line is seen by others"
            )
        found[name] = _from_file(name, origin[1:], read) if equals else _from_environment(name, environment)
    return found


def _from_file(name: str, path: str, read: Read) -> str:
    content = read(path)
    if content is None:
        raise WordError(f"--secret {_shown(name)}: there is no file {_shown(path)}", "input.invalid")
    try:
        return _LINE_END.sub("", content.decode("utf-8"))
    except UnicodeDecodeError:
        raise WordError(f"--secret {_shown(name)}: the value is not UTF-8", "input.invalid") from None


def _from_environment(name: str, environment: Mapping[str, str]) -> str:
    value = environment.get(name)
    if value is None:
        shown = _shown(name)
        raise WordError(f"--secret {shown}: no environment variable of that name; set it, or give {shown}=@FILE")
    if not _is_text(value):
        raise WordError(f"--secret {_shown(name)}: the value is not UTF-8", "input.invalid")
    return value


def _is_text(word: str) -> bool:
    """Whether a word of the command line or the environment was UTF-8: else Python has put surrogates into it."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(word: str) -> str:
    """A word for a message: as it is, unless it would break the line or fill the screen."""
    return word if word.isprintable() and len(word) <= LONGEST_SHOWN else repr(word[:60])
