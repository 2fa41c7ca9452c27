"""The hosts that a person has written down: which file, which hosts it names, which of them are meant.

The first of these is read, and no other: the file given by option, by CRONIUM_HOSTS, hosts.yaml,
cluster_hosts.yaml or distributed_hosts.yaml in the current directory, one of the last two in its `config` folder, one
of the three in the user's configuration folder ($XDG_CONFIG_HOME/cronium). What a file says is `hosts_file`'s, what an
expression stands for `node_sets`'s. The last two names are those of a file that another program reads too: what is not
ours in it is warned about and left out.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from . import node_sets, ssh_lines
from .errors import ControllerError
from .hosts import BadTarget, Host, SSHConfig
from .hosts_file import HostEntry, HostsFile, parse
from .own_files import stranger

SHARED_NAMES: Final = ("cluster_hosts.yaml", "distributed_hosts.yaml")
FILE_NAMES: Final = ("hosts.yaml", *SHARED_NAMES)
_MOST_NAMED: Final = 12
"""Unread keys that a warning names."""


_warned: Final[set[str]] = set()


class Inventory:
    """The hosts and groups of one hosts file. `warnings` are sentences for whoever asked for it."""

    def __init__(self, file: HostsFile) -> None:
        """Raises ControllerError (`hosts.file`) for groups that name what isn't there, or each other in a circle."""
        self.path = file.path
        self.entries: Mapping[str, HostEntry] = file.hosts
        self.warnings: list[str] = []
        self.groups: dict[str, tuple[str, ...]] = {}
        self._file = file
        for entry in file.hosts.values():
            for group in entry.groups:
                file.groups.setdefault(group, [])
        for group in file.groups:
            self._resolve(group, [])
        self.groups = {group: self.groups[group] for group in file.groups}

    def __repr__(self) -> str:
        return f"<Inventory {self.path} hosts={len(self.entries)} groups={len(self.groups)}>"

    def host(self, name: str) -> Host:
        """One host as the controller reaches it. Raises KeyError, and ControllerError for a malformed row."""
        entry = self.entries[name]
        if entry.mistake is not None:
            raise entry.mistake
        has_secrets = entry.config.cloudflare_service_token_secret is not None
        secrets_in = os.path.abspath(self.path) if has_secrets else None
        return replace(
            entry.config.to_host(name),
            max_age=entry.max_age,
            connection=entry.connection,
            persist=entry.persist,
            update=entry.update,
            signers=entry.signers,
            secrets_in=secrets_in,
        )

    def config(self, name: str) -> SSHConfig:
        """A copy of one host's settings. Raises KeyError, and ControllerError for a malformed row."""
        self.host(name)
        return replace(self.entries[name].config)

    def groups_of(self, name: str) -> list[str]:
        """The groups that a host is in, directly or through another group."""
        return [group for group, members in self.groups.items() if name in members]

    def select(self, targets: Iterable[str]) -> list[Host]:
        """The hosts that names, groups and node sets stand for, each once, in the order in which they were named.

        Raises ControllerError (`hosts.not_found`) for a name that isn't there and for a selection without any host, and
        `hosts.file` for one whose row is malformed.
        """
        return [self.host(name) for name in self._selected(targets)]

    def select_each(self, targets: Iterable[str]) -> list[Host | BadTarget]:
        """The same, and one whose row is malformed is one of them. Raises ControllerError (`hosts.not_found`)."""
        found: list[Host | BadTarget] = []
        for name in self._selected(targets):
            mistake = self.entries[name].mistake
            found.append(self.host(name) if mistake is None else BadTarget(name, mistake))
        return found

    def _selected(self, targets: Iterable[str]) -> list[str]:
        names: dict[str, None] = {}
        for target in targets:
            try:
                names.update(dict.fromkeys(node_sets.pick(target, self.entries, self.groups)))
            except (LookupError, ValueError) as error:
                raise _not_found(f"{self.path}: {target[:80]!r}: {error.args[0]}") from None
        if not names:
            raise _not_found(f"nothing was selected from {self.path}; name a host or group")
        return list(names)

    def _resolve(self, group: str, within: list[str]) -> tuple[str, ...]:
        """A group's hosts, the groups it speaks of first."""
        if group in self.groups:
            return self.groups[group]
        parts = self._file.groups[group]
        line = parts[0].line if parts else 1
        if group in within:
            circle = " → ".join([*within[within.index(group) :], group])
            raise self._mistake(line, f"groups: {group}: contains itself ({circle})")
        if group in self.entries:
            raise self._mistake(line, f"groups: {group}: also the name of a host; rename one")
        found: dict[str, None] = {}
        for part in parts:
            for other in node_sets.groups_named(part.expression, self._file.groups):
                self._resolve(other, [*within, group])
            try:
                found.update(dict.fromkeys(node_sets.pick(part.expression, self.entries, self.groups)))
            except (LookupError, ValueError) as error:
                raise self._mistake(part.line, f"groups: {group}: {error.args[0]}") from None
        found.update({name: None for name, entry in self.entries.items() if group in entry.groups})
        self.groups[group] = tuple(found)
        return self.groups[group]

    def _mistake(self, line: int, sentence: str) -> ControllerError:
        return ControllerError("hosts.file", f"{self.path}:{line}: {sentence}")


def load(
    chosen: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    keeps_bad_rows: bool = False,
    for_one: bool = False,
) -> Inventory:
    """The inventory of the hosts file that counts; `chosen` is the option's. Raises ControllerError.

    With `keeps_bad_rows` a malformed row keeps nobody from the other hosts, where it is certain which host it is; with
    `for_one` never, as only one host is asked for and no group.
    """
    environment = os.environ if environment is None else environment
    path = find(chosen, environment=environment)
    if path is None:
        raise _not_found(
            f"there is no hosts file: no {', '.join(FILE_NAMES)} here or in {_user_folder(environment)}; "
            "write one (docs/hosts.md), name it with --hosts or CRONIUM_HOSTS, or give an address with --host"
        )
    try:
        with open(path, "rb") as file:
            content = file.read()
            found = os.fstat(file.fileno())
            is_shared = bool(stat.S_IMODE(found.st_mode) & 0o077)
    except OSError as error:
        raise ControllerError("hosts.file", f"{path}: cannot be read: {error.strerror}") from None
    parsed = parse(
        content,
        str(path),
        environment,
        keeps_bad_rows=keeps_bad_rows,
        for_one=for_one,
        shared=path.name in SHARED_NAMES,
    )
    inventory = Inventory(parsed)
    if parsed.unread:
        named = ", ".join(f"{key[:40]} (line {line})" for key, line in list(parsed.unread.items())[:_MOST_NAMED])
        more = f" and {len(parsed.unread) - _MOST_NAMED} more" if len(parsed.unread) > _MOST_NAMED else ""
        inventory.warnings.append(f"{path}: keys and sections that mean nothing here are left out: {named}{more}")
    is_named = bool(chosen or environment.get("CRONIUM_HOSTS"))  # `find` has refused what was only found
    if is_named and (why := stranger(found)) is not None:
        inventory.warnings.append(f"{path} {why}, who can have your commands and keys sent elsewhere")
    if is_shared and parsed.secret_line is not None:
        inventory.warnings.append(
            f"{path}:{parsed.secret_line}: a secret that other users can read; write ${{VARIABLE}}, or: chmod 600"
        )
    return inventory


def load_for(targets: Iterable[str], chosen: str | None = None) -> Inventory:
    """The inventory in which these names, groups and sets are looked for. Raises ControllerError.

    A mistake in another host's row refuses none of them, as long as all are names of hosts.
    """
    try:
        return load(chosen, keeps_bad_rows=True)
    except ControllerError as error:
        if error.code != "hosts.file":
            raise
        found = load(chosen, for_one=True)
        if all(target in found.entries for target in targets):
            return found
        raise


def load_for_one() -> Inventory | None:
    """The inventory in which one host is looked for by a program; None when there is no hosts file.

    What it warns about is logged, once for each file. Raises ControllerError.
    """
    path = find()
    if path is None:
        return None
    found = load(for_one=True)
    if (absolute := os.path.abspath(path)) not in _warned:
        from .logs import logger  # no command of ours needs it

        _warned.add(absolute)
        for sentence in found.warnings:
            logger("cronium.hosts").warning(sentence)
    return found


def find(chosen: str | None = None, *, environment: Mapping[str, str] | None = None) -> Path | None:
    """The hosts file that counts, None when there is none. Raises ControllerError for a chosen one that isn't there."""
    environment = os.environ if environment is None else environment
    named = chosen or environment.get("CRONIUM_HOSTS")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            where = "--hosts" if chosen else "CRONIUM_HOSTS"
            raise _not_found(f"no hosts file at {named}; correct {where}")
        return path
    here, ours = Path(), _user_folder(environment)
    places = [here / name for name in FILE_NAMES]
    places += [here / "config" / name for name in SHARED_NAMES]
    places += [ours / name for name in FILE_NAMES]
    for path in places:
        if path.is_file():
            _refuse_strangers(path)
            return path
    return None


def ssh_aliases() -> set[str]:
    """The names that OpenSSH's configuration has a `Host` line for, patterns left out."""
    words = (word for line in ssh_lines.load().lines() if line.keyword == "host" for word in line.words)
    return {word for word in words if not word.startswith("!") and not set(word) & set("*?")}


def _user_folder(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "cronium"


def _refuse_strangers(path: Path) -> None:
    """A file that was merely found could have been put there by anybody, and says where our commands and keys go."""
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & stat.S_IWOTH:
        whose = "writable by everybody" if found.st_mode & stat.S_IWOTH else "another user's"
        raise ControllerError("hosts.file", f"{path.absolute()}: {whose}; if you trust it, name it with --hosts")


def _not_found(sentence: str) -> ControllerError:
    return ControllerError("hosts.not_found", sentence)
