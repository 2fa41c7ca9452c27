"""What makes executions ones in API mode: the way to a runtime API, and a token for each.

The service is this process's own: opened with the first job that needs it, one for all hosts, gone with the controller.
Or it is somebody else's, when CRONIUM_API_ENDPOINT and CRONIUM_API_TOKEN say so; then there is neither tunnel nor token
of ours. Everything heavy (starlette, uvicorn, PyJWT) is loaded with the first job in API mode.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cronium_runner.wire.access import API, Access, AccessError, from_environment
from cronium_runner.wire.names import SCRIPT_ENDPOINT
from cronium_runner.wire.results import Outcome, Result

from .errors import ControllerError, StoreError, TunnelError
from .hosts import LOCALHOST, Host
from .job import Job
from .logs import logger
from .payloads import Payload
from .state_path import LIVE_NAME

if TYPE_CHECKING:
    from .api.tokens import Tokens
    from .platform_store import PlatformStore
    from .reaching import Reached
    from .tunnel import Answering, Tunnels

LONGEST_SECONDS: Final = 24 * 3600.0
"""A token's life where the job names no timeout: its manifest may, and this is the most that it can.
The token is revoked with the execution's end, so that a longer life opens nothing more."""
USER: Final = "default"
"""Whose variables executions read and write that are submitted from here, as with `cronium api`."""

_T = TypeVar("_T")
_log = logger("cronium.live")


class Live:
    """The live data of one controller's executions."""

    def __init__(
        self,
        folder: Path,
        *,
        allow_tcp_tunnel: bool = False,
        environment: Mapping[str, str] | None = None,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        """`folder` is the controller's: its database and key are there unless the environment names others.

        `allow_tcp_tunnel`: where a host refuses to forward a socket, a port of its loopback interface will do, and
        scripts with `expose_api` get one.
        """
        self._folder = folder
        self._allow_tcp_tunnel = allow_tcp_tunnel
        self._environment = os.environ if environment is None else environment
        self._service: _Service | None = None
        self._opening = asyncio.Lock()
        self._tunnels: Tunnels | None = None
        self._warn = warn
        self._exposing: dict[str, bool] = {}
        """Whether a payload's script is to see the runtime API, by the payload's SHA-256."""
        self._has_told_exposed = False

    def __repr__(self) -> str:
        return f"<Live {'closed' if self._service is None else 'open'}>"

    @property
    def is_open(self) -> bool:
        """Whether this process serves: what runs in API mode then reaches the platform as long as it is here."""
        return self._service is not None

    async def endpoint(self, reached: "Reached", *, is_other_account: bool = False) -> str:
        """Where executions on the host find the runtime API; the tunnel is opened when it is somebody's first.

        Raises TunnelError where there is no way, and ControllerError when the service itself cannot be used.
        """
        if API not in (reached.agent.agent.get("knows") or ()):
            raise TunnelError(
                "channel.version",
                "the runner there is older than this controller and has no API mode; "
                "end its agent's connections, then `cronium deploy` brings the new one",
                host=reached.agent.host_name,
            )
        foreign = self._foreign()
        if foreign is not None:
            return foreign.endpoint
        from .tunnel import Tunnels, account_refused

        service = await self._opened()
        sockets = reached.agent.agent.get("sockets")
        connection = reached.connection
        if connection.host.is_local:
            if is_other_account:
                raise account_refused(reached.agent.host_name)
            async with self._opening:
                return await service.listen_here(sockets)
        if self._tunnels is None:
            self._tunnels = Tunnels(allow_tcp=self._allow_tcp_tunnel)
        return await self._tunnels.endpoint(connection, sockets, service.answering, is_other_account=is_other_account)

    async def script_endpoint(self, reached: "Reached", payload: Payload, endpoint: str) -> str | None:
        """Where a script on the host finds the runtime API by a port, None unless it is to and that is allowed.

        `endpoint` is its runner's, which goes on using the socket. Raises UnreachableError.
        """
        if not self._allow_tcp_tunnel or self._foreign() is not None or not self._is_exposing(payload):
            return None
        if not endpoint.startswith("unix://"):
            self._tell_exposed()
            return None
        try:
            if SCRIPT_ENDPOINT not in (reached.agent.agent.get("knows") or ()):
                raise TunnelError(
                    "channel.version",
                    "the runner there is older than this controller; `cronium deploy` brings the new one",
                    host=reached.agent.host_name,
                )
            port = await self._port(reached)
        except TunnelError as error:
            told = error.about(reached.agent.host_name, "the script finds the runtime API at a socket, not at a port: ")
            self._warn(told.message)
            return None
        self._tell_exposed()
        return port

    def _is_exposing(self, payload: Payload) -> bool:
        from .payload_manifest import exposes_api

        if payload.sha256 not in self._exposing:
            self._exposing[payload.sha256] = exposes_api(payload)
        return self._exposing[payload.sha256]

    def _tell_exposed(self) -> None:
        """Says it once: of many hosts each would say the same."""
        if not self._has_told_exposed:
            self._has_told_exposed = True
            self._warn(
                "expose_api with --allow-tcp-tunnel: the script finds the runtime API at a port of its host's loopback "
                "interface; every account there can connect to it, and needs the token to get anything"
            )

    async def _port(self, reached: "Reached") -> str:
        service = await self._opened()
        connection = reached.connection
        if connection.host.is_local:
            async with self._opening:
                return await service.listen_at_port()

        assert self._tunnels is not None, "its socket was forwarded before"
        return await self._tunnels.port(connection, service.answering)

    async def admit(self, execution_id: str, job: Job, host: Host, endpoint: str) -> Access:
        """Makes an execution known to the platform, with what is handed over for it, and gives it a token.

        Secrets are not told to the platform. Raises StoreError.
        """
        foreign = self._foreign()
        if foreign is not None:
            return foreign
        service = await self._opened()
        return Access(endpoint, await _in_thread(service.admit, execution_id, job, host.name))

    async def readmit(self, execution_id: str, endpoint: str) -> Access | None:
        """A new token for an execution that is known; None when the platform doesn't know it. Raises StoreError."""
        foreign = self._foreign()
        if foreign is not None:
            return foreign
        service = await self._opened()
        token = await _in_thread(service.readmit, execution_id)
        return None if token is None else Access(endpoint, token)

    async def end(self, result: Result) -> None:
        """The execution has ended: once nothing of it is left to deliver, its tokens open nothing any more."""
        if result.undelivered == 0 and result.state is not Outcome.UNKNOWN:
            await self._settle(result.execution_id, lambda service: service.revoke(result.execution_id))

    async def forget(self, execution_id: str) -> None:
        """Nothing was started under the id, which stays free: the platform forgets what was handed over for it."""
        await self._settle(execution_id, lambda service: service.forget(execution_id))

    async def close(self) -> None:
        """Ends the service, once the answers that are being made are sent."""
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def _settle(self, execution_id: str, call: "Callable[[_Service], None]") -> None:
        """Something that nobody waits for, and that an expiring token ends anyway."""
        if self._service is None:
            return
        try:
            await _in_thread(call, self._service)
        except StoreError as error:
            _log.warning("token_not_revoked", extra={"execution": execution_id, "reason": error.message})

    def _foreign(self) -> Access | None:
        try:
            return from_environment(self._environment)
        except AccessError as error:
            raise ControllerError("api.config", f"{error}; correct the environment") from None

    async def _opened(self) -> "_Service":
        async with self._opening:
            if self._service is None:
                self._service = await _Service.open(self._folder, self._environment)
            return self._service


async def _in_thread(call: Callable[..., _T], *given: Any) -> _T:
    """A call that waits for the database. Its thread goes on when we are cancelled, so what comes next waits for it."""
    calling = asyncio.ensure_future(asyncio.to_thread(call, *given))
    try:
        return await asyncio.shield(calling)
    finally:
        await asyncio.wait([calling])


class _Service:
    """The runtime API of this process, and what it stands on. Its methods wait for the database."""

    def __init__(self, store: "PlatformStore", tokens: "Tokens", actor: str) -> None:
        self.store = store
        self.answering: Answering
        self._local: str | None = None
        self._local_port: str | None = None
        self._tokens = tokens
        self._actor = actor
        self._open = contextlib.AsyncExitStack()

    @classmethod
    async def open(cls, folder: Path, environment: Mapping[str, str]) -> "_Service":
        service, app = await asyncio.to_thread(cls._load, folder, environment)
        from .api.serve import answering

        service._open.callback(service.store.close)
        service.answering = await service._open.enter_async_context(answering(app))
        return service

    @classmethod
    def _load(cls, folder: Path, environment: Mapping[str, str]) -> "tuple[_Service, Any]":
        from .api.app import RuntimeApi
        from .api.issue import operator
        from .api.limits import chosen
        from .api.tokens import Tokens, load_key
        from .api.tools import load_tools
        from .platform_store import PlatformStore

        key_file = environment.get("CRONIUM_API_KEY_FILE")
        tokens = Tokens(load_key(Path(key_file) if key_file else folder / "api.key"))
        tools, limits = load_tools(), chosen(environment)
        store = PlatformStore(environment.get("CRONIUM_DATABASE") or str(folder / LIVE_NAME))
        try:
            store.prune(time.time())
            return cls(store, tokens, operator()), RuntimeApi(store, tokens, tools=tools, limits=limits)
        except BaseException:
            store.close()
            raise

    async def listen_here(self, sockets: object) -> str:
        """The endpoint for executions on this machine, which need no tunnel: a socket of this account's alone."""
        from .api.serve import listening, unix_listener
        from .tunnel import socket_path

        if self._local is None:
            path = socket_path(sockets, LOCALHOST)
            await self._open.enter_async_context(listening(self.answering, unix_listener(path)))
            self._local = f"unix://{path}"
        return self._local

    async def listen_at_port(self) -> str:
        """The endpoint for scripts on this machine that ask for one: a port that every account here can connect to."""
        from .api.serve import listening, tcp_listener
        from .tunnel import LOOPBACK

        if self._local_port is None:
            listener = tcp_listener(LOOPBACK, 0)
            await self._open.enter_async_context(listening(self.answering, listener))
            self._local_port = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        return self._local_port

    async def close(self) -> None:
        await self._open.aclose()

    def admit(self, execution_id: str, job: Job, host: str) -> str:
        from .api.issue import context_from
        from .platform_store import LiveExecution

        known = LiveExecution(
            execution_id, USER, job.job_id, host, job.input_or_none, job.variables, context_from(job.event)
        )
        return self._issue(known, LONGEST_SECONDS if job.timeout is None else job.timeout)

    def readmit(self, execution_id: str) -> str | None:
        known = self.store.find(execution_id)
        return None if known is None else self._issue(known, LONGEST_SECONDS)

    def _issue(self, known: Any, timeout: float) -> str:
        from .api.issue import issue

        return issue(self.store, self._tokens, known, timeout=timeout, actor=self._actor).token

    def revoke(self, execution_id: str) -> None:
        self.store.revoke(execution_id, time.time(), actor=self._actor)

    def forget(self, execution_id: str) -> None:
        self.store.forget(execution_id, time.time(), actor=self._actor)
