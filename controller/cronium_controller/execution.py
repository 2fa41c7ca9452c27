"""An execution on a host, as seen from here: its output, its result, and how it is let go.

Its life does not depend on what is here. What isn't known is `unknown`; nothing is ever submitted a second time.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from cronium_runner.wire.access import API, BUNDLED
from cronium_runner.wire.frames import CREDIT, Frame, Kind, ProtocolError
from cronium_runner.wire.names import STREAM_NAMES
from cronium_runner.wire.results import Outcome, Result

from . import asking
from .channel import PROTOCOL_BROKEN, Conversation
from .errors import ChannelLostError, PayloadError, StoreError
from .hosts import Host
from .inbox import Piece
from .job import Job
from .live import Live
from .patience import COUNTED_OUTPUT, LONGEST_TIMEOUT, Deadline, remaining_in
from .received import Received
from .store import Reason, Store

__all__ = ["Execution", "Piece"]

GRANTED_AT_ONCE: Final = CREDIT // 4
"""Credit is given back in steps: often enough that the host never waits, without a frame for every line."""

_HOSTS_TROUBLE: Final = ("state.", "runner.")
"""Codes of what is wrong with the host or the agent, not with what was asked of it."""
_STARTED_BEFORE: Final = ("state.damaged", "execution.elsewhere")
"""Codes for an id that was started at some time, which a submission may be answered with too."""


def _nobody(_reason: str | None) -> None:
    """Nobody wants to know."""


def _uncounted(_result: Result) -> None:
    """Nobody counts."""


def _as_it_is(result: Result) -> Result:
    """A result whose output is not fetched."""
    return result


def _untold(_execution_id: str, _error: StoreError) -> None:
    """Nobody is told."""


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
        live: Live | None = None,
        fallback: Reason | None = None,
        offsets: tuple[int, int] | None = (0, 0),
    ) -> None:
        """`offsets` is where the output begins that was asked for; None when none was asked for."""
        self.id = execution_id
        self.host = host
        self.offsets = list(offsets or (0, 0))
        """Bytes of stdout and stderr that have been handed out: where to attach again."""
        self.was_started: bool | None = None
        """Whether this submission started it; False when the id existed, None while that is not known."""
        self._transport = transport
        self._conversation = conversation
        self._patience = conversation.patience
        self._store = store
        self._job = job
        self._is_new = is_new
        """Whether the store knows this id from this very submission."""
        self._live = live
        """Where its token ends with it; None when it has none from here."""
        self.fallback = fallback
        """Why it was not submitted in the mode that was preferred."""
        self.ended: Callable[[str | None], None] = _nobody
        """Told once how it went, for the host's health: None, or the reason why not."""
        self.lost: Callable[[str], None] = _nobody
        """Told when the channel is lost."""
        self.counted: Callable[[Result], None] = _uncounted
        self.read: Callable[[Result], Result] = _as_it_is
        """What `result` returns of a result: one whose output can be fetched, where the controller has set that."""
        """Told of an end that was not known here, and of a submission whose channel is lost."""
        self.unkept: Callable[[str, StoreError], None] = _untold
        """Told when the result could not be written down here. It is told all the same, and its host keeps it."""
        self.has_sent_payload = False
        """Whether the host has asked for the payload."""
        self.is_cancelled = False
        """Whether its host was asked from here to end it."""
        self.is_left = False
        """Whether it was chosen here not to follow it any longer."""
        self._receiving = asyncio.Lock()
        self._result: Result | None = None
        self._is_over = False
        self._ungranted = dict.fromkeys(STREAM_NAMES, 0)
        self._received = None if offsets is None else Received(offsets)
        """What has arrived of the output; None when none was asked for."""
        self._deadline = Deadline(self._give_up)
        self._deadline.set(self._patience.until_answer())
        self._acknowledging: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None

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
        return self.read(self._result)

    def cancel(self) -> None:
        """Asks the host to end the execution: SIGTERM, grace, SIGKILL. `result` tells when nothing of it is left."""
        self._conversation.send(Kind.CANCEL, {})
        self.is_cancelled = True
        self._deadline.shorten(self._patience.until_cancelled(has_api=self._live is not None))

    def detach(self) -> None:
        """Follows no longer, and `pieces` ends, wherever it waits; the execution goes on and can be attached to."""
        if self.was_started is not None and not self._is_over:
            self.ended(None)  # what was asked of the host went well so far
        self._is_over = self.is_left = True
        self._deadline.stop()
        with contextlib.suppress(ChannelLostError):
            self._conversation.send(Kind.DETACH, {})
        self._conversation.close()

    def leave(self) -> None:
        """Follows no longer, at any time: as `detach`, or as `abandon` while the host has not answered yet."""
        if self.was_started is None:
            self.abandon()
        else:
            self.detach()

    def abandon(self) -> None:
        """Leaves before the host has answered, in the way that the job asks for when a controller is gone."""
        if self._is_over:
            return
        with contextlib.suppress(ChannelLostError):
            if self._job is not None and self._job.on_disconnect == "cancel":
                self.cancel()
        self.detach()  # also ends a payload on its way: what has not arrived is not started
        self._note_state(Outcome.UNKNOWN.value)

    @property
    def known_result(self) -> Result | None:
        """The result, if it has come by now; it says `unknown` when the channel was lost instead."""
        return self._result

    @property
    def is_running(self) -> bool:
        """Whether the host has it and hasn't told its end, as far as we have read."""
        return self.was_started is not None and not self._is_over

    @property
    def is_served_here(self) -> bool:
        """Whether it reaches the platform through this process, and no longer without it."""
        return self._live is not None and self._live.is_open

    async def wait_accepted(self) -> bool:
        """Waits until the host has claimed the id, or said why not; whether it was started by this submission.

        The payload travels here, when the host asks for it. Raises RefusedError.
        """
        while self.was_started is None and not self._is_over:
            await self._next()
        return bool(self.was_started)

    async def wait_acknowledged(self) -> None:
        """Waits until the host knows that its result has been stored here, and its token opens nothing any more."""
        for task in (self._acknowledging, self._settling):
            if task is not None:
                await task

    async def _next(self) -> Piece | None:
        """Takes one frame, one caller at a time; a lost channel is the end. None for all that is not output."""
        async with self._receiving:
            if self._is_over:  # another caller has seen the end
                return None
            try:
                return await self._receive()
            except ChannelLostError as error:
                self._lose(error.code, error.about(self.host.name).message)
                return None

    async def _receive(self) -> Piece | None:
        """Takes one frame. Raises ChannelLostError, also for what is not in the protocol: then we know nothing."""
        frame = await self._conversation.receive(self._deadline)
        if frame is None:
            return None
        if isinstance(frame, Piece):
            self._note_output(frame)
            return frame
        try:
            await self._take(frame)
        except (ProtocolError, ValueError) as error:
            sentence = f"the agent said something unknown: {error}"
            raise ChannelLostError(sentence, host=self.host.name, code=PROTOCOL_BROKEN) from None
        return None

    def _note_output(self, piece: Piece) -> None:
        self.offsets[piece.stream - 1] = piece.offset + len(piece.data)
        if self._received is not None:
            self._received.add(piece)
        if sum(self.offsets) <= COUNTED_OUTPUT:
            self._deadline.put_off(len(piece.data), self._patience)

    async def _take(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ACCEPTED:
                self._accept(frame.json())
            case Kind.WANT_PAYLOAD:
                if self._job is None:
                    raise ProtocolError("it asks for the payload of an execution that was not submitted")
                self.has_sent_payload = True
                patience = self._patience
                self._deadline.set(patience.until_answer())
                self._deadline.go_on()
                try:
                    await self._conversation.send_payload(
                        self._job.payload.pieces(), lambda: self._deadline.set(patience.until_answer())
                    )
                except OSError as error:
                    self.detach()  # the host has not all of it, so it starts nothing
                    raise PayloadError(
                        "payload.unreadable", f"{self._job.payload.label} cannot be read any more: {error.strerror}"
                    ) from None
                finally:
                    self._deadline.hold()
            case Kind.FINISHED:
                self._finish(Result.from_json(frame.json()))
            case Kind.REFUSED:
                refusal = asking.refusal(frame.told(), self.host.name)
                is_attach = self._job is None
                is_trouble = is_attach and refusal.code.startswith(_HOSTS_TROUBLE)
                if self.was_started is not None or is_trouble or refusal.code in _STARTED_BEFORE:
                    self._lose(refusal.code, refusal.message)  # the host failed us, which ends no script
                    return
                self._is_over = True
                self._deadline.stop()
                self._conversation.close()
                if self._is_new:
                    self._note_state("refused")
                    self._settle(None)
                raise refusal
            case Kind.STATUS:  # an attach without following has shown all there is
                self._is_over = True
                self._deadline.stop()
                self._conversation.close()

    def _accept(self, told: dict[str, Any]) -> None:
        if told.get("executionId", self.id) != self.id:
            raise ProtocolError(f"it has started {told['executionId']!r:.100} where '{self.id}' was submitted")
        self.was_started = bool(told.get("started"))
        self._note_state("accepted")
        # One that was joined has the time of the submission that started it, which only its host knows.
        is_ours = self._job is not None and self.was_started
        timeout = self._job.timeout or self._job.payload.timeout if self._job is not None and is_ours else None
        known = [seconds for seconds in (timeout, remaining_in(told)) if seconds is not None]
        has_api = self._live is not None
        self._deadline.set(self._patience.until_end(min(known, default=LONGEST_TIMEOUT), has_api=has_api))
        if self.is_cancelled:
            self._deadline.shorten(self._patience.until_cancelled(has_api=has_api))

    def _give_up(self) -> None:
        what = "its end" if self.was_started is not None else "that it has the job"
        self._conversation.give_up(f"the host has not told {what} in the time that this can take")

    def _grant(self, piece: Piece) -> None:
        self._ungranted[piece.stream] += len(piece.data)
        if self._ungranted[piece.stream] >= GRANTED_AT_ONCE:
            with contextlib.suppress(ChannelLostError):  # the next receive says so
                self._conversation.grant(piece.stream, self._ungranted[piece.stream])
            self._ungranted[piece.stream] = 0

    def _finish(self, told: Result) -> None:
        if told.execution_id != self.id:
            raise ProtocolError(f"the result of '{self.id}' names {told.execution_id!r:.100}")
        if told.state.is_unstarted:  # only who did not start it can know that
            raise ProtocolError(f"the result of '{self.id}' says {told.state}")
        difference = None if self._received is None else self._received.difference(told)
        if difference is not None:
            advice = f"its host has the result all the same: cronium wait {self.id}"
            self._lose("channel.mismatch", f"{self.host.name}: {difference}", advice)
            return
        self._is_over = True
        self._deadline.stop()
        self._result = told.on(self.host.name, self._transport)
        if self.fallback is not None and told.mode == BUNDLED:
            code, message = self.fallback
            self._result = self._result._replace(fallback_code=code, fallback_message=message)
        is_kept = True
        try:
            is_news = self._store.finish(self._result, time.time())
        except StoreError as error:  # what the script did is no less true
            is_news, is_kept = True, False
            self.unkept(self.id, error)
        if is_news:
            self.counted(self._result)
        self.ended(None if told.state is Outcome.SUCCEEDED else f"the job ended as {told.state}")
        if told.state is Outcome.REJECTED:  # the host keeps nothing of it
            self._conversation.close()
            self._settle(told)
        else:
            self._acknowledging = asyncio.ensure_future(self._acknowledge(is_kept=is_kept))

    def _settle(self, told: Result | None) -> None:
        """Nothing was started: the platform forgets an execution that it knows from this submission."""
        if self._live is not None:
            self._settling = asyncio.ensure_future(self._settled(self._live, told))

    async def _settled(self, live: Live, told: Result | None) -> None:
        # A method of ours: a controller that closes waits for its executions, and must not lose sight of this one.
        if self._is_new:
            await live.forget(self.id)
        elif told is not None:
            await live.end(told)

    def _note_state(self, state: str) -> None:
        """Writes it down where that can be: what goes on on the host does not depend on it."""
        with contextlib.suppress(StoreError):
            self._store.note_state(self.id, state)

    async def _acknowledge(self, *, is_kept: bool) -> None:
        """Nobody waits for this: a result that isn't acknowledged is kept on the host, which is all that happens."""
        if self._live is not None and self._result is not None:
            await self._live.end(self._result)  # before the host may forget that there is something to end
        if is_kept:
            with contextlib.suppress(ChannelLostError, StoreError):
                self._conversation.send(Kind.ACKNOWLEDGE, {"executionId": self.id})
                answer = await self._acknowledged()
                if isinstance(answer, Frame) and answer.kind == Kind.STATUS:
                    self._store.note_acknowledged(self.id)
        self._conversation.close()

    async def _acknowledged(self) -> Frame | Piece | None:
        """The answer to the acknowledgement; None when none comes."""
        self._deadline.set(self._patience.answer)
        self._deadline.go_on()
        try:
            return await self._conversation.receive()
        finally:
            self._deadline.stop()

    def _lose(self, code: str, message: str, advice: str | None = None) -> None:
        self._is_over = True
        self._deadline.stop()
        with contextlib.suppress(ChannelLostError):  # one that was given up need send nothing more
            self._conversation.send(Kind.DETACH, {})
        self._conversation.close()
        self._note_state(Outcome.UNKNOWN.value)
        self.lost(message)
        going_on = f"the execution may still be running. Look with: cronium attach {self.id}"
        self._result = Result(
            execution_id=self.id,
            state=Outcome.UNKNOWN,
            job_id=None if self._job is None else self._job.job_id,
            host=self.host.name,
            transport=self._transport,
            mode=BUNDLED if self._live is None else API,
            error_code=code,
            error_message=f"{message}; {advice or going_on}",
        )
        if self._job is not None:
            self.counted(self._result)
