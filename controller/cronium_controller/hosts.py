"""Which host is meant: name, address, port, user, key, the ways to it. No connection is made and no file read here.

`Host` is what the rest of the controller passes around; `SSHConfig` is what a program writes to make an `SSHClient`.
Files of hosts are `hosts_file`'s and `inventory`'s.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from . import host_names
from .errors import ControllerError

IDLE_SECONDS: Final = 300.0
"""Seconds that an unused connection is kept open."""
_SHOWN: Final = 100
"""Characters of what was written that an error repeats."""
LOCALHOST: Final = "localhost"
SSH: Final = "ssh"
"""SSH as this program speaks it, with asyncssh."""
OPENSSH: Final = "openssh"
"""SSH by OpenSSH's own program."""
UPDATES: Final = ("always", "same-major", "never")
"""Whether a job may put another runner on its host (`deploy.update_policy`)."""
LOCAL: Final = "local:"
"""This machine and account, as it is written in place of an address. No host name ends in a colon."""

SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "host": ("host", "address", "ssh_host", "hostname"),
    "port": ("port", "ssh_port"),
    "user": ("user", "ssh_user", "username"),
    "key_path": ("key_path", "ssh_key", "ssh_key_path", "identity"),
}
"""What the fields of `SSHConfig` are also called, in hosts files and in other people's objects; the first is ours."""
SHARED_SPELLINGS: Final[dict[str, tuple[str, ...]]] = {"work_dir": ("work_dir", "ringrift_path")}
"""The same in hosts files that another program reads too, and in its objects."""


@dataclass(frozen=True, slots=True)
class Host:
    """One account on one machine. What is None is left to ~/.ssh/config and then to SSH's own defaults.

    The one gate for names: whoever makes one, a host whose name, addresses, user or port OpenSSH refuses does not come
    into being. Raises ControllerError (`host.config`).

    `name` is what a person calls it, and an alias of ~/.ssh/config may be one. `identity` is a private key's path.
    The Tailscale address and the Cloudflare tunnel are further ways to the same SSH server. `connect_timeout`,
    `keepalive_seconds`, `idle_seconds` (how long an unused connection is kept) and `max_age` (how old it may become)
    are seconds; None leaves them to `Access`.
    """

    name: str
    address: str
    port: int | None = None
    user: str | None = None
    identity: str | None = None
    tailscale_ip: str | None = None
    cloudflare_tunnel: str | None = None
    cloudflare_service_token_id: str | None = field(default=None, repr=False)
    cloudflare_service_token_secret: str | None = field(default=None, repr=False)
    connect_timeout: float | None = None
    keepalive_seconds: float | None = None
    keepalive_count: int | None = None
    idle_seconds: float | None = None
    max_age: float | None = None
    is_local: bool = False
    """This machine and account: SSH is not needed."""
    connection: str = SSH
    """What carries a connection, SSH or OPENSSH."""
    persist: float | None = None
    """Seconds that a connection by OPENSSH outlives its last use; None: as ssh's configuration says."""
    update: str | None = None
    """Whether a job may put another runner there: `always`, `same-major` or `never`; None: as `Runners` says."""
    signers: str | None = None
    """The file of those whose runners may be put there (`binary_trust`), absolute; None: as `Runners` says."""
    secrets_in: str | None = field(default=None, compare=False)
    """The hosts file that the Cloudflare service token came from: where a later process finds it, as none is stored."""

    def __post_init__(self) -> None:
        for address in (self.address, self.tailscale_ip, self.cloudflare_tunnel):
            if address:
                _refuse(address, "the address of a host", host_names.wrong_with_host)
        if self.tailscale_ip:
            split_port(self.tailscale_ip, self.tailscale_ip)
        if self.user is not None:
            _refuse(self.user, "the name of a user", host_names.wrong_with_user)
        _refuse(self.name, "what a host is called", host_names.wrong_with_label)
        if self.port is not None and not (type(self.port) is int and 0 < self.port < 65536):
            raise ControllerError("host.config", f"{str(self.port)[:_SHOWN]!r} is not a port from 1 to 65535")
        if self.connection not in (SSH, OPENSSH):
            shown = f"{str(self.connection)[:_SHOWN]!r}"
            raise ControllerError("host.config", f"{shown} is no kind of connection; write {SSH} or {OPENSSH}")
        if self.update not in (None, *UPDATES):
            shown = f"{str(self.update)[:_SHOWN]!r}"
            raise ControllerError("host.config", f"{shown} is no update policy; write {', '.join(UPDATES)}")

    def __str__(self) -> str:
        return self.name

    @property
    def account(self) -> tuple[object, ...]:
        """Equal for what is the same account on the same machine by the same ways, whatever it is called."""
        return (
            self.address,
            self.port,
            self.user,
            self.tailscale_ip,
            self.cloudflare_tunnel,
            self.is_local,
            self.connection,
        )


def _refuse(name: str, what: str, wrong_with: Callable[[str], str | None]) -> None:
    """Raises ControllerError for a name that can't be used as `what`."""
    wrong = wrong_with(name) if isinstance(name, str) else "it is not text"
    if wrong is not None:
        raise ControllerError("host.config", f"{str(name)[:_SHOWN]!r} cannot be {what}: {wrong}; correct it")


LOCAL_HOST: Final = Host("local", LOCALHOST, is_local=True)


@dataclass(slots=True)
class SSHConfig:
    """How one host is reached and how commands run there. Times are seconds.

    `port` and `user` None are left to ~/.ssh/config, then 22 and the login name. `use_control_master` shares one
    connection between calls, which `control_persist` keeps open while idle. `work_dir` is where commands run, and
    `venv_activate` a script that is sourced before each (`~/venv/bin/activate`).
    """

    host: str
    port: int | None = None
    user: str | None = None
    key_path: str | None = None
    connect_timeout: float = 10
    command_timeout: float = 60
    use_control_master: bool = True
    control_persist: float = IDLE_SECONDS
    server_alive_interval: float = 30
    server_alive_count_max: int = 4
    tailscale_ip: str | None = None
    work_dir: str | None = None
    venv_activate: str | None = None
    cloudflare_tunnel: str | None = None
    cloudflare_service_token_id: str | None = field(default=None, repr=False)
    cloudflare_service_token_secret: str | None = field(default=None, repr=False)

    @property
    def use_cloudflare(self) -> bool:
        """Whether there is a way through a Cloudflare tunnel."""
        return bool(self.cloudflare_tunnel)

    @classmethod
    def from_host_config(cls, host_config: Any) -> "SSHConfig":
        """The same from any object or mapping with such fields, also called `ssh_host`, `ssh_user` and so on.

        What it has and we don't know is left alone. Raises ControllerError when it names no host.
        """
        given = host_config if isinstance(host_config, Mapping) else _Attributes(host_config)
        found: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            for spelling in {**SPELLINGS, **SHARED_SPELLINGS}.get(name, (name,)):
                value = given.get(spelling)
                if value is not None and value != "":
                    found.setdefault(name, value)
        found.setdefault("host", given.get("name"))
        if not found["host"]:
            raise ControllerError("host.config", "the host configuration names no host; give it ssh_host")
        return cls(**found)

    @classmethod
    def from_cluster_node(cls, node_id: str) -> "SSHConfig | None":
        """The settings of a host of the hosts file; None when it isn't there. Raises ControllerError for a bad row."""
        from . import inventory

        found = inventory.load_for_one()
        if found is None or node_id not in found.entries:
            return None
        config = found.config(node_id)
        known = {name: getattr(config, name) for name in SSHConfig.__dataclass_fields__}
        return cls(**{name: value for name, value in known.items() if value is not None})

    @classmethod
    def from_host(cls, host: Host) -> "SSHConfig":
        """The settings that make this host again."""
        if host.is_local:
            return cls(LOCAL)
        defaults = cls(host.address)
        return replace(
            defaults,
            port=host.port,
            user=host.user,
            key_path=host.identity,
            connect_timeout=host.connect_timeout or defaults.connect_timeout,
            server_alive_interval=host.keepalive_seconds or defaults.server_alive_interval,
            server_alive_count_max=host.keepalive_count or defaults.server_alive_count_max,
            control_persist=host.idle_seconds or defaults.control_persist,
            tailscale_ip=host.tailscale_ip,
            cloudflare_tunnel=host.cloudflare_tunnel,
            cloudflare_service_token_id=host.cloudflare_service_token_id,
            cloudflare_service_token_secret=host.cloudflare_service_token_secret,
        )

    def to_host(self, name: str | None = None) -> Host:
        """The host that this reaches, called `name` or by its address. Raises ControllerError for a bad address."""
        where = parse_host(self.host, identity=self.key_path)
        if where.is_local:
            return replace(where, name=name or where.name)
        return Host(
            name=name or self.host,
            address=where.address,
            port=where.port if self.port is None else _number(self.port),
            user=self.user if self.user is not None else where.user,
            identity=self.key_path,
            tailscale_ip=self.tailscale_ip,
            cloudflare_tunnel=self.cloudflare_tunnel,
            cloudflare_service_token_id=self.cloudflare_service_token_id,
            cloudflare_service_token_secret=self.cloudflare_service_token_secret,
            connect_timeout=self.connect_timeout,
            keepalive_seconds=self.server_alive_interval,
            keepalive_count=self.server_alive_count_max,
            # Where nobody has chosen, Access may: its own default is the same.
            idle_seconds=None if self.control_persist == IDLE_SECONDS else self.control_persist,
        )


def _number(port: Any) -> Any:
    """A port that other people's objects have as text."""
    return int(port) if isinstance(port, str) and re.fullmatch("[0-9]{1,5}", port) else port


class _Attributes:
    """An object's attributes as a mapping has keys."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def get(self, name: str) -> Any:
        return getattr(self._of, name, None)


class BadTarget(NamedTuple):
    """A row that names no host, and why: among several hosts it is a failed result of its own."""

    name: str
    error: ControllerError


def distinct(targets: "Iterable[Host | BadTarget]") -> "list[Host | BadTarget]":
    """Each account on each machine once, by the last of its names: the same host twice is one host."""
    return list({_identity(target): target for target in targets}.values())


def _identity(target: "Host | BadTarget") -> object:
    """Equal for what is the same account on the same machine, whatever it is called."""
    return target.name if isinstance(target, BadTarget) else target.account


def parse_host(text: str, *, identity: str | None = None) -> Host:
    """A host from `[user@]address[:port]`; IPv6 with a port is written `[::1]:22`. `local:` is here, without SSH.

    Raises ControllerError.
    """
    user, at, rest = text.rpartition("@")
    if rest == LOCAL:
        if at:
            raise ControllerError("host.config", f"{text[:_SHOWN]!r}: {LOCAL} is this account; see --run-as for others")
        return LOCAL_HOST
    address, port = split_port(rest, text)
    if not address or (at and not user):
        raise ControllerError("host.config", f"{text[:_SHOWN]!r} is not a host; write [user@]address[:port]")
    return Host(name=rest, address=address, port=port, user=user or None, identity=identity)


def split_port(rest: str, text: str) -> tuple[str, int | None]:
    """The parts of `address[:port]`. Raises ControllerError about `text`."""
    if rest.startswith("["):
        address, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ControllerError("host.config", f"{text[:_SHOWN]!r} is not a host; write [user@][address]:port")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        address, _, port = rest.partition(":")
    else:  # a name, or a bare IPv6 address
        return rest, None
    if not port and not rest.endswith(":"):
        return address, None
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ControllerError("host.config", f"{text[:_SHOWN]!r}: {port[:_SHOWN]!r} is not a port from 1 to 65535")
    return address, int(port)
