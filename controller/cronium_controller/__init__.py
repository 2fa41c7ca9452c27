"""What runs on the operator's machine: it reaches hosts over SSH, puts the runner there and submits executions.

Everything named here is loaded when it is first asked for: importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access import Access
    from .blocking import BlockingController
    from .client import SSHClient, SSHResult
    from .dispatch import Controller
    from .errors import ControllerError
    from .executor import (
        AuthenticationError,
        CommandResult,
        CommandTimeoutError,
        ConfigurationError,
        ConnectionError,
        SSHExecutor,
    )
    from .health import SSHHealth
    from .hosts import Host, SSHConfig, parse_host
    from .inventory import Inventory
    from .job import Job
    from .known_clients import close_all_clients, get_ssh_client
    from .metrics import Stats

_MODULES = {
    "access": ("Access",),
    "blocking": ("BlockingController",),
    "client": ("SSHClient", "SSHResult"),
    "dispatch": ("Controller",),
    "errors": ("ControllerError",),
    "executor": (
        "AuthenticationError",
        "CommandResult",
        "CommandTimeoutError",
        "ConfigurationError",
        "ConnectionError",
        "SSHExecutor",
    ),
    "health": ("SSHHealth",),
    "hosts": ("Host", "SSHConfig", "parse_host"),
    "inventory": ("Inventory",),
    "job": ("Job",),
    "metrics": ("Stats",),
    "known_clients": ("close_all_clients", "get_ssh_client"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Access",
    "AuthenticationError",
    "BlockingController",
    "CommandResult",
    "CommandTimeoutError",
    "ConfigurationError",
    "ConnectionError",
    "Controller",
    "ControllerError",
    "Host",
    "Inventory",
    "Job",
    "SSHClient",
    "SSHConfig",
    "SSHExecutor",
    "SSHHealth",
    "SSHResult",
    "Stats",
    "close_all_clients",
    "get_ssh_client",
    "parse_host",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = found
    return found
