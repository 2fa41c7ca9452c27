"""Which hosts are reached: an agent for each account there, over the connections that raw commands use as well."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .alarm import Alarm
from .channel import AgentChannel, NoRoomError
from .connections import REFUSALS, Connections, Way, asked_for, way_to
from .deployments import Deployments
from .errors import ChannelLostError, ControllerError, UnreachableError
from .hosts import Host
from .install import Deployment
from .logs import logger
from .metrics import Metrics
from .pool import Lease
from .runners import Runners
from .sessions import Connection
from .starting import start_agent

_log = logger("cronium.dispatch")
_Key = tuple[Way, str | None]
"""A host, and the account to run as where it is another."""
ACKNOWLEDGE_SECONDS: Final = 5.0
"""How long leaving waits for hosts to hear that their results are stored; they keep them, should they not hear it."""


@dataclass(slots=True, eq=False)
class Reached:
    """A host that we are connected to, with its agent."""

    lease: Lease[Connection]
    agent: AgentChannel
    deployment: Deployment | None
    asked_at: float
    """When somebody reached for it last, by the monotonic clock."""

    @property
    def used_at(self) -> float:
        """When it was used last, by the monotonic clock; meaningless while somebody converses with the agent."""
        return max(self.asked_at, self.agent.quiet_since, self.connection.tunnel_used_at)

    @property
    def ends_at(self) -> float:
        """When it is to be left, unless it is used again before."""
        return self.lease.ends_at(self.used_at)

    @property
    def connection(self) -> Connection:
        """The connection that the agent's channel is on."""
        return self.lease.connection

    async def leave(self) -> None:
        """Ends the agent's channel, once it has heard what was sent to it."""
        with contextlib.suppress(TimeoutError, ChannelLostError):
            async with asyncio.timeout(ACKNOWLEDGE_SECONDS):
                await self.agent.wait_heard()
        self.agent.close()
        self.lease.give_back(self.used_at)


def _is_usable(opening: "asyncio.Task[Reached]") -> bool:
    """Whether it has an agent, or will have one."""
    if not opening.done():
        return True
    return not opening.cancelled() and opening.exception() is None and opening.result().agent.lost is None


def _found(opening: "asyncio.Task[Reached]") -> Reached | None:
    """What it has come to, if that is an agent."""
    is_there = opening.done() and not opening.cancelled() and opening.exception() is None
    return opening.result() if is_there else None


class _Kept:
    """`Reachable.kept` as a class: it is entered several times for each job, and a generator would cost twice as much.

    `unused` is told when no caller is left.
    """

    __slots__ = ("_callers", "_key", "_unused")

    def __init__(self, callers: Counter[_Key], key: _Key, unused: Callable[[_Key], object]) -> None:
        self._callers = callers
        self._key = key
        self._unused = unused

    def __enter__(self) -> None:
        self._callers[self._key] += 1

    def __exit__(self, *_: object) -> None:
        self._callers[self._key] -= 1
        if not self._callers[self._key]:
            del self._callers[self._key]
            self._unused(self._key)


class Reachable:
    """The hosts of one controller. An agent that nobody uses is left when its connection would be closed."""

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
        self._reached: dict[_Key, asyncio.Task[Reached]] = {}
        self._callers: Counter[_Key] = Counter()
        """Those who are about to converse with an agent."""
        self._replaced: dict[Reached, _Key] = {}
        """Agents on connections that became too old while they were at work."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._sweeper = Alarm(self._sweep, time.monotonic)

    async def close(self) -> None:
        """Ends all agents' channels, whatever one of them says. The connections are left to their owner."""
        self._sweeper.stop()
        openings, replaced = list(self._reached.values()), list(self._replaced)
        self._reached.clear()
        self._replaced.clear()
        await _left(openings, replaced)
        await asyncio.gather(*self._leaving)

    async def reach(self, host: Host, run_as: str | None = None, *, is_whole_call: bool = True) -> Reached:
        """The host's connection and the account's agent, opened by whoever asks first and shared by all others.

        A failure is counted in the host's health; a success too, unless the call has yet to show how it goes.
        """
        try:
            with self.kept(host, run_as), asked_for(host):
                reached = await self._shared(_key(host, run_as), host)
        except ControllerError as error:
            self._connections.memory.note_call(host, error.message)
            raise
        if is_whole_call:
            self._connections.memory.note_call(host, None)
        return reached

    def kept(self, host: Host, run_as: str | None = None) -> "_Kept":
        """Meanwhile the agent is not left, also while nobody converses with it."""
        return _Kept(self._callers, _key(host, run_as), self._sweep_when_due)

    def is_reached(self, host: Host, run_as: str | None = None) -> bool:
        """Whether there is an agent, or one is on its way."""
        opening = self._reached.get(_key(host, run_as))
        return opening is not None and _is_usable(opening)

    async def leave(self, host: Host) -> None:
        """Ends a host's agents and connections, those that somebody uses excepted. Executions there go on."""
        way = way_to(host)
        unused = [key for key, opening in self._reached.items() if key[0] == way and not self._is_used(key, opening)]
        await _left([self._reached.pop(key) for key in unused])
        await self._connections.leave(host)

    def _is_used(self, key: "_Key", opening: "asyncio.Task[Reached]") -> bool:
        reached = _found(opening)
        return self._callers[key] > 0 or (reached is not None and not reached.agent.is_quiet)

    async def _shared(self, key: "_Key", host: Host) -> Reached:
        while True:
            opening = self._usable(key)
            is_ours = opening is None
            if opening is None:
                opening = self._reached[key] = asyncio.ensure_future(self._open(key, host))
            else:
                self._connections.log_reuse(host)
            try:
                reached = await asyncio.shield(opening)
            except asyncio.CancelledError:
                if not opening.cancelled():  # it was the caller who was cancelled
                    raise
                raise UnreachableError(
                    "host.unreachable", "all connections were closed while this one was opened", host=host.name
                ) from None
            if is_ours or reached.agent.lost is None:  # it may have been lost between its opening and our turn
                reached.asked_at = time.monotonic()
                return reached

    def _usable(self, key: "_Key") -> "asyncio.Task[Reached] | None":
        """The agent that is there or on its way, if whoever comes now may have it."""
        opening = self._reached.get(key)
        if opening is None:
            return None
        if not _is_usable(opening):
            self._forget(opening)
            return None
        reached = _found(opening)
        if reached is not None and reached.lease.is_over_age(time.monotonic()):
            self._replaced[reached] = key
            del self._reached[key]
            self._sweeper.ring_by(time.monotonic())
            return None
        return opening

    def _sweep_when_due(self, key: "_Key") -> None:
        opening = self._reached.get(key)
        reached = None if opening is None else _found(opening)
        if reached is not None and reached.agent.is_quiet:
            self._sweeper.ring_by(reached.ends_at)
        if self._replaced:
            self._sweeper.ring_by(time.monotonic())

    def _sweep(self) -> None:
        """Leaves the agents that nobody has used for long, and those whose connection is too old."""
        now = time.monotonic()
        for key, opening in list(self._reached.items()):
            reached = _found(opening)
            if reached is None or self._is_used(key, opening):
                continue  # we are called when that is over
            if reached.ends_at <= now or reached.agent.lost is not None:
                del self._reached[key]
                self._leave_soon(reached)
            else:
                self._sweeper.ring_by(reached.ends_at)
        for reached, key in list(self._replaced.items()):
            if reached.agent.is_quiet and not self._callers[key]:
                del self._replaced[reached]
                self._leave_soon(reached)

    def _leave_soon(self, reached: Reached) -> None:
        leaving = asyncio.ensure_future(settled([reached.leave()]))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    def _forget(self, opening: "asyncio.Task[Reached]") -> None:
        """Lets go of an agent that is not reached any more. Of a silent host, all its connections are suspected."""
        for key in [key for key, task in self._reached.items() if task is opening]:
            del self._reached[key]
        if not opening.cancelled() and opening.exception() is None:
            reached = opening.result()
            if reached.agent.was_silent:
                reached.lease.suspect()
            reached.lease.give_back()

    async def _open(self, key: "_Key", host: Host) -> Reached:
        reached = await self._opened(host, key[1])
        reached.agent.became_quiet = lambda: self._sweep_when_due(key)
        self._sweeper.ring_by(reached.ends_at)  # nobody may be left who waits for it
        return reached

    async def _opened(self, host: Host, run_as: str | None) -> Reached:
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
        return Reached(held, agent, deployment, time.monotonic())

    async def _start_agent(
        self, connection: Connection, run_as: str | None, reconnect: Any
    ) -> tuple[AgentChannel, Deployment | None]:
        agent, deployment = await start_agent(
            connection, self._runners, run_as, ledger=self._deployments, reconnect=reconnect
        )
        if deployment is None:
            self._metrics.note_cached_runner()
        return agent, deployment


def _key(host: Host, run_as: str | None) -> _Key:
    return way_to(host), None if run_as == host.user else run_as


async def _left(openings: "Sequence[asyncio.Task[Reached]]", others: Sequence[Reached] = ()) -> None:
    for opening in openings:
        opening.cancel()  # no effect on those that have been reached
    if openings:
        await asyncio.wait(openings, timeout=ACKNOWLEDGE_SECONDS)  # they give their connections back
    reached = [found for found in map(_found, openings) if found is not None]
    await settled([one.leave() for one in (*reached, *others)])


async def settled(leaving: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for all of them; what one of them raises is logged and keeps none of the others from its end."""
    for outcome in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.warning("close_failed", extra={"reason": str(outcome)})
