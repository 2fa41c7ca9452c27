"""The Python API: executions on hosts, submitted, followed and found again.

    async with Controller() as controller:
        execution = await controller.submit(parse_host("web01"), Job(load("backup.sh"), input={"target": "/srv"}))
        async for piece in execution.pieces():
            ...
        result = await execution.result()

An execution is written down here before it is sent, and starts at most once on its host. What isn't known is
`unknown`; nothing is ever submitted a second time by this module.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cronium_runner.wire import frames, masks
from cronium_runner.wire.frames import CREDIT, Frame, Kind, ProtocolError
from cronium_runner.wire.limits import Limits
from cronium_runner.wire.names import STREAM_NAMES, execution_id_from, invalid_id_sentence, is_execution_id
from cronium_runner.wire.results import Outcome, Result

from . import asking
from .channel import AgentChannel, Conversation
from .connection import Access, Connection, connect
from .errors import ChannelLostError, ControllerError, PayloadError, StoreError
from .hosts import Host
from .install import Deployment, Runners, deploy, start_agent
from .payloads import Payload
from .store import Store
from .transport import Remembered

if TYPE_CHECKING:
    from .doctor import Finding

_log = logging.getLogger("cronium.dispatch")
_ABSENT: Any = object()
ACKNOWLEDGE_SECONDS: Final = 5.0
"""How long leaving waits for hosts to hear that their results are stored; they keep them, should they not hear it."""
GRANTED_AT_ONCE: Final = CREDIT // 4
"""Credit is given back in steps: often enough that the host never waits, without a frame for every line."""

_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,255}\$?")
"""Names of accounts, also of a domain; nothing that any login shell would take for more than a word."""

_HOSTS_TROUBLE: Final = ("state.", "runner.")
"""Codes of what is wrong with the host or the agent, not with what was asked of it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be executed. `timeout` is in seconds; secrets are variables that are never stored or shown."""

    payload: Payload
    input: Any = _ABSENT
    variables: dict[str, Any] = field(default_factory=dict)
    secrets: dict[str, Any] = field(default_factory=dict, repr=False)
    event: dict[str, Any] = field(default_factory=dict)
    args: tuple[str, ...] | None = None
    timeout: float | None = None
    execution_id: str | None = None
    job_id: str | None = None
    on_disconnect: str = "continue"
    masked_names: tuple[str, ...] = masks.DEFAULT_NAMES
    """Globs for names of variables and of the script's environment: their values are masked in its output."""
    limits: Limits = field(default_factory=Limits)
    """They beat the manifest's, key by key."""
    run_as: str | None = None
    """The account of the host to run as, by root or where `sudo -n` allows it; None: the one that logs in."""

    def submission(self, execution_id: str, *, follow: bool) -> dict[str, Any]:
        """The body of a SUBMIT frame."""
        body: dict[str, Any] = {"executionId": execution_id, "sha256": self.payload.sha256, "follow": follow}
        if self.input is not _ABSENT:
            body["input"] = self.input
        mappings = {"variables": self.variables, "secrets": self.secrets, "event": self.event}
        body.update({key: value for key, value in mappings.items() if value})
        args = None if self.args is None else list(self.args)
        optional = {"args": args, "timeout": self.timeout, "jobId": self.job_id}
        body.update({key: value for key, value in optional.items() if value is not None})
        if self.on_disconnect != "continue":
            body["onDisconnect"] = self.on_disconnect
        if self.masked_names != masks.DEFAULT_NAMES:
            body["maskedNames"] = list(self.masked_names)
        if self.limits != Limits():
            body["limits"] = self.limits.to_json()
        return body


class Piece(NamedTuple):
    """Output as it comes: the stream (`names.STDOUT` or `STDERR`), its offset in the stream, and bytes."""

    stream: int
    offset: int
    data: bytes


class Execution:
    """An execution on a host, as seen from here. Its life does not depend on this object."""

    def __init__(
        self,
        execution_id: str,
        host: Host,
        transport: str,
        conversation: Conversation,
        store: Store,
        job: Job | None,
        *,
        is_new: bool = False,
    ) -> None:
        self.id = execution_id
        self.host = host
        self.offsets = [0, 0]
        """Bytes of stdout and stderr that have been handed out: where to attach again."""
        self.was_started: bool | None = None
        """Whether this submission started it; False when the id existed, None while that is not known."""
        self._transport = transport
        self._conversation = conversation
        self._store = store
        self._job = job
        self._is_new = is_new
        """Whether the store knows this id from this very submission."""
        self._receiving = asyncio.Lock()
        self._result: Result | None = None
        self._is_over = False
        self._ungranted = dict.fromkeys(STREAM_NAMES, 0)
        self._acknowledging: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Execution {self.id} on {self.host}{'' if self._result is None else f' {self._result.state}'}>"

    async def pieces(self) -> AsyncIterator[Piece]:
        """The output from here on. Ends with the execution, or when the channel is lost: then `result` is `unknown`."""
        while not self._is_over:
            piece = await self._next()
            if piece is not None:
                yield piece
                self._grant(piece)

    async def result(self) -> Result:
        """Waits for the end, stores the result, and lets the host know that we have it.

        Output that nobody has taken from `pieces` is dropped here; the host keeps it. Raises RefusedError when the
        host refused, and ChannelLostError when this execution was detached and there is no result to wait for.
        """
        async for _ in self.pieces():
            pass
        if self._result is None:
            raise ChannelLostError(f"'{self.id}' is not followed any more; attach to it again", host=self.host.name)
        return self._result

    def cancel(self) -> None:
        """Asks the host to end the execution: SIGTERM, grace, SIGKILL. `result` tells when nothing of it is left."""
        self._conversation.send(Kind.CANCEL, {})

    def detach(self) -> None:
        """Follows no longer, and `pieces` ends, wherever it waits; the execution goes on and can be attached to."""
        self._is_over = True
        with contextlib.suppress(ChannelLostError):
            self._conversation.send(Kind.DETACH, {})
        self._conversation.close()

    def abandon(self) -> None:
        """Leaves before the host has answered, in the way that the job asks for when a controller is gone."""
        if self._is_over:
            return
        with contextlib.suppress(ChannelLostError):
            if self._job is not None and self._job.on_disconnect == "cancel":
                self.cancel()
        self.detach()  # also ends a payload on its way: what has not arrived is not started
        with contextlib.suppress(StoreError):
            self._store.note_state(self.id, Outcome.UNKNOWN.value)

    @property
    def known_result(self) -> Result | None:
        """The result, if it has come by now; it says `unknown` when the channel was lost instead."""
        return self._result

    @property
    def is_running(self) -> bool:
        """Whether the host has it and hasn't told its end, as far as we have read."""
        return self.was_started is not None and not self._is_over

    async def wait_accepted(self) -> bool:
        """Waits until the host has claimed the id, or said why not; whether it was started by this submission.

        The payload travels here, when the host asks for it. Raises RefusedError.
        """
        while self.was_started is None and not self._is_over:
            await self._next()
        return bool(self.was_started)

    async def wait_acknowledged(self) -> None:
        """Waits until the host knows that its result has been stored here."""
        if self._acknowledging is not None:
            await self._acknowledging

    async def _next(self) -> Piece | None:
        """Takes one frame, one caller at a time; a lost channel is the end. None for all that is not output."""
        async with self._receiving:
            if self._is_over:  # another caller has seen the end
                return None
            try:
                return await self._receive()
            except ChannelLostError as error:
                self._lose(error.code, error.message)
                return None

    async def _receive(self) -> Piece | None:
        """Takes one frame. Raises ChannelLostError, also for what is not in the protocol: then we know nothing."""
        frame = await self._conversation.receive()
        try:
            return None if frame is None else await self._take(frame)
        except (ProtocolError, ValueError) as error:
            raise ChannelLostError(f"the agent said something unknown: {error}", host=self.host.name) from None

    async def _take(self, frame: Frame) -> Piece | None:
        match frame.kind:
            case Kind.DATA:
                stream, offset, data = frames.decode_data(frame.body)
                self.offsets[stream - 1] = offset + len(data)
                return Piece(stream, offset, data)
            case Kind.ACCEPTED:
                self.was_started = bool(frame.json().get("started"))
                self._store.note_state(self.id, "accepted")
            case Kind.WANT_PAYLOAD:
                assert self._job is not None
                try:
                    await self._conversation.send_payload(self._job.payload.pieces())
                except OSError as error:
                    self.detach()  # the host has not all of it, so it starts nothing
                    raise PayloadError(
                        "payload.unreadable", f"{self._job.payload.label} cannot be read any more: {error.strerror}"
                    ) from None
            case Kind.FINISHED:
                self._finish(Result.from_json(frame.json()))
            case Kind.REFUSED:
                refusal = asking.refusal(frame.json(), self.host.name)
                is_attach = self._job is None
                if self.was_started is not None or (is_attach and refusal.code.startswith(_HOSTS_TROUBLE)):
                    self._lose(refusal.code, refusal.message)  # the host failed us, which ends no script
                    return None
                self._is_over = True
                self._conversation.close()
                if self._is_new:
                    self._store.note_state(self.id, "refused")
                raise refusal
            case Kind.STATUS:  # an attach without following has shown all there is
                self._is_over = True
                self._conversation.close()
        return None

    def _grant(self, piece: Piece) -> None:
        self._ungranted[piece.stream] += len(piece.data)
        if self._ungranted[piece.stream] >= GRANTED_AT_ONCE:
            with contextlib.suppress(ChannelLostError):  # the next receive says so
                self._conversation.grant(piece.stream, self._ungranted[piece.stream])
            self._ungranted[piece.stream] = 0

    def _finish(self, told: Result) -> None:
        if told.execution_id != self.id:
            raise ProtocolError(f"the result of '{self.id}' names {told.execution_id!r:.100}")
        self._is_over = True
        self._result = told.on(self.host.name, self._transport)
        self._store.finish(self._result, time.time())
        if told.state is Outcome.REJECTED:  # the host keeps nothing of it
            self._conversation.close()
        else:
            self._acknowledging = asyncio.ensure_future(self._acknowledge())

    async def _acknowledge(self) -> None:
        """Nobody waits for this: a result that isn't acknowledged is kept on the host, which is all that happens."""
        with contextlib.suppress(ChannelLostError):
            self._conversation.send(Kind.ACKNOWLEDGE, {"executionId": self.id})
            answer = await self._conversation.receive()
            if answer is not None and answer.kind == Kind.STATUS:
                self._store.note_acknowledged(self.id)
        self._conversation.close()

    def _lose(self, code: str, message: str) -> None:
        self._is_over = True
        self._conversation.close()
        self._store.note_state(self.id, Outcome.UNKNOWN.value)
        self._result = Result(
            execution_id=self.id,
            state=Outcome.UNKNOWN,
            job_id=None if self._job is None else self._job.job_id,
            host=self.host.name,
            transport=self._transport,
            error_code=code,
            error_message=f"{message}; the execution may still be running. Look with: cronium attach {self.id}",
        )


@dataclass(slots=True)
class _Reached:
    """A host that we are connected to, with its agent."""

    connection: Connection
    agent: AgentChannel
    deployment: Deployment | None

    async def leave(self) -> None:
        """Ends the agent's channel, once it has heard what was sent to it."""
        with contextlib.suppress(TimeoutError, ChannelLostError):
            await asyncio.wait_for(self.agent.wait_heard(), ACKNOWLEDGE_SECONDS)
        self.agent.close()


def _is_usable(opening: "asyncio.Task[_Reached]") -> bool:
    """Whether it has an agent, or will have one."""
    if not opening.done():
        return True
    return not opening.cancelled() and opening.exception() is None and opening.result().agent.lost is None


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
        self._connections: dict[Host, asyncio.Task[Connection]] = {}
        self._reached: dict[tuple[Host, str | None], asyncio.Task[_Reached]] = {}
        """By host and the account to run as."""
        self._executions: weakref.WeakSet[Execution] = weakref.WeakSet()
        self.connections_opened = 0

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
                await asyncio.wait_for(_settle(acknowledging), ACKNOWLEDGE_SECONDS)
            for opening in self._reached.values():
                opening.cancel()  # no effect on those that have been reached
            reached = [task for task in self._reached.values() if task.done() and not task.cancelled()]
            await _settle([task.result().leave() for task in reached if task.exception() is None])
            self._reached.clear()
            for connecting in self._connections.values():
                connecting.cancel()
            connected = [_made(connecting) for connecting in self._connections.values()]
            await _settle([connection.close() for connection in connected if connection is not None])
            self._connections.clear()
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
        reached = await self._reach(host, run_as)
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
        reached = await self._reach(host, self._account(execution_id, host, run_as))
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
        reached = await self._reach(host, self._account(execution_id, host, run_as))
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
        reached = await self._reach(host, _other_account(host, run_as))
        return await asking.statuses(reached.agent, wants_all=wants_all)

    async def collect(
        self, host: Host, asked: Mapping[str, Any] | None = None, *, run_as: str | None = None
    ) -> dict[str, Any]:
        """Has a host remove old records and payloads now; what it removed and keeps. Ids stay claimed.

        `asked` may have `olderThanDays`, `budget` (bytes, or like "10GiB"), `unacknowledgedOlderThanDays` and `dryRun`;
        what it hasn't is as the host is set up. Raises RefusedError.
        """
        reached = await self._reach(host, _other_account(host, run_as))
        return await asking.collect(reached.agent, asked or {})

    async def deploy(self, host: Host) -> Deployment:
        """Makes sure that the runner is on the host; says where, and how many bytes that took."""
        connection = await connect(host, self._access, self._remembered)
        self.connections_opened += 1
        try:
            deployment, _ = await deploy(connection, self._runners)
        finally:
            await connection.close()
        return deployment

    async def examine(self, host: Host) -> "AsyncIterator[Finding]":
        """What there is to know about a host: `doctor`'s findings as they come. Raises UnreachableError."""
        from . import doctor

        connection = await connect(host, self._access, self._remembered)
        self.connections_opened += 1
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

    async def _reach(self, host: Host, run_as: str | None = None) -> _Reached:
        """The host's connection and the account's agent, opened by whoever asks first and shared by all others."""
        opening = self._reached.get((host, run_as))
        if opening is not None and not _is_usable(opening):
            await self._abandon(host, opening)
            return await self._reach(host, run_as)
        if opening is None:
            opening = asyncio.ensure_future(self._open(host, run_as))
            self._reached[host, run_as] = opening
        return await asyncio.shield(opening)

    async def _abandon(self, host: Host, opening: "asyncio.Task[_Reached]") -> None:
        """Forgets an agent that is not reached any more, and closes what is left of its connection."""
        for key in [key for key, task in self._reached.items() if task is opening]:
            del self._reached[key]
        if not opening.cancelled() and opening.exception() is None:
            await self._release(host, opening.result().connection)

    async def _open(self, host: Host, run_as: str | None) -> _Reached:
        connection = await self._connect(host)
        try:
            agent, deployment = await start_agent(connection, self._runners, run_as)
        except BaseException:
            await self._release(host, connection, but=(host, run_as))
            raise
        return _Reached(connection, agent, deployment)

    async def _connect(self, host: Host) -> Connection:
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


def _other_account(host: Host, run_as: str | None) -> str | None:
    """The account to run as; None when it is the one that logs in. Raises ControllerError for what can't be a name."""
    if run_as is not None and not _ACCOUNT.fullmatch(run_as):
        raise ControllerError(
            "usage.invalid", f"{run_as!r:.100} is not the name of an account; look on the host: getent passwd"
        )
    return None if run_as == host.user else run_as


async def _settle(leaving: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits for all of them; what one of them raises is logged and keeps none of the others from its end."""
    for outcome in await asyncio.gather(*leaving, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.warning("close_failed", extra={"reason": str(outcome)})


def new_execution_id() -> str:
    """A fresh id: readable in a listing, and never the same twice."""
    return execution_id_from(time.gmtime(), os.urandom(6))
