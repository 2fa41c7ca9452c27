"""Which lines of OpenSSH's configuration concern a host, and what they say: our own reader of them.

It is used where `ssh` can't be asked, and everywhere to find out whether it has to be. Follows process_config_line()
and match_cfg_line() of OpenSSH's readconf.c, and the canonicalisation and final pass of its ssh.c. Values are as they
are written; `ssh_values` replaces tokens.
"""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from .errors import ControllerError
from .ssh_keywords import ADDING_UP, ALIASES, EVALUATED, HARMLESS
from .ssh_lines import Configuration, Line, matches_host_line, matches_list, port_of
from .ssh_tokens import Tokens, local_user

EXEC_SECONDS: Final = 30.0
"""For a program of `Match exec`, which OpenSSH would wait for without end."""

Values = dict[str, list[str]]
"""What is set, by keyword: the words of one line, or one word for each line of a keyword that adds up."""


class Asked(NamedTuple):
    """A host as it is asked for; port and user None are left to the configuration."""

    name: str
    port: int | None = None
    user: str | None = None


class Applies(IntEnum):
    """Whether a block concerns a host."""

    NO = 0
    MAYBE = 1
    """It has a condition that only `ssh` decides."""
    YES = 2


class Survey(NamedTuple):
    """What can be said of a host without running anything.

    `values` is all that is to be known when `is_simple`. `mentioned` are the keywords of all lines that may concern it.
    """

    values: Values
    mentioned: frozenset[str]
    is_simple: bool
    is_lasting: bool
    """Whether `ssh` would answer the same as long as the files are the same."""


def survey(configuration: Configuration, asked: Asked) -> Survey:
    """Looks for lines that may concern a host."""
    values: Values = {}
    mentioned: set[str] = set()
    is_simple, is_lasting = not configuration.problems, configuration.is_settled

    def match(line: Line) -> Applies:
        nonlocal is_lasting, is_simple
        applies, depends = _guess(line, asked, mentioned)
        if depends & {"final", "canonical"}:
            is_simple = False  # the second pass may match what the first one doesn't
        if depends - {"final", "canonical"}:
            is_lasting = False
        return applies

    for lines in configuration.files:
        for line, applies in _applying(lines, lambda host: matches_host_line(host, asked.name), match):
            keyword = ALIASES.get(line.keyword, line.keyword)
            mentioned.add(keyword)
            if keyword in EVALUATED and applies is Applies.YES:
                _take(values, keyword, line)
            elif keyword in EVALUATED or keyword not in HARMLESS:
                is_simple = False
            if keyword == "canonicalizehostname" and line.words[0].lower() not in ("no", "false"):
                is_lasting = False
            if "${" in line.rest and keyword not in HARMLESS:
                is_lasting = False
    return Survey(values, frozenset(mentioned), is_simple, is_lasting)


def _guess(line: Line, asked: Asked, mentioned: set[str]) -> tuple[Applies, set[str]]:
    """Whether a `Match` may apply, and the criteria that it depends on and that can't be decided here."""
    applies, depends = Applies.YES, set[str]()
    try:
        criteria = list(_criteria(line))
    except ControllerError:
        return Applies.MAYBE, {"error"}
    for is_negated, criterion, argument in criteria:
        if criterion == "all":
            decided: bool | None = True
        elif criterion == "originalhost":
            decided = matches_list(asked.name.lower(), argument.lower())
        elif criterion == "localuser":
            decided = matches_list(local_user(), argument)
        elif criterion == "host" and "hostname" not in mentioned:
            decided = matches_list(asked.name.lower(), argument.lower())
        elif criterion == "user" and (asked.user is not None or "user" not in mentioned):
            decided = matches_list(asked.user or local_user(), argument)
        else:
            decided = None
            if criterion not in ("host", "user", "tagged"):
                depends.add(criterion)
        if decided is None:
            applies = Applies.MAYBE
        elif decided is is_negated:
            return Applies.NO, depends & {"final", "canonical"}
    return applies, depends


def read(configuration: Configuration, asked: Asked) -> Values:
    """What is set for a host. May run programs and ask for addresses. Raises ControllerError (`host.config`)."""
    if configuration.problems:
        raise _mistake(f"{configuration.problems[0]}; correct it", asked)
    return _Reader(configuration, asked).read()


class _Reader:
    """One host's way through the files, once or twice."""

    def __init__(self, configuration: Configuration, asked: Asked) -> None:
        self._files = configuration.files
        self._asked = asked
        self._values: Values = {}
        if asked.port is not None:
            self._values["port"] = [str(asked.port)]
        if asked.user is not None:
            self._values["user"] = [asked.user]
        self._host = asked.name
        self._is_final = False
        self._wants_final = False

    def read(self) -> Values:
        self._pass()
        self._host = self._named().lower()
        if (self._values.get("canonicalizehostname") or ["no"])[0].lower() in ("yes", "true", "always"):
            self._host = self._canonical() or self._host
            self._wants_final = True
        self._values["hostname"] = [self._host]
        if self._wants_final:
            self._is_final = True
            self._pass()
        return self._values

    def _pass(self) -> None:
        for lines in self._files:
            for line, _ in _applying(lines, lambda host: matches_host_line(host, self._host), self._match):
                _take(self._values, ALIASES.get(line.keyword, line.keyword), line)

    def _named(self) -> str:
        """HostName as far as it is known."""
        written = self._values.get("hostname")
        if written is None:
            return self._asked.name
        return written[0] if self._is_final else Tokens({"h": self._asked.name}, self._asked.name).replaced(written[0])

    def _match(self, line: Line) -> Applies:
        applies = True
        for is_negated, criterion, argument in _criteria(line):
            if criterion in ("final", "canonical"):
                self._wants_final |= criterion == "final"
                holds = self._is_final
            elif criterion == "exec":
                holds = applies and self._executed(argument)
                if not applies:
                    continue
            else:
                holds = self._holds(line, criterion, argument)
            applies &= holds is not is_negated
        return Applies.YES if applies else Applies.NO

    def _holds(self, line: Line, criterion: str, argument: str) -> bool:
        if criterion == "all":
            return True
        if criterion == "host":
            return matches_list(self._named().lower(), argument.lower())
        if criterion == "originalhost":
            return matches_list(self._asked.name.lower(), argument.lower())
        if criterion == "user":
            return matches_list(self._user(), argument)
        if criterion == "localuser":
            return matches_list(local_user(), argument)
        if criterion == "tagged":
            return matches_list((self._values.get("tag") or [""])[0], argument)
        raise _mistake(
            f"{line.path} line {line.number}: only the ssh program can tell whether `Match {criterion}` holds; "
            "install openssh-client",
            self._asked,
        )

    def _user(self) -> str:
        return (self._values.get("user") or [local_user()])[0]

    def _executed(self, command: str) -> bool:
        """Whether a command of `Match exec` ends with 0, run by the user's shell as OpenSSH does."""
        port = str(port_of((self._values.get("port") or ["22"])[0]))
        tokens = Tokens.of_connection(self._asked.name, self._named(), port, self._user())
        try:
            done = subprocess.run(
                [os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {tokens.replaced(command)}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=EXEC_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired, ValueError) as error:
            raise _mistake(f"`Match exec {command}` cannot be run: {error}", self._asked) from None
        return done.returncode == 0

    def _canonical(self) -> str | None:
        """The canonical name as resolve_canonicalize() in OpenSSH's ssh.c finds it; None when there is none."""
        mode = self._values["canonicalizehostname"][0].lower()
        is_behind = any((self._values.get(keyword) or ["none"])[0].lower() != "none" for keyword in _PROXIES)
        if is_behind and mode != "always":
            return None
        if self._host.count(".") > int((self._values.get("canonicalizemaxdots") or ["1"])[0]):
            return None
        for domain in self._values.get("canonicaldomains", []):
            full = f"{self._host}.{domain}"
            try:
                found = socket.getaddrinfo(full, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
            except OSError:
                continue
            return self._followed(full, found[0][3].lower().rstrip("."))
        if (self._values.get("canonicalizefallbacklocal") or ["yes"])[0].lower() in ("no", "false"):
            raise _mistake(f"no address of {self._host} in {', '.join(self._values['canonicaldomains'])}", self._asked)
        return None

    def _followed(self, full: str, target: str) -> str:
        for rule in self._values.get("canonicalizepermittedcnames", []):
            sources, _, targets = rule.partition(":")
            if matches_list(full, sources.lower()) and matches_list(target, targets.lower()):
                return target
        return full


_PROXIES: Final = ("proxycommand", "proxyjump")


def _applying(
    lines: tuple[Line, ...],
    is_about: Callable[[Line], bool],
    match: Callable[[Line], Applies],
    ceiling: Applies = Applies.YES,
) -> Iterator[tuple[Line, Applies]]:
    """The lines of a file and those that it includes that concern a host, each with how certain that is."""
    applies = ceiling
    for line in lines:
        if line.keyword == "host":
            applies = ceiling if is_about(line) else Applies.NO
        elif line.keyword == "match":
            applies = min(ceiling, match(line)) if ceiling else Applies.NO
        elif line.keyword == "include":
            for included in line.included if applies else ():
                yield from _applying(included, is_about, match, applies)
        elif applies:
            yield line, applies


def _take(values: Values, keyword: str, line: Line) -> None:
    """Notes what a line sets, unless an earlier one has."""
    if keyword in ADDING_UP:
        known = values.setdefault(keyword, [])
        known += [word for word in line.words if word not in known]
    elif keyword in _PROXIES:  # what comes first of the two excludes the other
        if not any(name in values for name in _PROXIES):
            values[keyword] = [line.rest.lstrip(" \t=")]
    elif keyword not in values:
        values[keyword] = list(line.words)


_DELIMITED: Final = re.compile(r'[ \t]*(?:"([^"]*)"|([^ \t="]+))[ \t]*=?[ \t]*')
_ALONE: Final = ("all", "final", "canonical")


def _criteria(line: Line) -> Iterator[tuple[bool, str, str]]:
    """Of a `Match` line: whether each criterion is negated, its name, its argument. Raises ControllerError."""
    at, words = 0, list[str]()
    while at < len(line.rest) and line.rest[at] != "#":
        matched = _DELIMITED.match(line.rest, at)
        if matched is None:
            raise _mistake(f"{line.path} line {line.number}: its criteria cannot be read", None)
        words.append(matched[2] if matched[1] is None else matched[1])
        at = matched.end()
    while words:
        criterion = words.pop(0).lower()
        name = criterion.removeprefix("!")
        if name in _ALONE:
            yield criterion != name, name, ""
        elif words:
            yield criterion != name, name, words.pop(0)
        else:
            raise _mistake(f"{line.path} line {line.number}: nothing is written behind {name}", None)


def _mistake(sentence: str, asked: Asked | None) -> ControllerError:
    return ControllerError("host.config", sentence, host=None if asked is None else asked.name)
