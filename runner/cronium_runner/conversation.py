"""One channel number's life: an execution that is submitted, followed, or both, from the request to what ends it.

It knows the frames to answer with, never how they travel, and it waits for nothing: the agent's loop calls it when
something may have changed. What it raises is the agent's to turn into a refusal.

    receiving → starting → following → ending → over      a submission
    receiving ← starting                                  its payload went from the cache just then
                starting → joining → following            its id was claimed before
                           joining                        an attach begins here
                           ending → delivering → ending   writes of API mode were left, and it may be tried again
"""

import contextlib
import socket
from enum import StrEnum
from typing import Any, Final, Protocol

from . import __version__
from . import follow as following
from .errors import StateDamagedError, SystemRefusedError
from .guardian import GuardianReader, undecided
from .jobdir import ExecutionDirectory, StateDirectory
from .payload_cache import IncomingPayload, PayloadCache
from .submission import Archive, Submission
from .wire import frames
from .wire.access import Access
from .wire.frames import Kind, ProtocolError
from .wire.names import STREAM_NAMES
from .wire.results import Outcome, Result


class Phase(StrEnum):
    """Where a conversation stands."""

    NEW = "new"
    RECEIVING = "receiving"
    """The payload is on its way; nothing is started."""
    STARTING = "starting"
    """A supervisor is forked and has not said what became of the claim."""
    JOINING = "joining"
    """The execution exists and is to be followed; again and again while no descriptor is free, or it is busy."""
    FOLLOWING = "following"
    """Its output is sent as it comes."""
    DELIVERING = "delivering"
    """It has ended, and what the platform doesn't have yet is being delivered."""
    ENDING = "ending"
    """No supervisor will say more: when all output has been sent, the result follows."""
    OVER = "over"
    """The channel number is free again."""


MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.NEW: frozenset({Phase.RECEIVING, Phase.STARTING, Phase.JOINING, Phase.OVER}),
    Phase.RECEIVING: frozenset({Phase.STARTING, Phase.OVER}),
    Phase.STARTING: frozenset({Phase.RECEIVING, Phase.JOINING, Phase.FOLLOWING, Phase.OVER}),
    Phase.JOINING: frozenset({Phase.FOLLOWING, Phase.ENDING, Phase.OVER}),
    Phase.FOLLOWING: frozenset({Phase.ENDING, Phase.OVER}),
    Phase.ENDING: frozenset({Phase.DELIVERING, Phase.OVER}),
    Phase.DELIVERING: frozenset({Phase.ENDING, Phase.OVER}),
    Phase.OVER: frozenset(),
}


class Surroundings(Protocol):
    """What a conversation needs of the agent."""

    state: StateDirectory
    payloads: PayloadCache

    def send(self, kind: Kind, channel: int, value: dict[str, Any]) -> None:
        """Queues a frame."""

    def send_data(self, channel: int, stream: int, offset: int, piece: bytes) -> None:
        """Queues a piece of output."""

    def has_room(self) -> bool:
        """Whether more output may be queued now."""

    def supervise(self, submission: Submission) -> tuple[int, socket.socket]:
        """Forks a supervisor; returns its pid and our end of the pair."""

    def listen(self, watched: socket.socket, conversation: "Conversation") -> None:
        """Calls `conversation.hear` whenever there is something to read."""

    def ignore(self, watched: socket.socket) -> None:
        """Takes `listen` back."""

    def keep(self, pid: int, pair: socket.socket) -> None:
        """Holds our end of a supervisor's pair until it has ended."""

    def guard(self, pid: int, execution: ExecutionDirectory) -> None:
        """The supervisor has started its script: until it has ended, we hold the lock that tells others so."""

    def is_supervised(self, execution_id: str) -> bool:
        """Whether a supervisor of ours has that execution and has not been seen to end."""


class Conversation:
    """One channel number in use. `begin` or `attach` comes first."""

    def __init__(self, agent: Surroundings, channel: int, execution_id: str, offsets: tuple[int, int]) -> None:
        self.channel = channel
        self.phase = Phase.NEW
        self._agent = agent
        self._id = execution_id
        self._offsets = offsets
        self._wants_data = True
        self._wants_future = True
        self._credit = dict.fromkeys(STREAM_NAMES, frames.CREDIT)
        self._is_cancelled = False
        self.is_left = False
        """Nobody listens any more: it only waits to tell a supervisor of the cancel that was asked for before."""
        self._submission: Submission | None = None
        self._sha256 = ""
        self._payload: IncomingPayload | None = None
        self._was_received = False
        self._pid: int | None = None
        self._verdict = GuardianReader()
        self._watch: socket.socket | None = None
        self._follower: following.Follower | None = None
        self._access: Access | None = None

    def __repr__(self) -> str:
        return f"<Conversation {self.channel} {self._id} {self.phase}>"

    # -- how it begins -------------------------------------------------------------------------------------------

    def begin(self, submission: Submission, *, wants_data: bool) -> None:
        """A submission: joined when its id is taken, started when its payload is here, else the payload is wanted."""
        assert isinstance(submission.source, Archive)
        self._submission = submission
        self._sha256 = submission.source.sha256 or ""
        self._wants_data = wants_data
        if self._agent.state.is_claimed(self._id):
            self._access = submission.api
            self._move(Phase.JOINING)
        elif self._agent.payloads.has(self._sha256):
            self._start()
        else:
            self._want_payload()

    def _want_payload(self) -> None:
        self._payload = self._agent.payloads.receive(self._sha256)
        self._move(Phase.RECEIVING)
        self._tell(Kind.WANT_PAYLOAD, {"sha256": self._sha256})

    def attach(self, *, wants_future: bool, access: Access | None = None) -> None:
        """An execution that exists. Without `wants_future` what is there now is all that is wanted.

        One in API mode goes on with `access`; what it has not delivered is delivered there.
        """
        self._wants_future = wants_future
        self._access = access
        self._move(Phase.JOINING)

    def receive(self, piece: bytes) -> None:
        """Bytes of the payload; none at all is its end."""
        if self._payload is None:
            raise ProtocolError("PAYLOAD without WANT_PAYLOAD")
        if piece:
            self._payload.write(piece)
            return
        self._payload.finish()
        self._payload, self._was_received = None, True
        self._start()

    def _start(self) -> None:
        assert self._submission is not None
        self._agent.payloads.remember(self._sha256)
        self._pid, pair = self._agent.supervise(self._submission)
        self._move(Phase.STARTING)
        self._listen(pair)

    # -- what is asked meanwhile ---------------------------------------------------------------------------------

    def grant(self, stream: int, count: int) -> None:
        """So many more bytes of the stream may be sent."""
        if stream in self._credit:
            self._credit[stream] += count

    def cancel(self) -> None:
        """Ends the execution; before its payload is here that means never to start it."""
        if self.phase is Phase.RECEIVING:
            assert self._submission is not None
            cancelled = Result(
                execution_id=self._id,
                job_id=self._submission.job_id,
                state=Outcome.CANCELLED,
                runner_version=__version__,
                error_code="execution.cancelled",
                error_message="the execution was cancelled before its payload had arrived; nothing was started",
            )
            self._finish(cancelled.to_json())
            return
        self._is_cancelled = True
        self._pass_cancel_on()

    def detach(self) -> None:
        """Follows no longer. The supervisor keeps its guardian: a detached execution has lost nobody."""
        if self._is_cancelled and self.phase in (Phase.STARTING, Phase.JOINING):
            self.is_left, self._wants_data = True, False  # whose the id is, and so whom to tell, is not known yet
            return
        if self._pid is not None and self._watch is not None:
            watch, self._watch = self._watch, None
            self._agent.ignore(watch)
            self._agent.keep(self._pid, watch)
        self.close()

    def close(self) -> None:
        """The channel number is free again. A supervisor of ours stays ours: it is reaped when it ends."""
        self.phase = Phase.OVER
        if self._follower is not None:
            self._follower.close()
        if self._payload is not None:
            self._payload.discard()
        self._drop_watch()

    # -- what may have changed -----------------------------------------------------------------------------------

    def hear(self) -> None:
        """Reads what the supervisor says: its verdict on the claim, that there is more to read, or that it is gone."""
        assert self._watch is not None
        try:
            piece = self._watch.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._drop_watch()
            if self.phase is Phase.DELIVERING:
                self._move(Phase.ENDING)
            else:
                self._miss_supervisor()
        elif self._pid is not None:
            self._verdict.feed(piece)
            self._act_on_verdict()

    def _act_on_verdict(self) -> None:
        verdict = self._verdict.verdict
        if verdict == "exists":
            self._drop_watch()
            self._pid = None
            self._move(Phase.JOINING)
        elif verdict == "rejected" and self._verdict.rejection is not None:
            self._take_rejection(self._verdict.rejection)
        elif verdict in ("claimed", "finished"):
            if self.phase is Phase.STARTING:
                # Not looked for: a script that is quick may have removed it by now.
                execution = ExecutionDirectory(self._agent.state, self._id)
                self._follower = following.Follower(execution, self._offsets)
                if self._pid is not None:
                    self._agent.guard(self._pid, execution)
                self._accept(started=True)
                self._move(Phase.FOLLOWING)
            if verdict == "finished" and self.phase is Phase.FOLLOWING:
                self._move(Phase.ENDING)
            if self.is_left:
                self.detach()

    def _take_rejection(self, rejection: Result) -> None:
        if rejection.error_code == "payload.not_found" and not self._was_received:
            # Somebody emptied the cache between the look into it and the start. Nothing has begun, so it may come.
            self._drop_watch()
            self._pid, self._verdict = None, GuardianReader()
            self._want_payload()
            if self._is_cancelled:  # which went to a supervisor that is none
                self.cancel()
            return
        if rejection.error_code == "payload.digest_mismatch":
            self._agent.payloads.drop(self._sha256)
        self._finish(rejection.to_json())

    def _miss_supervisor(self) -> None:
        """It is gone. One that was killed has not said all that there was to say."""
        if self.phase is Phase.FOLLOWING:
            self._move(Phase.ENDING)
        elif self.phase is Phase.STARTING:
            assert self._submission is not None
            if self._agent.state.is_claimed(self._id):
                self._move(Phase.JOINING)
            else:
                self._finish(undecided(self._submission).to_json())

    def pump(self) -> None:
        """Sends what is new, as far as credit and room allow, and the result once all has been sent.

        Anything that needs a descriptor is done here, so that it can be tried again while none is free.
        """
        if self.phase is Phase.JOINING:
            self._join()
        if self._follower is None or self._send_output(self._follower):
            return
        if self.phase is Phase.ENDING:
            self._conclude(self._follower)

    def _join(self) -> None:
        """Follows an execution that exists; a submission's only if it is the same submission."""
        if self._follower is None:
            self._recognise()
        assert self._follower is not None
        try:
            watch = following.open_watch(self._follower.execution) if self._wants_future else None
        except BlockingIOError:
            return  # busy: its output is read meanwhile, and the next turn asks again
        except StateDamagedError:
            watch = None  # there may be a result all the same
        if watch is None:
            self._move(Phase.ENDING)
        else:
            self._pass_access_on(watch)
            self._move(Phase.FOLLOWING)
            self._listen(watch)
            self._pass_cancel_on()
        if self.is_left:
            self.detach()

    def _recognise(self) -> None:
        """The execution is there: it is told whose it is, and its output can be read."""
        execution = self._agent.state.execution(self._id)
        started = False
        if self._submission is not None:
            following.check_same_submission(execution, self._submission.fingerprint(self._sha256))
            if self._pid is not None:  # ours was killed before it could say whose claim this is
                started = any((line.get("supervisor") or {}).get("pid") == self._pid for line in execution.history())
        remaining = None if started else following.remaining(execution)
        # Nothing above may have changed anything: all of it is done again when no descriptor was free.
        self._pid = None
        self._accept(started=started, remaining=remaining)
        self._follower = following.Follower(execution, self._offsets)

    def _send_output(self, follower: following.Follower) -> bool:
        """Sends new output. Whether some is left that must wait, for credit or for room."""
        is_waiting = False
        if self._wants_data:
            for stream in STREAM_NAMES:
                while self._credit[stream] > 0 and self._agent.has_room():
                    offset = follower.offsets[stream]
                    piece = follower.read(stream, min(frames.DATA_PIECE, self._credit[stream]))
                    if not piece:
                        break
                    self._credit[stream] -= len(piece)
                    self._agent.send_data(self.channel, stream, offset, piece)
                else:
                    is_waiting = True
        return is_waiting

    def _conclude(self, follower: following.Follower) -> None:
        """All output has been sent: the result follows, or the state when only a look was wanted and it still runs."""
        execution = follower.execution
        try:
            result = following.final_result(execution, is_guardian=True)
        except StateDamagedError:
            if self._agent.is_supervised(self._id):
                return  # once it has ended, the record of one that was removed is made again
            raise
        if result is not None and self._access is not None and result.get("undelivered"):
            self._deliver_late(self._access)
        elif result is not None:
            self._finish(result)
        elif not self._wants_future:
            self._agent.send(Kind.STATUS, self.channel, {"executions": [following.status(execution)]})
            self.close()
        elif self._is_cancelled:
            following.check_reachable(execution)
        # else the supervisor is ending: the next turn looks again

    def _deliver_late(self, access: Access) -> None:
        """It has left writes behind; they are tried once more before its result is told."""
        from . import late_delivery

        assert self._follower is not None
        self._access = None
        with contextlib.suppress(SystemRefusedError):  # no process for it now: the result says what is left
            watch = late_delivery.start(self._follower.execution, access)
            self._move(Phase.DELIVERING)
            self._listen(watch)

    # -- small steps ---------------------------------------------------------------------------------------------

    def _move(self, phase: Phase) -> None:
        assert phase in MOVES[self.phase], f"{self.phase} → {phase}"
        self.phase = phase

    def _accept(self, *, started: bool, remaining: int | None = None) -> None:
        told: dict[str, Any] = {"executionId": self._id, "started": started}
        if remaining is not None:
            told["remaining"] = remaining
        self._tell(Kind.ACCEPTED, told)

    def _finish(self, result: dict[str, Any]) -> None:
        self._tell(Kind.FINISHED, result)
        self.close()

    def _tell(self, kind: Kind, value: dict[str, Any]) -> None:
        if not self.is_left:
            self._agent.send(kind, self.channel, value)

    def _listen(self, watch: socket.socket) -> None:
        watch.setblocking(False)
        self._watch = watch
        self._agent.listen(watch, self)

    def _drop_watch(self) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            self._agent.ignore(watch)
            watch.close()

    def _pass_access_on(self, watch: socket.socket) -> None:
        """The supervisor goes on with the new endpoint and token."""
        assert self._follower is not None
        if self._access is not None and following.is_in_api_mode(self._follower.execution):
            with contextlib.suppress(OSError):  # it ended just now, and what it left is delivered by us
                watch.sendall(following.access_message(self._access))

    def _pass_cancel_on(self) -> None:
        if self._is_cancelled and self._watch is not None:
            with contextlib.suppress(OSError):
                self._watch.send(following.CANCEL)
