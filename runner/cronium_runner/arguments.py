"""The command line's words that need this machine: files, standard input, and what is to be run."""

import os
import sys

from .archive import shown
from .errors import InputError, PayloadError
from .submission import Archive, Folder, Script, Source
from .wire.names import PAYLOAD_SUFFIXES
from .wire.words import WordError, interpreter


def read(path: str) -> bytes | None:
    """A file's content, or standard input for `-`; None when there is no such file."""
    if path == "-":
        return sys.stdin.buffer.read()
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise WordError(f"cannot read {path}: {error.strerror}", "input.invalid") from None


def source(path: str, sha256: str | None, interpreter: str | None = None) -> Source:
    """What `PAYLOAD|DIR|SCRIPT` names: a folder, a gzip file, or a script, and the `interpreter` of that.

    Raises PayloadError, InputError, WordError.
    """
    found = _found(path, sha256)
    if interpreter is None:
        return found
    if not isinstance(found, Script):
        raise InputError(
            f"{path} has a manifest of its own; write the interpreter there instead of --interpreter", "usage.invalid"
        )
    return found._replace(interpreter=_interpreter(interpreter))


def _interpreter(text: str) -> str | tuple[str, ...]:
    from . import interpreter as interpreters

    words = interpreter(text)
    if not isinstance(words, str):
        return tuple(words)
    name = interpreters.canonical(words)
    if name is None:
        raise InputError(
            f"--interpreter: unsupported interpreter {shown(words)} (known: {interpreters.known_names()}, a path, or a "
            "command in quotes)",
            "usage.invalid",
        )
    return name


def _found(path: str, sha256: str | None) -> Source:
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
    is_archive = start == b"\x1f\x8b" or path.endswith(PAYLOAD_SUFFIXES) or os.path.exists(path + ".sha256")
    is_archive = is_archive or sha256 is not None
    return Archive(os.path.abspath(path), sha256) if is_archive else Script(os.path.abspath(path))
