"""Which host is meant: name, address, port, user, key. No connection is made here."""

import re
from dataclasses import dataclass
from typing import Final

from .errors import ControllerError

_SHOWN: Final = 100
"""Characters of what was written that an error repeats."""


@dataclass(frozen=True, slots=True)
class Host:
    """One account on one machine. What is None is left to ~/.ssh/config and then to SSH's own defaults.

    `name` is what a person calls it, and an alias of ~/.ssh/config may be one. `identity` is a private key's path.
    """

    name: str
    address: str
    port: int | None = None
    user: str | None = None
    identity: str | None = None

    def __str__(self) -> str:
        return self.name


def parse_host(text: str, *, identity: str | None = None) -> Host:
    """A host from `[user@]address[:port]`; IPv6 with a port is written `[::1]:22`. Raises ControllerError."""
    user, at, rest = text.rpartition("@")
    address, port = _split_port(rest, text)
    if (
        not address
        or (at and not user)
        or any(character.isspace() or not character.isprintable() for character in text)
    ):
        raise ControllerError("host.config", f"{text[:_SHOWN]!r} is not a host; write [user@]address[:port]")
    if address.startswith("-") or user.startswith("-"):
        raise ControllerError("host.config", f"{text[:_SHOWN]!r} is not a host: a part of it begins with '-'")
    return Host(name=rest, address=address, port=port, user=user or None, identity=identity)


def _split_port(rest: str, text: str) -> tuple[str, int | None]:
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
