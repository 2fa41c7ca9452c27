"""Executions that were submitted before, followed at once until each has ended, on whichever hosts they are.

    async for result in Attached(controller, controller.store.fan_out("nightly")):
        print(result.host, result.state)

Begins nothing and ends nothing. What any host does is its own result and nobody else's.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from cronium_runner.wire import frames
from cronium_runner.wire.results import Outcome, Result

from .each import answers
from .errors import ControllerError
from .execution import Execution, Piece
from .schedule import FORKS, Tally

if TYPE_CHECKING:
    from .dispatch import Controller
    from .store import Record

Output = Callable[["Record", Piece], Awaitable[None]]


class Attached:
    """Under way once it is iterated over; results come as executions end. `tally` is what has come of them so far."""

    def __init__(
        self, controller: "Controller", records: "Sequence[Record]", *, output: Output | None = None, forks: int = FORKS
    ) -> None:
        """`output` is awaited with each piece, from the first on; without it none is sent.

        `forks` bounds how many connections are made at once. They are kept while we wait.
        """
        self._controller = controller
        self._records = records
        self.output = output
        self._room = asyncio.Semaphore(forks)
        self._left = Counter(record.host for record in records)
        self.tally = Tally()

    def __repr__(self) -> str:
        return f"<Attached {self.tally.succeeded + self.tally.failed}/{self.total}>"

    @property
    def total(self) -> int:
        """How many executions there are."""
        return len(self._records)

    @property
    def running(self) -> int:
        """How many have not ended, as far as we know."""
        return self.total - self.tally.succeeded - self.tally.failed

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The results, as executions end; `unknown` where nobody could be asked."""
        async for record, found in answers(self._records, self._ended, forks=max(1, self.total)):
            result = _unknown(record, found) if isinstance(found, ControllerError) else found
            self.tally.add(result)
            yield result

    async def _ended(self, record: "Record") -> Result:
        is_over = record.is_acknowledged and record.result is not None and not record.may_write
        try:
            if self.output is None and is_over and record.result is not None:
                return record.result
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


def labels(records: "Sequence[Record]") -> "dict[str, str]":
    """What to call each execution in front of its lines: its host, or its id where several are on one host."""
    hosts = Counter(record.host.name for record in records)
    return {record.id: record.host.name if hosts[record.host.name] == 1 else record.id for record in records}


def _unknown(record: "Record", error: ControllerError) -> Result:
    state = Outcome.UNKNOWN
    return Result(record.id, state, host=record.host.name, error_code=error.code, error_message=error.message)
