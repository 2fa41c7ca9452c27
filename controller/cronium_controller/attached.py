"""Follows executions of earlier submissions, on any hosts and all at once, until each has ended.

    async for result in Attached(controller, Runs(controller.store).hosts("nightly")):
        print(result.host, result.state)

Starts and cancels nothing. A host on which nothing was started has the result that its run recorded; one that
waits for its turn is looked at until it is begun, or its run's process has ended.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from cronium_runner.wire import frames
from cronium_runner.wire.results import Outcome, Result

from .each import answers
from .errors import ControllerError
from .execution import Execution, Piece
from .outputs import with_output
from .runs import RunHost, Runs
from .schedule import FORKS, Tally
from .store import Record

if TYPE_CHECKING:
    from .dispatch import Controller

_LOOK_SECONDS: Final = 0.5
"""Between two looks at the row of a host that waits for its turn: the process of its run sends no events."""

Output = Callable[["Record", Piece], Awaitable[None]]


class Attached:
    """Starts when it is iterated over; yields results as executions end. `tally` counts them."""

    def __init__(
        self,
        controller: "Controller",
        hosts: "Sequence[Record | RunHost]",
        *,
        output: Output | None = None,
        forks: int = FORKS,
    ) -> None:
        """`output` is awaited with each piece, from the first on; without it none is sent.

        `forks` bounds how many connections are made at once. They are kept while we wait.
        """
        self._controller = controller
        self._runs = Runs(controller.store)
        self._hosts = [RunHost.of(host) if isinstance(host, Record) else host for host in hosts]
        self.output = output
        self._room = asyncio.Semaphore(forks)
        self._left = Counter(host.record.host for host in self._hosts if host.record is not None)
        self.tally = Tally()
        self.tally.is_interrupted = any(host.is_interrupted for host in self._hosts)

    def __repr__(self) -> str:
        return f"<Attached {self.tally.succeeded + self.tally.failed}/{self.total}>"

    @property
    def total(self) -> int:
        """How many executions there are."""
        return len(self._hosts)

    @property
    def running(self) -> int:
        """How many have not ended, as far as we know."""
        return self.total - self.tally.succeeded - self.tally.failed

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The results, as executions end; `unknown` where the host can't be asked."""
        async for host, found in answers(self._hosts, self._ended, forks=max(1, self.total)):
            result = _unknown(host, found) if isinstance(found, ControllerError) else found
            self.tally.add(result)
            yield result

    async def _ended(self, host: RunHost) -> Result:
        was_waiting = host.is_waiting
        host = await wait_begun(self._runs, host)
        self.tally.is_interrupted = self.tally.is_interrupted or host.is_interrupted
        if host.result is not None:
            return host.result
        assert host.record is not None
        if was_waiting:
            self._left[host.record.host] += 1
        return await self._ended_execution(host.record)

    async def _ended_execution(self, record: Record) -> Result:
        is_over = record.is_acknowledged and record.result is not None and not record.may_write
        try:
            if self.output is None and is_over and record.result is not None:
                return with_output(self._controller, record.host, record.result)
            return await self._follow(record)
        finally:
            self._left[record.host] -= 1
            if not self._left[record.host]:
                await self._controller.reachable.leave(record.host)

    async def _follow(self, record: "Record") -> Result:
        async with self._room:
            is_one = self.total == 1
            with contextlib.nullcontext() if is_one else self._controller.connections.hurried(record.host):
                await self._controller.reachable.reach(record.host, record.run_as)
        offsets = frames.BEHIND_ALL if self.output is None else (0, 0)
        execution = await self._controller.attach(record.id, record.host, offsets=offsets)
        if self.output is not None:
            await self._hear(record, execution)
        result = await execution.result()
        await execution.wait_acknowledged()
        return result

    async def _hear(self, record: "Record", execution: Execution) -> None:
        assert self.output is not None
        async for piece in execution.pieces():
            await self.output(record, piece)


async def wait_begun(runs: Runs, host: RunHost) -> RunHost:
    """Waits until a host has had its turn, or never will: then it has an execution, or a result."""
    while host.is_waiting:
        host = runs.look_again(host)
        if host.is_waiting:
            await asyncio.sleep(_LOOK_SECONDS)
    return host


def labels(hosts: Sequence[RunHost]) -> dict[tuple[str, str], str]:
    """What to call each host's execution in front of its lines, by id and host: the host's name, or the execution's id
    where several are on one host."""
    names = Counter(host.name for host in hosts)
    return {
        (host.execution_id, host.name): host.name if names[host.name] == 1 else host.execution_id or host.name
        for host in hosts
    }


def _unknown(host: RunHost, error: ControllerError) -> Result:
    state = Outcome.UNKNOWN
    return Result(host.execution_id, state, host=host.name, error_code=error.code, error_message=error.message)
