"""A whole submission, from its manifest, event, input and variables to the result that its controller reads.

Everything is real but the script and the connection: `prepare` unpacks and claims, the script is a few helper calls
that hand back what was handed over, the supervisor writes the result down, and an `Execution` of the controller takes
the frame and stores it. Whatever was accepted ends in a result that all of them can read.
"""

import asyncio
import contextlib
import functools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from cronium_controller.channel import Conversation
from cronium_controller.execution import Execution
from cronium_controller.hosts import parse_host
from cronium_controller.patience import Deadline, Patience
from cronium_controller.store import Store
from cronium_runner import follow, helpers
from cronium_runner.errors import RunnerError
from cronium_runner.jobdir import StateDirectory
from cronium_runner.prepare import Prepared, prepare
from cronium_runner.submission import Submission, from_frame
from cronium_runner.supervisor import Supervisor
from cronium_runner.wire import exactjson, frames
from cronium_runner.wire.fields import EVENT_FIELDS
from cronium_runner.wire.frames import Frame, FrameReader, Kind
from cronium_runner.wire.results import Outcome, Result
from faults.fuzz_source import Source
from faults.fuzz_targets import check_code, check_message, room
from payload_bytes import make_payload

ID: Final = "whole"
METADATA: Final = (
    "jobId", "eventId", "eventVersion", "eventName", "executionId", "createdAt", "trigger", "inputData", "extra",
    "mine",
)  # fmt: skip
NAMES: Final = ("A", "MY_TOKEN", "é", "a.b", "", "\n", "0", "PASSWORD")
NUMBERS: Final = (
    "77",
    "0123",
    "3.10",
    "1234e56",
    "12345678901234567890",
    "-0",
    "1e999",
    ".5",
    "+7",
    "true",
    "~",
    "0x1F",
)
"""Plain YAML scalars that only look like text, or only like numbers."""


def whole_submissions(data: bytes) -> None:
    """A refusal with a listed code that leaves the id free; or a result that runner, wire and controller read alike."""
    source = Source(data)
    state = _state()
    payload = room() / "payload.tar.gz"
    payload.write_bytes(make_payload({"manifest.yaml": _manifest(source), "script.sh": b"true\n"}))
    with _cleaned(state):
        try:
            submission = from_frame(_frame(source), lambda _digest: str(payload))
            prepared = prepare(state, submission._replace(source=submission.source._replace(sha256=None)))  # type: ignore[call-arg]
        except exactjson.UnsupportedJSONError:
            return  # no controller can have sent it
        except RunnerError as error:
            check_code(error.code)
            check_message(error.message)
            assert not state.is_claimed(ID)
            return
        result = _executed(source, prepared, submission)
        _check_host(state, result)
        _check_controller(state, result)


def _manifest(source: Source) -> bytes:
    """JSON, which is YAML too, or plain YAML for scalars as people write them; in the new form or the older one."""
    is_flat = source.chance(4)
    if source.chance(2):
        lines = [b"entrypoint: script.sh"] + ([] if is_flat else [b"version: v1", b"metadata:"])
        for key in ("event_id", "execution_id", "event_name", "input") if is_flat else METADATA:
            if source.chance(2):
                scalar = source.choice(NUMBERS)
                lines.append(
                    f"{'' if is_flat else '  '}{key}: {source.choice((scalar, f'{{a: [{scalar}]}}'))}".encode()
                )
        return b"\n".join(lines) + b"\n"
    document: dict[str, Any] = {"entrypoint": "script.sh"}
    if is_flat:
        document["event_id"] = source.choice((1, "e", True))
        for key in ("execution_id", "event_name", "input"):
            if source.chance(2):
                document[key] = source.json(2)
        if source.chance(2):
            document["variables"] = {source.choice(NAMES): source.json(2) for _ in range(source.below(3))}
    else:
        document["version"] = "v1"
        document["metadata"] = {source.choice(METADATA): _field(source) for _ in range(source.below(6))}
        if source.chance(3):
            document["environment"] = {source.text() or "E": source.text()}
    return json.dumps(document, ensure_ascii=source.chance(2)).encode("utf-8", "surrogatepass")


def _field(source: Source) -> Any:
    return source.text() if source.chance(2) else source.json(2)


def _frame(source: Source) -> dict[str, Any]:
    """The body of the SUBMIT frame, as the agent reads it."""
    body: dict[str, Any] = {"executionId": ID, "sha256": "0" * 64}
    if source.chance(2):
        body["input"] = source.json(3)
    for key in ("variables", "secrets"):
        if source.chance(2):
            body[key] = {source.choice((*NAMES, source.text())): source.json(2) for _ in range(source.below(4))}
    if source.chance(2):
        fields = (*EVENT_FIELDS, "type", "version", "server", "user", "metadata", "extra", "startTime", source.text())
        body["event"] = {source.choice(fields): _field(source) for _ in range(source.below(5))}
    if source.chance(3):
        body["jobId"] = _field(source)
    if source.chance(6):
        body["maskedNames"] = source.several(source.text, 3)
    body["args"] = ["a"] if source.chance(8) else []
    deep: Any = "x" * source.below(12)
    for _ in range(source.choice((0, 0, 0, 470, 478, 480, 490, 499))):
        deep = [deep]
    if deep:
        body["input"] = deep
    [frame] = FrameReader().feed(frames.encode_json(Kind.SUBMIT, 1, body))
    try:
        return frame.json()
    except frames.ProtocolError:
        raise exactjson.UnsupportedJSONError("too deep for a frame") from None


def _executed(source: Source, prepared: Prepared, submission: Submission) -> Result:
    """What a script leaves that hands back what it was given; it says so when a helper refuses."""
    ours, theirs = socket.socketpair()
    assert all("\0" not in word for pair in prepared.environment.items() for word in pair)
    supervisor = Supervisor(prepared, submission, theirs)
    try:
        seen = [_called(supervisor, prepared, [name, "--json"]) for name in ("cronium.input", "cronium.event")]
        seen += [_called(supervisor, prepared, ["cronium.getVariable", "--json", name]) for name in NAMES]
        for _ in range(source.below(4)):
            _called(supervisor, prepared, ["cronium.output", "--json", source.choice(NAMES), source.choice(seen)])
            name = source.choice((*NAMES, *submission.secrets)) or "A"
            _called(supervisor, prepared, ["cronium.setVariable", "--json", "--", name, source.choice(seen)])
        if source.chance(3):
            _called(supervisor, prepared, ["cronium.output", "--json", source.choice(seen)])
        supervisor._status, supervisor._is_childless = 0, True
        return supervisor._finish()
    finally:
        os.unlink(prepared.helper_socket.getsockname())  # tens of thousands in one folder would meet the same name
        for opened in (ours, theirs, prepared.helper_socket, supervisor._epoll):
            opened.close()
        prepared.containment.close()
        prepared.execution.let_go()


def _called(supervisor: Supervisor, prepared: Prepared, words: list[str]) -> str:
    try:
        request = helpers.parse([word.encode() for word in words])
    except helpers.HelperError as error:
        answer = error.answer
    else:
        answer = helpers.execute_safely(request, prepared.values, b"")
    assert answer.code != "internal", answer
    supervisor._mask_new_values()
    return answer.stdout.decode() or "null"


def _check_host(state: StateDirectory, result: Result) -> None:
    """What the host's own commands and a later agent read."""
    execution = state.execution(ID)
    recorded = execution.read_result()
    assert recorded is not None
    assert Result.from_json(recorded) == result
    assert result.job_id is None or isinstance(result.job_id, str)
    assert all(record for record in execution.history())
    assert exactjson.loads(exactjson.encode(follow.status(execution)))["executionId"] == ID


class _Told(Conversation):
    """The agent's side of one conversation: it has accepted, and tells the result."""

    def __init__(self, content: bytes) -> None:
        self._frames: Iterator[Frame] = iter(FrameReader().feed(content))

    @property
    def patience(self) -> Patience:
        return Patience()

    async def receive(self, _deadline: Deadline | None = None) -> Frame | None:
        return next(self._frames, None)

    def send(self, kind: Kind, body: dict[str, Any]) -> None:
        frames.encode_json(kind, 1, body)

    def close(self) -> None:
        pass


def _check_controller(state: StateDirectory, result: Result) -> None:
    """What the controller makes of the frame: the same result, which it can store, find again and print."""
    recorded = cast("dict[str, Any]", state.execution(ID).read_result())
    told = frames.encode_json(Kind.ACCEPTED, 1, {"started": True}) + frames.encode_json(Kind.FINISHED, 1, recorded)
    told += frames.encode_json(Kind.STATUS, 1, {})
    store = _store()
    store.record(ID, HOST, "0" * 64, "script.sh", 0.0)
    read = _loop().run_until_complete(_followed(told, store))
    assert read == result.on(HOST.name, "direct")
    assert result.state is Outcome.SUCCEEDED
    record = store.find(ID)
    assert record is not None
    assert record.result is not None
    assert record.is_acknowledged
    assert (record.result.execution_id, record.result.job_id) == (ID, result.job_id)


async def _followed(told: bytes, store: Store) -> Result:
    execution = Execution(ID, HOST, "direct", _Told(told), store, None)
    read = await execution.result()
    await execution.wait_acknowledged()
    return read


HOST: Final = parse_host("web01")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@functools.cache
def _state() -> StateDirectory:
    os.environ["CRONIUM_CONTAINMENT"] = "subreaper"
    return StateDirectory.open(str(room() / "whole"))


@functools.cache
def _store() -> Store:
    return Store(Path(room()) / "controller" / "controller.db")


@contextlib.contextmanager
def _cleaned(state: StateDirectory) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(os.path.join(state.executions, ID), ignore_errors=True)
        _store().database.write("DELETE FROM executions")
        assert os.listdir(state.executions) == []
