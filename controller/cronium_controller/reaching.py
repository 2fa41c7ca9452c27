"""Which hosts are reached: an agent for each account there, over the connections that raw commands use as well."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .channel import AgentChannel, NoRoomError
from .connection import Connection
from .connections import REFUSALS, Connections
from .deployments import Deployments
from .errors import ChannelLostError, ControllerError
from .hosts import Host
from .install import Deployment
from .metrics import Metrics
from .pool import Lease
from .runners import Runners
from .starting import start_agent

_log = logging.getLogger("cronium.dispatch")
ACKNOWLEDGE_SECONDS: Final = 5.0
"""How long leaving waits for hosts to hear that their results are stored; they keep them, should they not hear it."""


@dataclass(slots=True)
class Reached:
    """A host that we are connected to, with its agent."""

    lease: Lease[Connection]
    agent: AgentChannel
    deployment: Deployment | None

    @property
    def connection(self) -> Connection:
        """The connection that the agent's channel is on."""
        return self.lease.connection

    async def leave(self) -> None:
        """Ends the agent's channel, once it has heard what was sent to it."""
        with contextlib.suppress(TimeoutError, ChannelLostError):
            await asyncio.wait_for(self.agent.wait_heard(), ACKNOWLEDGE_SECONDS)
        self.agent.close()
        self.lease.give_back()


def _is_usable(opening: "asyncio.Task[Reached]") -> bool:
    """Whether it has an agent, or will have one."""
    if not opening.done():
        return True
    return not opening.cancelled() and opening.exception() is None and opening.result().agent.lost is None


class Reachable:
    """The hosts of one controller."""

    def __init__(
        self,
        connections: Connections,
        runners: Runners,
        deployments: Deployments | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._connections = connections
        self._runners = runners
        self._deployments = deployments
        self._metrics = metrics or Metrics()
        self._reached: dict[tuple[Host, str | None], asyncio.Task[Reached]] = {}
        """By host and the account to run as."""

    async def close(self) -> None:
        """Ends all agents' channels, whatever one of them says. The connections are left to their owner."""
        openings = list(self._reached.values())
        self._reached.clear()
        await _left(openings)

    async def reach(self, host: Host, run_as: str | None = None, *, is_whole_call: bool = True) -> Reached:
        """The host's connection and the account's agent, opened by whoever asks first and shared by all others.

        A failure is counted in the host's health; a success too, unless the call has yet to show how it goes.
        """
        opening = self._reached.get((host, run_as))
        if opening is not None and not _is_usable(opening):
            self._forget(opening)
            opening = None
        if opening is None:
            opening = self._reached[host, run_as] = asyncio.ensure_future(self._open(host, run_as))
        else:
            self._connections.log_reuse(host)
        try:
            reached = await asyncio.shield(opening)
        except ControllerError as error:
            self._connections.memory.note_call(host, error.message)
            raise
        if is_whole_call:
            self._connections.memory.note_call(host, None)
        return reached

    def is_reached(self, host: Host, run_as: str | None = None) -> bool:
        """Whether there is an agent, or one is on its way."""
        opening = self._reached.get((host, None if run_as == host.user else run_as))
        return opening is not None and _is_usable(opening)

    async def leave(self, host: Host) -> None:
        """Ends a host's connections and its agents, whatever they say. Executions there go on."""
        await _left([self._reached.pop(key) for key in [key for key in self._reached if key[0] == host]])
        await self._connections.leave(host)

    def _forget(self, opening: "asyncio.Task[Reached]") -> None:
        """Lets go of an agent that is not reached any more. Of a silent host, all its connections are suspected."""
        for key in [key for key, task in self._reached.items() if task is opening]:
            del self._reached[key]
        if not opening.cancelled() and opening.exception() is None:
            reached = opening.result()
            if reached.agent.was_silent:
                reached.lease.suspect()
            reached.lease.give_back()

    async def _open(self, host: Host, run_as: str | None) -> Reached:
        for attempt in range(REFUSALS):
            lease = await self._connections.acquire(host, is_resident=True)
            try:
                return await self._start(lease, host, run_as)
            except NoRoomError:
                was_alone = lease.is_alone
                lease.note_refused()
                lease.give_back()
                if was_alone or attempt == REFUSALS - 1:
                    raise
            except BaseException:
                lease.give_back()
                raise
        raise AssertionError("the last attempt returns or raises")

    async def _start(self, lease: Lease[Connection], host: Host, run_as: str | None) -> Reached:
        """An agent on this lease; on another one, where the connection turns out to be lost."""
        held = lease

        async def reconnect() -> Connection:
            nonlocal held
            held.suspect()
            held.give_back()
            held = await self._connections.acquire(host, is_resident=True)
            return held.connection

        try:
            try:
                agent, deployment = await self._start_agent(held.connection, run_as, reconnect)
            except ChannelLostError as error:
                if isinstance(error, NoRoomError) or not held.was_reused:
                    raise
                agent, deployment = await self._start_agent(await reconnect(), run_as, reconnect)
        except BaseException:
            if held is not lease:
                held.give_back()
            raise
        return Reached(held, agent, deployment)

    async def _start_agent(
        self, connection: Connection, run_as: str | None, reconnect: Any
    ) -> tuple[AgentChannel, Deployment | None]:
        agent, deployment = await start_agent(
            connection, self._runners, run_as, ledger=self._deployments, reconnect=reconnect
        )
        if deployment is None:
            self._metrics.note_cached_runner()
        return agent, deployment


async def _left(openings: "Sequence[asyncio.Task[Reached]]") -> None:
    for opening in openings:
        opening.cancel()  # no effect on those that have been reached
    reached = [task for task in openings if task.done() and not task.cancelled() and task.exception() is None]
    await settled([task.result().leave() for task in reached])


async def settled(leaving: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for all of them; what one of them raises is logged and keeps none of the others from its end."""
    for outcome in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.warning("close_failed", extra={"reason": str(outcome)})
