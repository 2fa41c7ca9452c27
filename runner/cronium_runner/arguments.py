"""The command line's words that need this machine: files, standard input, and what is to be run."""

import os
import sys

from .errors import InputError, PayloadError
from .submission import Archive, Folder, Script, Source
from .wire.names import PAYLOAD_SUFFIXES
from .wire.words import WordError


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
    is_archive = start == b"\x1f\x8b" or path.endswith(PAYLOAD_SUFFIXES) or os.path.exists(path + ".sha256")
    is_archive = is_archive or sha256 is not None
    return Archive(os.path.abspath(path), sha256) if is_archive else Script(os.path.abspath(path))
