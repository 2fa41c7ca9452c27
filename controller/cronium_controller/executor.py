"""Raw commands with exceptions instead of results: what seed 002's `SSHExecutor` is to its callers.

A thin layer over `client`. Each error is also the builtin that a caller expects, and one of `errors`, with its code and
host.
"""

import builtins
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from . import errors
from .access import Access
from .client import SSHClient
from .errors import ControllerError, UnreachableError
from .executing import COMMAND, Executed, timeout_sentence
from .hosts import LOCAL, Host, SSHConfig
from .logs import logger
from .remote_shell import Folder, Variables

COMMAND_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 300.0
"""How long a connection is kept for the next command (seed 002: five minutes)."""

_log = logger("cronium.executor")


class ConnectionError(UnreachableError, builtins.ConnectionError):
    """No connection on any route after all attempts, or it was lost; also for a host key that can't be accepted."""


class AuthenticationError(errors.AuthenticationError, PermissionError):
    """The host refused us. Never tried again."""


class ConfigurationError(ControllerError, ValueError):
    """Something on our side can't be used, a private key that isn't there above all."""


class CommandTimeoutError(ControllerError, TimeoutError):
    """The command took too long and was ended. `stdout` and `stderr` are what it had written."""

    def __init__(self, message: str, *, host: str, stdout: str, stderr: str, duration_ms: int) -> None:
        super().__init__("command.timeout", message, host=host)
        self.stdout = stdout
        self.stderr = stderr
        self.duration_ms = duration_ms


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended. Bytes that aren't UTF-8 are replaced; `duration_ms` includes making a connection."""

    exit_code: int
    stdout: str
    stderr: str
    duration_ms: int
    truncated: bool = False
    """Whether a stream was longer than 16 MiB: `stdout` and `stderr` are then its beginning."""

    @property
    def success(self) -> bool:
        """Whether it ended with 0."""
        return self.exit_code == 0


class SSHExecutor:
    """Commands on many hosts, each over one connection that is kept for five minutes.

    A machine is a `Host`, an `SSHConfig`, a name or address, or any object with a `tailscale_hostname` and perhaps an
    `ssh_username`; `username` and `key_path` count for those that name none themselves.
    """

    _client_class = SSHClient

    def __init__(
        self,
        *,
        username: str | None = None,
        key_path: str | None = None,
        timeout: float = COMMAND_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        retry_on_drop: bool = True,
        access: Access | None = None,
    ) -> None:
        """With `retry_on_drop` a command whose connection is lost under it is run once more: it may then run twice."""
        self._username = username
        self._key_path = key_path
        self._timeout = timeout
        self._idle_seconds = idle_seconds
        self._retry_on_drop = retry_on_drop
        self._access = access
        self._clients: dict[tuple[Any, ...], SSHClient] = {}

    async def execute(
        self,
        machine: Any = None,
        command: str = "",
        timeout: float | None = None,
        *,
        server: Any = None,
        cwd: Folder | None = None,
        env: Variables | None = None,
        kill: str = COMMAND,
    ) -> CommandResult:
        """Runs a command and waits for its end, whatever its exit status. `server` is another word for `machine`.

        `timeout` and `kill` are as for `SSHClient.run_async`. Raises ValueError for an empty command and for a machine
        without an address, ConnectionError after three attempts or when the time is up before there is a connection,
        AuthenticationError, ConfigurationError, and CommandTimeoutError with what the command had written.
        """
        if (machine is None) == (server is None):
            raise TypeError("execute() takes a machine, or server=, and not both")
        if not command.strip():
            raise ValueError("Command cannot be empty")
        client = self._client(server if machine is None else machine)
        limit = self._timeout if timeout is None else timeout
        _check_key(client)
        try:
            executed = await self._executed(client, command, limit, cwd, env, kill)
        except errors.AuthenticationError as error:
            raise _as(AuthenticationError, error) from None
        except UnreachableError as error:
            raise _as(ConnectionError, error) from None
        except ControllerError as error:
            raise _as(ConfigurationError, error) from None
        return _result(executed, client, limit)

    async def execute_commands(
        self, machine: Any, commands: Sequence[str], timeout: float | None = None
    ) -> list[CommandResult]:
        """Runs commands one after another up to and including the first that fails. `timeout` is for each.

        Raises what `execute` does; the results so far are then lost to the caller, not to the log.
        """
        began = time.monotonic()
        results: list[CommandResult] = []
        try:
            for command in commands:
                results.append(await self.execute(machine, command, timeout))
                if not results[-1].success:
                    break
        finally:
            _log.info(
                "command_batch_completed",
                extra={
                    "host": _name(machine),
                    "commands": len(commands),
                    "completed": len(results),
                    "success": len(results) == len(commands) and all(result.success for result in results),
                    "duration_seconds": round(time.monotonic() - began, 3),
                },
            )
        return results

    async def close_all_connections(self) -> None:
        """Closes every connection. The next command opens one again."""
        for client in self._clients.values():
            await client.close()

    async def __aenter__(self) -> "SSHExecutor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_all_connections()

    async def _executed(
        self,
        client: SSHClient,
        command: str,
        limit: float,
        cwd: Folder | None,
        env: Variables | None,
        kill: str,
    ) -> Executed:
        try:
            return await client.execute(command, limit, cwd=cwd, env=env, kill=kill)
        except UnreachableError as error:
            if error.code != "channel.lost" or not self._retry_on_drop:
                raise
        return await client.execute(command, limit, cwd=cwd, env=env, kill=kill)

    def _client(self, machine: Any) -> SSHClient:
        config, name = self._config(machine)
        key = (name, config.host, config.port, config.user, config.key_path)
        if key not in self._clients:
            self._clients[key] = self._client_class(config, name=name, access=self._access)
        return self._clients[key]

    def _config(self, machine: Any) -> tuple[SSHConfig, str]:
        """How the machine is reached, and what it is called. Raises ValueError when it has no address."""
        address = self._address(machine)
        if not address:
            raise ValueError(f"Machine {_name(machine)!r} has no tailscale_hostname; set it")
        known = machine if isinstance(machine, SSHConfig) else None
        config = known or SSHConfig(address, control_persist=self._idle_seconds)
        if isinstance(machine, Host):
            config.port, config.user, config.key_path = machine.port, machine.user, machine.identity
            config.tailscale_ip, config.cloudflare_tunnel = machine.tailscale_ip, machine.cloudflare_tunnel
            config.cloudflare_service_token_id = machine.cloudflare_service_token_id
            config.cloudflare_service_token_secret = machine.cloudflare_service_token_secret
        if known is None:
            config.user = config.user or getattr(machine, "ssh_username", None) or self._username
            config.key_path = config.key_path or self._key_path
        return config, _name(machine)

    def _address(self, machine: Any) -> str | None:
        """Where a machine is; None when it doesn't say."""
        if isinstance(machine, str):
            return machine
        if isinstance(machine, SSHConfig):
            return machine.host
        if isinstance(machine, Host):
            return LOCAL if machine.is_local else machine.address
        found = getattr(machine, "tailscale_hostname", None)
        return None if found is None else str(found)


def _check_key(client: SSHClient) -> None:
    """Raises ConfigurationError for a private key that isn't there: `ssh`, and the client, go on without it."""
    key = client.config.key_path
    if key and not os.path.isfile(os.path.expanduser(key)):
        raise ConfigurationError("host.config", f"no private key at {key}; correct its path", host=client.name)


def _name(machine: Any) -> str:
    for name in ("name", "hostname", "tailscale_hostname", "host", "id"):
        found = getattr(machine, name, None)
        if found:
            return str(found)
    return str(machine)


def _result(executed: Executed, client: SSHClient, limit: float) -> CommandResult:
    done, took = executed.done, int(executed.duration * 1000)
    stdout, stderr = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    if done.timed_out:
        message = f"{timeout_sentence(done)} (timeout {limit:g} s)"
        raise CommandTimeoutError(message, host=client.name, stdout=stdout, stderr=stderr, duration_ms=took)
    assert done.exit_status is not None, "the client raises when there is none"
    return CommandResult(done.exit_status, stdout, stderr, took, done.truncated)


def _as(kind: type[Any], error: ControllerError) -> Any:
    """The same error as one that is also a builtin. Its sentence names the host already."""
    translated = kind(error.code, error.message)
    translated.host = error.host
    return translated
