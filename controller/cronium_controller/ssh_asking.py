"""Asking OpenSSH: what `ssh -G` prints for a host, and a file of earlier answers.

`ssh -G` costs 8 to 9 ms, so answers are kept as long as no file that `ssh` reads has changed, in a file of the
controller's state folder. What it holds is executed (ProxyCommand), so a file that another account could
write is not read.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cronium_runner.wire.text import last_words

from .errors import ControllerError
from .own_files import stranger
from .ssh_keywords import OF_MASTERS, USED
from .ssh_lines import Configuration, home, stamp_of
from .ssh_reader import Asked, Values
from .state_path import default_path

ASK_SECONDS: Final = 60.0
"""For one answer. `Match exec` may run programs; those that take longer don't end."""
AT_ONCE: Final = 2 * (os.cpu_count() or 1)
"""Programs at once; with more each waits for a processor."""
_FILE_NAME: Final = "ssh_settings.json"
WHOLE: Final = "whole answer"
"""In place of a keyword: a digest of all that was printed and says whom a connection leads to, and how."""
_VERSION: Final = 2
_MOST_KEPT: Final = 10_000
"""Answers in the file: about as many bytes as a thousand times that."""
_LONGEST_FILE: Final = 32 << 20
_LISTS: Final = frozenset({"userknownhostsfile", "globalknownhostsfile"})
"""Printed with spaces between their words, and without quotes."""
_NOT_ASKED: Final = b"Pseudo-terminal will not be allocated because stdin is not a terminal."


class CannotAskError(Exception):
    """`ssh` is no OpenSSH that knows -G."""


@functools.lru_cache(maxsize=4)
def _found(path: str | None) -> str | None:
    return shutil.which("ssh", path=path)


def program() -> str | None:
    """Where `ssh` is; None when it is not installed."""
    return _found(os.environ.get("PATH"))


@dataclass(slots=True)
class _Answers:
    """What was answered as long as all files were the same."""

    state: list[Any]
    hosts: dict[str, Values]
    is_new: bool = False
    """Whether some of it is not yet in the file."""
    asking: int = 0
    """Questions under way: the file is written once for all of them."""


_answers: dict[Path, _Answers] = {}


async def ask(ssh: str, asked: Asked, configuration: Configuration, *, is_lasting: bool) -> Values:
    """What `ssh -G` says of a host, or has said before. Raises ControllerError when `ssh` refuses its configuration,
    and CannotAskError.
    """
    if not is_lasting:
        return await _run(ssh, asked, configuration)
    path, state = default_path().with_name(_FILE_NAME), _state(ssh, configuration)
    answers = _answers.get(path)
    if answers is None or answers.state != state:
        answers = _answers[path] = _Answers(state, _kept(path, state))
    key = json.dumps([home(), socket.gethostname(), *asked])
    known = answers.hosts.get(key)
    if known is not None:
        return known
    answers.asking += 1
    try:
        answers.hosts[key] = values = await _run(ssh, asked, configuration)
        answers.is_new = True
    finally:
        answers.asking -= 1
    if not answers.asking and answers.is_new:
        _keep(path, answers)
    return values


async def _run(ssh: str, asked: Asked, configuration: Configuration) -> Values:
    return await asyncio.get_running_loop().run_in_executor(_threads(), _answer, ssh, asked, configuration)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "ssh -G")


def _answer(ssh: str, asked: Asked, configuration: Configuration) -> Values:
    words = [ssh, "-G"]
    if asked.port is not None:
        words += ["-p", str(asked.port)]
    if asked.user is not None:
        words += ["-l", asked.user]
    try:
        done = subprocess.run(
            [*words, "--", asked.name], stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        sentence = f"`ssh -G {asked.name}` has not ended within {ASK_SECONDS:g} s; look at `Match exec` in its files"
        raise ControllerError("host.config", sentence, host=asked.name) from None
    except OSError as error:
        raise CannotAskError(str(error)) from None
    if done.returncode:
        said = last_words(done.stderr.replace(_NOT_ASKED, b""))
        if "usage:" in said:
            raise CannotAskError(said)
        raise ControllerError("host.config", f"ssh refuses its configuration: {said}", host=asked.name)
    values = _parsed(done.stdout.decode("utf-8", "surrogateescape"), configuration)
    if "hostname" not in values:
        raise CannotAskError("no hostname in its answer")
    return values


def _parsed(printed: str, configuration: Configuration) -> Values:
    values: Values = {}
    whole = hashlib.sha256()
    for line in printed.split("\n"):
        keyword, _, value = line.partition(" ")
        if keyword not in OF_MASTERS:
            whole.update(line.encode("utf-8", "surrogateescape") + b"\n")
        if keyword not in USED:
            continue
        if keyword in _LISTS:
            values[keyword] = _separated(value, keyword, configuration)
        else:
            values.setdefault(keyword, []).append(value)
    values[WHOLE] = [whole.hexdigest()]
    return values


def _separated(value: str, keyword: str, configuration: Configuration) -> list[str]:
    """The words of a list. Where one has a space in it, the line that they came from tells where each ends."""
    for line in configuration.lines():
        if line.keyword == keyword and any(" " in word for word in line.words):
            matched = re.fullmatch(" ".join(_printed(word) for word in line.words), value, re.DOTALL)
            if matched is not None:
                return list(matched.groups())
    return value.split(" ")


def _printed(word: str) -> str:
    """What a word of a list may be printed as, once tokens, variables and a tilde were replaced."""
    kept = re.split(r"%.|[$][{][^}]*[}]|^~[^/]*", word)
    return f"({'.*'.join(map(re.escape, kept))})"


def _state(ssh: str, configuration: Configuration) -> list[Any]:
    """What answers depend on, as JSON has it."""
    stamps = ((path, stamp and list(stamp)) for path, stamp in (*configuration.stamps, (ssh, stamp_of(ssh))))
    return [_VERSION, os.getuid(), *map(list, stamps)]


def _kept(path: Path, state: list[Any]) -> dict[str, Values]:
    """The answers in a file; none of one that is of another state, or that another user could have written."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > _LONGEST_FILE or stranger(found) is not None:
                return {}
            told = json.loads(file.read())
        if told["state"] == state:
            return {key: _checked(values) for key, values in told["hosts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {}


def _checked(values: object) -> Values:
    """Values as they were written. Raises ValueError for what we have not written."""
    if not isinstance(values, dict) or not all(isinstance(words, list) for words in values.values()):
        raise ValueError
    return {str(keyword): [str(word) for word in words] for keyword, words in values.items()}


def _keep(path: Path, answers: _Answers) -> None:
    """Writes the answers down, with those that another process has written meanwhile."""
    answers.is_new = False
    hosts = {**_kept(path, answers.state), **answers.hosts}
    kept = dict(list(hosts.items())[-_MOST_KEPT:])
    with contextlib.suppress(OSError):  # the next process asks again
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{_FILE_NAME}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"state": answers.state, "hosts": kept}, file)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
