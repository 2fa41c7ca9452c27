"""What a hosts file says, with lines: YAML text in, hosts and groups out. Opens nothing and asks nobody.

Files that other programs read too (`shared`) may hold what is not ours: unknown keys and sections are noted and left
out, merge keys and aliases are followed. In our own each of them is a mistake.
Every mistake is one sentence with file, line and key in front. Values may hold secrets that came from the environment,
so an error repeats what was written, never what a variable held, and nothing at all of keys that are secret.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from . import host_names, node_sets
from .errors import ControllerError
from .hosts import LOCAL, LOCALHOST, OPENSSH, SHARED_SPELLINGS, SPELLINGS, SSH, UPDATES, SSHConfig, parse_host

MAX_BYTES: Final = 1 << 20
"""Some 10,000 hosts. PyYAML takes seconds for more; a larger estate has node sets."""
_NAME: Final = re.compile(r"\w[\w.-]{0,252}")
"""What a DNS name, an alias and an account-like label have in common; nothing that node sets give a meaning to."""
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_]\w*)(:-([^}]*))?\})?", re.ASCII)
_SECRET_KEYS: Final = ("cloudflare_service_token_secret", "cloudflare_service_token_id")
_SHOWN: Final = 60
_MOST_MERGES: Final = 10_000
"""Merge keys that are followed in one file: each may hold others twice."""

_NO_ADDRESSES: Final = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "timestamp"))
_WORDS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host of a file: its settings, the groups it says it is in, the line that it begins on."""

    name: str
    config: SSHConfig
    groups: tuple[str, ...]
    is_local: bool
    labels: Mapping[str, str]
    line: int
    mistake: ControllerError | None = None
    """What is wrong with its row: then it is a host that cannot be reached, and a member of its groups all the same."""
    max_age: float | None = None
    """Seconds that a connection may become old."""
    connection: str = SSH
    persist: float | None = None
    update: str | None = None
    signers: str | None = None


class Members(NamedTuple):
    """A part of a group's definition: an expression of `node_sets`, and where it stands."""

    expression: str
    line: int


@dataclass(slots=True)
class HostsFile:
    """A file's hosts and groups. `secret_line` is the first that holds a secret as such, not a ${VARIABLE}."""

    path: str
    hosts: dict[str, HostEntry] = field(default_factory=dict)
    groups: dict[str, list[Members]] = field(default_factory=dict)
    secret_line: int | None = None
    unread: dict[str, int] = field(default_factory=dict)
    """Keys and sections of a shared file that mean nothing here, with the first line of each."""


def parse(
    content: bytes,
    path: str,
    environment: Mapping[str, str],
    *,
    keeps_bad_rows: bool = False,
    for_one: bool = False,
    shared: bool = False,
) -> HostsFile:
    """Reads a hosts file's content. `path` is for messages, and relative key paths begin at its folder.

    Raises ControllerError (`hosts.file`). With `keeps_bad_rows`, a host under `hosts:` whose settings are wrong is an
    entry with its `mistake`, where its name and groups can be told. Otherwise, and for all else, the file is refused as
    a whole: a group must never be short of a host in silence. With `for_one` groups do not count, and any row may be
    bad. `shared` is a file that other programs read too.
    """
    return _Reader(path, environment, keeps_bad_rows=keeps_bad_rows, for_one=for_one, shared=shared).read(content)


@dataclass(frozen=True, slots=True)
class _Value:
    """A scalar: the text as written, what it means with variables put in, whether it is an unquoted null."""

    written: str
    text: str
    is_null: bool
    line: int


class _Reader:
    def __init__(
        self, path: str, environment: Mapping[str, str], *, keeps_bad_rows: bool, for_one: bool, shared: bool
    ) -> None:
        self._path = path
        self._keeps_bad_rows = keeps_bad_rows or for_one
        self._for_one = for_one
        self._is_shared = shared
        self._merges = 0
        self._environment = environment
        self._file = HostsFile(path)
        self._defaults: dict[str, Any] = {}
        self._own_defaults: dict[str, Any] = {}
        self._seen: set[int] = set()

    def read(self, content: bytes) -> HostsFile:
        root = self._composed(content)
        if root is None:
            return self._file
        top = self._mapping(root, "the file")
        if "hosts" in top:
            hosts = top["hosts"]
            top = self._known(top, ("hosts", "groups", "defaults"), "")
            if "defaults" in top:
                self._read_defaults(top["defaults"])
            self._read_hosts(self._mapping(hosts, "hosts") if not _is_null(hosts) else {})
        else:  # any key is a host here, also a misspelled `groups`: then nothing is certain
            self._keeps_bad_rows = self._for_one
            if "defaults" in top:
                self._read_defaults(top["defaults"])
            rows = {key: node for key, node in top.items() if key not in ("groups", "defaults")}
            self._read_hosts(self._only_hosts(rows) if self._is_shared else rows)
        if "groups" in top and not _is_null(top["groups"]):
            self._read_groups(self._mapping(top["groups"], "groups"))
        return self._file

    def _only_hosts(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Without the sections of a shared file in which no key is ours."""
        known = {*SSHConfig.__dataclass_fields__, *_OWN}
        for spellings in (*SPELLINGS.values(), *SHARED_SPELLINGS.values()):
            known.update(spellings)
        found: dict[str, Any] = {}
        for key, node in rows.items():
            is_section = (
                not known & {word.value for word, _ in node.value if word.id == "scalar"}
                if node.id == "mapping" and node.value
                else node.id == "sequence" or (node.id == "scalar" and node.tag in _NO_ADDRESSES)
            )
            if is_section:
                self._file.unread.setdefault(key, _line(node))
            else:
                found[key] = node
        return found

    # -- YAML --------------------------------------------------------------------------------------------------------

    def _composed(self, content: bytes) -> Any:
        if len(content) > MAX_BYTES:
            raise self._mistake(1, f"larger than {MAX_BYTES >> 20} MiB; split it")
        import yaml

        try:
            return yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            raise self._mistake(content.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            sentence = f"not valid YAML: {error.problem or error.context}"
            raise self._mistake(mark.line + 1 if mark else 1, sentence) from None
        except yaml.YAMLError:
            raise self._mistake(1, "not valid YAML: it has control characters; remove them") from None
        except RecursionError:
            raise self._mistake(1, "nested too deeply; flatten it") from None

    def _mapping(self, node: Any, key: str) -> dict[str, Any]:
        """A mapping's nodes by key, each marked with its key's line."""
        if node.id != "mapping":
            raise self._mistake(_line(node), f"{key}: must be a mapping of names to settings")
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[Any] = []
        for key_node, value in node.value:
            line = _line(key_node)
            if key_node.id != "scalar":
                raise self._mistake(line, f"{key}: a list or mapping as a key; a key is a single word")
            word = key_node.value
            if word == "<<" and self._is_shared:
                merged.append(value)
                continue
            if word == "<<":
                raise self._mistake(line, f"{key}: merge keys ('<<') are not read; put what is common under defaults:")
            if word in found:
                raise self._mistake(line, f"{word}: again, first on line {lines[word]}; keep one")
            self._refuse_alias(value, word, line)
            value.key_line = line
            found[word], lines[word] = value, line
        for value in merged:
            for each in value.value if value.id == "sequence" else [value]:
                self._merges += 1
                if self._merges > _MOST_MERGES:
                    raise self._mistake(_line(node), f"{key}: more than {_MOST_MERGES} merge keys; write values out")
                found = {**self._mapping(each, key), **found}
        return found

    def _items(self, node: Any, key: str) -> list[_Value]:
        """The values of a list, or the one value that stands for a list of one."""
        if node.id != "sequence":
            return [self._value(node, key)]
        for item in node.value:
            self._refuse_alias(item, key, _line(item))
        return [self._value(item, key) for item in node.value]

    def _refuse_alias(self, node: Any, key: str, line: int) -> None:
        if id(node) in self._seen and not self._is_shared:
            raise self._mistake(line, f"{key}: an alias; write the value out, or put what is common under defaults:")
        self._seen.add(id(node))

    def _value(self, node: Any, key: str, *, can_be_secret: bool = False) -> _Value:
        line = _line(node)
        if node.id != "scalar":
            raise self._mistake(line, f"{key}: must be a single value")
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise self._mistake(line, f"{key}: a tag ({node.tag!r:.{_SHOWN}}); write the plain value")
        written = node.value
        if can_be_secret and written and "${" not in written and self._file.secret_line is None:
            self._file.secret_line = line
        return _Value(written, self._expanded(written, key, line), _is_null(node), line)

    def _expanded(self, written: str, key: str, line: int) -> str:
        def substitute(found: re.Match[str]) -> str:
            name, has_default, default = found.group(1, 2, 3)
            if found.group() == "$${":
                return "${"
            if name is None:
                raise self._mistake(
                    line, f"{key}: '${{' begins a variable, ${{NAME}} or ${{NAME:-default}}; '$${{' is the text itself"
                )
            value = self._environment.get(name)
            if value:
                return value
            if has_default:
                return str(default)
            raise self._mistake(
                line, f"{key}: environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )

        return _VARIABLE.sub(substitute, written)

    # -- hosts -------------------------------------------------------------------------------------------------------

    def _read_defaults(self, node: Any) -> None:
        if not _is_null(node):
            self._defaults, self._own_defaults = self._settings(
                self._mapping(node, "defaults"), "defaults", {"host": None}
            )

    def _read_hosts(self, nodes: Mapping[str, Any]) -> None:
        for key, node in nodes.items():
            for name, entry in self._read_row(key, node):
                if name in self._file.hosts:
                    raise self._mistake(
                        entry.line, f"{key}: host {name!r} again, first on line {self._file.hosts[name].line}"
                    )
                self._file.hosts[name] = entry

    def _read_row(self, key: str, node: Any) -> list[tuple[str, HostEntry]]:
        try:
            return list(self._read_entry(key, node))
        except ControllerError as error:
            if not self._keeps_bad_rows:
                raise
            names, groups = self._names(key, _line(node)), self._groups_of_bad(node, key, error)
            return [(name, HostEntry(name, SSHConfig(name), groups, False, {}, _line(node), error)) for name in names]

    def _groups_of_bad(self, node: Any, key: str, error: ControllerError) -> tuple[str, ...]:
        """The groups that a malformed row says it is in. Raises its error where that can't be told for certain."""
        if node.id == "scalar" or self._for_one:
            return ()
        if node.id != "mapping":
            raise error
        words = [word.value for word, _ in node.value if word.id == "scalar"]
        if len(words) != len(node.value) or "<<" in words or words.count("groups") > 1:
            raise error
        if "groups" not in words and node_sets.nearest("groups", words):  # misspelled: which ones, nobody knows
            raise error
        for word, value in node.value:
            if word.value == "groups" and not _is_null(value):
                for seen in (value, *(value.value if value.id == "sequence" else ())):
                    self._seen.discard(id(seen))  # by ourselves, just now
                return self._read_own_groups(value, f"{key}: groups")
        return ()

    def _read_entry(self, key: str, node: Any) -> Iterator[tuple[str, HostEntry]]:
        """The host or, for a node set, the hosts of one key."""
        line = _line(node)
        names = self._names(key, line)
        settings: dict[str, Any] = {}
        own: dict[str, Any] = {}
        if node.id == "scalar" and not _is_null(node):
            settings["host"] = self._value(node, key)
        elif not _is_null(node):
            settings, own = self._settings(self._mapping(node, key), key)
        written: _Value | None = settings.pop("host", None)
        addresses = self._addresses(written, names, key)
        for name, address in zip(names, addresses, strict=True):
            try:
                where = parse_host(address)
            except ControllerError:
                said = f"host: {_shown(written)}" if written else ""
                raise self._mistake(line, f"{key}: {said}is not a host; write [user@]address[:port]") from None
            merged = {**self._defaults, **settings}
            for part, found in (("port", where.port), ("user", where.user)):
                if found is not None and settings.get(part) is not None:
                    raise self._mistake(line, f"{key}: {part}: given in the address too; keep one")
                if found is not None:
                    merged[part] = found
            # A bare IPv6 address stays as it is; host:port is taken apart here, once.
            config = SSHConfig(**{**merged, "host": where.address})
            is_local = own.get("local", where.is_local or (name == LOCALHOST and not settings))
            if is_local:
                config = self._local_config(config, {**settings, "user": where.user or settings.get("user")}, key, line)
            of_ours = {**self._own_defaults, **own}
            yield (
                name,
                HostEntry(
                    name,
                    config,
                    own.get("groups", ()),
                    is_local,
                    own.get("labels", {}),
                    line,
                    max_age=of_ours.get("max_age"),
                    connection=SSH if is_local else of_ours.get("connection", SSH),
                    persist=None if is_local else of_ours.get("persist"),
                    update=of_ours.get("update"),
                    signers=of_ours.get("signers"),
                ),
            )

    def _local_config(self, config: SSHConfig, own: Mapping[str, Any], key: str, line: int) -> SSHConfig:
        """This machine and account: what the defaults say of the way to hosts, and of accounts there, is not for it."""
        if own.get("user") is not None:
            raise self._mistake(line, f"{key}: user: a local host is this account's; take it out, and see --run-as")
        return SSHConfig(
            LOCAL,
            command_timeout=config.command_timeout,
            work_dir=config.work_dir,
            venv_activate=config.venv_activate,
        )

    def _names(self, key: str, line: int) -> list[str]:
        try:
            names = node_sets.expand(key)
        except ValueError as error:
            raise self._mistake(line, f"{key[:_SHOWN]}: {error}") from None
        for name in names:
            self._check_name(name, "host", line)
        return names

    def _addresses(self, given: _Value | None, names: list[str], key: str) -> list[str]:
        """One for each name: its own name, one of a node set of addresses in the same order, or the one there is."""
        if given is None or not given.text:
            return names
        before, bracket, _ = given.text.rpartition("[")
        if not bracket or ":" in given.text[len(before) :].partition("]")[0]:  # [::1] is an IPv6 address
            if len(names) > 1:
                raise self._mistake(
                    given.line, f"{key}: host: one address for {len(names)} hosts; write a node set of as many"
                )
            return [given.text]
        try:
            addresses = node_sets.expand(given.text)
        except ValueError as error:
            raise self._mistake(given.line, f"{key}: host: {error}") from None
        if len(addresses) != len(names):
            raise self._mistake(
                given.line, f"{key}: host: {len(addresses)} addresses for {len(names)} hosts; make them equal"
            )
        return addresses

    def _settings(
        self, nodes: Mapping[str, Any], where: str, left_out: Mapping[str, None] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """SSHConfig's fields, and what is ours alone (max_age, groups and so on); absent and null ones left out."""
        spellings = {**SPELLINGS, **SHARED_SPELLINGS} if self._is_shared else SPELLINGS
        fields = {
            spelling: name
            for name in SSHConfig.__dataclass_fields__
            for spelling in spellings.get(name, (name,))
            if name not in (left_out or {})
        }
        extra = _OF_DEFAULTS if left_out else tuple(_OWN)
        nodes = self._known(nodes, (*fields, *extra), f"{where}: ")
        settings: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        own: dict[str, Any] = {}
        for key, node in nodes.items():
            if key in fields:
                name = fields[key]
                if name in spelled:
                    raise self._mistake(
                        _line(node), f"{where}: {key}: the same as {spelled[name]}, given above; keep one"
                    )
                spelled[name] = key
                value = self._setting(name, node, f"{where}: {key}")
                if value is not None:
                    settings[name] = value
            elif not _is_null(node) and (value := _OWN[key](self, node, f"{where}: {key}")) is not None:
                own[key] = value
        return settings, own

    def _setting(self, name: str, node: Any, key: str) -> Any:
        value = self._value(node, key, can_be_secret=name == "cloudflare_service_token_secret")
        if value.is_null or not value.text:  # ${VARIABLE:-} leaves it out
            return None
        if name == "host":
            return value
        if name in _CHECKS:
            wanted, check = _CHECKS[name]
            found = check(value.text)
            if found is None:
                raise self._mistake(value.line, f"{key}: {_shown(value, name)}must be {wanted}")
            return found
        if "\0" in value.text or "\n" in value.text:
            raise self._mistake(value.line, f"{key}: must be one line of text")
        wrong = _NAMES[name](value.text) if name in _NAMES else None
        if wrong is not None:
            raise self._mistake(value.line, f"{key}: {_shown(value)}cannot be used: {wrong}; correct it")
        if name == "key_path" and not value.text.startswith(("~", "/")):
            return os.path.join(os.path.dirname(self._path), value.text)
        if name == "signers":  # later processes, which run elsewhere, need it too
            return os.path.abspath(os.path.join(os.path.dirname(self._path), os.path.expanduser(value.text)))
        return value.text

    def _read_local(self, node: Any, key: str) -> bool:
        value = self._value(node, key)
        found = _truth(value.text)
        if found is None:
            raise self._mistake(value.line, f"{key}: {_shown(value)}must be true or false")
        return found

    def _read_labels(self, node: Any, key: str) -> dict[str, str]:
        return {word: self._value(value, f"{key}: {word}").text for word, value in self._mapping(node, key).items()}

    def _read_own_groups(self, node: Any, key: str) -> tuple[str, ...]:
        names = [(name.strip(), value.line) for value in self._items(node, key) for name in value.text.split(",")]
        for name, line in names:
            self._check_name(name, f"{key}: group", line)
        return tuple(dict.fromkeys(name for name, _ in names))

    # -- groups ------------------------------------------------------------------------------------------------------

    def _read_groups(self, nodes: Mapping[str, Any]) -> None:
        for name, node in nodes.items():
            self._check_name(name, "group", _line(node))
            if _is_null(node):
                raise self._mistake(_line(node), f"groups: {name}: has no members; name some, or remove it")
            values = self._items(node, f"groups: {name}")
            self._file.groups[name] = [Members(value.text, value.line) for value in values]

    # -- mistakes ----------------------------------------------------------------------------------------------------

    def _check_name(self, name: str, what: str, line: int) -> None:
        if not _NAME.fullmatch(name):
            raise self._mistake(line, f"{name!r:.{_SHOWN}}: not a {what} name; write letters, digits, '.', '_' and '-'")

    def _known(self, nodes: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
        """The nodes whose keys are known. Others are noted in a shared file, and a mistake in ours."""
        for key, node in nodes.items():
            if key in known:
                continue
            if not self._is_shared:
                near = node_sets.nearest(key, known) or "; what we should not read goes under labels:"
                raise self._mistake(_line(node), f"{where}{key[:_SHOWN]}: an unknown key{near}")
            self._file.unread.setdefault(key, _line(node))
        return {key: node for key, node in nodes.items() if key in known}

    def _mistake(self, line: int, sentence: str) -> ControllerError:
        return ControllerError("hosts.file", f"{self._path}:{line}: {sentence}")


_OF_DEFAULTS: Final = ("max_age", "connection", "persist", "update", "signers")
"""Our own settings that may stand under `defaults:` as well."""


def _own_setting(name: str, reader: _Reader, node: Any, key: str) -> Any:
    return reader._setting(name, node, key)


_OWN: Final[dict[str, Callable[[_Reader, Any, str], Any]]] = {
    "groups": _Reader._read_own_groups,
    "local": _Reader._read_local,
    "labels": _Reader._read_labels,
    **{name: partial(_own_setting, name) for name in _OF_DEFAULTS},
}


def _truth(text: str) -> bool | None:
    return _WORDS.get(text.lower())


def _whole(text: str, least: int, most: int) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text, re.ASCII) and least <= int(text) <= most else None


def _seconds(text: str) -> float | None:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text, re.ASCII) or float(text) == 0:
        return None
    return float(text) if "." in text else int(text)


def _from_zero(text: str) -> float | None:
    return 0 if re.fullmatch(r"0+(\.0{1,6})?", text, re.ASCII) else _seconds(text)


_NAMES: Final[dict[str, Callable[[str], str | None]]] = {
    "user": host_names.wrong_with_user,
    "tailscale_ip": host_names.wrong_with_host,
    "cloudflare_tunnel": host_names.wrong_with_host,
}
_SECONDS: Final = ("a number of seconds above 0", _seconds)
_CHECKS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "port": ("a port from 1 to 65535", lambda text: _whole(text, 1, 65535)),
    "connect_timeout": _SECONDS,
    "command_timeout": _SECONDS,
    "control_persist": _SECONDS,
    "max_age": _SECONDS,
    "server_alive_interval": _SECONDS,
    "server_alive_count_max": ("a number from 1 to 1000", lambda text: _whole(text, 1, 1000)),
    "use_control_master": ("true or false", _truth),
    "connection": (f"{SSH} or {OPENSSH}", lambda text: text if text in (SSH, OPENSSH) else None),
    "persist": ("a number of seconds", _from_zero),
    "update": (f"{', '.join(UPDATES[:-1])} or {UPDATES[-1]}", lambda text: text if text in UPDATES else None),
}


def _shown(value: _Value, name: str = "") -> str:
    return "" if name in _SECRET_KEYS else f"{value.written!r:.{_SHOWN}} "


def _is_null(node: Any) -> bool:
    return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null")


def _line(node: Any) -> int:
    """Where the node's key stands, else the node itself."""
    return int(getattr(node, "key_line", node.start_mark.line + 1))
