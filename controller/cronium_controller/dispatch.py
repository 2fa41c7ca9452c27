"""The Python API: executions on hosts, submitted, followed and found again.

    async with Controller() as controller:
        execution = await controller.submit("web01", Job(load("backup.sh"), input={"target": "/srv"}))
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from cronium_runner.wire import frames
from cronium_runner.wire.access import API, BUNDLED, LONGEST_SOCKET_PATH
from cronium_runner.wire.access import Access as ApiAccess
from cronium_runner.wire.frames import Kind, ProtocolError
from cronium_runner.wire.names import SIGNATURE, invalid_id_sentence, is_execution_id
from cronium_runner.wire.results import Result

from . import asking, host_names
from .access import Access
from .connections import Connections, asked_for
from .deployments import Deployments
from .errors import ControllerError, StoreError, TunnelError
from .execution import Execution
from .hosts import Host
from .install import Deployment, deploy
from .job import MODES, PREFER_API, Job, new_execution_id
from .live import Live
from .memory import Memory
from .metrics import Metrics, Stats
from .outputs import with_output
from .reaching import ACKNOWLEDGE_SECONDS, Reachable, Reached, settled
from .rolling_back import roll_back
from .runners import Runners
from .schedule import FORKS
from .sessions import Connection
from .store import Reason, Store

if TYPE_CHECKING:
    from .client import SSHClient
    from .deploy.known_builds import KnownBuild
    from .deploy.verification import Verification
    from .doctor import Finding
    from .fanout import FanOut, Output, Target
    from .names import Names

_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,255}\$?")
"""Names of accounts, also of a domain; nothing that any login shell would take for more than a word."""

_LONGEST_ACCESS: Final = ApiAccess("x" * LONGEST_SOCKET_PATH, "x" * 8192)
"""As much room as an endpoint and a token of ours can take in a submission."""
_LONGEST_SERVER: Final = {**dict.fromkeys(("name", "address", "user"), 4 * host_names.LONGEST * "x"), "port": 65535}
"""As much room as `event.server` can take there."""


class Controller:
    """Reaches hosts and runs jobs on them. One connection a host, one agent for each account there, kept while open."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        access: Access | None = None,
        runners: Runners | None = None,
        allow_tcp_tunnel: bool = False,
        connections: Connections | None = None,
    ) -> None:
        """`allow_tcp_tunnel`: in API mode, a port of the host's loopback interface where it forwards no socket, and for
        scripts whose manifest says `expose_api: true`.

        With `connections` those are used, and left open at the end.
        """
        self._access = access or Access()
        self.store = store or Store()
        self._live = Live(self.store.path.parent, allow_tcp_tunnel=allow_tcp_tunnel, warn=self._access.warn)
        self._owns_store = store is None
        self._runners = runners or Runners()
        self.memory = Memory(self.store) if connections is None else connections.memory
        self._owns_connections = connections is None
        self.connections = connections or Connections(self._access, self.memory)
        self.deployments = Deployments(self.store)
        """Which runners were put on hosts, and how that went."""
        self._metrics = Metrics()
        self._has_told_unkept = False
        self.deployments.made = self._metrics.note_deployment
        self.reachable = Reachable(self.connections, self._runners, self.deployments, self._metrics)
        """The connections and agents; not for those who only submit."""
        self._executions: weakref.WeakSet[Execution] = weakref.WeakSet()
        self._names: Names | None = None
        self._builds: dict[str, KnownBuild] | None = None
        self._learning = asyncio.Lock()

    @property
    def runners(self) -> Runners:
        """The binaries that it deploys, and how."""
        return self._runners

    @property
    def runner_root(self) -> str:
        """Where on hosts runners are; relative to the home directory unless it is absolute."""
        return self._runners.root

    @property
    def names(self) -> "Names":
        """Hosts by name, for calls that are given text."""
        if self._names is None:
            from .names import Names  # and with it what reads hosts files

            self._names = Names()
        return self._names

    def _where(self, host: Host | str) -> Host:
        return host if isinstance(host, Host) else self.names.one(host)

    @property
    def connections_opened(self) -> int:
        """How many connections were made."""
        return self.connections.opened

    def get_stats(self) -> Stats:
        """What this controller has done since it was made: executions, deployments, cache hits, connections."""
        return self._metrics.stats(opened=self.connections.opened, reused=self.connections.reused)

    def count_unsubmitted(self) -> None:
        """Counts a job as failed that found its host unreachable, or that its host refused."""
        self._metrics.note_not_submitted()
        self._log_sometimes()

    def _count(self, result: Result) -> None:
        self._metrics.note_end(result)
        self._log_sometimes()

    def _tell_unkept(self, execution_id: str, error: StoreError) -> None:
        """Says it once: of many hosts each would say the same."""
        if not self._has_told_unkept:
            self._has_told_unkept = True
            self._access.warn(
                f"the result of '{execution_id}', and of what else cannot be written down, is kept on its host only: "
                f"{error.message}; then fetch it with: cronium wait {execution_id}"
            )

    def _log_sometimes(self) -> None:
        self._metrics.log_sometimes(opened=self.connections.opened, reused=self.connections.reused)

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
            if self._owns_connections:
                await self.connections.close_all_connections()
        finally:
            try:
                await self._live.close()
            finally:
                if self._owns_store:
                    self.store.close()

    async def submit(
        self, host: Host | str, job: Job, *, follow: bool = True, submitted: Callable[[Execution], object] | None = None
    ) -> Execution:
        """Submits a job. It is written down first; when this returns, the host has taken it, or the outcome is unknown.

        With `follow=False` no output is sent here, only the result. Raises UnreachableError, DeployError, StoreError
        and RefusedError: after each of these nothing was started. Left early (a task that is cancelled), it may have
        been started or not, as `unknown` says; with `on_disconnect="cancel"` the host is asked to end it. `submitted`
        is called with the execution before the host has answered, so that it can be cancelled or left already then.
        A host that is text is a name of the hosts file, else an address.
        """
        host = self._where(host)
        execution_id = new_execution_id() if job.execution_id is None else job.execution_id
        if not is_execution_id(execution_id):
            raise ControllerError("execution.id_invalid", invalid_id_sentence(execution_id))
        if job.mode not in MODES:
            raise ControllerError("usage.invalid", f"no mode is called {job.mode!r:.100}; there are {', '.join(MODES)}")
        access = None if job.mode == BUNDLED else _LONGEST_ACCESS
        submission = job.submission(execution_id, follow=follow, access=access, server=_LONGEST_SERVER)
        try:
            frames.encode_json(Kind.SUBMIT, 0, submission)
        except (ProtocolError, ValueError, TypeError) as error:
            raise ControllerError(
                "input.invalid",
                f"input, variables, secrets, event and arguments together cannot be sent: {error!s:.200}; "
                f"they are JSON, at most {frames.MAX_BODY} bytes",
            ) from None
        run_as = _other_account(host, job.run_as)
        try:
            with self.reachable.kept(host, run_as):
                execution = await self._submitted(host, job, execution_id, run_as, follow=follow)
                await self._wait_accepted(execution, submitted)
        except ControllerError:
            self.count_unsubmitted()
            raise
        if execution.was_started:
            self._metrics.note_submitted(has_sent_payload=execution.has_sent_payload)
        return execution

    async def _submitted(
        self, host: Host, job: Job, execution_id: str, run_as: str | None, *, follow: bool
    ) -> Execution:
        reached = await self.reachable.reach(host, run_as, is_whole_call=False)
        endpoint, fallback = await self._endpoint(job, reached, run_as)
        script_endpoint = None if endpoint is None else await self._live.script_endpoint(reached, job.payload, endpoint)
        is_new = self.store.record(
            execution_id,
            host,
            job.payload.sha256,
            job.payload.label,
            time.time(),
            run_as=run_as,
            mode=BUNDLED if endpoint is None else API,
            fallback=fallback,
        )
        admitted = None if endpoint is None else await self._admit(execution_id, job, host, endpoint, is_new=is_new)
        submission = job.submission(
            execution_id,
            follow=follow,
            access=admitted,
            script_endpoint=script_endpoint,
            server=reached.connection.server,
            is_signed=SIGNATURE in (reached.agent.agent.get("knows") or ()),
        )
        offsets = (0, 0) if follow else None
        conversation = reached.agent.converse(offsets)
        conversation.send(Kind.SUBMIT, submission)
        execution = Execution(
            execution_id,
            host,
            reached.connection.transport,
            conversation,
            self.store,
            job,
            is_new=is_new,
            live=None if endpoint is None else self._live,
            fallback=fallback,
            offsets=offsets,
        )
        execution.ended = lambda error: self.memory.note_call(host, error)
        execution.lost = execution.ended
        execution.read = lambda result: with_output(self, host, result)
        execution.counted = self._count
        execution.unkept = self._tell_unkept
        return execution

    async def _endpoint(self, job: Job, reached: Reached, run_as: str | None) -> tuple[str | None, Reason | None]:
        """Where the job finds the runtime API, None for a bundled one; with the reason when that was not preferred.

        Raises TunnelError where there is no way and the job wants nothing else, and ControllerError.
        """
        if job.mode == BUNDLED:
            return None, None
        try:
            return await self._live.endpoint(reached, is_other_account=run_as is not None), None
        except TunnelError as error:
            if job.mode != PREFER_API:
                raise
            return None, Reason(error.code, error.message)

    async def _admit(self, execution_id: str, job: Job, host: Host, endpoint: str, *, is_new: bool) -> ApiAccess:
        try:
            return await self._live.admit(execution_id, job, host, endpoint)
        except BaseException:  # of one who is told to stop, too: nothing has been sent
            if is_new:
                self.store.note_state(execution_id, "refused")
                await self._live.forget(execution_id)
            raise

    async def _readmit(self, execution_id: str, reached: Reached, run_as: str | None) -> ApiAccess | None:
        """Access for an execution in API mode that may still write; None for others.

        It is followed also where there is no way for it: what it writes is kept on its host.
        """
        record = self.store.find(execution_id)
        if record is None or not record.may_write:
            return None
        try:
            endpoint = await self._live.endpoint(reached, is_other_account=run_as is not None)
            return await self._live.readmit(execution_id, endpoint)
        except ControllerError as error:
            self._access.warn(f"'{execution_id}' does not reach the platform through us: {error.message}")
            return None

    def run_many(
        self,
        targets: "Iterable[Target]",
        job: Job,
        *,
        forks: int = FORKS,
        serial: int | str | None = None,
        max_failures: int | str | None = None,
        stop_on_failure: bool = False,
        output: "Output | None" = None,
        keep_connections: bool = False,
    ) -> "FanOut":
        """The same job on many hosts: `async for result in controller.run_many(…)`, results as hosts end.

        `targets` are hosts, or text: names, groups and sets of the hosts file, else addresses. The same one twice runs
        once, and one that is malformed is a failed result of its own. `forks` hosts at once; `serial` (a number, or
        "30%") in one batch, which ends before the next begins; with more than `max_failures` (a number or "10%")
        nothing new begins, and `stop_on_failure` is none of them. `output` is awaited with each piece of output;
        without it none is sent. Connections that this opened are closed as hosts end, unless `keep_connections`. With
        the job's `execution_id` each host has an id of its own, made from it. Raises ControllerError: no host at all,
        or numbers and ids that can't be.
        """
        from .fanout import FanOut

        return FanOut(
            self,
            targets,
            job,
            forks=forks,
            serial=serial,
            max_failures=max_failures,
            stop_on_failure=stop_on_failure,
            output=output,
            keep_connections=keep_connections,
        )

    async def attach(
        self,
        execution_id: str,
        host: Host | str,
        *,
        offsets: tuple[int, int] = (0, 0),
        follow: bool = True,
        run_as: str | None = None,
    ) -> Execution:
        """Follows an execution that exists on the host, from the given offsets of stdout and stderr on.

        Without `follow` only what is there now is sent; with it one in API mode goes on through us, and delivers what
        it has not delivered. `run_as` is the account that it runs as; without, the one that it was submitted for from
        here. Raises RefusedError when the host knows nothing of it.
        """
        host = self._where(host)
        account = self._account(execution_id, host, run_as)
        asked: dict[str, Any] = {"executionId": execution_id, "offsets": list(offsets), "follow": follow}
        with self.reachable.kept(host, account), asked_for(host):
            reached = await self.reachable.reach(host, account)
            access = await self._readmit(execution_id, reached, account) if follow else None
            if access is not None:
                asked["api"] = access.to_json()
            wanted = None if offsets == frames.BEHIND_ALL else offsets
            conversation = reached.agent.converse(wanted)
            conversation.send(Kind.ATTACH, asked)
        transport = reached.connection.transport
        record = self.store.find(execution_id)
        fallback = None if record is None else record.fallback
        live = None if access is None else self._live
        execution = Execution(
            execution_id,
            host,
            transport,
            conversation,
            self.store,
            None,
            live=live,
            fallback=fallback,
            offsets=wanted,
        )
        there = host  # it is a Host by now
        execution.lost = lambda error: self.memory.note_call(there, error)
        execution.read = lambda result: with_output(self, there, result)
        execution.counted = self._count
        execution.unkept = self._tell_unkept
        await self._wait_accepted(execution)
        return execution

    async def _wait_accepted(
        self, execution: Execution, submitted: Callable[[Execution], object] | None = None
    ) -> None:
        """Waits until the host has answered. Whoever doesn't wait for that leaves nothing open."""
        self._executions.add(execution)
        try:
            if submitted is not None:
                submitted(execution)
            await execution.wait_accepted()
        except BaseException:
            execution.abandon()
            raise

    async def status(self, execution_id: str, host: Host | str, *, run_as: str | None = None) -> dict[str, Any]:
        """How an execution stands on its host; `run_as` as for `attach`.

        Raises RefusedError when the host knows nothing of it, and ChannelLostError when it doesn't say.
        """
        host = self._where(host)
        reached = await self.reachable.reach(host, self._account(execution_id, host, run_as))
        with asked_for(host):
            return await asking.status(reached.agent, execution_id)

    async def wait(self, execution_id: str, host: Host | str, *, run_as: str | None = None) -> Result:
        """Waits for an execution's end, stores the result and lets the host know. No output is sent; the host keeps it.

        `unknown` when the channel is lost meanwhile. Raises as `attach` does.
        """
        execution = await self.attach(execution_id, host, offsets=frames.BEHIND_ALL, run_as=run_as)
        return await execution.result()

    async def executions(
        self, host: Host | str, *, run_as: str | None = None, wants_all: bool = False, is_brief: bool = False
    ) -> list[dict[str, Any]]:
        """How the executions on a host stand, whoever submitted them, oldest first.

        `run_as` is the account whose they are. Results come without output and variables. `wants_all`: also those whose
        record was collected. `is_brief`: only what a table shows, which of thousands is a quarter of the bytes.
        """
        host = self._where(host)
        reached = await self.reachable.reach(host, _other_account(host, run_as))
        with asked_for(host):
            return await asking.statuses(reached.agent, wants_all=wants_all, is_brief=is_brief)

    async def collect(
        self, host: Host | str, asked: Mapping[str, Any] | None = None, *, run_as: str | None = None
    ) -> dict[str, Any]:
        """Has a host remove old records and payloads now; what it removed and keeps. Ids stay claimed.

        `asked` may have `olderThanDays`, `budget` (bytes, or like "10GiB"), `unacknowledgedOlderThanDays` and `dryRun`;
        what it hasn't is as the host is set up. Raises RefusedError.
        """
        host = self._where(host)
        reached = await self.reachable.reach(host, _other_account(host, run_as))
        with asked_for(host):
            return await asking.collect(reached.agent, asked or {})

    def client(self, host: Host | str) -> "SSHClient":
        """Raw commands and copies on a host, over the connections that its jobs use."""
        from .client import SSHClient
        from .hosts import SSHConfig

        host = self._where(host)
        config = SSHConfig.from_host(host)
        return SSHClient(config, name=host.name, access=self._access, controller=self, host=host)

    async def deploy(self, host: Host | str) -> Deployment:
        """Makes sure that the controller's own runner is on the host, whole, and that jobs use it.

        Says where, and how many bytes that took. Raises UnreachableError and DeployError.
        """
        host = self._where(host)
        async with self._reconnecting(host) as (connection, reconnect):
            deployment, _ = await deploy(connection, self._runners, ledger=self.deployments, reconnect=reconnect)
            self.deployments.choose(host, self._runners.root, None)
        return deployment

    async def roll_back(self, host: Host | str, version: str | None = None) -> Deployment:
        """Has jobs use another runner on the host, until the next `deploy`: that version, else the one before.

        Raises UnreachableError, and DeployError when there is none.
        """
        host = self._where(host)
        connection = await self._connect(host)
        try:
            return await roll_back(connection, self._runners, self.deployments, version)
        finally:
            await connection.close()

    async def verify(self, host: Host | str) -> "Verification":
        """Compares the installed forms on a host with what our own binaries install, file by file.

        Executes none of them. Raises UnreachableError and DeployError.
        """
        from .deploy import known_builds, verification

        host = self._where(host)
        async with self._learning:
            if self._builds is None:
                self._builds, complaints = await known_builds.learned(self.store, self._runners)
                for sentence in complaints:
                    self._access.warn(sentence)
        connection = await self._connect(host)
        try:
            return await verification.verify(connection, self._runners.root, self._builds)
        finally:
            await connection.close()

    async def uninstall(
        self, host: Host | str, *, wants_records: bool = False, is_forced: bool = False, is_dry_run: bool = False
    ) -> dict[str, Any]:
        """Removes every installed runner of the account that logs in there, and its executions with `wants_records`.

        Returns `removed` (paths), `kept` (why, by path), `records` (what went of them) and `isDryRun`. What a process
        runs from stays, unless it is forced. Raises UnreachableError, DeployError, and RefusedError while executions
        that are to go run or were not fetched.
        """
        from .deploy.uninstall import uninstall

        host = self._where(host)
        async with self._reconnecting(host) as (connection, reconnect):
            return await uninstall(
                connection,
                self._runners,
                ledger=self.deployments,
                reconnect=reconnect,
                wants_records=wants_records,
                is_forced=is_forced,
                is_dry_run=is_dry_run,
            )

    @contextlib.asynccontextmanager
    async def _reconnecting(self, host: Host) -> AsyncIterator[tuple[Connection, Callable[[], Awaitable[Connection]]]]:
        """A connection, and what gives another in its place when it is lost; the last one is closed."""
        connection = await self._connect(host)

        async def reconnect() -> Connection:
            nonlocal connection
            connection = await self._connect(host)
            return connection

        try:
            yield connection, reconnect
        finally:
            await connection.close()

    async def _connect(self, host: Host) -> Connection:
        """A connection of its own, which whoever asks closes."""
        return await self.connections.open(host)

    async def examine(self, host: Host | str) -> "AsyncIterator[Finding]":
        """What there is to know about a host: `doctor`'s findings as they come. Raises UnreachableError."""
        from . import doctor

        connection = await self._connect(self._where(host))
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
