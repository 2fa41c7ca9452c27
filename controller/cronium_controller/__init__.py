"""What runs on the operator's machine: it reaches hosts over SSH, puts the runner there and submits executions.

Everything named here is loaded when it is first asked for: importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cronium_runner import __version__
    from cronium_runner.wire.results import Outcome, Result

    from .access import Access, HostKeyPolicy
    from .attached import Attached
    from .blocking import BlockingController, BlockingResult
    from .client import SSHClient, SSHResult
    from .dispatch import Controller
    from .errors import (
        ChannelLostError,
        ControllerError,
        DeployError,
        HostKeyChangedError,
        HostKeyError,
        HostKeyUnknownError,
        PayloadError,
        RefusedError,
        StoreError,
        TunnelError,
        UnreachableError,
    )
    from .execution import Execution, Piece
    from .executor import (
        AuthenticationError,
        CommandResult,
        CommandTimeoutError,
        ConfigurationError,
        ConnectionError,
        SSHExecutor,
    )
    from .fanout import FanOut
    from .health import SSHHealth
    from .hosts import Host, SSHConfig, parse_host
    from .inventory import Inventory
    from .job import Job
    from .known_clients import (
        close_all_clients,
        get_ssh_client,
        run_ssh_command,
        run_ssh_command_async,
        run_ssh_command_sync,
    )
    from .metrics import Stats
    from .payloads import Payload, load
    from .runners import Runners
    from .runs import Runs
    from .store import Store

_MODULES = {
    "cronium_runner": ("__version__",),
    ".attached": ("Attached",),
    ".blocking": (
        "BlockingController",
        "BlockingResult",
    ),
    ".client": (
        "SSHClient",
        "SSHResult",
    ),
    ".access": ("Access", "HostKeyPolicy"),
    ".dispatch": ("Controller",),
    ".errors": (
        "ChannelLostError",
        "ControllerError",
        "DeployError",
        "HostKeyChangedError",
        "HostKeyError",
        "HostKeyUnknownError",
        "PayloadError",
        "RefusedError",
        "StoreError",
        "TunnelError",
        "UnreachableError",
    ),
    ".execution": (
        "Execution",
        "Piece",
    ),
    ".executor": (
        "AuthenticationError",
        "CommandResult",
        "CommandTimeoutError",
        "ConfigurationError",
        "ConnectionError",
        "SSHExecutor",
    ),
    ".fanout": ("FanOut",),
    ".health": ("SSHHealth",),
    ".hosts": (
        "Host",
        "SSHConfig",
        "parse_host",
    ),
    ".inventory": ("Inventory",),
    ".job": ("Job",),
    ".known_clients": (
        "close_all_clients",
        "get_ssh_client",
        "run_ssh_command",
        "run_ssh_command_async",
        "run_ssh_command_sync",
    ),
    ".metrics": ("Stats",),
    ".payloads": (
        "Payload",
        "load",
    ),
    "cronium_runner.wire.results": (
        "Outcome",
        "Result",
    ),
    ".runners": ("Runners",),
    ".runs": ("Runs",),
    ".store": ("Store",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "__version__",
    "Access",
    "Attached",
    "AuthenticationError",
    "BlockingController",
    "BlockingResult",
    "ChannelLostError",
    "CommandResult",
    "CommandTimeoutError",
    "ConfigurationError",
    "ConnectionError",
    "Controller",
    "ControllerError",
    "DeployError",
    "Execution",
    "FanOut",
    "Host",
    "HostKeyChangedError",
    "HostKeyError",
    "HostKeyPolicy",
    "HostKeyUnknownError",
    "Inventory",
    "Job",
    "Outcome",
    "Payload",
    "PayloadError",
    "Piece",
    "RefusedError",
    "Result",
    "Runners",
    "Runs",
    "SSHClient",
    "SSHConfig",
    "SSHExecutor",
    "SSHHealth",
    "SSHResult",
    "Stats",
    "Store",
    "StoreError",
    "TunnelError",
    "UnreachableError",
    "close_all_clients",
    "get_ssh_client",
    "load",
    "parse_host",
    "run_ssh_command",
    "run_ssh_command_async",
    "run_ssh_command_sync",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
