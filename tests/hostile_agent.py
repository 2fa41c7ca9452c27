"""An agent that a host's owner has exchanged: it speaks the frames of wire/PROTOCOL.md, and misbehaves.

It is deployed in the runner's place, behind a real sshd or on this machine, and started like any agent. How it behaves
is chosen by the id of the execution that is submitted or attached to: one of BEHAVIOURS. What happens before a
submission, one of GREETINGS, is chosen when it is made.

    hostile = HostileAgent(tmp_path, carrier)
    async with remote.controller(runners=hostile.runners) as controller:
        await controller.submit(remote.host, Job(payload, execution_id="ignores-credit"))
"""

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Frame, FrameReader, Kind

if TYPE_CHECKING:
    from cronium_controller.runners import Runners

FORGED = "\x1b[2J\x1b]52;c;Zm9yZ2Vk\x07\r\ncronium: all hosts ok\n"
"""What must not reach a terminal, nor look like a line of ours."""
PIECE = b"x" * (256 * 1024)
GONE = 0


class Wire:
    """The agent's end: frames out, frames in. Ends the process when the controller has gone."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._arrived: list[Frame] = []

    def raw(self, content: bytes) -> None:
        """Sends bytes."""
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(1, view) :]
        except OSError:
            os._exit(GONE)

    def send(self, kind: int, channel: int, body: Any = b"") -> None:
        """Sends a frame; anything but bytes goes as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.raw(len(content).to_bytes(4) + bytes([kind]) + channel.to_bytes(4) + content)

    def data(self, channel: int, offset: int, piece: bytes = b"x", stream: int = 1) -> None:
        """Sends output."""
        self.send(Kind.DATA, channel, bytes([stream]) + offset.to_bytes(8) + piece)

    def receive(self) -> Frame:
        """The next frame that is no HELLO; pings are answered."""
        while True:
            while not self._arrived:
                piece = os.read(0, 1 << 16)
                if not piece:
                    os._exit(GONE)
                self._arrived += self._reader.feed(piece)
            frame = self._arrived.pop(0)
            if frame.kind == Kind.PING:
                self.send(Kind.PONG, 0, frame.body)
            elif frame.kind not in (Kind.HELLO, Kind.CREDIT):
                return frame

    def idle(self) -> None:
        """Answers pings, and nothing else, until the controller has gone."""
        while True:
            self.receive()

    def greet(self, **changes: Any) -> None:
        """The magic line and HELLO."""
        hello = {"protocol": [1, 1], "runner": "0.2.0", "maxFrame": frames.MAX_BODY, "credit": frames.CREDIT}
        self.raw(frames.MAGIC)
        self.send(Kind.HELLO, 0, hello | changes)

    def accept(self, channel: int, execution_id: str, **more: Any) -> None:
        """Says that it runs."""
        self.send(Kind.ACCEPTED, channel, {"executionId": execution_id, "started": True, **more})

    def finish(self, channel: int, execution_id: str, output: bytes = b"", **changes: Any) -> None:
        """A result that vouches for this standard output."""
        stdout = {"bytes": len(output), "truncated": False, "sha256": hashlib.sha256(output).hexdigest()}
        result = {"executionId": execution_id, "state": "succeeded", "exitCode": 0, "stdout": stdout}
        self.send(Kind.FINISHED, channel, result | changes)


Behaviour = Callable[[Wire, int, str], None]
BEHAVIOURS: dict[str, Behaviour] = {}
"""By the execution's id: what it does once it is asked to start or follow it, and has said that it runs."""
BEFORE_ACCEPTED: dict[str, Behaviour] = {}
"""The same of those that do not say so first."""
GREETINGS: dict[str, Callable[[Wire], None]] = {}
"""What it does in the place of the greeting."""


def _behaves(behaviour: Behaviour) -> Behaviour:
    BEHAVIOURS[behaviour.__name__.replace("_", "-")] = behaviour
    return behaviour


def _at_once(behaviour: Behaviour) -> Behaviour:
    BEFORE_ACCEPTED[behaviour.__name__.replace("_", "-")] = behaviour
    return behaviour


def _greets(greeting: Callable[[Wire], None]) -> Callable[[Wire], None]:
    GREETINGS[greeting.__name__.replace("_", "-")] = greeting
    return greeting


# -- output ------------------------------------------------------------------------------------------------------------


@_behaves
def ignores_credit(wire: Wire, channel: int, _id: str) -> None:
    offset = 0
    while True:
        wire.data(channel, offset, PIECE)
        offset += len(PIECE)


@_behaves
def sends_on_a_third_stream(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, 0, stream=3)
    wire.idle()


@_behaves
def sends_on_stream_zero(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, 0, stream=0)
    wire.idle()


@_behaves
def overlaps(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, 0, b"abc")
    wire.data(channel, 2, b"cd")
    wire.idle()


@_behaves
def goes_back(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, 0, b"abc")
    wire.data(channel, 0, b"abc")
    wire.idle()


@_behaves
def leaves_a_gap(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, 0, b"abc")
    wire.data(channel, 4, b"e")
    wire.idle()


@_behaves
def sends_far_away(wire: Wire, channel: int, _id: str) -> None:
    wire.data(channel, (1 << 64) - 1, b"far")
    wire.idle()


@_behaves
def sends_nothing_for_ever(wire: Wire, channel: int, _id: str) -> None:
    while True:
        wire.raw((9).to_bytes(4) + bytes([Kind.DATA]) + channel.to_bytes(4) + bytes([1]) + bytes(8))


@_behaves
def cuts_data_short(wire: Wire, channel: int, _id: str) -> None:
    wire.send(Kind.DATA, channel, b"\x01")
    wire.idle()


@_behaves
def sends_other_bytes(wire: Wire, channel: int, execution_id: str) -> None:
    wire.data(channel, 0, b"what was sent")
    wire.finish(channel, execution_id, b"what was said")
    wire.idle()


@_behaves
def sends_less_than_it_says(wire: Wire, channel: int, execution_id: str) -> None:
    wire.data(channel, 0, b"begin")
    wire.finish(channel, execution_id, b"beginning and end")
    wire.idle()


@_behaves
def sends_behind_the_end(wire: Wire, channel: int, execution_id: str) -> None:
    wire.send(Kind.FINISHED, channel, b"[]")
    wire.data(channel, 0, b"late")
    wire.idle()


@_behaves
def drips(wire: Wire, channel: int, _id: str) -> None:
    for offset in range(1 << 30):
        wire.data(channel, offset)
        time.sleep(0.02)


# -- the end -----------------------------------------------------------------------------------------------------------


@_behaves
def never_ends(wire: Wire, _channel: int, _id: str) -> None:
    wire.idle()


@_behaves
def ends_twice(wire: Wire, channel: int, execution_id: str) -> None:
    wire.finish(channel, execution_id)
    wire.finish(channel, execution_id, state="failed", exitCode=3)


@_behaves
def ends_with_no_json(wire: Wire, channel: int, _id: str) -> None:
    wire.send(Kind.FINISHED, channel, b"\xff{")
    wire.idle()


@_behaves
def ends_with_no_result(wire: Wire, channel: int, execution_id: str) -> None:
    wire.finish(channel, execution_id, state=["succeeded"], exitCode=10**4000)
    wire.idle()


@_behaves
def ends_another(wire: Wire, channel: int, _id: str) -> None:
    wire.finish(channel, "another")
    wire.idle()


@_behaves
def ends_as_never_started(wire: Wire, channel: int, execution_id: str) -> None:
    wire.finish(channel, execution_id, state="unreachable", exitCode=None)
    wire.idle()


@_behaves
def refuses_what_runs(wire: Wire, channel: int, _id: str) -> None:
    wire.send(Kind.REFUSED, channel, {"code": ["state.unusable"], "message": FORGED})
    wire.idle()


@_behaves
def gives_up(wire: Wire, _channel: int, _id: str) -> None:
    wire.send(Kind.ERROR, 0, {"code": FORGED, "message": FORGED})
    wire.idle()


@_behaves
def hangs_up_in_a_frame(wire: Wire, channel: int, _id: str) -> None:
    wire.raw((1000).to_bytes(4) + bytes([Kind.DATA]) + channel.to_bytes(4) + b"\x01")
    os._exit(GONE)


@_behaves
def acknowledges_nothing(wire: Wire, channel: int, execution_id: str) -> None:
    wire.finish(channel, execution_id)
    wire.idle()


# -- frames ------------------------------------------------------------------------------------------------------------


@_behaves
def announces_too_much(wire: Wire, channel: int, _id: str) -> None:
    wire.raw((frames.MAX_BODY + 1).to_bytes(4) + bytes([Kind.DATA]) + channel.to_bytes(4))
    while True:
        wire.raw(PIECE)


@_behaves
def speaks_of_unknown_things(wire: Wire, channel: int, execution_id: str) -> None:
    for number in range(2000):
        wire.send(200, channel, PIECE[:1000])
        wire.send(201, 0, PIECE[:1000])
        wire.data((1 << 32) - 1 - number, 0, PIECE[:1000])
    wire.data(channel, 0, b"all the same")
    wire.finish(channel, execution_id, b"all the same")


@_behaves
def accepts_for_ever(wire: Wire, channel: int, execution_id: str) -> None:
    while True:
        wire.accept(channel, execution_id)


@_behaves
def wants_more(wire: Wire, channel: int, _id: str) -> None:
    while True:
        wire.send(Kind.WANT_PAYLOAD, channel, {"sha256": "0" * 64})


@_behaves
def pings_for_ever(wire: Wire, channel: int, execution_id: str) -> None:
    ping = (8).to_bytes(4) + bytes([Kind.PING]) + bytes(4) + b"pingping"
    for _ in range(20):
        wire.raw(ping * 10_000)
    wire.finish(channel, execution_id)


# -- before it runs ----------------------------------------------------------------------------------------------------


@_at_once
def answers_nothing(wire: Wire, _channel: int, _id: str) -> None:
    wire.idle()


@_at_once
def starts_another(wire: Wire, channel: int, _id: str) -> None:
    wire.accept(channel, "another")
    wire.idle()


@_at_once
def refuses_at_length(wire: Wire, channel: int, _id: str) -> None:
    wire.send(Kind.REFUSED, channel, {"code": "state.unusable", "message": "x" * 1_000_000})
    wire.idle()


@_at_once
def refuses_with_escapes(wire: Wire, channel: int, _id: str) -> None:
    wire.send(Kind.REFUSED, channel, {"code": "state.unusable", "message": FORGED})
    wire.idle()


# -- before it greets --------------------------------------------------------------------------------------------------


@_greets
def prints_for_ever(wire: Wire) -> None:
    while True:
        wire.raw(PIECE)


@_greets
def says_nothing(wire: Wire) -> None:
    wire.idle()


@_greets
def knows_another_protocol(wire: Wire) -> None:
    wire.greet(protocol=[7, 9], knows=3)


@_greets
def has_no_protocol(wire: Wire) -> None:
    wire.greet(protocol={"lowest": True})


def main(greeting: str) -> None:
    """Plays the agent."""
    wire = Wire()
    if greeting in GREETINGS:
        GREETINGS[greeting](wire)
    else:
        wire.greet()
    while True:
        frame = wire.receive()
        if frame.kind in (Kind.SUBMIT, Kind.ATTACH):
            execution_id = json.loads(frame.body)["executionId"]
            name = execution_id.partition(".")[0]  # of several hosts each has an id of its own
            if name in BEHAVIOURS:
                wire.accept(frame.channel, execution_id)
            {**BEHAVIOURS, **BEFORE_ACCEPTED}.get(name, never_ends)(wire, frame.channel, execution_id)
        elif frame.kind == Kind.ACKNOWLEDGE:
            wire.send(Kind.STATUS, frame.channel, {"executions": []})
        elif frame.kind == Kind.STATUS:
            _tell_status(wire, frame)


def _tell_status(wire: Wire, frame: Frame) -> None:
    """Asked for one: something that cannot be read. Asked for all: there is always another page."""
    asked = json.loads(frame.body)
    if asked.get("executionId") == "tells-nothing":
        return
    if "executionId" in asked:
        told = {"executionId": asked["executionId"], "state": FORGED, "stdout": 3, "result": {"error": 5}}
        wire.send(Kind.STATUS, frame.channel, {"executions": [told]})
        return
    one = {"executionId": "x", "state": "running", "claimedAt": FORGED * 20}
    after = asked.get("after", "") + "x"
    wire.send(Kind.STATUS, frame.channel, {"executions": [one] * 300, "more": True, "after": after})


class HostileAgent:
    """What is deployed in the runner's place. `carrier` is the test's stand-in for the binary."""

    def __init__(self, folder: Path, carrier: Path, greeting: str = "") -> None:
        place = folder / f"hostile{greeting}"
        place.mkdir()
        self.binary = place / carrier.name
        words = shlex.join([str(Path(__file__).resolve()), greeting])
        self.binary.write_text(carrier.read_text().replace("-m cronium_runner", words))
        from runner_process import with_digest

        with_digest(self.binary)
        self.root = place / "lib"

    @property
    def runners(self) -> "Runners":
        """For a controller that is to deploy it."""
        from cronium_controller.runners import Runners

        return Runners(str(self.binary), root=str(self.root))

    @property
    def environment(self) -> dict[str, str]:
        """For a command that is to deploy it."""
        return {"CRONIUM_RUNNER_BINARY": str(self.binary), "CRONIUM_RUNNER_ROOT": str(self.root)}


if __name__ == "__main__":
    if "agent" in sys.argv[2:]:
        main(sys.argv[1])
    print("cronium-runner 0.2.0")  # what a deployment asks it
