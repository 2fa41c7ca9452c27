"""What the command line's words stand for: JSON or a file of it, NAME=VALUE, where a secret comes from, what to run."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from .errors import InputError, PayloadError
from .submission import Archive, Folder, Script, Source
from .wire import exactjson


def json_value(text: str, option: str) -> Any:
    """The value of `FILE|JSON`: an existing file wins, `-` is standard input. Raises InputError naming the option."""
    if text == "-":
        raw, where = sys.stdin.buffer.read(), "standard input"
    elif os.path.isfile(text):
        try:
            with open(text, "rb") as file:
                raw, where = file.read(), text
        except OSError as error:
            raise InputError(f"{option}: cannot read {text}: {error.strerror}") from None
    else:
        raw, where = os.fsencode(text), "neither an existing file nor JSON"
    try:
        return exactjson.loads(raw)
    except ValueError as error:
        raise InputError(f"{option}: {where}: {error}") from None


def json_object(text: str, option: str) -> dict[str, Any]:
    """Like `json_value`, for an option that takes an object."""
    value = json_value(text, option)
    if not isinstance(value, dict):
        raise InputError(f'{option}: a JSON object is needed, like \'{{"id": "7"}}\'')
    return value


def variables(words: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE words as a mapping; a later one wins. Values are texts."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise InputError(f"--var {word!r}: write NAME=VALUE", "usage.invalid")
        found[name] = value
    return found


def secrets(words: Iterable[str]) -> dict[str, Any]:
    """Secrets from files, standard input or the environment; never from the words themselves, which `ps` shows."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, origin = word.partition("=")
        if not name or (equals and not origin.startswith("@")):
            # The value must not be repeated here: it would end in a terminal's history and in logs.
            raise InputError(
                f"--secret {name}: give NAME, NAME=@FILE or NAME=@-; a value on a command line is seen by others",
                "usage.invalid",
            )
        found[name] = _secret(name, origin[1:]) if equals else _secret_from_environment(name)
    return found


def _secret(name: str, path: str) -> str:
    try:
        if path == "-":
            raw = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                raw = file.read()
        return raw.decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise InputError(f"--secret {name}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"--secret {name}: the value is not UTF-8") from None


def _secret_from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise InputError(f"--secret {name}: no environment variable of that name; set it, or give {name}=@FILE")
    return value


def source(path: str, sha256: str | None) -> Source:
    """What `PAYLOAD|DIR|SCRIPT` names: a folder, a gzip file, or a script. Raises PayloadError."""
    if os.path.isdir(path):
        if sha256 is not None:
            raise InputError(f"--sha256 is for payload files; {path} is a directory", "usage.invalid")
        return Folder(os.path.abspath(path))
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except FileNotFoundError:
        raise PayloadError("payload.not_found", f"no such payload, directory or script: {path}") from None
    except OSError as error:
        raise PayloadError("payload.unreadable", f"cannot read {path}: {error.strerror}") from None
    is_archive = start == b"\x1f\x8b" or path.endswith((".tar.gz", ".tgz")) or sha256 is not None
    return Archive(os.path.abspath(path), sha256) if is_archive else Script(os.path.abspath(path))
