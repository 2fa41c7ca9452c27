"""One job on many hosts: which are next, what comes of each, and how all of them are ended or left.

    async with Controller() as controller:
        many = controller.run_many(["web01", "web02"], Job(load("backup.sh")), forks=50)
        async for result in many:
            print(result.host, result.state)
        print(many.tally.verdict)

Results come as hosts end and are not kept: memory grows with the hosts in flight. What any host does, or what is wrong
with the row that names it, is that host's own result and nobody else's. What is shown of it is not decided here.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from cronium_runner.wire.names import invalid_id_sentence, is_execution_id
from cronium_runner.wire.results import Outcome, Result
from cronium_runner.wire.text import clean

from .each import answers
from .errors import ControllerError
from .execution import Execution, Piece
from .hosts import BadTarget, Host, SSHConfig, distinct
from .job import Job, asked_mode, new_execution_id
from .logs import logger
from .runs import RunOwner, Runs, outcome_of, result_of
from .schedule import FORKS, STOPPED, Schedule, Tally, counted

if TYPE_CHECKING:
    from .dispatch import Controller

_SUFFIX_DIGITS: Final = 12
"""Of a host name's SHA-256 in an id: among 10,000 hosts a clash has odds of 1 in 5 million."""
_log = logger("cronium.fanout")

Target = Host | str | SSHConfig | BadTarget
Output = Callable[[Host, Piece], Awaitable[None]]


class _ListenerError(Exception):
    """Whoever was given the output raised something. It goes on to them, and is no host's matter."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Submitted(NamedTuple):
    """Where a job was submitted and left alone. `failure` says why it does not run there."""

    host: str
    execution_id: str
    failure: Result | None
    needs_us: bool
    """Whether it is in API mode, and served by nobody until somebody waits for it."""


def id_on(execution_id: str, host_name: str) -> str:
    """The id of a fan-out's execution on one host."""
    return f"{execution_id}.{hashlib.sha256(host_name.encode()).hexdigest()[:_SUFFIX_DIGITS]}"


class FanOut:
    """A job on many hosts, under way once it is iterated over. `tally` is what has come of it so far."""

    def __init__(
        self,
        controller: "Controller",
        targets: Iterable[Target],
        job: Job,
        *,
        forks: int = FORKS,
        serial: int | str | None = None,
        max_failures: int | str | None = None,
        stop_on_failure: bool = False,
        output: Output | None = None,
        keep_connections: bool = False,
    ) -> None:
        """As `Controller.run_many` says."""
        if forks < 1:
            raise ControllerError("usage.invalid", f"forks: {forks}: write a number from 1 on")
        hosts = distinct(host for target in _unrepeated(targets) for host in _read(target, controller))
        if not hosts:
            raise ControllerError("hosts.not_found", "there is no host to run on; name one")
        self.id = new_execution_id() if job.execution_id is None else job.execution_id
        """Names all of it: `cronium wait ID` waits for every host. On one host it is the execution's own."""
        self._is_single = len(hosts) == 1
        longest = self.id if self._is_single else id_on(self.id, "")
        if not is_execution_id(longest):
            raise ControllerError("execution.id_invalid", _too_long(self.id) or invalid_id_sentence(self.id))
        self._controller = controller
        self._runs = Runs(controller.store)
        self._job = job
        self._output = output
        self._keeps = keep_connections
        self._forks = forks
        self._schedule = Schedule.asked(
            hosts, forks=forks, serial=serial, max_failures=max_failures, stop_on_failure=stop_on_failure
        )
        self.tally = Tally()
        self._tasks: set[asyncio.Task[Result]] = set()
        self._ended: asyncio.Queue[asyncio.Task[Result]] = asyncio.Queue()
        self._running: dict[Host, Execution] = {}
        self._unsubmitted: dict[Host, asyncio.Task[Execution]] = {}
        """What goes on where nothing has been submitted yet: it may be given up at any time."""
        self._begins_nothing = False
        self._is_cancelled = False
        self._is_left = False

    def __repr__(self) -> str:
        return f"<FanOut {self.id} {self._schedule!r}>"

    @property
    def total(self) -> int:
        """How many hosts there are, each counted once."""
        return self._schedule.total

    @property
    def running(self) -> int:
        """How many hosts are at it now."""
        return self._schedule.running

    def execution_id(self, host: Host | BadTarget) -> str:
        """The id of the execution on one of the hosts; none for a row that names no host."""
        if isinstance(host, BadTarget):
            return ""
        return self.id if self._is_single else id_on(self.id, host.name)

    def cancel(self) -> None:
        """Begins with no further host and has those at work end the script. Their results come, and tell so."""
        self._begins_nothing = self._is_cancelled = self.tally.is_interrupted = True
        for doing in self._unsubmitted.values():
            doing.cancel()
        for execution in self._running.values():
            with contextlib.suppress(ControllerError):  # then its result is `unknown`, and says why
                execution.cancel()

    def detach(self) -> None:
        """Begins with no further host and follows none any more; what runs goes on. The results left are `unknown`.

        A host that has not answered yet is left as `on_disconnect` says.
        """
        self._begins_nothing = self._is_left = True
        for doing in self._unsubmitted.values():
            doing.cancel()
        for execution in self._running.values():
            execution.leave()

    async def aclose(self) -> None:
        """Leaves it as it is: nothing further begins, and what runs on hosts goes on."""
        self.detach()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def __aiter__(self) -> AsyncIterator[Result]:
        """The results, as hosts end. Hosts that were not begun come last.

        Every host is recorded first, with what becomes of it: `cronium wait` and `status` answer for all of them.
        """
        owner = self._recorded()
        try:
            self._begin()
            while self._schedule.running:
                task = await self._ended.get()
                self._tasks.discard(task)
                yield self._counted(task.result())
            for target in self._schedule.left():
                result = self._not_begun(target)
                self.tally.add(result)
                yield result
        finally:
            await self.aclose()
            owner.close(is_interrupted=self._is_cancelled)

    def _recorded(self) -> RunOwner:
        hosts = [(target.name, self.execution_id(target)) for target in self._schedule.left()]
        return self._runs.begin(self.id, hosts)

    async def submit_only(self) -> AsyncIterator[Submitted]:
        """Instead of iterating: submits on all hosts, `forks` at once, and follows none. They come as they are taken.

        Batches and `max_failures` have no meaning here: nobody waits for an end.
        """
        with self._recorded():
            async for target, found in answers(self._schedule.left(), self._submitted, forks=self._forks):
                if isinstance(found, ControllerError):
                    found = Submitted(target.name, self.execution_id(target), self._failed(target, found), False)
                yield found

    async def _submitted(self, target: Host | BadTarget) -> Submitted:
        if isinstance(target, BadTarget):
            raise target.error
        is_ours = not self._controller.reachable.is_reached(target, self._job.run_as)
        try:
            await self._connect(target)
            job = self._job.with_id(self.execution_id(target))
            execution = await self._controller.submit(target, job, follow=False)
            if not execution.is_running:
                result = await execution.result()
                return Submitted(target.name, execution.id, None if result.error_code is None else result, False)
            execution.detach()
            return Submitted(target.name, execution.id, None, execution.is_served_here)
        finally:
            if is_ours and not self._keeps:
                await self._controller.reachable.leave(target)

    def _counted(self, result: Result) -> Result:
        self._schedule.ended(ok=result.state is Outcome.SUCCEEDED)
        self.tally.add(result)
        self._begin()  # before the caller looks at the result: nobody waits for that
        return result

    def _begin(self) -> None:
        """Begins with as many hosts as may be begun with now."""
        while not self._begins_nothing and (target := self._schedule.next()) is not None:
            task = asyncio.ensure_future(self._on(target))
            self._tasks.add(task)
            task.add_done_callback(self._ended.put_nowait)

    async def _on(self, target: Host | BadTarget) -> Result:
        """What comes of one host; whatever goes wrong there is in it."""
        if isinstance(target, BadTarget):
            return self._failed(target, target.error)
        is_ours = not self._controller.reachable.is_reached(target, self._job.run_as)
        try:
            return await self._execute(target)
        except ControllerError as error:
            return self._failed(target, error)
        except _ListenerError as error:
            raise error.reason from None
        except Exception as error:  # noqa: BLE001 - a defect must not take the other hosts' results with it
            return self._defect(target, error)
        finally:
            self._running.pop(target, None)
            if is_ours and not self._keeps:
                await self._controller.reachable.leave(target)

    async def _execute(self, host: Host) -> Result:
        if self._begins_nothing:  # since our task was made
            return self._not_begun(host)
        doing = self._unsubmitted[host] = asyncio.ensure_future(self._submit(host))
        try:
            await asyncio.wait([doing])
        finally:
            self._unsubmitted.pop(host, None)
            doing.cancel()
            await asyncio.wait([doing])  # until then it keeps the host
        if doing.cancelled():
            return self._not_begun(host)
        execution = doing.result()
        if self._output is not None:
            async for piece in execution.pieces():
                try:
                    await self._output(host, piece)
                except Exception as error:
                    raise _ListenerError(error) from error
        result = await execution.result()
        await execution.wait_acknowledged()
        return result

    async def _submit(self, host: Host) -> Execution:
        """Raises as `Controller.submit` does. Cancelled before `_hear_submitted` is called, nothing was submitted."""
        await self._connect(host)
        job = self._job.with_id(self.execution_id(host))
        hear = partial(self._hear_submitted, host)
        return await self._controller.submit(host, job, follow=self._output is not None, submitted=hear)

    def _hear_submitted(self, host: Host, execution: Execution) -> None:
        """From here on it is ended or left as an execution, which may have been started."""
        del self._unsubmitted[host]
        self._running[host] = execution

    async def _connect(self, host: Host) -> None:
        """Raises as `submit` does."""
        account = None if self._job.run_as == host.user else self._job.run_as
        try:
            with self._controller.connections.hurried(host):
                await self._controller.reachable.reach(host, account)
        except ControllerError:
            self._controller.count_unsubmitted()
            raise

    def _failed(self, target: Host | BadTarget, error: ControllerError) -> Result:
        """The result of a host that has no other than an error."""
        execution_id = self.execution_id(target)
        if isinstance(target, BadTarget):
            state = Outcome.MALFORMED
        else:
            state = outcome_of(error, may_have_started=self._may_have_started(execution_id))
        return self._unstarted(result_of(error, state, execution_id, target.name))

    def _may_have_started(self, execution_id: str) -> bool:
        try:
            return self._controller.store.may_have_started(execution_id)
        except ControllerError:  # what can't be read may say so
            return True

    def _defect(self, host: Host, error: Exception) -> Result:
        _log.error("defect", exc_info=error, extra={"host": host.name})
        execution_id = self.execution_id(host)
        sentence = f"a defect in cronium: {type(error).__name__}: {error!s:.200}; please report it. "
        if self._may_have_started(execution_id):
            state = Outcome.UNKNOWN
            sentence += f"It may be running there; look with: cronium attach {execution_id}"
        else:
            state = Outcome.REJECTED
            sentence += "Nothing was started there"
        told = ControllerError("controller.internal", sentence, host=host.name)
        return self._unstarted(result_of(told, state, execution_id, host.name))

    def _not_begun(self, target: Host | BadTarget) -> Result:
        reason = "it was interrupted" if self._begins_nothing else f"{counted(self._schedule.failures)} failed before"
        told = ControllerError(STOPPED, f"not begun, because {reason}; run it again there", host=target.name)
        result = result_of(told, Outcome.SKIPPED, self.execution_id(target), target.name)
        # Those that a cancel left out are recorded by the owner of the run, all at once.
        return result._replace(mode=asked_mode(self._job.mode)) if self._is_cancelled else self._unstarted(result)

    def _unstarted(self, result: Result) -> Result:
        """Records a result that no execution has, unless a start may have happened."""
        result = result._replace(mode=asked_mode(self._job.mode))
        if result.state is not Outcome.UNKNOWN:
            self._runs.record(self.id, result)
        return result


def _unrepeated(targets: Iterable[Target]) -> Iterable[Target]:
    if isinstance(targets, (str, Host, SSHConfig, BadTarget)):
        return [targets]
    return targets


def _read(target: Target, controller: "Controller") -> list[Host | BadTarget]:
    """The hosts that a row means. What is wrong with the row is told at its turn."""
    try:
        if isinstance(target, (Host, BadTarget)):
            return [target]
        if isinstance(target, str):
            return controller.names.each(target)
        return [SSHConfig.from_host_config(target).to_host()]
    except (ControllerError, TypeError, ValueError, AttributeError) as error:
        told = error if isinstance(error, ControllerError) else ControllerError("host.config", f"not a host: {error}")
        if told.code in ("hosts.file", "hosts.not_found"):  # what it stands for is not known
            raise told from None
        return [BadTarget(clean(str(target), 100), told)]


def _too_long(execution_id: str) -> str | None:
    if not is_execution_id(execution_id):
        return None
    return f"'{execution_id}' is too long for several hosts; each adds {_SUFFIX_DIGITS + 1} characters to it, up to 64"
