"""One system call of one process of the runner, killed or failed by strace, and what must hold of the execution then.

A `Point` names the call: which scenario, which process, the call's name and its number among those of that name in that
process, and what happens there: KILL, or an errno. A `Trial` runs the scenario once with that point and judges. strace
is put on the parked process alone (`faults.parked_runner`), so each number means the same call in every run.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from cronium_runner.jobdir import StateDirectory
from cronium_runner.process import identity
from cronium_runner.wire.frames import Kind
from payload_bytes import make_payload
from runner_process import FAREWELL, ROOT, AgentProcess, Host, Payload, command_line, is_running, processes_with

ID: Final = "point"
STUCK_SECONDS: Final = 60.0
"""A run that takes longer hangs: a hundred times what it takes, and more than a grace period and a second try."""
KILL: Final = "KILL"

STDOUT: Final = b"known bytes\n"
STDERR: Final = b"a complaint\n"
OUTPUT: Final = {"answer": "42"}
SCRIPT: Final = """\
echo started >>{side}
echo known bytes
echo a complaint >&2
cronium.output answer 42 2>/dev/null || exit 9
exit {status}
"""

ERRORS: Final[dict[str, tuple[str, ...]]] = {
    # What the kernel may answer. Not close(2): strace would leave the descriptor open, which no kernel does.
    "write": ("ENOSPC", "EIO", "EDQUOT", "EINTR"),
    "pwrite64": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("ENOSPC", "EIO", "EDQUOT"),
    "rename": ("ENOSPC", "EIO", "EDQUOT"),
    "mkdir": ("ENOSPC", "EIO", "EDQUOT"),
    "openat": ("ENOSPC", "EIO", "EDQUOT", "EMFILE"),
    "bind": ("ENOSPC", "EIO"),
    "ftruncate": ("EIO",),
    "unlink": ("EIO",),
    "unlinkat": ("EIO",),
    "rmdir": ("EIO",),
    "chmod": ("EIO",),
    "chdir": ("EIO",),
    "read": ("EIO",),
    "pread64": ("EIO",),
    "getdents64": ("EIO",),
    "statfs": ("EIO",),
    "fstatfs": ("EIO",),
    "flock": ("ENOLCK",),
    "socket": ("EMFILE",),
    "socketpair": ("EMFILE",),
    "pipe2": ("EMFILE",),
    "epoll_create1": ("EMFILE",),
    "accept4": ("EMFILE",),
    "dup": ("EMFILE",),
    "fcntl": ("EMFILE", "ENOLCK"),
    "clone": ("EAGAIN",),
    "vfork": ("EAGAIN",),
    "clone3": ("EAGAIN",),
}
REFUSING: Final = frozenset({"ENOSPC", "EIO", "EDQUOT"})
_OF_FCNTL: Final = {"EMFILE": "F_DUPFD", "ENOLCK": "F_OFD_SETLK"}
"""Which of its commands fails in which way."""

_NO_DISK: Final = re.compile(r"<(pipe|socket|anon_inode|UNIX|TCP|/dev/)|/proc/|/dev/null")
"""In a line of `strace -y`: what no disk is behind, so that no disk refuses it. (EIO there would be another fault.)"""
_CALL: Final = re.compile(r"^(?:\d+ +)?(?:<\.\.\. )?([a-z_0-9]+)[( ]")


Calls = dict[str, list[str]]
"""The calls of one process, in order, as strace shows them; by their names."""


class Scenario(NamedTuple):
    """What is run, and which of its processes is looked at."""

    name: str
    role: str

    def __str__(self) -> str:
        return f"{self.name}/{self.role}"


SCENARIOS: Final = (
    Scenario("run", "supervisor"),
    Scenario("run", "guardian"),
    Scenario("agent", "supervisor"),
    Scenario("agent", "guardian"),
    Scenario("give-back", "supervisor"),
    Scenario("undertake", "undertaker"),
    Scenario("index", "writer"),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One system call of a scenario, and what becomes of it."""

    scenario: Scenario
    call: str
    number: int
    effect: str

    def __str__(self) -> str:
        return f"{self.scenario} {self.call}#{self.number} {self.effect}"

    @property
    def options(self) -> list[str]:
        """What strace is told."""
        what = "signal=KILL" if self.effect == KILL else f"error={self.effect}"
        return ["-y", "-e", f"trace={self.call}", "-e", f"inject={self.call}:{what}:when={self.number}"]

    def is_hit_in(self, log: str) -> bool:
        """Whether strace says that it was done."""
        return "+++ killed by SIGKILL +++" in log if self.effect == KILL else "(INJECTED)" in log


def why_not_traced() -> str | None:
    """Why strace can't be used here, or None."""
    found = shutil.which("strace")
    if found is None:
        return "strace is not installed (scripts/setup names the package)"
    tried = subprocess.run(
        [found, "-o", os.devnull, "-e", "inject=getppid:error=EIO", "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"tracing is not permitted here: {tried.stderr.strip()}"


def calls_of(scenario: Scenario, folder: Path, install_directory: Path) -> Calls:
    """The system calls that the scenario's process makes when nothing is disturbed."""
    trial = Trial(None, scenario, folder, install_directory)
    violations = trial.run()
    assert not violations, violations
    calls: Calls = {}
    for line in trial.log.splitlines():
        found = _CALL.match(line)
        if found is not None and " resumed>" not in line:
            calls.setdefault(found[1], []).append(line)
    return calls


def kill_points(scenario: Scenario, calls: Calls) -> list[Point]:
    """Every call, killed."""
    return [Point(scenario, call, number + 1, KILL) for call in sorted(calls) for number in range(len(calls[call]))]


def error_points(scenario: Scenario, calls: Calls) -> list[Point]:
    """Every call that may fail, with every way to fail."""
    return [
        Point(scenario, call, number, error)
        for call in sorted(calls)
        for error in ERRORS.get(call, ())
        for number, line in enumerate(calls[call], 1)
        if (error not in REFUSING or _NO_DISK.search(line) is None) and (call != "fcntl" or _OF_FCNTL[error] in line)
    ]


class Trial:
    """One run of a scenario with (or without) a point. `run` says what was wrong."""

    def __init__(
        self, point: Point | None, scenario: Scenario, folder: Path, install_directory: Path, *, status: int = 0
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.point = point
        self.scenario = scenario
        self.status = status
        self.host = Host(folder, install_directory)
        python_path = self.host.environment.get("PYTHONPATH")
        self.host.environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "tests"), python_path)))
        self.side = folder / "started"
        self.violations: list[str] = []
        self.told: dict[str, Any] | None = None
        """The result that somebody was told before the resubmission."""
        self.is_accepted = False
        self.is_hit = False
        self.log = ""
        self.payload = self._payload()

    def run(self) -> list[str]:
        """All of it. An empty list is how it should be."""
        try:
            with self._tracing():
                self._first_contact()
            if self._has_missed_the_disk:
                self.is_hit = False
                self.violations.clear()
                return []
            before = self._recorded_bytes()
            self._check_told()
            final = self._contact_again()
            self._check_final(final, before)
            self._check_left()
        except AssertionError as error:
            self.violations.append(f"{type(error).__name__}: {error}")
        finally:
            self._end_everything()
        return [f"{self.point or self.scenario}: {each}" for each in self.violations]

    @property
    def _has_missed_the_disk(self) -> bool:
        """Whether a disk's refusal was given by a pipe: the calls came in another order, and no pipe does that."""
        lines = [line for line in self.log.splitlines() if "(INJECTED)" in line]
        return (
            bool(lines) and self.point is not None and self.point.effect in REFUSING and bool(_NO_DISK.search(lines[0]))
        )

    # -- strace --------------------------------------------------------------------------------------------------

    @property
    def _parked_file(self) -> Path:
        return self.folder / "parked"

    @contextlib.contextmanager
    def _tracing(self) -> Iterator[None]:
        """While the block runs, strace is put on the parked process as soon as there is one."""
        over = threading.Event()
        attendant = threading.Thread(target=self._attend, args=(over,))
        attendant.start()
        try:
            yield
        finally:
            over.set()
            attendant.join()

    def _attend(self, over: threading.Event) -> None:
        while not (parked := _pid_in(self._parked_file)) or not _is_stopped(parked):
            if over.wait(0.002):
                return
        log = self.folder / "strace.log"
        options = ["-y", "-e", "trace=all"] if self.point is None else self.point.options
        with subprocess.Popen(
            ["strace", *options, "-o", str(log), "-p", str(parked)], stderr=subprocess.PIPE
        ) as tracer:
            assert tracer.stderr is not None
            line = tracer.stderr.readline()
            os.kill(parked, signal.SIGCONT)
            if b"attached" not in line:
                self.violations.append(f"strace did not attach: {line!r}")
            over.wait()
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(STUCK_SECONDS if is_running(parked) else 5)
            tracer.kill()
        self.log = log.read_text(errors="replace")
        self.is_hit = self.point is not None and self.point.is_hit_in(self.log)

    # -- the scenario --------------------------------------------------------------------------------------------

    def _payload(self) -> Payload:
        if self.scenario.name == "give-back":
            # The kernel finds out that it can't be executed: after the claim.
            files = {"manifest.yaml": b"version: v1\nentrypoint: job\n", "job": b"no program\n"}
            return Payload(make_payload(files, executable=("job",)))
        return self.host.payload(SCRIPT.format(side=self.side, status=self.status), interpreter="sh")

    def _words(self, role: str) -> list[str]:
        return [sys.executable, "-m", "faults.parked_runner", role, str(self._parked_file)]

    def _first_contact(self) -> None:
        self.host.executable = self._words(self.scenario.role)
        if self.scenario.name == "start up":
            self._start_under_strace()
        elif self.scenario.name == "undertake":
            self._leave_a_dead_execution()
            self._command("status", "--json", ID)
        elif self.scenario.name == "agent":
            self._converse()
        elif self.scenario.name == "index":
            self._have_the_index_written()
        else:
            path = self.payload.write(self.folder / "job.tar.gz")
            self.told = self._command("run", "--json", "--execution-id", ID, path)

    def _have_the_index_written(self) -> None:
        """An execution ends, and a listing starts the writer of the index; whatever becomes of it, listings agree."""
        self.host.executable = self._words("nobody")
        path = self.payload.write(self.folder / "job.tar.gz")
        self.told = self._command("run", "--json", "--execution-id", ID, path)
        before = self._listing()
        self.host.executable = self._words("writer")
        self._check_listing(before)
        until = time.monotonic() + STUCK_SECONDS
        while not (parked := _pid_in(self._parked_file)) or is_running(parked):
            if time.monotonic() > until:
                self.violations.append("the writer of the index hangs")
                break
            time.sleep(0.005)
        self.host.executable = self._words("nobody")
        self._check_listing(before)

    def _listing(self) -> bytes:
        return self.host.run("list", "--all").stdout

    def _check_listing(self, before: bytes) -> None:
        if (after := self._listing()) != before or not before:
            self.violations.append(f"the listing was {before!r} and is {after!r}")

    def _start_under_strace(self) -> None:
        """From the first system call on, and without anything loaded before."""
        log = self.folder / "strace.log"
        options = ["-y", "-e", "trace=all"] if self.point is None else self.point.options
        self.host.executable = ["strace", *options, "-o", str(log), sys.executable, "-m", "cronium_runner"]
        path = self.payload.write(self.folder / "job.tar.gz")
        self.told = self._command("run", "--json", "--execution-id", ID, path)
        self.log = log.read_text(errors="replace")
        self.is_hit = self.point is not None and self.point.is_hit_in(self.log)

    def _contact_again(self) -> dict[str, Any] | None:
        """The same submission, by a runner that nobody disturbs, until it is answered: its result."""
        self.host.executable = self._words("nobody")
        path = self.payload.write(self.folder / "job.tar.gz")
        if self.scenario.name == "agent":
            for _ in range(3):
                result = self._converse(is_last=True)
                if result is not None:
                    return result
            self.violations.append("no answer to the last contacts")
            return None
        for _ in range(3):
            result = self._command("run", "--json", "--execution-id", ID, path, is_last=True)
            if result is not None and (result["error"] or {}).get("code") != "state.unusable":
                return result
        self.violations.append("no answer to the last contacts")
        return None

    def _command(self, *words: object, is_last: bool = False) -> dict[str, Any] | None:
        """Runs a command; the JSON object that it printed, or None when it was killed or could not say anything."""
        process = self.host.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            try:
                stdout, stderr = process.communicate(timeout=STUCK_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                self.violations.append(f"{words[0]} hangs")
                return None
        if b"Traceback" in stderr:
            self.violations.append(f"traceback shown: {stderr[-600:]!r}")
        if process.returncode == -signal.SIGKILL and not is_last:
            return None
        lines = stdout.splitlines()
        if len(lines) != 1:
            # What can't be printed as a result is one sentence.
            said = stderr.decode().strip()
            if process.returncode != 125 or said.count("\n") or not said.startswith("cronium-runner: "):
                self.violations.append(f"exit status {process.returncode}, said {stdout!r} {said!r}")
            elif is_last:
                self.violations.append(f"last contact: {said}")
            elif "runner.internal" in said:
                self.violations.append(f"a defect: {said}")
            return None
        value: dict[str, Any] = json.loads(lines[0])
        if words[0] == "run":
            self._check_status(value, process.returncode)
        return value

    def _converse(self, *, is_last: bool = False) -> dict[str, Any] | None:
        """One agent: submit, hand over the payload, follow to the end, acknowledge. The result, when it came so far."""
        try:
            with (self.folder / "agent.stderr").open("wb") as said, self._agent(said) as agent:
                try:
                    return self._submit(agent, is_last)
                finally:
                    agent.close_input()
                    try:
                        agent.process.wait(STUCK_SECONDS)
                    except subprocess.TimeoutExpired:
                        self.violations.append("the agent hangs")
                        agent.process.kill()
        except (AssertionError, OSError) as error:
            # An agent that is killed, or that can't start, ends the channel: the first contact may meet that.
            if is_last or "no frame within" in str(error):
                self.violations.append(f"agent: {error}")
        return None

    @contextlib.contextmanager
    def _agent(self, said: BinaryIO) -> Iterator[AgentProcess]:
        self.host.user = {"stderr": said}
        try:
            with AgentProcess(self.host) as agent:
                yield agent
        finally:
            words = (self.folder / "agent.stderr").read_bytes()
            if words.count(b"\n") > 1 or (words and not words.startswith(b"cronium-runner: ")):
                self.violations.append(f"the agent says {words[-600:]!r}")

    def _submit(self, agent: AgentProcess, is_last: bool) -> dict[str, Any] | None:
        channel = agent.submit(self.payload, ID)
        while True:
            frame = agent.expect(channel, patience=STUCK_SECONDS)
            match frame.kind:
                case Kind.WANT_PAYLOAD:
                    agent.send_payload(channel, self.payload.content)
                case Kind.ACCEPTED:
                    self.is_accepted = True
                case Kind.FINISHED:
                    result = frame.json()
                    break
                case Kind.REFUSED:
                    self._check_sentence(frame.json())
                    if is_last:
                        self.violations.append(f"last contact refused: {frame.json()}")
                    return None
        shown = {"stdout": agent.stdout(channel), "stderr": agent.stderr(channel)}
        for name, content in shown.items():
            if self.is_accepted and result["state"] != "rejected":
                self._check_stream(name, result[name], content)
        if not is_last:
            self.told = result
        if result["state"] != "rejected":
            asked = agent.new_channel()
            agent.send(Kind.ACKNOWLEDGE, asked, {"executionId": ID})
            agent.expect(asked, Kind.STATUS, Kind.REFUSED)
        return result

    def _leave_a_dead_execution(self) -> None:
        """What a supervisor leaves that was killed while its script ran: directory, socket, and a process."""
        state = StateDirectory.open(str(self.host.state))
        execution = self.host.execution(ID)
        (execution / "work").mkdir(parents=True, mode=0o700)
        path = state.socket_path()
        Path(path).touch()
        dead = {**identity(os.getpid()), "start": 0}
        claim = {"socket": path, "supervisor": dead, "runnerVersion": "0"}
        lines = [{"state": "claimed", "at": "x", **claim}, {"state": "running", "at": "y"}]
        (execution / "state.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (execution / "stdout").write_bytes(STDOUT)
        (execution / "stderr").write_bytes(STDERR)
        self.side.write_text("started\n")
        self._orphan = subprocess.Popen(["sleep", "300"], env={**self.host.environment, "CRONIUM_SOCKET": path})

    # -- what must hold ------------------------------------------------------------------------------------------

    @property
    def _is_failed(self) -> bool:
        """Whether the point is a call that fails: then everybody lives who has to say something."""
        return self.point is not None and self.point.effect != KILL

    def _starts(self) -> int:
        return self.side.read_text().count("\n") if self.side.exists() else 0

    def _recorded_bytes(self) -> bytes | None:
        path = self.host.execution(ID) / "result.json"
        return path.read_bytes() if path.exists() else None

    def _check_told(self) -> None:
        """What was said before anybody asked again."""
        told = self.told
        if told is None:
            if self.scenario.name == "run" and self._is_failed and self._starts():
                self.violations.append("nothing was told of what was started")
            return
        if told["state"] == "rejected":
            self._check_sentence(told["error"] or {})
            if self._starts():
                self.violations.append(f"told rejected, but started: {told['error']}")
            if self.host.execution(ID).exists():
                self.violations.append(f"told rejected, but claimed: {told['error']}")
        elif told["state"] != "unknown":
            recorded = json.loads(self._recorded_bytes() or b"null")
            shown = {key: told[key] for key in ("state", "exitCode", "finishedAt", "output", "error")}
            if recorded is None or {key: recorded[key] for key in shown} != shown:
                self.violations.append(f"told {shown}, recorded {recorded}")

    def _check_sentence(self, error: dict[str, Any]) -> None:
        message = str(error.get("message") or "")
        if not message or "\n" in message or "Traceback" in message:
            self.violations.append(f"not a sentence: {error}")
        is_internal = error.get("code") == "runner.internal" and "ended before it had claimed" not in message
        if not self._is_failed:
            return
        if is_internal:
            self.violations.append(f"a defect: {error}")
        elif error.get("code") == "state.unusable" and "/" not in message:
            self.violations.append(f"no path in: {error}")

    def _check_status(self, result: dict[str, Any], status: int) -> None:
        expected = {"succeeded": 0, "lost": 125, "unknown": 255}.get(result["state"], status)
        if status != expected or (status == 0) != (result["state"] == "succeeded"):
            self.violations.append(f"exit status {status} for {result['state']}: {result['error']}")

    def _check_final(self, result: dict[str, Any] | None, before: bytes | None) -> None:
        starts = self._starts()
        if starts > 1:
            self.violations.append(f"{starts} starts")
        if result is None:
            return
        state = result["state"]
        recorded = self._recorded_bytes()
        if before is not None and recorded != before:
            self.violations.append(f"the record has changed: {before!r}, now {recorded!r}")
        if self.scenario.name == "give-back":
            if state not in ("rejected", "lost") or starts:
                self.violations.append(f"ended as {state}: {result['error']}")
            return
        if state == "succeeded":
            self._check_complete(result)
        elif state == "failed":
            self._check_failed(result)
        elif state != "lost" or (self._is_failed and self.scenario.name != "undertake"):
            self.violations.append(f"ended as {state}: {result['error']}")  # a call that fails has killed nobody
        if starts != 1 and state != "lost":
            self.violations.append(f"{starts} starts, {state}")
        for name in ("stdout", "stderr"):
            path = self.host.execution(ID) / name
            self._check_stream(name, result[name], path.read_bytes() if path.exists() else b"")

    def _check_complete(self, result: dict[str, Any]) -> None:
        told = [result[name]["sha256"] for name in ("stdout", "stderr")]
        whole = [hashlib.sha256(each).hexdigest() for each in (STDOUT, STDERR)]
        if told != whole or result["stdout"]["truncated"] or result["stderr"]["truncated"]:
            self.violations.append(f"succeeded without complete output: {result}")
        if result["exitCode"] != 0 or self.status != 0 or result["output"] != OUTPUT or result["error"]:
            self.violations.append(f"succeeded, but: {result}")

    def _check_failed(self, result: dict[str, Any]) -> None:
        """Its own exit status, or that of a script whose helper was refused; and the loss is flagged."""
        if not self._is_failed:
            if self.status == 0:
                self.violations.append(f"failed: {result}")
            return
        if result["exitCode"] not in (self.status, 9):
            self.violations.append(f"exit code {result['exitCode']}: {result['error']}")
        is_cut = result["stdout"]["truncated"] or result["stderr"]["truncated"]
        if result["exitCode"] == 0 and not is_cut:
            self.violations.append(f"failed, but neither the script nor its output did: {result}")
        if is_cut and not result["error"]:
            self.violations.append(f"cut without a word: {result}")

    def _check_stream(self, name: str, summary: dict[str, Any], content: bytes) -> None:
        whole = STDOUT if name == "stdout" else STDERR
        if not whole.startswith(content):
            self.violations.append(f"{name} holds {content!r}")
        if (summary["bytes"], summary["sha256"]) != (len(content), hashlib.sha256(content).hexdigest()):
            self.violations.append(f"{name} holds {len(content)} bytes, told are {summary}")
        if content != whole and not summary["truncated"]:
            self.violations.append(f"{name} is cut, which is not flagged: {summary}")

    def _check_left(self) -> None:
        until = time.monotonic() + FAREWELL
        while (left := self._processes()) and time.monotonic() < until:
            time.sleep(0.005)
        if left:
            seen = [command_line(pid) for pid in left if is_running(pid)]
            self.violations.append(f"left running: {seen}")
        recorded = json.loads(self._recorded_bytes() or b"{}")
        is_refused = self.point is not None and self.point.call == "unlink" and self.point.effect != KILL
        if recorded.get("state") == "lost" and not is_refused and os.path.lexists(self.host.history(ID)[0]["socket"]):
            self.violations.append("the socket is left")
        self._check_swept()

    def _check_swept(self) -> None:
        """What nobody can own any more goes once it is an hour old."""
        state = StateDirectory(str(self.host.state))
        folders = [path for path in (self.host.state / "executions", self.host.state / "payloads") if path.exists()]
        folders += [Path(state.socket_path()).parent] if (self.host.state / "s").exists() else []
        for folder in folders:
            for entry in folder.iterdir():
                if entry.name != ID:
                    os.utime(entry, (0, 0))
        state.sweep()
        kept = {ID, f"{self.payload.sha256}.tar.gz"}
        left = [entry for folder in folders for entry in folder.iterdir() if entry.name not in kept]
        if left:
            self.violations.append(f"not swept: {left}")

    def _processes(self) -> list[int]:
        return processes_with(str(self.host.state))

    def _end_everything(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.scenario.name == "undertake":
            self._orphan.kill()
            self._orphan.wait()
        if not self.violations:
            shutil.rmtree(self.folder, ignore_errors=True)


def _pid_in(file: Path) -> int:
    try:
        return int(file.read_text() or 0)
    except FileNotFoundError:
        return 0


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False


class Outcome(NamedTuple):
    """What became of many points."""

    hit: int
    """Points whose injection strace has reported."""
    missed: list[Point]
    """Points that the run did not come by: a read or a wait more or less, from one run to the next."""
    violations: list[str]
    seconds: float


MOST_DIFFERENT: Final = 120
"""Calls of one name in one process, beyond which they are alike: the undertaker's reading of /proc. Others have 80."""
ENDS: Final = 15
"""So many of those are tried at both ends, where the path itself begins and ends."""


def thinned(points: list[Point]) -> list[Point]:
    """Leaves out part of what is alike: of a name called hundreds of times the ends, and every fiftieth between."""
    most: Counter[tuple[Scenario, str]] = Counter()
    for point in points:
        most[point.scenario, point.call] = max(most[point.scenario, point.call], point.number)

    def is_kept(point: Point) -> bool:
        count = most[point.scenario, point.call]
        is_at_an_end = min(point.number, count - point.number) <= ENDS
        return count <= MOST_DIFFERENT or is_at_an_end or point.number % 50 == 0

    return [point for point in points if is_kept(point)]


def try_points(points: list[Point], folder: Path, install_directory: Path, *, at_once: int) -> Outcome:
    """A trial for each point. Every third of those that fail a call has a script that ends with 3."""
    began = time.monotonic()
    missed: list[Point] = []
    violations: list[str] = []

    def attempt(number: int) -> None:
        point = points[number]
        status = 3 if point.effect != KILL and number % 3 == 0 else 0
        trial = Trial(point, point.scenario, folder / f"{number}", install_directory, status=status)
        violations.extend(trial.run())
        if not trial.is_hit:
            missed.append(point)

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(attempt, number) for number in range(len(points))]:
            done.result()
    return Outcome(len(points) - len(missed), missed, violations, time.monotonic() - began)
