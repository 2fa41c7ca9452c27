"""Which hosts are reached: one connection a host, one agent for each account there, kept while they can be used."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .channel import AgentChannel
from .connection import Access, Connection, connect
from .errors import ChannelLostError
from .hosts import Host
from .install import Deployment, Runners, start_agent
from .transport import Remembered

_log = logging.getLogger("cronium.dispatch")
ACKNOWLEDGE_SECONDS: Final = 5.0
"""How long leaving waits for hosts to hear that their results are stored; they keep them, should they not hear it."""


@dataclass(slots=True)
class Reached:
    """A host that we are connected to, with its agent."""

    connection: Connection
    agent: AgentChannel
    deployment: Deployment | None

    async def leave(self) -> None:
        """Ends the agent's channel, once it has heard what was sent to it."""
        with contextlib.suppress(TimeoutError, ChannelLostError):
            await asyncio.wait_for(self.agent.wait_heard(), ACKNOWLEDGE_SECONDS)
        self.agent.close()


def _is_usable(opening: "asyncio.Task[Reached]") -> bool:
    """Whether it has an agent, or will have one."""
    if not opening.done():
        return True
    return not opening.cancelled() and opening.exception() is None and opening.result().agent.lost is None


class Reachable:
    """The hosts of one controller."""

    def __init__(self, access: Access, runners: Runners, remembered: Remembered) -> None:
        self._access = access
        self._runners = runners
        self._remembered = remembered
        self._connections: dict[Host, asyncio.Task[Connection]] = {}
        self._reached: dict[tuple[Host, str | None], asyncio.Task[Reached]] = {}
        """By host and the account to run as."""
        self.connections_opened = 0

    async def close(self) -> None:
        """Ends all connections, whatever one of them says."""
        for opening in self._reached.values():
            opening.cancel()  # no effect on those that have been reached
        reached = [task for task in self._reached.values() if task.done() and not task.cancelled()]
        await settled([task.result().leave() for task in reached if task.exception() is None])
        self._reached.clear()
        for connecting in self._connections.values():
            connecting.cancel()
        connected = [_made(connecting) for connecting in self._connections.values()]
        await settled([connection.close() for connection in connected if connection is not None])
        self._connections.clear()

    async def reach(self, host: Host, run_as: str | None = None) -> Reached:
        """The host's connection and the account's agent, opened by whoever asks first and shared by all others."""
        opening = self._reached.get((host, run_as))
        if opening is not None and not _is_usable(opening):
            await self._abandon(host, opening)
            return await self.reach(host, run_as)
        if opening is None:
            opening = asyncio.ensure_future(self._open(host, run_as))
            self._reached[host, run_as] = opening
        return await asyncio.shield(opening)

    async def _abandon(self, host: Host, opening: "asyncio.Task[Reached]") -> None:
        """Forgets an agent that is not reached any more, and closes what is left of its connection."""
        for key in [key for key, task in self._reached.items() if task is opening]:
            del self._reached[key]
        if not opening.cancelled() and opening.exception() is None:
            await self._release(host, opening.result().connection)

    async def _open(self, host: Host, run_as: str | None) -> Reached:
        connection = await self.connect(host)
        try:
            agent, deployment = await start_agent(connection, self._runners, run_as)
        except BaseException:
            await self._release(host, connection, but=(host, run_as))
            raise
        return Reached(connection, agent, deployment)

    async def connect(self, host: Host) -> Connection:
        """The host's connection, shared by the agents of all accounts there."""
        connecting = self._connections.get(host)
        connection = _made(connecting)
        if connecting is None or (connecting.done() and (connection is None or connection.is_closed())):
            connecting = asyncio.ensure_future(connect(host, self._access, self._remembered))
            connecting.add_done_callback(self._count_connection)
            self._connections[host] = connecting
        return await asyncio.shield(connecting)

    def _count_connection(self, connecting: "asyncio.Task[Connection]") -> None:
        self.connections_opened += _made(connecting) is not None

    async def _release(self, host: Host, connection: Connection, *, but: tuple[Host, str | None] | None = None) -> None:
        """Closes a connection that no agent uses; `but` is the one that is just giving it up."""
        others = [task for key, task in self._reached.items() if key[0] == host and key != but]
        if any(_is_usable(task) for task in others):
            return
        if _made(self._connections.get(host)) is connection:
            del self._connections[host]
        await connection.close()


def _made(connecting: "asyncio.Task[Connection] | None") -> Connection | None:
    """The connection, if there is one by now."""
    if connecting is None or not connecting.done() or connecting.cancelled() or connecting.exception() is not None:
        return None
    return connecting.result()


async def settled(leaving: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for all of them; what one of them raises is logged and keeps none of the others from its end."""
    for outcome in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.warning("close_failed", extra={"reason": str(outcome)})
