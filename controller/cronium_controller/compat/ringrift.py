"""The SSH client of `app/core/ssh.py`, over ours: import SSHClient, SSHConfig and the rest from here instead.

Its `port` is 22 where none is given, and 22 leaves the port to ~/.ssh/config, as it is passed to `ssh` only otherwise.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from .. import client, hosts, inventory
from ..client import SSHResult
from ..errors import ControllerError
from ..health import SSHHealth
from ..hosts import Host
from ..known_clients import KnownClients
from ..transport import CLOUDFLARED

__all__ = [
    "HostConfig",
    "SSHClient",
    "SSHConfig",
    "SSHHealth",
    "SSHResult",
    "close_all_clients",
    "get_cluster_nodes",
    "get_ssh_client",
    "run_ssh_command",
    "run_ssh_command_async",
    "run_ssh_command_sync",
]

_PORT: Final = 22


@dataclass(slots=True)
class SSHConfig(hosts.SSHConfig):
    """How one host is reached and how commands run there."""

    port: int | None = _PORT

    def to_host(self, name: str | None = None) -> Host:
        """The host that this reaches. Raises ControllerError for a bad address."""
        known = {field: getattr(self, field) for field in self.__dataclass_fields__}
        return hosts.SSHConfig(**{**known, "port": None if self.port == _PORT else self.port}).to_host(name)


HostConfig = hosts.SSHConfig
"""What `get_cluster_nodes` gives."""


class SSHClient(client.SSHClient):
    """Commands and files on one host."""

    _expands = True

    def __init__(self, config: hosts.SSHConfig, control_path_dir: object = None, **how: Any) -> None:
        """`control_path_dir` means nothing here: connections are shared within the process."""
        del control_path_dir
        super().__init__(config, **how)

    def _build_cloudflare_proxy_command(self) -> str:
        """The command that carries the Cloudflare route, without the token, which it gets in its environment.

        Raises ValueError where there is no tunnel.
        """
        if not self.config.cloudflare_tunnel:
            raise ValueError("Cloudflare tunnel not configured")
        return f"{CLOUDFLARED} access ssh --hostname {self.config.cloudflare_tunnel}"

    def _record_success(self) -> None:
        """Counts a call that went well."""
        self._count(None)

    def _record_failure(self) -> None:
        """Counts a call that failed."""
        self._count("a failure that the program told")


_known: Final = KnownClients(SSHClient, SSHConfig)
get_ssh_client = _known.get_ssh_client
close_all_clients = _known.close_all_clients
run_ssh_command = run_ssh_command_async = _known.run_ssh_command_async
run_ssh_command_sync = _known.run_ssh_command_sync


def get_cluster_nodes() -> dict[str, HostConfig]:
    """The hosts of the hosts file by name, those with a malformed row left out; none where there is no file.

    Raises ControllerError for a file that cannot be read.
    """
    found = inventory.load_for_one()
    nodes: dict[str, HostConfig] = {}
    for name in () if found is None else found.entries:
        try:
            assert found is not None
            nodes[name] = replace(found.config(name))
        except ControllerError:
            continue
    return nodes
