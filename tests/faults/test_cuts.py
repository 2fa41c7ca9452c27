"""Connections cut after any number of bytes, by reset, end or black hole, while anything at all is under way.

A new controller, which knows nothing but the id and how many bytes were seen, goes on: one start, no byte missing or
doubled. Between the controller and a real sshd stands a proxy that cuts. Bounded here; CRONIUM_FAULTS=full does it all.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from cronium_controller.dispatch import Controller
from cronium_controller.errors import ControllerError, RefusedError
from cronium_controller.execution import Execution
from cronium_controller.hosts import Host, parse_host
from cronium_controller.job import Job
from cronium_controller.payloads import Payload, load
from cronium_controller.runners import Runners
from cronium_controller.store import Store
from cronium_runner.wire.results import Outcome, Result
from faults.figures import is_full, record
from faults.killing import judge_streams, spooled
from faults.witness import SCRIPT, Witness
from kinds import BOTH
from remote_host import RemoteHost
from runner_process import processes_with, wait_until
from sshd.conftest import _nothing_unheard  # noqa: F401 - a fixture: nothing is only logged
from tcp_proxy import CUTS, Cut, TcpProxy

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]

COMMAND = "scripts/test --faults tests/faults/test_cuts.py"
AT_ONCE = 4
KEEPALIVE: Final[dict[str, Any]] = {"keepalive_seconds": 0.15, "keepalive_count": 2, "connect_timeout": 2.0}
"""So that a black hole is found within half a second and not two and a half minutes."""
STUCK_SECONDS = 40.0
PER_PHASE = 40 if is_full() else 1
"""Offsets in each of the five phases, each cut in three ways."""
DEPLOYING = 10 if is_full() else 1
"""Offsets in each direction of a deployment, the same way."""
INTERVAL, COUNT = (4.0, 4) if is_full() else (0.5, 4)
"""Of the keepalive against a server that was stopped: four times four seconds; shorter as one of many tests."""
LATE = 2.0 if is_full() else 20.0
"""How much later than that the loop of a loaded machine may see it."""


@dataclass(slots=True)
class Tally:
    """What was cut, and what was wrong afterwards."""

    cuts: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{dict(self.cuts)} cuts; first contact ended {dict(self.ends)}; violations {self.violations or 0}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a connection is cut: so many bytes after its beginning, counted in one direction."""

    phase: str
    offset: int
    is_sent: bool


class Passed:
    """How many bytes of an undisturbed execution had passed when something was reached; (sent, received)."""

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self.at: dict[str, tuple[int, int]] = {}

    def note(self, what: str) -> None:
        """`what` is reached now."""
        self.at[what] = self._proxy.sent_bytes, self._proxy.received_bytes


@pytest.fixture
def seed() -> int:
    """What everything is drawn from; shown when a test fails."""
    drawn = int(os.environ.get("CRONIUM_FAULT_SEED") or random.randrange(1_000_000))
    print(f"CRONIUM_FAULT_SEED={drawn}")
    return drawn


def behind(remote: RemoteHost, proxy: TcpProxy) -> Host:
    """The host as it is reached through the proxy."""
    return parse_host(f"127.0.0.1:{proxy.port}", identity=str(remote.server.identity))


def new_controller(remote: RemoteHost, folder: Path, root: Path | None = None, **settings: Any) -> Controller:
    """A controller with an empty store of its own, as another process on another machine has."""
    runners = Runners(str(remote.binary), root=str(root or remote.root))
    known_hosts = str(folder / "known_hosts")  # of its own: each proxy has another port
    return remote.controller(
        runners=runners, store=Store(folder / "controller.db"), known_hosts=known_hosts, host_keys="off", **settings
    )


async def in_parallel(jobs: list[Coroutine[Any, Any, None]]) -> None:
    """A few of them at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(job: Coroutine[Any, Any, None]) -> None:
        async with room:
            await job

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(one(job))


# -- an execution whose connection is cut ---------------------------------------------------------------------------


class CutExecution:
    """One id: submitted over a connection that is cut at `place`, then followed to its end by another controller."""

    def __init__(self, remote: RemoteHost, folder: Path, number: int, seed: int, *, is_deployed: bool = True) -> None:
        self.remote = remote
        self.id = f"cut-{number}"
        self.folder = folder / self.id
        # The same bytes each time, so that what was measured once holds.
        self.witness = Witness(folder / "starts", seed, pieces=8, most=20_000, pause=0.002)
        self.had = {1: bytearray(), 2: bytearray()}
        self._payload = padded_payload(self.folder, seed + number)
        self.root = remote.root if is_deployed else self.folder / "root"

    async def run(self, place: Place, how: Cut, tally: Tally) -> None:
        """Cuts, goes on, judges."""
        async with TcpProxy(self.remote.server.port) as proxy:
            proxy.cut_after(place.offset, how, is_sent=place.is_sent)
            first = await self._first_contact(proxy)
            tally.cuts[f"{place.phase} {how}"] += proxy.cuts
            tally.ends[first] += 1
            wrong = [] if place.phase != "deploying" else self._judge_installed()
            try:
                result = await asyncio.wait_for(self._go_on(), STUCK_SECONDS)
                wrong += self._judge(result)
            except TimeoutError:
                wrong.append("stuck")
            except ControllerError as error:
                wrong.append(error.message)
        tally.violations += [f"{self.id} cut at {place} by {how}: {each}" for each in wrong]

    async def measure(self) -> dict[str, tuple[int, int]]:
        """The same without a cut: how many bytes have passed at which point."""
        async with TcpProxy(self.remote.server.port) as proxy:
            passed = Passed(proxy)
            async with new_controller(self.remote, self.folder, self.root, **KEEPALIVE) as controller:
                host = behind(self.remote, proxy)
                await controller.reachable.reach(host)
                passed.note("reached")
                execution = await controller.submit(host, self._job())
                passed.note("accepted")
                await self._take(execution)
                passed.note("finished")
                await execution.wait_acknowledged()
                passed.note("acknowledged")
        return passed.at

    def _job(self) -> Job:
        return Job(self._payload, args=tuple(self.witness.args), execution_id=self.id)

    async def _first_contact(self, proxy: TcpProxy) -> str:
        """Until the cut is noticed, or the end if it came too late. How it ended."""
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                async with new_controller(self.remote, self.folder, self.root, **KEEPALIVE) as controller:
                    execution = await controller.submit(behind(self.remote, proxy), self._job())
                    return str((await self._take(execution)).state)
        except TimeoutError:
            return "never noticed"
        except ControllerError as error:
            return error.code

    async def _take(self, execution: Execution) -> Result:
        async for piece in execution.pieces():
            assert piece.offset == len(self.had[piece.stream]), f"a piece at {piece.offset}"
            self.had[piece.stream] += piece.data
        return await execution.result()

    async def _go_on(self) -> Result:
        """By id alone; by the same submission where nothing had reached the host."""
        offsets = len(self.had[1]), len(self.had[2])
        async with new_controller(self.remote, self.folder / "second", self.root) as controller:
            host = self.remote.host
            try:
                execution = await controller.attach(self.id, host, offsets=offsets)
            except RefusedError as error:
                if error.code != "execution.not_found" or offsets != (0, 0):
                    raise
                execution = await controller.submit(host, self._job())
            result = await self._take(execution)
            await execution.wait_acknowledged()
            return result

    def _judge_installed(self) -> list[str]:
        """Right after the cut: where a runner would be started there is none, or a whole one."""
        wrong = []
        for runner in self.root.glob("*/cronium-runner"):
            # What is still being filled has another name; and a first start adds something, the helpers for one.
            if runner.parent.name.endswith(".tmp"):
                continue
            missing = installed(reference(self.remote)).items() - installed(runner.parent).items()
            if missing:
                wrong.append(f"{runner} is there in part, without {sorted(name for name, _ in missing)}")
        for left in self.root.glob(".upload-*"):
            os.utime(left, (0, 0))  # the next deployment comes an hour later
        return wrong

    def _judge(self, result: Result) -> list[str]:
        kept = spooled(self.remote.execution(self.id))
        seen = bytes(self.had[1]), bytes(self.had[2])
        if result.state is not Outcome.SUCCEEDED:
            return [f"ended as {result.state}: {result.error_message}"]
        wrong = judge_streams(self.witness, "succeeded", result.to_json(), kept, seen)
        if self.witness.starts(self.id) != 1:
            wrong.append(f"{self.witness.starts(self.id)} starts")
        if left := processes_with(f"CRONIUM_EXECUTION_ID={self.id}\0"):
            wrong.append(f"left running: {left}")
        if self.root != self.remote.root:
            with contextlib.suppress(AssertionError):  # an installation may have been under way when it was cut off
                wait_until(lambda: not list(self.root.glob(".*")), "the upload to be removed", 3)
            if left_files := [path.name for path in self.root.glob(".*")]:
                wrong.append(f"left on the host: {left_files}")
            shutil.rmtree(self.root)
        return wrong


def reference(remote: RemoteHost) -> Path:
    """The installed form as an undisturbed deployment leaves it."""
    [folder] = [path for path in remote.root.iterdir() if (path / "cronium-runner").exists()]
    return folder


def installed(folder: Path) -> dict[str, bytes]:
    """Every file of an installed form, by its path; links as what they point to. Not what scripts' Python has added."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.parent.name != "__pycache__"
    }


def padded_payload(folder: Path, seed: int) -> Payload:
    """The witness, with so much noise beside it that its way is long enough to be cut; never the same twice."""
    source = folder / "job"
    source.mkdir(parents=True)
    (source / "manifest.yaml").write_text("version: v1\ninterpreter: python\nentrypoint: witness.py\n")
    (source / "witness.py").write_text(SCRIPT)
    (source / "noise").write_bytes(random.Random(seed).randbytes(100_000))
    return load(source)


def places(at: dict[str, tuple[int, int]], draw: random.Random, count: int) -> list[Place]:
    """`count` places in each phase of an execution, by what one without a cut has measured."""
    spans = {  # phase: from, to, and whether bytes are counted that are sent or received
        "connecting": (0, at["reached"][1], False),
        "submitting": (at["reached"][0], at["reached"][0] + 1500, True),
        "payload": (at["reached"][0] + 1500, at["accepted"][0], True),
        "output": (at["accepted"][1], at["finished"][1] - 1200, False),
        "result": (at["finished"][1] - 1200, at["acknowledged"][1], False),
    }
    found = []
    for phase, (start, end, is_sent) in spans.items():
        found += [Place(phase, draw.randint(start, end), is_sent) for _ in range(count)]
    return found


async def cut_all(remote: RemoteHost, folder: Path, seed: int, chosen: list[Place]) -> Tally:
    """Cuts at every place in every way; what is wrong is in the tally."""
    tally = Tally()
    cuts = [(place, how) for place in chosen for how in CUTS]
    jobs = []
    for number, (place, how) in enumerate(cuts, 1):
        execution = CutExecution(remote, folder, number, seed, is_deployed=place.phase != "deploying")
        jobs.append(execution.run(place, how, tally))
    await in_parallel(jobs)
    print(f"{len(cuts)} executions: {tally}")
    assert tally.violations == []
    assert tally.ends["never noticed"] == 0
    assert tally.cuts.total() >= len(cuts) * 8 // 10, "too few to have shown anything"
    return tally


@BOTH
async def test_cut_connections_lose_and_double_nothing(new_host: NewHost, tmp_path: Path, seed: int) -> None:
    remote = new_host()
    remote.cronium("deploy", "--host", remote.server.target)
    began = time.monotonic()
    at = await CutExecution(remote, tmp_path / "measuring", 0, seed).measure()
    chosen = places(at, random.Random(seed), PER_PHASE)
    tally = await cut_all(remote, tmp_path / "cuts", seed, chosen)
    note("connection cuts during connect, submit, payload, output and result", tally, began)


@BOTH
async def test_a_cut_deployment_leaves_no_part_of_a_runner(new_host: NewHost, tmp_path: Path, seed: int) -> None:
    remote = new_host()
    remote.cronium("deploy", "--host", remote.server.target)
    began = time.monotonic()
    measuring = CutExecution(remote, tmp_path / "measuring", 0, seed, is_deployed=False)
    at = await measuring.measure()
    draw = random.Random(seed)
    sent, received = at["reached"]
    chosen = [Place("deploying", draw.randint(3000, sent), True) for _ in range(DEPLOYING)]
    chosen += [Place("deploying", draw.randint(3000, received), False) for _ in range(DEPLOYING)]
    tally = await cut_all(remote, tmp_path / "cuts", seed, chosen)
    note("connection cuts during deployment", tally, began)


def note(name: str, tally: Tally, began: float) -> None:
    """Keeps the figure of a full run."""
    if is_full():
        ways = ", ".join(f"{sum(tally.cuts[key] for key in tally.cuts if key.endswith(how))} × {how}" for how in CUTS)
        record(name, f"{tally.cuts.total()} ({ways}), 0 violations, {time.monotonic() - began:.0f} s", COMMAND)


# -- a server that is there and says nothing ------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("direction", ["while it prints", "while it is silent"])
async def test_a_stopped_server_is_found_in_time_and_the_job_goes_on(
    new_host: NewHost, tmp_path: Path, direction: str
) -> None:
    """Half-open: the sshd process of this connection is stopped, so TCP still answers and nobody else does."""
    remote = new_host()
    remote.cronium("deploy", "--host", remote.server.target)
    witness = Witness(tmp_path / "starts", 7, pieces=60, most=4000, pause=0.02 if direction == "while it prints" else 0)
    text = (
        SCRIPT
        if witness.pause
        else SCRIPT + f"while not os.path.exists({str(tmp_path / 'gate')!r}): time.sleep(0.05)\n"
    )
    job = Job(
        load(remote.script(f"#!/usr/bin/env python3\n{text}", "witness.py")),
        args=tuple(witness.args),
        execution_id="half-open",
    )
    had = {1: bytearray(), 2: bytearray()}
    async with remote.controller(keepalive_seconds=INTERVAL, keepalive_count=COUNT) as controller:
        execution = await controller.submit(remote.host, job)
        stopped: list[int] = []
        began = 0.0
        async for piece in execution.pieces():
            had[piece.stream] += piece.data
            if not stopped and len(had[1]) > 20_000:
                stopped = remote.server.session_pids()
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                began = time.monotonic()
        found_after = time.monotonic() - began
        assert (await execution.result()).state is Outcome.UNKNOWN
        assert stopped
        assert found_after <= INTERVAL * (COUNT + 1) + LATE, "interval × (count + 1) + 2 s"
        assert found_after > INTERVAL * COUNT, "one late answer is no death"
    async with new_controller(remote, tmp_path / "second") as controller:
        (tmp_path / "gate").touch()
        again = await controller.attach("half-open", remote.host, offsets=(len(had[1]), len(had[2])))
        async for piece in again.pieces():
            assert piece.offset == len(had[piece.stream])
            had[piece.stream] += piece.data
        result = await again.result()
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    kept = spooled(remote.execution("half-open"))
    assert judge_streams(witness, "succeeded", result.to_json(), kept, (bytes(had[1]), bytes(had[2]))) == []
    assert witness.starts("half-open") == 1
    if is_full():
        said = f"found after {found_after:.1f} s at {INTERVAL:g} s × {COUNT} (allowed {INTERVAL * (COUNT + 1) + 2:g} s)"
        record(f"a stopped sshd, {direction}", f"{said}; re-attached, both sha256 identical", COMMAND)
