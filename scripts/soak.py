"""The soak: one controller, one real sshd, one agent, and jobs of every kind of end in waves until the time is over.

After each wave everything has ended, and what is left is counted: descriptors, sockets, threads, zombies and memory of
the controller and the agent, processes of the host, files in its state directory that belong to no record. What is
there after the last waves must be what was there after the first ones. Exit status: 0 FLAT, 1 something grows, or a job
did not end as it should.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from cronium_controller.dispatch import Controller  # noqa: E402
from cronium_controller.errors import ChannelLostError, ControllerError  # noqa: E402
from cronium_controller.hosts import parse_host  # noqa: E402
from cronium_controller.job import Job  # noqa: E402
from cronium_controller.payloads import Payload, load  # noqa: E402
from cronium_runner.wire.results import Outcome, Result  # noqa: E402
from openssh import child_pids  # noqa: E402
from remote_host import RemoteHost  # noqa: E402
from tcp_proxy import CUTS, TcpProxy  # noqa: E402

KEPT_RECORDS: Final = 50
"""Records beyond these are collected, the oldest first, as retention does in the long run."""
SETTLE_SECONDS: Final = 20.0
"""How long a wave's last processes may take to end: a grace period, and much of it for a busy machine."""
RSS_GROWTH: Final = 0.05
"""Memory after the last waves over that after the first ones: noise is below it, a leak in each job above."""
RSS_FLOOR: Final = 8 * 1024
"""KiB below which growth is noise whatever its share: what the agent may queue for one slow channel, and then keeps."""
FEWEST_WAVES: Final = 8
"""A quarter of them is compared with another; with fewer there is nothing to say."""
KEEPALIVE: Final[dict[str, Any]] = {"keepalive_seconds": 0.3, "keepalive_count": 2}

SCRIPTS: Final = {
    "ok": "cronium.setVariable A $CRONIUM_EXECUTION_ID; cronium.getVariable A; cronium.output k v\n",
    "failing": "echo no >&2; exit 3\n",
    "signalled": "kill -9 $$\n",
    "endless": "echo up; sleep 300\n",
    "stray": "setsid sleep 300 >/dev/null 2>&1 & setsid setsid sleep 300 >/dev/null 2>&1 & echo left\n",
    "big": "head -c 3000000 /dev/zero; head -c 300000 /dev/zero >&2\n",
    "cut": "for i in $(seq 40); do head -c 5000 /dev/zero | tr '\\0' x; sleep 0.01; done\n",
    "rejected": "#!/no/such/interpreter\n",
}


@dataclass(slots=True)
class Series:
    """What was counted after each wave."""

    name: str
    unit: str = ""
    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, value: float, now: float) -> None:
        """One more wave."""
        self.values.append(value)
        self.times.append(now)

    @property
    def slope(self) -> float:
        """Least squares, per hour, from the second quarter on: the first one warms up."""
        start = len(self.values) // 4
        times, values = self.times[start:], self.values[start:]
        middle, mean = sum(times) / len(times), sum(values) / len(values)
        spread = sum((when - middle) ** 2 for when in times)
        if spread == 0:
            return 0.0
        pairs = zip(times, values, strict=True)
        return 3600 * sum((when - middle) * (value - mean) for when, value in pairs) / spread

    @property
    def has_grown(self) -> bool:
        """Whether the last quarter lies above the second one: for memory by more than noise, for the rest at all."""
        quarter = max(1, len(self.values) // 4)
        before, after = self.values[quarter : 2 * quarter], self.values[-quarter:]
        if self.unit == "KiB":
            growth = median(after) - median(before)
            return growth > max(RSS_FLOOR, RSS_GROWTH * median(before))
        return min(after) > max(before)


class Soak:
    """The waves, and what they leave."""

    def __init__(self, remote: RemoteHost, controller: Controller, seed: int) -> None:
        self.remote = remote
        self.controller = controller
        self.series: dict[str, Series] = {}
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._draw = random.Random(seed)
        self._numbers = itertools.count()
        self._payloads = {name: self._payload(name, text) for name, text in SCRIPTS.items()}
        self._agent = 0

    def _payload(self, name: str, text: str) -> Payload:
        path = self.remote.folder / "scripts" / (name if text.startswith("#!") else f"{name}.sh")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return load(path)

    async def begin(self) -> None:
        """Deploys, and learns which agent is ours."""
        self.remote.cronium("deploy", "--host", self.remote.server.target)
        await self._run("ok")
        while len(agents := self.remote.agents()) != 1:  # a supervisor that is about to end looks like its agent
            await asyncio.sleep(0.01)
        [self._agent] = agents

    # -- one wave ------------------------------------------------------------------------------------------------

    async def wave(self) -> None:
        """Jobs of every kind at once, to their ends."""
        kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            *[("ok", self._ok)] * 5,
            ("failed", lambda: self._ends("failing", Outcome.FAILED)),
            ("signalled", lambda: self._ends("signalled", Outcome.FAILED)),
            ("timed out", lambda: self._ends("endless", Outcome.TIMED_OUT, timeout=0.3)),
            ("rejected", lambda: self._ends("rejected", Outcome.REJECTED)),
            ("stray", lambda: self._ends("stray", Outcome.SUCCEEDED)),
            ("big output", lambda: self._ends("big", Outcome.SUCCEEDED)),
            ("cancelled", self._cancelled),
            ("supervisor killed", self._killed),
            ("connection cut", self._cut),
            ("same id again", self._again),
        ]
        await asyncio.gather(*[self._attempt(name, kind) for name, kind in kinds])

    async def _attempt(self, name: str, kind: Callable[[], Awaitable[None]]) -> None:
        try:
            await kind()
            self.done[name] += 1
        except (ControllerError, AssertionError, OSError) as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")

    def _job(self, name: str, **how: Any) -> Job:
        return Job(self._payloads[name], execution_id=f"soak-{next(self._numbers)}", **how)

    async def _run(self, name: str, **how: Any) -> Result:
        execution = await self.controller.submit(self.remote.host, self._job(name, **how))
        return await execution.result()

    async def _ok(self) -> None:
        result = await self._run("ok")
        assert (result.state, result.output) == (Outcome.SUCCEEDED, {"k": "v"}), result

    async def _ends(self, name: str, state: Outcome, **how: Any) -> None:
        result = await self._run(name, **how)
        assert result.state is state, result

    async def _cancelled(self) -> None:
        execution = await self.controller.submit(self.remote.host, self._job("endless"))
        execution.cancel()
        assert (await execution.result()).state is Outcome.CANCELLED

    async def _killed(self) -> None:
        execution = await self.controller.submit(self.remote.host, self._job("endless"))
        os.kill(self.remote.history(execution.id)[0]["supervisor"]["pid"], signal.SIGKILL)
        assert (await execution.result()).state is Outcome.LOST

    async def _again(self) -> None:
        job = self._job("ok")
        executions = [await self.controller.submit(self.remote.host, job) for _ in range(3)]
        assert [execution.was_started for execution in executions] == [True, False, False]
        for execution in executions:
            assert (await execution.result()).state is Outcome.SUCCEEDED

    async def _cut(self) -> None:
        """By another controller over a connection that is cut; ours goes on from where it was."""
        job = self._job("cut")
        seen = 0
        async with (
            TcpProxy(self.remote.server.port) as proxy,
            self.remote.controller(host_keys="off", store=self.controller.store, **KEEPALIVE) as other,
        ):
            host = parse_host(f"127.0.0.1:{proxy.port}", identity=str(self.remote.server.identity))
            try:
                execution = await other.submit(host, job)
            except ChannelLostError:  # its keepalive is short, for the holes: too short for this machine just now
                again = await self.controller.submit(self.remote.host, job)
            else:
                proxy.cut_after(self._draw.randint(0, 150_000), self._draw.choice(CUTS))
                async for piece in execution.pieces():
                    seen += len(piece.data)
                await execution.result()
                again = await self.controller.attach(execution.id, self.remote.host, offsets=(seen, 0))
        async for piece in again.pieces():
            seen += len(piece.data)
        assert (seen, (await again.result()).state) == (200_000, Outcome.SUCCEEDED), seen

    # -- what is left --------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Waits until nothing but our agent is left on the host, and collects old records."""
        until = time.monotonic() + SETTLE_SECONDS
        while set(self.remote.processes()) - {self._agent} and time.monotonic() < until:
            await asyncio.sleep(0.05)
        records = sorted((self.remote.state / "executions").glob("soak-*"), key=lambda path: path.stat().st_mtime)
        for old in records[:-KEPT_RECORDS]:
            shutil.rmtree(old)

    def sample(self, now: float) -> None:
        """Counts what there is."""
        gc.collect()  # what is garbage already is no growth
        for who, pid in (("controller", os.getpid()), ("agent", self._agent)):
            descriptors = _descriptors(pid)
            self._add(f"{who}: descriptors", len(descriptors), now)
            self._add(f"{who}: sockets", sum(link.startswith("socket:") for link in descriptors), now)
            self._add(f"{who}: threads", len(os.listdir(f"/proc/{pid}/task")), now)
            self._add(f"{who}: zombies", _zombies_below(pid), now)
            self._add(f"{who}: memory", _resident_kib(pid), now, "KiB")
        self._add("controller: tasks", len(asyncio.all_tasks()), now)
        self._add("host: processes", len(self.remote.processes()), now)
        self._add("host: connections", len(self.remote.server.session_pids()), now)
        self._add("host: files of no record", len(self._strangers()), now)

    def _add(self, name: str, value: float, now: float, unit: str = "") -> None:
        self.series.setdefault(name, Series(name, unit)).add(value, now)

    def _strangers(self) -> list[Path]:
        """Files in the host's folders that belong to no record, no payload and no installed runner."""
        state, root = self.remote.state, self.remote.root
        return [
            *state.glob("executions/.*"),
            *state.glob("executions/*/*.new"),
            *state.glob("payloads/.*"),
            *state.glob("s/*"),
            *root.glob(".*"),
            *root.glob("*.tmp"),
            *self.remote.home.glob(".*"),
        ]


def _descriptors(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return [link for link in found if not link.startswith(f"/proc/{pid}/")]


def _zombies_below(pid: int) -> int:
    count = 0
    for child in child_pids(pid):
        with contextlib.suppress(OSError):
            count += Path(f"/proc/{child}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"
    return count


def _resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


async def soak(seconds: float, binary: Path, folder: Path, seed: int) -> int:
    """All of it, for so many seconds and FEWEST_WAVES at least; the exit status."""
    with RemoteHost(folder / "host", binary, folder / "root") as remote:
        async with remote.controller() as controller:
            running = Soak(remote, controller, seed)
            await running.begin()
            began, waves = time.monotonic(), 0
            while (time.monotonic() - began < seconds or waves < FEWEST_WAVES) and not running.wrong:
                waves += 1
                await running.wave()
                await running.settle()
                running.sample(time.monotonic() - began)
                await asyncio.sleep(0.2)
        return report(running, time.monotonic() - began, seed)


def report(running: Soak, seconds: float, seed: int) -> int:
    """Prints the table and the verdict; the exit status."""
    series = list(running.series.values())
    waves = len(series[0].values) if series else 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(running.done.items()))
    print(f"{running.done.total()} executions in {waves} waves, {seconds / 60:.1f} minutes, seed {seed}: {kinds}")
    print(f"{'what':<28}{'first':>10}{'last':>10}{'max':>10}{'per hour':>12}")
    for each in series:
        first, last, most = each.values[0], each.values[-1], max(each.values)
        print(f"{each.name:<28}{first:>10.0f}{last:>10.0f}{most:>10.0f}{each.slope:>12.1f} {each.unit}")
    if running.wrong:
        print(f"WRONG {running.wrong}")
        return 1
    grown = [each.name for each in series if each.has_grown]
    print(f"GROWS {', '.join(grown)}" if grown else "FLAT")
    return 1 if grown else 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Jobs of all kinds for a while; FLAT or not.")
    parser.add_argument("seconds", nargs="?", type=float, default=60.0)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    given = parser.parse_args()
    seconds = given.seconds if given.minutes is None else 60 * given.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as for an interrupt: everything is cleaned up
    os.environ.pop("SSH_AUTH_SOCK", None)
    with tempfile.TemporaryDirectory(prefix="cronium-soak-") as name:
        os.environ["HOME"] = name  # the account's own SSH configuration plays no part
        status = asyncio.run(soak(seconds, given.binary.resolve(), Path(name), given.seed))
    sys.exit(status)


if __name__ == "__main__":
    main()
