"""One raw command on hosts: what comes of it on each, and, for many, which are next. No runner is needed there.

A result is the same object as an execution's, without an id: nothing is kept on the host. What any host does is its
own result and nobody else's; what is shown is not decided here. A job on many hosts, which survives us, is `fanout`'s.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cronium_runner.wire.names import STDERR, STDOUT
from cronium_runner.wire.results import Outcome, Result, StreamSummary

from .errors import ControllerError
from .executing import COMMAND, Executed, timeout_sentence
from .hosts import BadTarget, Host, distinct
from .runs import outcome_of, result_of
from .schedule import STOPPED, Schedule, Tally, counted

if TYPE_CHECKING:
    from .dispatch import Controller

Hear = Callable[[int, bytes], Awaitable[None]]
"""Awaited with each piece of output: its stream (`names.STDOUT` or `STDERR`) and bytes."""


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be run. `timeout` in seconds; `math.inf` is none."""

    text: str
    timeout: float
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    kill: str = COMMAND


class ManyCommands:
    """A command on many hosts, under way once it is iterated over. `tally` is what has come of it so far."""

    def __init__(
        self,
        controller: "Controller",
        targets: Iterable[Host | BadTarget],
        command: Command,
        *,
        forks: int,
        serial: str | None = None,
        max_failures: str | None = None,
        stop_on_failure: bool = False,
        output: Callable[[str, int, bytes], Awaitable[None]] | None = None,
    ) -> None:
        """As `cronium exec` says; `output` gets the host's name, too. Raises ControllerError for impossible numbers."""
        self._schedule = Schedule.asked(
            distinct(targets), forks=forks, serial=serial, max_failures=max_failures, stop_on_failure=stop_on_failure
        )
        self._controller = controller
        self._command = command
        self._output = output
        self._at_work: set[asyncio.Task[Result]] = set()
        self.tally = Tally()

    @property
    def total(self) -> int:
        """How many hosts there are, each counted once."""
        return self._schedule.total

    @property
    def running(self) -> int:
        """How many hosts are at it now."""
        return self._schedule.running

    def cancel(self) -> None:
        """Begins with no further host and ends what runs. Every host has its result all the same."""
        self.tally.is_interrupted = True
        for task in self._at_work:
            task.cancel()

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The results as hosts end, then those of hosts that were not begun. Whoever leaves ends the commands."""
        try:
            while self._begin():
                done, self._at_work = await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield self._counted(task.result())
            for target in self._schedule.left():
                result = _not_begun(target.name, None if self.tally.is_interrupted else self._schedule.failures)
                self.tally.add(result)
                yield result
        finally:
            for task in self._at_work:
                task.cancel()
            await asyncio.gather(*self._at_work, return_exceptions=True)

    def _begin(self) -> bool:
        """Begins with as many hosts as may be begun with now; whether any is at it."""
        while not self.tally.is_interrupted and (target := self._schedule.next()) is not None:
            self._at_work.add(asyncio.ensure_future(self._on(target)))
        return bool(self._at_work)

    def _counted(self, result: Result) -> Result:
        self._schedule.ended(ok=result.state is Outcome.SUCCEEDED)
        self.tally.add(result)
        return result

    async def _on(self, target: Host | BadTarget) -> Result:
        if isinstance(target, BadTarget):
            return result_of(target.error, Outcome.MALFORMED, "", target.name)
        connections = self._controller.connections
        try:
            with connections.hurried(target):
                return await run_command(
                    self._controller, target, self._command, self._hear(target), lambda: self.tally.is_interrupted
                )
        finally:
            await connections.leave(target)

    def _hear(self, host: Host) -> Hear | None:
        output = self._output
        return None if output is None else lambda stream, data: output(host.name, stream, data)


async def run_command(
    controller: "Controller",
    host: Host,
    command: Command,
    hear: Hear | None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Runs a command on one host; whatever goes wrong there is in the result.

    Left early (a task that is cancelled), the command has been told to end on its host when this is over. Where
    `is_interrupted`, that is a result, too.
    """
    output = _Output(hear)
    client = controller.client(host)
    try:
        executed = await client.execute(
            command.text, command.timeout, cwd=command.cwd, env=command.env, output=output.put, kill=command.kill
        )
        result = _ended(host.name, executed)
    except ControllerError as error:
        result = _failed(host.name, error)
    except asyncio.CancelledError:
        if not is_interrupted():
            raise
        result = _interrupted(host.name)
    finally:
        await client.close()  # when that is over, what was left has been heard to its end
    return output.noted_in(result)


class _Output:
    """Output on its way: counted and hashed, not kept."""

    def __init__(self, hear: Hear | None) -> None:
        self._hear = hear
        self._sizes = {STDOUT: 0, STDERR: 0}
        self._digests = {STDOUT: hashlib.sha256(), STDERR: hashlib.sha256()}

    async def put(self, stream: int, data: bytes) -> None:
        self._sizes[stream] += len(data)
        self._digests[stream].update(data)
        if self._hear is not None:
            await self._hear(stream, data)

    def noted_in(self, result: Result) -> Result:
        return result._replace(stdout=self._summary(STDOUT), stderr=self._summary(STDERR))

    def _summary(self, stream: int) -> StreamSummary:
        size = self._sizes[stream]
        return StreamSummary(size, sha256=self._digests[stream].hexdigest() if size else None)


def _ended(host: str, executed: Executed) -> Result:
    done = executed.done
    result = Result(
        "",
        Outcome.SUCCEEDED if done.exit_status == 0 else Outcome.FAILED,
        host=host,
        exit_code=done.exit_status,
        duration_ms=round(executed.duration * 1000, 1),
        transport=executed.transport,
    )
    if not done.timed_out:
        return result
    sentence = f"{host}: {timeout_sentence(done)}"
    return result._replace(state=Outcome.TIMED_OUT, error_code="command.timeout", error_message=sentence)


def _failed(host: str, error: ControllerError) -> Result:
    """No connection, so nothing was started; a channel that was lost may have started something."""
    return result_of(error, outcome_of(error, may_have_started=error.code == "channel.lost"), "", host)


def _interrupted(host: str) -> Result:
    sentence = f"{host}: interrupted; what ran there was told to end"
    return Result("", Outcome.CANCELLED, host=host, error_code="execution.cancelled", error_message=sentence)


def _not_begun(host: str, failures: int | None) -> Result:
    """`failures` None: because of an interrupt."""
    reason = "it was interrupted" if failures is None else f"{counted(failures)} failed before"
    sentence = f"{host}: not begun, because {reason}; run it again there"
    return Result("", Outcome.SKIPPED, host=host, error_code=STOPPED, error_message=sentence)
