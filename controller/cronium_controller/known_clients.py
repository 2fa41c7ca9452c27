"""One `SSHClient` for each name that a person has given to a host, in a hosts file or in ~/.ssh/config."""

import threading
from dataclasses import replace

from . import inventory
from .client import SSHClient, default_access
from .errors import ControllerError
from .hosts import Host, SSHConfig

_clients: dict[str, SSHClient] = {}
_lock = threading.Lock()


def get_ssh_client(name: str) -> SSHClient:
    """The client of a host of the hosts file, or of an alias of ~/.ssh/config. The same one for the same name.

    Raises ControllerError for a name that neither has (`hosts.not_found`) and a mistake in the file (`hosts.file`).
    """
    with _lock:
        if name not in _clients:
            config, host = _known_config(name)
            access = replace(default_access(), connection=host.connection, persist=host.persist)
            _clients[name] = SSHClient(config, name=name, access=access, max_age=host.max_age)
        return _clients[name]


async def close_all_clients() -> None:
    """Closes the connections of every client that `get_ssh_client` has made, and forgets them."""
    with _lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        await client.close()


def _known_config(name: str) -> tuple[SSHConfig, Host]:
    """The settings of a host, and what its connections are like."""
    found = inventory.load() if inventory.find() is not None else None
    if found is not None and name in found.entries:
        return found.config(name), found.host(name)
    if name in inventory.ssh_aliases():
        return SSHConfig(name), SSHConfig(name).to_host(name)
    if found is not None:
        found.select([name])  # says what is wrong with it, and what may be meant
        raise ControllerError("hosts.not_found", f"{found.path}: {name!r:.80} is not the name of one host; name one")
    raise ControllerError(
        "hosts.not_found", f"no host {name!r:.80}: there is no hosts file and ~/.ssh/config has no such alias"
    )
