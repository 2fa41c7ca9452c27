"""What `ssh` is told on its command line, and what its own configuration says of a host. Nothing is connected here.

Our options win over the configuration. Jump hosts are led through by `ssh -W`, as ProxyJump does it, but with our
options: their keys are checked and recorded as the host's own is.
"""

import math
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from . import ssh_asking
from .access import Access, HostKeyPolicy
from .errors import ControllerError, UnreachableError
from .hosts import Host, split_port
from .jumps import Jump
from .own_files import is_open_key, open_key_phrase
from .service_token import with_token
from .ssh_config import told_by_ssh
from .ssh_reader import Values
from .ssh_tokens import Tokens
from .ssh_values import sent
from .transport import CLOUDFLARE, CLOUDFLARED, DIRECT, SSH_PORT, TAILSCALE, Route

_SHELLS: Final = ("sh", "bash", "dash", "ash", "ksh", "mksh", "zsh")
"""Those that take a redirection in front of a command; what a carrier says under another is lost."""
FOREVER: Final = math.inf
"""Seconds that a master persists whose configuration has `ControlPersist yes`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What `ssh -G` says of a host: the values of each keyword, in lower case, in order."""

    values: Values
    name: str
    """The host as ssh was asked for it."""

    def first(self, keyword: str, default: str = "") -> str:
        """The value of a keyword that has one."""
        return self.values.get(keyword, [default])[0]

    @property
    def proxy_jump(self) -> str | None:
        """ProxyJump; None for `none`."""
        written = self.first("proxyjump", "none")
        if written == "none":
            return None
        told = (self.first(keyword) for keyword in ("hostname", "port", "user", "hostkeyalias"))
        return Tokens.of_connection(self.name, *told).only("hknpr").replaced(written)

    @property
    def persist(self) -> float:
        """Seconds of ControlPersist, 0 when it is off."""
        told = self.first("controlpersist", "no")
        if told == "yes":
            return FOREVER
        return float(told) if told.isdigit() else 0.0

    @property
    def forwards_agent(self) -> bool:
        """ForwardAgent; the path of another agent's socket counts as well."""
        return self.first("forwardagent", "no") != "no"

    def environment(self) -> list[bytes]:
        """SetEnv, and what SendEnv lets through of our environment, as NAME=VALUE."""
        found = {name: os.environ[name] for name in sent(self.values.get("sendenv", ()))}
        found |= dict(words.split("=", 1) for words in self.values.get("setenv", ()) if "=" in words)
        return [os.fsencode(f"{name}={value}") for name, value in found.items()]


async def settings_of(host: Host) -> tuple[str, Settings]:
    """The ssh program, and what its configuration says of a host. Raises ControllerError."""
    ssh = ssh_asking.program()
    if ssh is None:
        sentence = "OpenSSH's client is not installed here; install it, or take out `connection: openssh`"
        raise ControllerError("host.config", sentence, host=host.name)
    return ssh, await settings_by(ssh, host)


async def settings_by(ssh: str, host: Host) -> Settings:
    """What its configuration says of a host. Raises ControllerError."""
    return Settings(await told_by_ssh(ssh, host), host.address)


def options_of(host: Host, access: Access) -> list[str]:
    """What the host and the access say, as ssh's options. They win over ssh's configuration."""
    words: list[str] = []
    if host.user is not None:
        words += ["-l", host.user]
    if host.port is not None:
        words += ["-p", str(host.port)]
    if host.identity is not None:
        words += ["-i", _key(host.identity, host).replace("%", "%%")]
    if access.host_keys == HostKeyPolicy.OFF:
        words += ["-o", "UserKnownHostsFile=/dev/null", "-o", "GlobalKnownHostsFile=/dev/null"]
    elif access.known_hosts is not None:
        words += ["-o", f"UserKnownHostsFile={_quoted(access.known_hosts, host)}"]
    interval = host.keepalive_seconds or access.keepalive_seconds
    given = {
        "BatchMode": "yes" if access.passphrase is None else "no",
        "ConnectionAttempts": 1,
        "ServerAliveInterval": math.ceil(interval),
        "ServerAliveCountMax": host.keepalive_count or access.keepalive_count,
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "LogLevel": "INFO",
    }
    return [*words, *(word for name, value in given.items() for word in ("-o", f"{name}={value}"))]


def _key(identity: str, host: Host) -> str:
    path = os.path.abspath(os.path.expanduser(identity))
    if not os.path.isfile(path):
        raise ControllerError("host.config", f"no private key at {identity}; correct --identity", host=host.name)
    if is_open_key(path):
        raise ControllerError("host.config", f"the private key {path} {open_key_phrase(path)}", host=host.name)
    return path


def _quoted(path: str, host: Host) -> str:
    """A path as a value of ssh's configuration. Raises ControllerError for one that it cannot have there."""
    path = os.path.abspath(os.path.expanduser(path))
    if '"' in path or "${" in path or "\\" in path or not path.isprintable():
        sentence = f"ssh cannot be given the path {path}: it has a quote, a backslash or '${{'; name another"
        raise ControllerError("host.config", sentence, host=host.name)
    return '"' + path.replace("%", "%%") + '"'


def host_key_options(access: Access, settings: Settings) -> list[str]:
    if access.host_keys == HostKeyPolicy.OFF:
        chosen = "no"
    elif access.host_keys == HostKeyPolicy.STRICT or (
        access.host_keys is None and settings.first("stricthostkeychecking") in ("yes", "true")
    ):
        chosen = "yes"
    else:  # also where the configuration says no: a changed key is refused all the same
        chosen = "accept-new"
    return ["-o", f"StrictHostKeyChecking={chosen}"]


def route_options(way: Route, host: Host, settings: Settings) -> list[str]:
    """The options for a route, before others: by it the host has the same name in known_hosts as by a direct one."""
    if way.transport == DIRECT:
        return []
    known_as = settings.first("hostkeyalias") or settings.first("hostname", host.address)
    port = settings.first("port", "22")
    if not settings.first("hostkeyalias") and port != "22":
        known_as = f"[{known_as}]:{port}"
    words = ["-o", f"HostKeyAlias={known_as}", "-o", "ProxyJump=none"]
    if way.transport != TAILSCALE:
        return words
    address, its_port = split_port(way.address, way.address)
    return [*words, "-o", "ProxyCommand=none", "-o", f"HostName={address}", "-p", str(its_port or SSH_PORT)]


class Carrier(NamedTuple):
    """A program that carries a route, by the name that errors have for it. `command` is for the user's shell."""

    name: str
    command: str

    def options(self, said: str) -> list[str]:
        """The options that run it. What it says goes to a file: ssh itself drops it for a master that may persist."""
        shell = os.path.basename(os.environ.get("SHELL") or "/bin/sh")
        redirected = f"2>>{shlex.quote(said).replace('%', '%%')} " if shell in _SHELLS else ""
        return ["-o", f"ProxyCommand={redirected}{self.command}"]  # ssh puts `exec` in front


def carrier_of(way: Route, host: Host, settings: Settings, environment: dict[str, str]) -> Carrier | None:
    """What carries a route. A service token goes into `environment`. Raises UnreachableError without cloudflared."""
    if way.transport == DIRECT:
        command = settings.first("proxycommand", "none")
        return None if command == "none" else Carrier("ProxyCommand", command)
    if way.transport != CLOUDFLARE:
        return None
    program = shutil.which(CLOUDFLARED)
    if program is None:
        sentence = f"{CLOUDFLARED} is not installed here, and the route needs it; install it"
        raise UnreachableError("host.unreachable", sentence, host=host.name)
    through = with_token(host)
    if through.cloudflare_service_token_id and through.cloudflare_service_token_secret:
        environment["TUNNEL_SERVICE_TOKEN_ID"] = through.cloudflare_service_token_id
        environment["TUNNEL_SERVICE_TOKEN_SECRET"] = through.cloudflare_service_token_secret
    command = shlex.join([program, "access", "ssh", "--hostname", way.address])
    return Carrier(CLOUDFLARED, command.replace("%", "%%"))


def through(ssh: str, chain: Sequence[tuple[Jump[Settings], str]], access: Access, timeout: float) -> list[str]:
    """The options that lead through jump hosts, each of which writes what it says into the file beside it."""
    carried = ""
    for (jump, settings), said in chain:
        words = [ssh, *options_of(jump, access), *host_key_options(access, settings), "-E", said]
        words += ["-o", f"ConnectTimeout={math.ceil(timeout)}", "-o", "ControlMaster=no", "-o", "ControlPath=none"]
        words += ["-o", f"ProxyCommand={carried}"] if carried else []
        # Tokens are replaced by the ssh that runs this; those in the words are for the ssh that is run.
        start = shlex.join(word.replace("%", "%%") for word in words)
        carried = f"{start} -W '[%h]:%p' -- {shlex.quote(jump.address.replace('%', '%%'))}"
    return ["-o", f"ProxyCommand={carried}"] if carried else []
