"""One `SSHClient` for each name of a host, from a hosts file or as `ssh` takes it; and commands by a host's name."""

import threading
from dataclasses import replace
from typing import Any

from . import inventory, node_sets
from .client import SSHClient, SSHResult, default_access
from .errors import ControllerError
from .hosts import SSH, Host, SSHConfig
from .logs import logger

_log = logger("cronium.client")


class KnownClients:
    """Clients of one class by name, and commands by name."""

    def __init__(self, client: type[SSHClient], config: type[SSHConfig]) -> None:
        self._client = client
        self._config = config
        self._clients: dict[str, SSHClient] = {}
        self._lock = threading.Lock()

    def get_ssh_client(self, name: str) -> SSHClient:
        """The client of a host of the hosts file, or of what else `ssh` takes: an alias or a host name. The same one
        for the same name.

        Raises ControllerError for a mistake in the host's row (`hosts.file`), and for a group (`hosts.not_found`).
        """
        with self._lock:
            if name not in self._clients:
                self._clients[name] = self._made(name)
            return self._clients[name]

    async def close_all_clients(self) -> None:
        """Closes the connections of every client that `get_ssh_client` has made, and forgets them."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            await client.close()

    async def run_ssh_command_async(
        self,
        host: str,
        command: str,
        user: str | None = None,
        timeout: float | None = None,
        max_retries: int = 3,
        **how: Any,
    ) -> SSHResult:
        """Runs a command on a host by its name, until it succeeds or `max_retries` times, as another `user` if named.

        `how` is what else `SSHClient.run_async_with_retry` takes. For commands that may run twice.
        """
        return await self._as(host, user).run_async_with_retry(command, timeout, max_retries, **how)

    def run_ssh_command_sync(
        self,
        host: str,
        command: str,
        user: str | None = None,
        port: int | None = None,
        key_path: str | None = None,
        timeout: float | None = None,
        **how: Any,
    ) -> SSHResult:
        """Runs a command once and blocks. Given a port or a key, `host` is a host name; else a name as above.

        `how` is what else `SSHClient.run` takes.
        """
        if port is None and key_path is None:
            return self._as(host, user).run(command, timeout, **how)
        config = self._config(host, port=port, user=user, key_path=key_path)
        return self._client(config).run(command, timeout, **how)

    def _as(self, host: str, user: str | None) -> SSHClient:
        client = self.get_ssh_client(host)
        return client if user is None or client.config.user == user else self._made(host, user)

    def _made(self, name: str, user: str | None = None) -> SSHClient:
        config, host = self._known(name)
        # What is usual is left out, so that clients with equal access share connections.
        connection = None if host.connection == SSH else host.connection
        access = replace(default_access(), connection=connection, persist=host.persist)
        config = config if user is None else replace(config, user=user)
        return self._client(config, name=name, access=access, max_age=host.max_age)

    def _known(self, name: str) -> tuple[SSHConfig, Host]:
        """The settings of a host, and what its connections are like."""
        found = inventory.load_for_one()
        if found is not None:
            if name in found.entries:
                config = self._config.from_cluster_node(name)
                assert config is not None, "it is in the file"
                return config, found.host(name)
            if name in found.groups or name == node_sets.ALL:
                sentence = f"{found.path}: {name!r:.80} is not the name of one host; name one"
                raise ControllerError("hosts.not_found", sentence)
            near = node_sets.nearest(name, found.entries)
            if near and name not in inventory.ssh_aliases():
                _log.warning("%s: no host %r%s Taken as a host name", found.path, name, near)
        return self._config(name), self._config(name).to_host(name)


_known = KnownClients(SSHClient, SSHConfig)
get_ssh_client = _known.get_ssh_client
close_all_clients = _known.close_all_clients
run_ssh_command = run_ssh_command_async = _known.run_ssh_command_async
run_ssh_command_sync = _known.run_ssh_command_sync
