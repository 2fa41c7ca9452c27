"""The SSH executor of US0151 and of the pooling fix, over ours: `from cronium_controller.compat.homelab import …`.

Account and key are its own by default, and can be set on the object at any time.
"""

import asyncio
from collections.abc import Awaitable, Generator
from enum import Enum
from typing import Any, Final

from .. import executor
from ..client import SSHClient as PlainClient
from ..errors import ControllerError
from ..executor import (
    AuthenticationError,
    CommandResult,
    CommandTimeoutError,
    ConfigurationError,
    ConnectionError,
)
from ..hosts import Host, SSHConfig
from .ringrift import SSHClient

__all__ = [
    "AuthenticationError",
    "CommandResult",
    "CommandTimeoutError",
    "ConfigurationError",
    "ConnectionError",
    "SSHExecutor",
]

USERNAME: Final = "homelabcmd"
KEY_PATH: Final = "/run/secrets/id_homelabcmd"
COMMAND_SECONDS: Final = 60.0
"""Of `execute_command`, which is the older of the two."""
FAILED: Final = -1
"""The code of a command that has no exit status."""


class SSHExecutor(executor.SSHExecutor):
    """Commands on many machines, each over one connection that is kept for five minutes.

    A machine may also be named by `hostname` or `ip_address`, or be a member of an Enum: then `host_config` has its
    settings, else the hosts file, else its value is a host name.
    """

    _client_class = SSHClient

    def __init__(self, username: str = USERNAME, key_path: str = KEY_PATH, **how: Any) -> None:
        super().__init__(username=username, key_path=key_path, **how)
        self.host_config: dict[Any, Any] = {}
        """Settings by machine, each an object or mapping that `SSHConfig.from_host_config` reads."""

    @property
    def ssh_username(self) -> str | None:
        """The account on machines that name none."""
        return self._username

    @ssh_username.setter
    def ssh_username(self, name: str | None) -> None:
        self._username = name

    @property
    def ssh_key_path(self) -> str | None:
        """The private key for machines that name none."""
        return self._key_path

    @ssh_key_path.setter
    def ssh_key_path(self, path: str | None) -> None:
        self._key_path = path

    @property
    def connections(self) -> dict[str, PlainClient]:
        """The clients that commands were run with, by the machines' names."""
        return {client.name: client for client in self._clients.values()}

    async def execute_command(
        self, host: Any, command: str, timeout: float | None = COMMAND_SECONDS
    ) -> tuple[str, str, int]:
        """Standard output, standard error and exit code; -1, with the reason in standard error, when there is none.

        Raises ValueError for an empty command and a machine without an address.
        """
        try:
            result = await self.execute(host, command, timeout)
        except CommandTimeoutError as error:
            return error.stdout, f"{error.stderr}{error.message}\n", FAILED
        except ControllerError as error:
            return "", f"{error.message}\n", FAILED
        return result.stdout, result.stderr, result.exit_code

    def clear_pool(self) -> Awaitable[None]:
        """Closes every connection, at once where no event loop runs, else soon: what it returns can be awaited."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self.close_all_connections())
            return _Done()
        return asyncio.ensure_future(self.close_all_connections())

    async def close(self) -> None:
        """Closes every connection."""
        await self.close_all_connections()

    def _address(self, machine: Any) -> str | None:
        for name in ("", "hostname", "ip_address"):
            found = getattr(machine, name, None) if name else super()._address(machine)
            if found:
                return str(found)
        return None

    def _config(self, machine: Any) -> tuple[SSHConfig, str]:
        if isinstance(machine, (str, Host, SSHConfig)) and not isinstance(machine, Enum):
            return super()._config(machine)
        name = str(machine.value) if isinstance(machine, Enum) else None
        given = self.host_config.get(machine) if machine.__hash__ is not None else None
        if given is None and name is None:
            return super()._config(machine)
        name = name or str(machine)
        known = None if given is not None else SSHConfig.from_cluster_node(name)
        config = known or SSHConfig.from_host_config(given or {"host": name})
        config.user, config.key_path = config.user or self._username, config.key_path or self._key_path
        return config, name


class _Done:
    """An awaitable that is over."""

    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]
