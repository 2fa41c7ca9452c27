"""OpenSSH's client configuration as lines: which files are read, and what is written in each.

Follows read_config_file() in OpenSSH's readconf.c: a word may be quoted, `=` may stand behind a keyword, a comment may
end a line, and bytes that are no UTF-8 may be anywhere. Which lines concern a host is decided in `ssh_reader`.
"""

import functools
import glob
import os
import pwd
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .ssh_keywords import CHOICES, COMMANDS, KEYWORDS, ONE_WORD

SYSTEM_FILE: Final = "/etc/ssh/ssh_config"
_DEEPEST: Final = 16
"""READCONF_MAX_DEPTH of OpenSSH."""
_LONGEST_FILE: Final = 4 << 20
"""Bytes: more than any configuration has, few enough to be read in an instant."""
_BLANKS: Final = " \t\r\n"
_KEYWORD: Final = re.compile(r'[ \t\r\n]*([^ \t\r\n="]+)[ \t\r\n]*=?[ \t\r\n]*')
_UNUSUAL: Final = re.compile(r"""["'\\#\x00-\x08\x0a-\x1f\x85\xa0]""")
"""What `str.split` alone would take for something else than OpenSSH does."""

Stamp = tuple[int, ...]
"""What tells one state of a file from another: times, size, inode, owner, mode."""


class Line(NamedTuple):
    """One line of a file. `keyword` is in lower case, `rest` what is behind it, `words` its words without quotes."""

    path: str
    number: int
    keyword: str
    rest: str
    words: tuple[str, ...]
    matchers: tuple[tuple[bool, Callable[[str], object]], ...] = ()
    """Of `Host`: whether each pattern is negated, and what matches it."""
    included: tuple[tuple["Line", ...], ...] = ()
    """Of `Include`: the lines of each file."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the files say. `problems` are sentences about lines that OpenSSH would refuse."""

    files: tuple[tuple[Line, ...], ...]
    """The user's and the system's; a block ends with its file."""
    problems: tuple[str, ...]
    stamps: tuple[tuple[str, Stamp | None], ...]
    """Everything that was looked at, None for what isn't there: while it is all the same the lines are."""
    is_settled: bool
    """Whether the stamps tell for certain: False where a pattern of an Include has wildcards in a folder's name."""

    def lines(self) -> Iterator[Line]:
        """All lines, in the order in which they count."""
        for lines in self.files:
            yield from _flat(lines)

    def is_current(self) -> bool:
        """Whether the files are as they were."""
        return self.is_settled and all(stamp_of(path) == stamp for path, stamp in self.stamps)


def _flat(lines: tuple[Line, ...]) -> Iterator[Line]:
    for line in lines:
        yield line
        for included in line.included:
            yield from _flat(included)


def home() -> str:
    """The folder of this account's .ssh: $HOME, else what the password database says."""
    return os.path.expanduser("~")


def is_home_of_account() -> bool:
    """Whether OpenSSH takes the same folder, which looks into the password database whatever $HOME says."""
    try:
        folder = pwd.getpwuid(os.getuid()).pw_dir
        found = home()
        return found == folder or os.path.samefile(found, folder)
    except (KeyError, OSError):
        return False


_loaded: dict[tuple[str, str], Configuration] = {}


def load(system_file: str | None = None) -> Configuration:
    """The user's and the system's configuration, taken apart again only when a file has changed."""
    key = (home(), system_file or SYSTEM_FILE)
    known = _loaded.get(key)
    if known is None or not known.is_current():
        _loaded[key] = known = _Loading(key[0]).load(f"{key[0]}/.ssh/config", key[1])
    return known


def stamp_of(path: str) -> Stamp | None:
    """The state of a file or folder; None when there is none."""
    try:
        return _stamp(os.stat(path))
    except (OSError, ValueError):
        return None


def _stamp(found: os.stat_result) -> Stamp:
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_uid, found.st_mode)


@dataclass(slots=True)
class _Loading:
    home: str
    problems: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    """Keywords that we don't know, each with the sentence about it."""
    ignored: list[str] = field(default_factory=list)
    """Patterns of IgnoreUnknown."""
    stamps: dict[str, Stamp | None] = field(default_factory=dict)
    is_settled: bool = True

    def load(self, user_file: str, system_file: str) -> Configuration:
        files = (
            self._lines(user_file, f"{self.home}/.ssh", is_checked=True, depth=0),
            self._lines(system_file, os.path.dirname(system_file), is_checked=False, depth=0),
        )
        told = [
            sentence for keyword, sentence in self.unknown if not matches_list(keyword, ",".join(self.ignored).lower())
        ]
        return Configuration(files, (*self.problems, *told), tuple(self.stamps.items()), self.is_settled)

    def _lines(self, path: str, folder: str, *, is_checked: bool, depth: int) -> tuple[Line, ...]:
        """The lines of a file; none of one that isn't there. Relative names of an Include begin in `folder`."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.stamps[path] = stamp_of(path)
            if depth and not isinstance(error, FileNotFoundError):
                self.problems.append(f"{path} cannot be read: {error.strerror}")
            return ()
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            self.stamps[path] = _stamp(found)
            if is_checked and (found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022):
                self.problems.append(f"{path} has a bad owner or can be written by others: chmod 600 {path}")
                return ()
            if not stat.S_ISREG(found.st_mode):
                self.is_settled = False
                return ()
            written = file.read(_LONGEST_FILE + 1)
        if len(written) > _LONGEST_FILE:
            self.problems.append(f"{path} is longer than {_LONGEST_FILE} bytes")
            return ()
        lines: list[Line] = []
        for number, text in enumerate(written.decode("utf-8", "surrogateescape").split("\n"), 1):
            line = self._line(path, number, text, folder, depth)
            if line is not None:
                lines.append(line)
        return tuple(lines)

    def _line(self, path: str, number: int, text: str, folder: str, depth: int) -> Line | None:
        text = text.rstrip(_BLANKS + "\f")
        matched = _KEYWORD.match(text)
        if matched is None or matched[1].startswith("#"):
            return None
        keyword, rest = matched[1].lower(), text[matched.end() :]
        words = split(rest)
        wrong = _wrong_with(keyword, words) if rest else f"nothing is written behind {keyword}"
        if wrong is not None or words is None:
            self.problems.append(f"{path} line {number}: {wrong}")
            return None
        if keyword not in KEYWORDS:
            self.unknown.append((keyword, f"{path} line {number}: {matched[1]!r} is not an option of OpenSSH"))
        elif keyword == "host":
            matchers = [(word[:1] == "!", matcher(word.removeprefix("!"))) for word in words]
            return Line(path, number, keyword, rest, words, matchers=tuple(matchers))
        elif keyword == "include":
            return Line(path, number, keyword, rest, words, included=tuple(self._included(path, words, folder, depth)))
        elif keyword == "ignoreunknown":
            self.ignored += words
        return Line(path, number, keyword, rest, words)

    def _included(self, path: str, words: tuple[str, ...], folder: str, depth: int) -> Iterator[tuple[Line, ...]]:
        if depth == _DEEPEST:
            self.problems.append(f"{path}: files include each other more than {_DEEPEST} deep")
            return
        for word in words:
            if "${" in word:
                self.is_settled = False
                word = os.path.expandvars(word)
            pattern = os.path.join(folder, tilde(word, self.home))
            parent = os.path.dirname(pattern)
            self.is_settled &= not glob.has_magic(parent)
            self.stamps[parent] = stamp_of(parent)
            names = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
            for name in names:
                yield self._lines(name, folder, is_checked=True, depth=depth + 1)


def _wrong_with(keyword: str, words: tuple[str, ...] | None) -> str | None:
    """What makes OpenSSH refuse a line; None when nothing does that matters here."""
    if words is None:
        return "a quote is not closed"
    if not words and keyword not in COMMANDS:
        return f"nothing is written behind {keyword}"
    if keyword in ONE_WORD and len(words) > 1:
        return f"more than one word behind {keyword}"
    value = words[0].lower() if words else ""
    if keyword == "port" and port_of(value) is None:
        return f"{words[0]!r} is not a port from 1 to 65535"
    if keyword in CHOICES and value not in CHOICES[keyword]:
        return f"{words[0]!r} is not a value of {keyword} ({', '.join(CHOICES[keyword])})"
    return None


def port_of(written: str) -> int | None:
    """A port, which may be written as the name of a service; None for what is none."""
    if re.fullmatch("[0-9]{1,5}", written):
        return int(written) if 0 < int(written) < 65536 else None
    try:
        return socket.getservbyname(written, "tcp")
    except OSError:
        return None


def split(text: str) -> tuple[str, ...] | None:
    """The words of a line as argv_split() in OpenSSH's misc.c finds them; None when a quote is not closed."""
    if not _UNUSUAL.search(text):
        return tuple(text.split())
    words: list[str] = []
    at, length = 0, len(text)
    while at < length:
        if text[at] in " \t":
            at += 1
            continue
        if text[at] == "#":
            break
        word, quote = "", ""
        while at < length and (quote or text[at] not in " \t"):
            letter = text[at]
            if letter == "\\" and text[at + 1 : at + 2] in ("'", '"', "\\", *("" if quote else " ")):
                at += 1
                word += text[at : at + 1]
            elif letter in "\"'" and not quote:
                quote = letter
            elif letter == quote:
                quote = ""
            else:
                word += letter
            at += 1
        if quote:
            return None
        words.append(word)
    return tuple(words)


def tilde(path: str, folder: str) -> str:
    """A path with `~` and `~user` in front replaced; `folder` is this account's home."""
    if not path.startswith("~"):
        return path
    user, slash, rest = path[1:].partition("/")
    if user:
        try:
            folder = pwd.getpwnam(user).pw_dir
        except KeyError:
            return path
    return f"{folder.rstrip('/')}{slash}{rest}"


@functools.lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], object]:
    """What tells whether a name matches a pattern of `*` and `?`; upper and lower case differ."""
    if not set(pattern) & set("*?"):
        return pattern.__eq__
    if not pattern.strip("*"):
        return _always
    return re.compile(re.sub(r"\\\*(?:\\\*)*", ".*", re.escape(pattern)).replace(r"\?", "."), re.DOTALL).fullmatch


def _always(_name: str) -> bool:
    return True


def matches_list(name: str, patterns: str) -> bool:
    """Whether a name matches a list of patterns with commas between; one that is negated decides."""
    found = False
    for pattern in patterns.split(","):
        if matcher(pattern.removeprefix("!"))(name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def matches_host_line(line: Line, name: str) -> bool:
    """Whether a `Host` line is about a host."""
    found = False
    for is_negated, matches in line.matchers:
        if matches(name):
            if is_negated:
                return False
            found = True
    return found
