"""How hosts are reached: what holds for all hosts of a controller or client. No connection is made here."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .hosts import IDLE_SECONDS, Host
from .transport import ATTEMPTS

CONNECT_SECONDS: Final = 10.0
KEEPALIVE_SECONDS: Final = 30.0
KEEPALIVE_COUNT: Final = 4
"""A silent peer is given up after interval × (count + 1): here, two and a half minutes."""

_log = logging.getLogger("cronium.connection")


class HostKeyPolicy(StrEnum):
    """What to do about a host's key."""

    ACCEPT_NEW = "accept-new"
    """An unknown one is recorded, a changed one refused; OpenSSH's meaning."""
    STRICT = "strict"
    """An unknown one is refused as well."""
    OFF = "off"
    """Anything is accepted, with a warning each time."""


@dataclass(frozen=True, slots=True)
class Access:
    """How hosts are reached: host-key policy and file, timeouts in seconds, who is asked for a key's passphrase."""

    host_keys: HostKeyPolicy | None = None
    """None: as StrictHostKeyChecking of the SSH configuration says."""
    known_hosts: str | None = None
    """A known_hosts file in place of UserKnownHostsFile; None: the files that ssh would read."""
    connect_timeout: float = CONNECT_SECONDS
    keepalive_seconds: float = KEEPALIVE_SECONDS
    """Silence after which the host is asked whether it is there, and how long each answer is awaited."""
    keepalive_count: int = KEEPALIVE_COUNT
    """Questions without an answer before the connection counts as lost."""
    idle_seconds: float = IDLE_SECONDS
    """How long an unused connection or agent is kept."""
    max_age: float | None = None
    """Seconds after which a connection takes no new calls and is closed when its last call ends; None: no limit."""
    attempts: int = ATTEMPTS
    """Over all routes of a host, with pauses between them, before it counts as unreachable."""
    ignores_health: bool = False
    """Whether a host that could not be reached lately is tried all the same."""
    connection: str | None = None
    """What carries connections, OPENSSH or SSH; None: what each host says."""
    persist: float | None = None
    """Seconds that a connection by OpenSSH goes on for after its command; None: what each host says."""
    passphrase: Callable[[str], str] | None = None
    warn: Callable[[str], None] = _log.warning

    def connect_seconds(self, host: Host, configured: float | None) -> float:
        """The connect timeout of a host: what was chosen for it or for all, else `configured` (ConnectTimeout)."""
        if host.connect_timeout is None and self.connect_timeout == CONNECT_SECONDS:
            return configured or CONNECT_SECONDS
        return host.connect_timeout or self.connect_timeout
