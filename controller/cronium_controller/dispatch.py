"""The Python API: executions on hosts, submitted, followed and found again.

    async with Controller() as controller:
        execution = await controller.submit(parse_host("web01"), Job(load("backup.sh"), input={"target": "/srv"}))
        async for piece in execution.pieces():
            ...
        result = await execution.result()

An execution is written down here before it is sent, and starts at most once on its host.
"""

import asyncio
import contextlib
import re
import time
import weakref
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Kind, ProtocolError
from cronium_runner.wire.names import invalid_id_sentence, is_execution_id
from cronium_runner.wire.results import Result

from . import asking
from .connection import Access, connect
from .errors import ControllerError
from .execution import Execution
from .hosts import Host
from .install import Deployment, Runners, deploy
from .job import Job, new_execution_id
from .reaching import ACKNOWLEDGE_SECONDS, Reachable, settled
from .store import Store
from .transport import Remembered

if TYPE_CHECKING:
    from .doctor import Finding

_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,255}\$?")
"""Names of accounts, also of a domain; nothing that any login shell would take for more than a word."""


class Controller:
    """Reaches hosts and runs jobs on them. One connection a host, one agent for each account there, kept while open."""

    def __init__(
        self, *, store: Store | None = None, access: Access | None = None, runners: Runners | None = None
    ) -> None:
        self.store = store or Store()
        self._owns_store = store is None
        self._access = access or Access()
        self._runners = runners or Runners()
        self._remembered = Remembered()
        self.reachable = Reachable(self._access, self._runners, self._remembered)
        """The connections and agents; not for those who only submit."""
        self._executions: weakref.WeakSet[Execution] = weakref.WeakSet()

    @property
    def connections_opened(self) -> int:
        """How many connections were made."""
        return self.reachable.connections_opened

    async def __aenter__(self) -> "Controller":
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all connections, whatever one of them says. Executions go on."""
        try:
            with contextlib.suppress(TimeoutError):
                acknowledging = [execution.wait_acknowledged() for execution in self._executions]
                await asyncio.wait_for(settled(acknowledging), ACKNOWLEDGE_SECONDS)
            await self.reachable.close()
        finally:
            if self._owns_store:
                self.store.close()

    async def submit(self, host: Host, job: Job, *, follow: bool = True) -> Execution:
        """Submits a job. It is written down first; when this returns, the host has taken it, or the outcome is unknown.

        With `follow=False` no output is sent here, only the result. Raises UnreachableError, DeployError, StoreError
        and RefusedError: after each of these nothing was started. Left early (a task that is cancelled), it may have
        been started or not, as `unknown` says; with `on_disconnect="cancel"` the host is asked to end it.
        """
        execution_id = new_execution_id() if job.execution_id is None else job.execution_id
        if not is_execution_id(execution_id):
            raise ControllerError("execution.id_invalid", invalid_id_sentence(execution_id))
        submission = job.submission(execution_id, follow=follow)
        try:
            frames.encode_json(Kind.SUBMIT, 0, submission)
        except (ProtocolError, ValueError, TypeError) as error:
            raise ControllerError(
                "input.invalid",
                f"input, variables, secrets, event and arguments together cannot be sent: {error!s:.200}; "
                f"they are JSON, at most {frames.MAX_BODY} bytes",
            ) from None
        run_as = _other_account(host, job.run_as)
        reached = await self.reachable.reach(host, run_as)
        is_new = self.store.record(
            execution_id, host, job.payload.sha256, job.payload.label, time.time(), run_as=run_as
        )
        conversation = reached.agent.converse()
        conversation.send(Kind.SUBMIT, submission)
        transport = reached.connection.transport
        execution = Execution(execution_id, host, transport, conversation, self.store, job, is_new=is_new)
        return await self._accepted(execution)

    async def attach(
        self,
        execution_id: str,
        host: Host,
        *,
        offsets: tuple[int, int] = (0, 0),
        follow: bool = True,
        run_as: str | None = None,
    ) -> Execution:
        """Follows an execution that exists on the host, from the given offsets of stdout and stderr on.

        Without `follow` only what is there now is sent. `run_as` is the account that it runs as; without, the one that
        it was submitted for from here. Raises RefusedError when the host knows nothing of it.
        """
        reached = await self.reachable.reach(host, self._account(execution_id, host, run_as))
        conversation = reached.agent.converse()
        conversation.send(Kind.ATTACH, {"executionId": execution_id, "offsets": list(offsets), "follow": follow})
        execution = Execution(execution_id, host, reached.connection.transport, conversation, self.store, None)
        execution.offsets = list(offsets)
        return await self._accepted(execution)

    async def _accepted(self, execution: Execution) -> Execution:
        """The execution, once the host has answered. Whoever doesn't wait for that leaves nothing open."""
        self._executions.add(execution)
        try:
            await execution.wait_accepted()
        except BaseException:
            execution.abandon()
            raise
        return execution

    async def status(self, execution_id: str, host: Host, *, run_as: str | None = None) -> dict[str, Any]:
        """How an execution stands on its host; `run_as` as for `attach`.

        Raises RefusedError when the host knows nothing of it, and ChannelLostError when it doesn't say.
        """
        reached = await self.reachable.reach(host, self._account(execution_id, host, run_as))
        return await asking.status(reached.agent, execution_id)

    async def wait(self, execution_id: str, host: Host, *, run_as: str | None = None) -> Result:
        """Waits for an execution's end, stores the result and lets the host know. No output is sent; the host keeps it.

        `unknown` when the channel is lost meanwhile. Raises as `attach` does.
        """
        execution = await self.attach(execution_id, host, offsets=frames.BEHIND_ALL, run_as=run_as)
        return await execution.result()

    async def executions(
        self, host: Host, *, run_as: str | None = None, wants_all: bool = False
    ) -> list[dict[str, Any]]:
        """How the executions on a host stand, whoever submitted them, oldest first.

        `run_as` is the account whose they are. Results come without output and variables. `wants_all`: also those whose
        record was collected.
        """
        reached = await self.reachable.reach(host, _other_account(host, run_as))
        return await asking.statuses(reached.agent, wants_all=wants_all)

    async def collect(
        self, host: Host, asked: Mapping[str, Any] | None = None, *, run_as: str | None = None
    ) -> dict[str, Any]:
        """Has a host remove old records and payloads now; what it removed and keeps. Ids stay claimed.

        `asked` may have `olderThanDays`, `budget` (bytes, or like "10GiB"), `unacknowledgedOlderThanDays` and `dryRun`;
        what it hasn't is as the host is set up. Raises RefusedError.
        """
        reached = await self.reachable.reach(host, _other_account(host, run_as))
        return await asking.collect(reached.agent, asked or {})

    async def deploy(self, host: Host) -> Deployment:
        """Makes sure that the runner is on the host; says where, and how many bytes that took."""
        connection = await connect(host, self._access, self._remembered)
        self.reachable.connections_opened += 1
        try:
            deployment, _ = await deploy(connection, self._runners)
        finally:
            await connection.close()
        return deployment

    async def examine(self, host: Host) -> "AsyncIterator[Finding]":
        """What there is to know about a host: `doctor`'s findings as they come. Raises UnreachableError."""
        from . import doctor

        connection = await connect(host, self._access, self._remembered)
        self.reachable.connections_opened += 1
        try:
            async for finding in doctor.examine(connection, self._runners):
                yield finding
        finally:
            await connection.close()

    def _account(self, execution_id: str, host: Host, run_as: str | None) -> str | None:
        """The account that an execution runs as: as told, else as it was submitted from here."""
        if run_as is not None:
            return _other_account(host, run_as)
        record = self.store.find(execution_id)
        return None if record is None else record.run_as


def _other_account(host: Host, run_as: str | None) -> str | None:
    """The account to run as; None when it is the one that logs in. Raises ControllerError for what can't be a name."""
    if run_as is not None and not _ACCOUNT.fullmatch(run_as):
        raise ControllerError(
            "usage.invalid", f"{run_as!r:.100} is not the name of an account; look on the host: getent passwd"
        )
    return None if run_as == host.user else run_as
