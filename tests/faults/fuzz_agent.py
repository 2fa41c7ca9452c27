"""A real agent, fed with good, wrong and mutated frames: only its supervisors are made up, and answer anything.

It must answer in the protocol, end a channel only with ERROR, start only what was submitted, and leave nothing open.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import socket
from typing import Any, Final
from unittest import mock

from cronium_runner import agent as agent_module
from cronium_runner import process
from cronium_runner.agent import Agent
from cronium_runner.jobdir import AlreadyClaimedError, ExecutionDirectory, StateDirectory
from cronium_runner.lifecycle import State
from cronium_runner.submission import Submission
from cronium_runner.wire import exactjson, frames
from cronium_runner.wire.codes import CODES
from cronium_runner.wire.frames import Frame, FrameReader, Kind
from cronium_runner.wire.results import Result
from faults.fuzz_source import Source
from faults.fuzz_targets import SUBMISSION_KEYS, check_message, room
from payload_bytes import make_payload

PAYLOAD: Final = make_payload({"manifest.yaml": b"version: v1\nentrypoint: s.sh\n", "s.sh": b"echo\n"})
CONTENTS: Final = (PAYLOAD, b"", b"no payload", PAYLOAD[:-1])
DIGESTS: Final = tuple(hashlib.sha256(content).hexdigest() for content in CONTENTS)
IDS: Final = ("new", "over", "alive", "new2", "", "../x", "a" * 65, "no-such", "\n")
OURS: Final = (
    Kind.HELLO,
    Kind.PONG,
    Kind.ACCEPTED,
    Kind.WANT_PAYLOAD,
    Kind.DATA,
    Kind.FINISHED,
    Kind.REFUSED,
    Kind.ERROR,
)
RESULT: Final = exactjson.encode(Result.from_json({"executionId": "over", "state": "succeeded"}).to_json())
REJECTION: Final = b'rejected {"executionId": "new", "state": "rejected", "error": {"code": "payload.damaged"}}\n'
FIRST_WORDS: Final = (b"claimed\n", b"claimed\n", b"exists\n", REJECTION, None)
LATER_WORDS: Final = (b"\n", b"finished\n", None)
"""None is its end. A supervisor is ours, so it keeps to its words."""
MOST_IN_FRAME: Final = 4096
SMALL_CAPS: Final[dict[str, Any]] = {"MAX_BODY": MOST_IN_FRAME, "DATA_PIECE": 500}
"""So that a case of a kilobyte reaches the limit of a frame."""


class FuzzedAgent(Agent):
    """An agent whose supervisors are ends of socket pairs. `started` is what it would have run."""

    def __init__(self, state: StateDirectory, source: int, sink: int, drawn: Source) -> None:
        super().__init__(state, source, sink)
        self._reader = FrameReader(max_body=MOST_IN_FRAME)
        self._drawn = drawn
        self.started: list[Submission] = []
        self.far_ends: list[socket.socket] = []
        self.claimed: list[ExecutionDirectory] = []
        self._decided: set[int] = set()

    def supervise(self, submission: Submission) -> tuple[int, socket.socket]:
        self.started.append(submission)
        ours, far = socket.socketpair()
        self.far_ends.append(far)
        pid = -len(self.started)
        self._supervisors[pid] = submission.execution_id
        return pid, ours

    def supervisor_speaks(self) -> None:
        """One of the made-up supervisors says something, claims its id, or ends."""
        if not self.far_ends:
            return
        at = self._drawn.below(len(self.far_ends))
        words = LATER_WORDS if at in self._decided else FIRST_WORDS
        self._decided.add(at)
        said = self._drawn.choice(words)
        if said == b"claimed\n":
            said = self._claim(self.started[at])
        with contextlib.suppress(OSError):
            self.far_ends[at].close() if said is None else self.far_ends[at].sendall(said)

    def _claim(self, submission: Submission) -> bytes:
        """As a supervisor does it: who comes first has the id. Its spools and perhaps its result are there at once."""
        fingerprint = submission.fingerprint(str(getattr(submission.source, "sha256", None)))
        record = {"supervisor": process.identity(os.getpid()), "fingerprint": fingerprint}
        stage = self.state.stage()
        try:
            claimed = stage.claim(submission.execution_id, record)
        except AlreadyClaimedError:
            stage.discard()
            return b"exists\n"
        self.claimed.append(claimed)  # as long as its supervisor lives, its lock is held
        _write(claimed, {"stdout": b"out" * 300, **({"result.json": RESULT} if self._drawn.chance(2) else {})})
        return b"claimed\n"


def agent_frames(data: bytes) -> None:
    """Any stream of frames, whatever supervisors say meanwhile."""
    source = Source(data)
    content = b"".join(frame(source) for _ in range(source.below(12)))
    if source.chance(6):
        content = source.mutated(content, (b"\xff\xff\xff\xff", bytes(9), b"\x02", frames.MAGIC))
    state = _state()
    with mock.patch.multiple(frames, **SMALL_CAPS):
        descriptors = len(os.listdir("/proc/self/fd"))
        told, started = _conversed(state, source, content)
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        _check_told(told, content)
        _check_started(state, started, content)
    assert not [name for name in os.listdir(state.payloads) if name.startswith(".")]
    assert not os.path.lexists(room() / "x.tar.gz")


def _conversed(state: StateDirectory, source: Source, content: bytes) -> tuple[bytes, list[Submission]]:
    """What the agent writes when the content arrives in pieces, and what it started."""
    their_source, our_sink = os.pipe()
    our_source, their_sink = os.pipe()
    fcntl.fcntl(their_sink, fcntl.F_SETPIPE_SZ, 1 << 20)
    for descriptor in (their_source, their_sink, our_source):
        os.set_blocking(descriptor, False)
    with mock.patch.object(agent_module, "_raise_descriptor_limit", return_value=(1024, 1024)):  # it is ours as well
        agent = FuzzedAgent(state, their_source, their_sink, source)
    agent._add(their_source, agent._hear_controller)
    told = b""
    for piece in source.cut(content):
        if piece and agent._is_connected:
            os.write(our_sink, piece)
        agent.supervisor_speaks()
        _let_it_turn(agent)
        told += _read(our_source)
    os.close(our_sink)
    _let_it_turn(agent)
    assert not agent._is_connected
    told += _read(our_source)
    os.close(our_source)
    for far in agent.far_ends:
        far.close()
    for claimed in agent.claimed:
        claimed.let_go()
    guards = [guard for guard in agent._guards.values() if guard is not None]  # kept until a supervisor has ended
    for descriptor in (agent._signals_read, agent._signals_write, *guards):
        os.close(descriptor)
    assert not agent._conversations
    assert not agent._detached
    assert not agent._callbacks
    return told, agent.started


def _let_it_turn(agent: FuzzedAgent) -> None:
    """Turns as long as something has happened, but not for ever: some phases ask again and again."""
    for _ in range(20):
        if not agent._is_connected or not agent._poll.poll(0):
            break
        agent._turn()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""


@functools.cache
def _made_state() -> StateDirectory:
    state = StateDirectory.open(str(room() / "state"))
    state.ensure_payloads()
    alive = state.stage().claim("alive", {"supervisor": process.identity(os.getpid()), "fingerprint": "0"})
    with open(alive.spool_path("stdout"), "wb") as spool:
        spool.write(b"x" * 1200)
    return state


def _state() -> StateDirectory:
    """The state directory with an execution that is over and one that lives; the payloads of before are gone."""
    state = _made_state()
    for name in os.listdir(state.payloads):
        os.unlink(os.path.join(state.payloads, name))
    for name in set(os.listdir(state.executions)) - {"alive"}:
        shutil.rmtree(os.path.join(state.executions, name))
    over = ExecutionDirectory(state, "over")
    os.mkdir(over.path)
    _write(over, {"state.jsonl": b""})
    over.append_state(State.CLAIMED, {"supervisor": {}})
    _write(over, {"result.json": RESULT, "stdout": b"out" * 300, "stderr": b"err"})
    return state


def _write(execution: ExecutionDirectory, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        with open(os.path.join(execution.path, name), "wb") as file:
            file.write(content)


def frame(source: Source) -> bytes:
    """A submission with its payload, one frame, or noise."""
    if source.chance(60):
        return source.take(source.below(20))
    if source.chance(3):
        return _submission_with_payload(source)
    kind = source.choice((6, 4, 5, 7, 8, 9, 3, 2, 6, 5, 9, 10, 11, 1, 70, 200))
    is_connections = kind in (Kind.HELLO, Kind.PING, Kind.PONG, Kind.ERROR)
    channel = 0 if is_connections != source.chance(40) else source.choice((1, 2, 3, 4, 5, 6, 2**32 - 1))
    return frames.encode(kind, channel, _body(source, kind))


def _submission_with_payload(source: Source) -> bytes:
    """What a controller sends that expects to be asked for the payload, with a frame of something else in between."""
    channel, content = 1 + source.below(6), source.choice((0, 0, 0, 1, 2, 3))
    submission: dict[str, Any] = {"executionId": source.choice(IDS[:4]), "sha256": DIGESTS[content]}
    if source.chance(3):
        submission.update(
            source.choice(({"follow": False}, {"offsets": [3, 0]}, {"timeout": 5}, {"onDisconnect": "cancel"}))
        )
    sent = frames.encode_json(Kind.SUBMIT, channel, submission)
    for piece in (*source.cut(CONTENTS[content], 2), b"") if CONTENTS[content] else (b"",):
        if source.chance(8):
            sent += frames.encode(source.choice((Kind.CANCEL, Kind.DETACH, Kind.CREDIT)), channel, bytes(5))
        sent += frames.encode(Kind.PAYLOAD, channel, piece)
    return sent


def _body(source: Source, kind: int) -> bytes:
    match kind:
        case Kind.SUBMIT:
            return _json(source, _submission(source))
        case Kind.ATTACH | Kind.ACKNOWLEDGE | Kind.STATUS:
            body: dict[str, Any] = {"executionId": source.choice(IDS)}
            if source.chance(3):
                body["offsets"] = source.choice(([0, 0], [2, 1], [2**63, 0], [10**400, 0], [-1, 0], [0], 1, [1.5, 0]))
            if source.chance(4):
                body["follow"] = source.json(1)
            return _json(source, body if not source.chance(8) else source.json(2))
        case Kind.PAYLOAD:
            return source.choice((PAYLOAD, b"", b"", b"no payload", PAYLOAD[:-1], PAYLOAD[:40], PAYLOAD[40:]))
        case Kind.CREDIT:
            return frames._CREDIT.pack(source.below(4), source.choice((1, 0, 2**32 - 1)))
        case Kind.ERROR:
            return b"{}"
    return source.take(source.below(20))


def _submission(source: Source) -> dict[str, Any]:
    body: dict[str, Any] = {"executionId": source.choice(IDS), "sha256": source.choice(DIGESTS)}
    for _ in range(source.below(4)):
        body[source.choice(SUBMISSION_KEYS)] = source.json(2)
    if source.chance(10):
        body[source.text() * source.choice((1, 150, 390))] = 1
    if source.chance(10):
        body[source.choice(SUBMISSION_KEYS)] = source.text() * source.choice((1, 150, 390))
    return body


def _json(source: Source, value: Any) -> bytes:
    """The value as bytes, now and then wrong; never over the limit."""
    text = exactjson.dumps(value).encode("utf-8", "surrogatepass")
    return (text if not source.chance(30) else source.mutated(text, (b"{", b"1e9", b"NaN", b"\xff")))[:MOST_IN_FRAME]


def _check_told(told: bytes, content: bytes) -> None:
    """Frames of the agent's own kinds, on channels that were used; a broken stream is answered with ERROR, last."""
    reader = FrameReader(max_body=MOST_IN_FRAME)
    found = list(reader.feed(told))
    assert not reader._pending, "half a frame"
    used = {frame.channel for frame in sent(content)}
    for frame in found:
        assert frame.kind in (*OURS, Kind.STATUS), frame
        assert frame.channel in used or frame.channel == 0, frame
        assert frame.kind != Kind.ERROR or frame is found[-1]
        if frame.kind in (Kind.REFUSED, Kind.ERROR):
            told_error = frame.json()
            assert told_error["code"] in CODES
            assert told_error["code"] not in ("runner.internal",), told_error
            check_message(told_error["message"])


def _check_started(state: StateDirectory, started: list[Submission], content: bytes) -> None:
    """Only what a SUBMIT frame named, and whose payload is here and is what was announced."""
    asked = []
    for frame in sent(content):
        if frame.kind == Kind.SUBMIT:
            with contextlib.suppress(Exception):
                body = frame.json()
                asked.append((body["executionId"], body["sha256"]))
    for submission in started:
        assert submission.execution_id not in ("over", "alive"), "claimed before"
        digest = getattr(submission.source, "sha256", None)
        assert (submission.execution_id, digest) in asked
        with open(state.payload_path(str(digest)), "rb") as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest
    assert len(started) <= len(asked)


def sent(content: bytes) -> list[Frame]:
    """The frames in the content, cut apart without the code under test."""
    found = []
    while len(content) >= 9:
        length = int.from_bytes(content[:4])
        if length > MOST_IN_FRAME or len(content) < 9 + length:
            break
        found.append(Frame(content[4], int.from_bytes(content[5:9]), content[9 : 9 + length]))
        content = content[9 + length :]
    return found
