"""SIGKILL for runner processes, at moments drawn from a seed, and what must hold of an execution when all is over.

A round submits one id, kills while it is under way, and contacts the host again under the same id, as often as the draw
says; the last contact is left alone and must see the execution's end.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cronium_runner.wire.frames import Kind
from faults.witness import SCRIPT, Witness
from openssh import child_pids
from runner_process import AgentProcess, Host, command_line, is_running, processes_with

STUCK_SECONDS: Final = 40.0
"""How long an undisturbed contact may take before its id counts as stuck: fifty times what it takes."""

VICTIMS: Final = ("guardian", "supervisor", "both")


@dataclass(slots=True)
class Tally:
    """What was done and what was found, over many rounds at once."""

    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __str__(self) -> str:
        return f"{dict(self.kills)} kills, ends {dict(self.states)}, violations {self.violations or 0}"

    def killed(self, what: str) -> None:
        """One living process was killed."""
        with self.lock:
            self.kills[what] += 1

    def over(self, state: str, violations: list[str]) -> None:
        """One execution has been seen to its end."""
        with self.lock:
            self.states[state] += 1
            self.violations += violations


class Round:
    """One id, killed at, contacted again, and judged."""

    def __init__(self, host: Host, number: int, seed: int, life: float, tally: Tally) -> None:
        self.host = host
        self.id = f"kill-{number}"
        self.tally = tally
        self._draw = random.Random(f"{seed}-{number}")
        self._life = life
        self._has_lost_supervisor = False
        self._trouble = ""
        self._witness = Witness(host.folder / "starts", seed + number, leaves_stray=self._draw.random() < 0.25)
        self._script = host.folder / "witness.py"  # written once, before the first round: others read it now
        self._payload = host.payload(SCRIPT, interpreter="python")
        self._by_agent = self._draw.random() < 0.5
        """Kept for the round: an id belongs to one payload, and those of the two ways differ."""

    def run(self) -> None:
        """All of it; what is wrong goes into the tally."""
        for victim in self._victims():
            self._contact(victim)
        streams = self._contact(None)
        state, violations = self._judge(streams)
        self.tally.over(state, [f"{self.id}: {each}" for each in violations])

    def _victims(self) -> list[str]:
        victims = [self._draw.choice(VICTIMS)]
        while self._draw.random() < 0.3:
            victims.append(self._draw.choice(VICTIMS))
        return victims

    def _contact(self, victim: str | None) -> tuple[bytes, bytes]:
        """Submits the id, or attaches to it, and follows to the end of what is there to follow. Both streams' bytes."""
        return (self._contact_by_agent if self._by_agent else self._contact_by_command)(victim)

    def _contact_by_command(self, victim: str | None) -> tuple[bytes, bytes]:
        seen = [self.host.folder / f"{self.id}.{name}" for name in ("stdout", "stderr")]
        with seen[0].open("wb") as stdout, seen[1].open("wb") as stderr:
            words = ["run", "--execution-id", self.id, self._script, "--", *self._witness.args]
            running = self.host.start(*words, stdout=stdout, stderr=stderr)
            with self._killing(victim, running):
                self._wait(running)
        found = seen[0].read_bytes(), seen[1].read_bytes()
        for path in seen:
            path.unlink()
        return found

    def _contact_by_agent(self, victim: str | None) -> tuple[bytes, bytes]:
        with self.host.agent() as agent:
            with self._killing(victim, agent.process):
                try:
                    self._follow(agent)
                except (
                    AssertionError,
                    OSError,
                ) as error:  # also when the agent was killed, which is what we are here for
                    self._trouble = str(error)
            if victim is None:
                self._wait(agent.process, agent)
            return agent.stdout(1), agent.stderr(1)

    def _follow(self, agent: AgentProcess) -> None:
        agent.submit(self._payload, self.id, channel=1, args=self._witness.args)
        frame = agent.expect(1, Kind.WANT_PAYLOAD, Kind.ACCEPTED, Kind.FINISHED)
        if frame.kind == Kind.WANT_PAYLOAD:
            agent.send_payload(1, self._payload.content)
            frame = agent.expect(1, Kind.ACCEPTED, Kind.FINISHED)
        if frame.kind != Kind.FINISHED:
            agent.expect(1, Kind.FINISHED, patience=STUCK_SECONDS)

    def _wait(self, running: "subprocess.Popen[bytes]", agent: AgentProcess | None = None) -> None:
        if agent is not None:
            agent.close_input()
        try:
            running.wait(STUCK_SECONDS)
        except subprocess.TimeoutExpired:
            with self.tally.lock:
                self.tally.violations.append(f"{self.id}: stuck")
            running.kill()

    @contextlib.contextmanager
    def _killing(self, victim: str | None, guardian: "subprocess.Popen[bytes]") -> Iterator[None]:
        """Kills while the block runs, should it run for long enough; `victim` None kills nothing."""
        if victim is None:
            yield
            return
        done = threading.Event()
        moment = self._draw.uniform(0, self._life)
        is_guardian_first = self._draw.random() < 0.5
        thread = threading.Thread(target=self._kill_at, args=(moment, victim, guardian, is_guardian_first, done))
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _kill_at(
        self,
        moment: float,
        victim: str,
        guardian: "subprocess.Popen[bytes]",
        is_guardian_first: bool,
        done: threading.Event,
    ) -> None:
        if done.wait(moment):
            return
        supervisors: list[int] = []
        if victim != "guardian":
            while not supervisors and not done.is_set() and guardian.poll() is None:
                supervisors = supervisors_below(guardian.pid)
                time.sleep(0.001)
        order: list[Callable[[], None]] = [lambda: self._kill_supervisors(supervisors)]
        if victim != "supervisor":
            order.insert(0 if is_guardian_first else 1, lambda: self._kill_guardian(guardian))
        for kill in order:
            kill()

    def _kill_guardian(self, guardian: "subprocess.Popen[bytes]") -> None:
        if guardian.poll() is None:
            guardian.kill()
            self.tally.killed("agent" if self._by_agent else "foreground")

    def _kill_supervisors(self, pids: list[int]) -> None:
        for pid in pids:
            if is_running(pid):
                self._has_lost_supervisor = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.tally.killed("supervisor")

    # -- what must hold ------------------------------------------------------------------------------------------

    def _judge(self, streams: tuple[bytes, bytes]) -> tuple[str, list[str]]:
        result = self.host.recorded(self.id)
        if result is None:
            return "none", [f"no result, though nobody disturbed the last contact: {self._trouble}"]
        state = str(result["state"])
        if state == "lost" and not self._by_agent:  # the command says so, in one line behind the script's own words
            own, _, said = streams[1].rpartition(b"cronium-runner: ")
            assert said.endswith(b"[execution.lost]\n"), streams[1][-300:]
            streams = streams[0], own
        wrong = judge_streams(self._witness, state, result, spooled(self.host.execution(self.id)), streams)
        starts = self._witness.starts(self.id)
        if starts > 1 or (starts != 1 and state != "lost"):
            wrong.append(f"{starts} starts")
        if state == "lost" and not self._has_lost_supervisor:
            wrong.append("lost, though its supervisor was left alone")
        left = processes_with(f"CRONIUM_EXECUTION_ID={self.id}\0")
        if left:
            wrong.append(f"left running: {left}")
        return state, wrong


def judge_streams(
    witness: Witness, state: str, result: dict[str, Any], kept: tuple[bytes, bytes], seen: tuple[bytes, bytes]
) -> list[str]:
    """What is wrong with the bytes that are kept, and with those that the last contact has shown."""
    wrong = []
    if state == "succeeded":
        wrong += witness.missing_in(result)
        if kept != witness.streams():
            wrong.append("what is kept is not what was written")
    elif state == "lost":
        if not all(whole.startswith(part) for whole, part in zip(witness.streams(), kept, strict=True)):
            wrong.append("what is kept does not begin what was written")
    else:
        wrong.append(f"ended as {state}: {result.get('error')}")
    if seen != kept:
        wrong.append(f"shown were {[len(each) for each in seen]} bytes, kept are {[len(each) for each in kept]}")
    return wrong


def spooled(execution: Path) -> tuple[bytes, bytes]:
    """Both streams as they are kept."""
    found = []
    for name in ("stdout", "stderr"):
        try:
            found.append((execution / name).read_bytes())
        except FileNotFoundError:
            found.append(b"")
    return found[0], found[1]


def supervisors_below(guardian: int) -> list[int]:
    """The guardian's children that are forks of it: its supervisors, or the undertaker of one."""
    command = command_line(guardian)
    return [pid for pid in child_pids(guardian) if command_line(pid) == command != b""]
