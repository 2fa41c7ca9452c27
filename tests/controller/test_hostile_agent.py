"""What an agent that misbehaves can do to a controller: be `unknown`, in little memory and bounded time."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hostile_agent
from cronium_controller.channel import AgentChannel
from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError
from cronium_controller.execution import Execution
from cronium_controller.hosts import LOCAL_HOST
from cronium_controller.inbox import Piece
from cronium_controller.job import Job
from cronium_controller.patience import COUNTED_OUTPUT, LONGEST_TIMEOUT, Deadline, Patience, remaining_in
from cronium_controller.payloads import load
from cronium_controller.store import Store
from cronium_runner.wire import exactjson, frames
from cronium_runner.wire.codes import CODES
from cronium_runner.wire.frames import CREDIT, Frame, Kind, ProtocolError
from cronium_runner.wire.names import STDOUT
from cronium_runner.wire.results import Outcome, Result
from hostile_agent import HostileAgent
from peak_memory import MIB, peak_memory
from remote_host import RemoteHost, collect
from runner_process import PATIENCE, command_line, is_running, wait_until

HURRIED = Patience(set_up=0.5, grace=0.1, drain=0.1, clean_up=0.1, delivery=0, margin=0.3, slowest=1000, answer=1)
"""So that what is never told is given up soon. Nothing here has to happen within these seconds."""
BROKEN = (Outcome.UNKNOWN, "channel.protocol")
ENDINGS = {
    "sends-on-a-third-stream": BROKEN,
    "sends-on-stream-zero": BROKEN,
    "overlaps": BROKEN,
    "goes-back": BROKEN,
    "leaves-a-gap": BROKEN,
    "sends-far-away": BROKEN,
    "sends-nothing-for-ever": BROKEN,
    "cuts-data-short": BROKEN,
    "sends-other-bytes": (Outcome.UNKNOWN, "channel.mismatch"),
    "sends-less-than-it-says": (Outcome.UNKNOWN, "channel.mismatch"),
    "sends-behind-the-end": BROKEN,
    "ends-twice": (Outcome.SUCCEEDED, None),
    "ends-with-no-json": BROKEN,
    "ends-with-no-result": BROKEN,
    "ends-another": BROKEN,
    "ends-as-never-started": BROKEN,
    "refuses-what-runs": (Outcome.UNKNOWN, "runner.internal"),
    "gives-up": (Outcome.UNKNOWN, "channel.lost"),
    "hangs-up-in-a-frame": (Outcome.UNKNOWN, "channel.lost"),
    "announces-too-much": BROKEN,
    "speaks-of-unknown-things": (Outcome.SUCCEEDED, None),
    "accepts-for-ever": BROKEN,
    "wants-more": BROKEN,
    "pings-for-ever": (Outcome.SUCCEEDED, None),
    "starts-another": BROKEN,
    "refuses-at-length": BROKEN,
}
NEVER = ("never-ends", "drips", "answers-nothing")


class Local:
    """A controller of this machine, on which the hostile agent is deployed."""

    def __init__(self, folder: Path, hostile: HostileAgent) -> None:
        self.store = Store(folder / "controller.db")
        (folder / "job.sh").write_text("#!/bin/sh\ntrue\n")
        self.payload = load(folder / "job.sh")
        self._hostile = hostile

    def controller(self) -> Controller:
        """Its own connection and agent; the store is shared."""
        return Controller(store=self.store, runners=self._hostile.runners)

    async def run(self, controller: Controller, name: str, **job: Any) -> Result:
        """One execution's result, to its acknowledgement."""
        execution = await controller.submit(LOCAL_HOST, Job(self.payload, execution_id=name, **job))
        result = await execution.result()
        await execution.wait_acknowledged()
        return result


@pytest.fixture
def local(tmp_path: Path, carrier: Path) -> Any:
    made = Local(tmp_path, HostileAgent(tmp_path, carrier))
    yield made
    made.store.close()


def is_clean(result: Result) -> bool:
    """Whether what is said of it is one line for a person, by a listed code, and no defect of ours."""
    message = result.error_message or ""
    return (
        message.isprintable()
        and len(message) < 5000
        and result.error_code in (None, *CODES)
        and result.error_code != "controller.internal"
    )


async def test_whatever_an_agent_does_is_its_own_result(local: Local) -> None:
    found = {}
    for name in ENDINGS:
        async with local.controller() as controller:  # most of them cost the agent its channel
            result = await asyncio.wait_for(local.run(controller, name), PATIENCE)
        found[name] = (result.state, result.error_code)
        assert is_clean(result), result
        if result.state is Outcome.UNKNOWN:
            assert f"cronium attach {name}" in (result.error_message or "") or "cronium wait" in str(result)
    assert found == ENDINGS


async def test_more_than_was_granted_ends_the_channel(local: Local) -> None:
    async with local.controller() as controller:
        execution = await controller.submit(LOCAL_HOST, Job(local.payload, execution_id="ignores-credit"))
        agent = (await controller.reachable.reach(LOCAL_HOST)).agent
        async with asyncio.timeout(PATIENCE):
            while agent.lost is None:  # nobody takes the output meanwhile
                await asyncio.sleep(0.01)
        found = await collect(execution)
        assert len(found["stdout"]) == CREDIT
        result = await execution.result()
    assert (result.state, result.error_code) == BROKEN


async def test_a_host_that_never_ends_is_given_up(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentChannel, "patience", HURRIED)
    for name in NEVER:
        async with local.controller() as controller:
            result = await asyncio.wait_for(local.run(controller, name, timeout=0.1), PATIENCE)
            assert (result.state, result.error_code) == (Outcome.UNKNOWN, "execution.overdue"), name
            assert f"Look with: cronium attach {name}" in (result.error_message or "")
            if name == "never-ends":
                again = await controller.attach(name, LOCAL_HOST)
                if again.is_running:
                    again.cancel()  # which shortens it: this one's time is not known here, and so a day
                assert (await asyncio.wait_for(again.result(), PATIENCE)).error_code == "execution.overdue"


async def test_an_accepted_job_gets_the_time_that_it_may_take(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    set_as_ever = Deadline.set

    def noted(self: Deadline, seconds: float) -> None:
        given.append(seconds)
        set_as_ever(self, seconds)

    monkeypatch.setattr(Deadline, "set", noted)
    async with local.controller() as controller:
        await local.run(controller, "ends-twice", timeout=7000)
    assert given[0] == Patience().until_answer()
    assert Patience().until_end(7000) in given, "behind it there may be that of the acknowledgement"


async def test_an_acknowledgement_is_not_waited_for_in_vain(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentChannel, "patience", Patience(answer=0.5))
    async with local.controller() as controller:
        result = await asyncio.wait_for(local.run(controller, "acknowledges-nothing"), PATIENCE)
    assert result.state is Outcome.SUCCEEDED
    record = local.store.find("acknowledges-nothing")
    assert record is not None
    assert not record.is_acknowledged


async def test_a_host_that_never_ends_holds_no_fan_out(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentChannel, "patience", HURRIED)
    async with local.controller() as controller:
        many = controller.run_many([LOCAL_HOST], Job(local.payload, execution_id="never-ends", timeout=0.1))
        results = [result async for result in many]
    assert [(each.state, each.error_code) for each in results] == [(Outcome.UNKNOWN, "execution.overdue")]


async def test_answers_that_never_come_or_cannot_be_read(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cronium_controller.asking.MOST_TOLD", 1_000_000)
    async with local.controller() as controller:
        for ask in (controller.status("x", LOCAL_HOST), controller.executions(LOCAL_HOST)):
            with pytest.raises(ControllerError, match="cannot be read") as raised:
                await asyncio.wait_for(ask, PATIENCE)
            assert raised.value.code == "channel.lost"
        monkeypatch.setattr(AgentChannel, "patience", HURRIED)
        with pytest.raises(ControllerError, match="not answered within 1 s"):
            await asyncio.wait_for(controller.status("tells-nothing", LOCAL_HOST), PATIENCE)


@pytest.mark.parametrize(
    ("greeting", "code"), [("knows-another-protocol", "channel.version"), ("has-no-protocol", "channel.version"),
                           ("prints-for-ever", "deploy.failed"), ("says-nothing", "deploy.failed")]
)  # fmt: skip
async def test_an_agent_that_does_not_greet(
    tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch, greeting: str, code: str
) -> None:
    if greeting == "says-nothing":
        monkeypatch.setattr("cronium_controller.channel.GREETING_SECONDS", 1.0)
    local = Local(tmp_path, HostileAgent(tmp_path, carrier, greeting))
    async with local.controller() as controller:
        with pytest.raises(ControllerError) as raised:
            await asyncio.wait_for(local.run(controller, "any"), PATIENCE)
    assert raised.value.code == code
    assert raised.value.message.isprintable()
    local.store.close()


async def test_a_refusal_with_escapes_is_one_clean_line(local: Local) -> None:
    async with local.controller() as controller:
        with pytest.raises(ControllerError) as raised:
            await local.run(controller, "refuses-with-escapes")
    assert raised.value.code == "state.unusable"
    assert raised.value.message.isprintable()


def test_every_behaviour_is_tried() -> None:
    behaviours = {*hostile_agent.BEHAVIOURS, *hostile_agent.BEFORE_ACCEPTED}
    assert behaviours == {
        *ENDINGS,
        *NEVER,
        "refuses-with-escapes",
        "ignores-credit",
        "acknowledges-nothing",
    }
    assert len(behaviours) >= 12


@pytest.mark.sshd
def test_credit_holds_behind_sshd_while_nobody_reads(remote: RemoteHost, tmp_path: Path, carrier: Path) -> None:
    """300 MB in 8 s before it was enforced. The agent is the account's own, behind a real server."""
    hostile = HostileAgent(tmp_path, carrier)
    words = ["run", "--host", remote.server.target, remote.script("true")]
    process = remote.start_cronium(
        *words, "--execution-id", "ignores-credit", env=hostile.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process, peak_memory(process) as peak:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)
        agents = [pid for pid in remote.processes() if b"hostile_agent" in command_line(pid)]
        wait_until(lambda: not any(map(is_running, agents)), "its channel to be ended")
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 255
    assert len(first + rest) <= 4 * MIB
    assert b"[channel.protocol]" in errors
    assert b"cronium attach ignores-credit" in errors
    assert b"controller.internal" not in errors
    assert peak.bytes < 110 * MIB


async def test_nothing_behind_the_end_of_a_channel_is_looked_at() -> None:
    """What was on its way, and what came in the same piece as the frame that ended it."""
    hello = frames.encode_json(Kind.HELLO, 0, {"protocol": [1, 1]})
    output = frames.encode_data(1, STDOUT, 0, b"late")
    for ending in (None, frames.encode_json(Kind.ERROR, 0, {"code": "x", "message": "gone"})):
        channel = AgentChannel("web01")
        channel.hear(frames.MAGIC + hello)
        conversation = channel.converse((0, 0))
        if ending is None:
            channel.lose("gone")
            channel.hear(output)
        else:
            channel.hear(ending + output)
        with pytest.raises(ControllerError):  # and no output before that
            await conversation.receive()
        channel.hear_stderr(b"x" * 100_000)
        assert len(channel.printed()) <= 4096


async def test_what_comes_in_place_of_a_greeting_is_bounded() -> None:
    for hear in (AgentChannel.hear, AgentChannel.hear_stderr):
        channel = AgentChannel("web01")
        is_lost = []
        for size in (frames.MAX_BEFORE_MAGIC - 1, 100):
            hear(channel, b"x" * size)
            is_lost.append(channel.lost is not None)
            assert len(channel.printed()) <= 4096
        assert is_lost == [False, True]


async def test_a_breach_of_the_protocol_has_a_code_of_its_own() -> None:
    channel = AgentChannel("web01")
    channel.hear(frames.MAGIC + frames.encode_json(Kind.HELLO, 0, {}))
    channel.converse((0, 0))
    channel.hear(frames.encode_data(1, 3, 0, b"x"))
    assert channel.lost_code == "channel.protocol"


async def test_a_second_greeting_and_pings_change_nothing() -> None:
    channel = AgentChannel("web01")
    sent: list[bytes] = []
    channel._ssh = SimpleNamespace(write=sent.append)
    for runner in ("0.2.0", "9.9"):
        greeting = frames.encode_json(Kind.HELLO, 0, {"runner": runner, "knows": ["gc", 7]})
        channel.hear(greeting if channel.agent else frames.MAGIC + greeting)
    assert channel.agent == {"runner": "0.2.0", "knows": ["gc"]}
    channel.hear(frames.encode(Kind.PING, 0, b"x" * 1000))
    channel.pause_writing()
    channel.hear(frames.encode(Kind.PING, 0, b"never answered"))
    await asyncio.sleep(0)
    assert sent == [frames.encode(Kind.PONG, 0, b"x" * 16)]
    channel.hear(frames.encode_data(77, STDOUT, 0, b"of no conversation"))
    assert channel.lost is None


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time goes by when it is told to, and whose timers ring then."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def go_to(self, now: float) -> None:
        self.now = now
        self.call_soon(self.stop)
        self.run_forever()


@pytest.fixture
def clock() -> Iterator[Clock]:
    with contextlib.closing(Clock()) as clock:
        yield clock


def test_only_the_time_that_a_host_takes_counts(clock: Clock) -> None:
    rung: list[float] = []
    deadline = Deadline(lambda: rung.append(clock.now), clock)

    def rings(at: float) -> bool:
        clock.go_to(at)
        return bool(rung)

    deadline.set(10)
    assert not rings(100), "held from the beginning"
    deadline.go_on()
    assert not rings(109)
    deadline.hold()
    assert not rings(150)
    deadline.go_on()
    deadline.shorten(100)
    assert rings(151), "one second was left"
    rung.clear()
    deadline.set(10)
    deadline.shorten(5)
    deadline.stop()
    assert not rings(1000)


def test_a_deadline_that_was_put_off_rings_once_when_it_is_up(clock: Clock) -> None:
    rung: list[float] = []
    deadline = Deadline(lambda: rung.append(clock.now), clock)
    deadline.go_on()
    deadline.set(10)
    deadline.set(100)
    for now in range(0, 200, 5):
        clock.go_to(float(now))
    assert rung == [100.0]


def test_output_that_is_on_its_way_puts_the_end_off(clock: Clock) -> None:
    for size, overdue in ((1000, []), (50, [101.0])):  # bytes a second, where 100 are asked for
        rung: list[float] = []
        began = clock.now
        deadline = Deadline(lambda rung=rung, began=began: rung.append(clock.now - began), clock)  # type: ignore[misc]
        deadline.go_on()
        deadline.set(100)
        while clock.now - began < 500 and not rung:
            clock.now += 1
            deadline.put_off(size, Patience(margin=30, slowest=100))
            clock.go_to(clock.now)
        assert rung == overdue
        deadline.stop()


def test_how_long_a_host_is_waited_for() -> None:
    assert Patience().until_end(3) == 300 + 3 + 5 + 2 + 60 + 30
    assert Patience().until_end(3, has_api=True) == Patience().until_end(3) + 60
    for told, seconds in ((12, 12.0), (-1, 0.0), (10**400, LONGEST_TIMEOUT), (True, None), ("1", None), (None, None)):
        assert remaining_in({"remaining": told}) == seconds
    assert remaining_in(exactjson.loads(b'{"remaining": 1.50}')) is None


class Noted:
    """A deadline that notes what is asked of it."""

    def __init__(self, *_: object) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.asked.append((name, *given))


async def test_when_the_time_of_a_host_counts(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the request for the payload on, while it is sent, less after a cancel, more while output comes."""
    monkeypatch.setattr("cronium_controller.execution.Deadline", Noted)
    patience = Patience()
    channel = AgentChannel("web01")

    def begun(job: Job | None) -> tuple[Execution, list[tuple[Any, ...]]]:
        conversation = channel.converse((0, 0))
        monkeypatch.setattr(conversation, "send", lambda *_: None)

        async def send_payload(_pieces: object, sent: Callable[[], None]) -> None:
            sent()

        monkeypatch.setattr(conversation, "send_payload", send_payload)
        made = Execution("job", LOCAL_HOST, "ssh", conversation, local.store, job)
        noted: Any = made._deadline
        noted.asked.clear()
        return made, noted.asked

    execution, asked = begun(Job(local.payload, execution_id="job", timeout=7))
    await execution._take(Frame(Kind.WANT_PAYLOAD, 1, b"{}"))
    assert asked == [("set", patience.until_answer()), ("go_on",), ("set", patience.until_answer()), ("hold",)]
    execution.cancel()
    asked.clear()
    await execution._take(Frame(Kind.ACCEPTED, 1, b'{"started": true}'))
    assert asked == [("set", patience.until_end(7)), ("shorten", patience.until_cancelled())]
    asked.clear()
    execution._note_output(Piece(STDOUT, 0, b"x"))
    execution._note_output(Piece(STDOUT, COUNTED_OUTPUT, b"x"))  # more than its host can have kept
    assert asked == [("put_off", 1, patience)]
    execution, _ = begun(None)
    with pytest.raises(ProtocolError, match="not submitted"):
        await execution._take(Frame(Kind.WANT_PAYLOAD, 1, b"{}"))
