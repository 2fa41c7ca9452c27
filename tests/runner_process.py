"""Real runners for tests: one account's state directory, `cronium-runner` as a process, and an agent to talk frames to.

Nothing here decides what is right; it starts, waits and looks. Every process started through a `Host` carries the
host's state directory in its environment, which is how what was left behind is found.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from cronium_runner.wire import frames
from cronium_runner.wire.frames import Frame, Kind
from cronium_runner.wire.names import STDERR, STDOUT
from openssh import child_pids
from payload_bytes import make_payload
from preloaded import COMMANDS, Preloaded, Started

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120.0
"""Seconds after which waiting is given up: far more than anything takes, so reaching it is a failure, not a race."""
FAREWELL = 30.0
"""Seconds within which all of ours is gone after a result: it tidies up on a slow disk. Strays sleep for 60."""

IGNORING_TERM = "trap '' TERM\necho ready\nwhile :; do sleep 0.05; done\n"
"""A script that only SIGKILL ends. `ready` says that the trap is set."""


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The condition's value once it is true; fails when it never becomes so."""
    until = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < until, f"waited {patience:g} s in vain for {what}"
        time.sleep(0.005)
    return value


def with_digest(binary: Path) -> Path:
    """A runner binary of a test's own, with the `.sha256` beside it that each must have."""
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    binary.with_name(binary.name + ".sha256").write_text(f"{digest}  {binary.name}\n")
    return binary


def command_line(pid: int) -> bytes:
    """A process's command line; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes_with(marker: str) -> list[int]:
    """The living processes whose environment, or working directory, holds `marker`."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{name}/stat").read_bytes().rpartition(b") ")[2][:1]
            if state in b"ZX":
                continue
            known = Path(f"/proc/{name}/environ").read_bytes() + os.readlink(f"/proc/{name}/cwd").encode()
            if marker.encode() in known:
                found.append(int(name))
    return found


def unreaped() -> set[int]:
    """Our own children that have ended and that nobody has waited for; those of other tests among them."""
    return {pid for pid in child_pids(os.getpid()) if not is_running(pid)}


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process are open on."""
    folder = f"/proc/{pid}/fd"
    found = []
    for name in os.listdir(folder):
        try:
            found.append(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            continue
    return found


class Host:
    """One account's runner: a private state directory and everything started on it."""

    def __init__(self, folder: Path, install_directory: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.executable: Sequence[str] = COMMANDS["cronium-runner"]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        if "CRONIUM_HELPER_CLIENT" in os.environ:
            self.environment["CRONIUM_HELPER_CLIENT"] = os.environ["CRONIUM_HELPER_CLIENT"]
        if "PYTHONPATH" in self.environment:  # it may be relative to where pytest was started; runners start elsewhere
            parts = self.environment["PYTHONPATH"].split(":")
            self.environment["PYTHONPATH"] = ":".join(map(os.path.abspath, parts))
        self.environment["CRONIUM_STATE_DIR"] = str(self.state)
        self.environment["CRONIUM_INSTALL_DIR"] = str(install_directory)
        if os.geteuid() != 0:  # else no environment tells whose process one is, and strace shows no path
            self.environment["CRONIUM_DUMPABLE"] = "1"
        self.user: dict[str, Any] = {}
        """More of Popen's arguments, to start everything as another account."""

    # -- what runs -----------------------------------------------------------------------------------------------

    def start(self, *words: object, env: Mapping[str, str | None] | None = None, **options: Any) -> Started:
        """Starts `cronium-runner WORDS`. A value of None in `env` takes the variable away."""
        environment = {**self.environment, **(env or {})}
        given = {name: value for name, value in environment.items() if value is not None}
        options = {"stdin": subprocess.DEVNULL, "cwd": self.folder, **self.user, **options}
        if self.executable == COMMANDS["cronium-runner"]:
            return Preloaded("cronium-runner", [*map(str, words)], env=given, **options)
        return Started([*self.executable, *map(str, words)], env=given, **options)

    def run(self, *words: object, input: bytes | None = None, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        """Runs `cronium-runner WORDS` to its end and returns its streams and exit status."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        if input is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*words, **options)
        with process:
            stdout, stderr = process.communicate(input, timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run_json(self, *words: object, **options: Any) -> dict[str, Any]:
        """Runs `cronium-runner run --json WORDS`; its standard output must be exactly one JSON object."""
        done = self.run("run", "--json", *words, **options)
        lines = done.stdout.splitlines()
        assert len(lines) == 1, (done.stdout, done.stderr)
        result: dict[str, Any] = json.loads(lines[0])
        result["exit status"] = done.returncode
        return result

    def script(self, text: str, name: str = "script.sh") -> Path:
        """A script file beside the state directory."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def payload(self, text: str, manifest: str = "", interpreter: str = "bash") -> "Payload":
        """A payload of one script, kept in memory."""
        described = f"version: v1\ninterpreter: {interpreter}\nentrypoint: script\n{manifest}"
        return Payload(make_payload({"manifest.yaml": described.encode(), "script": text.encode()}))

    def agent(self) -> "AgentProcess":
        """A real agent, greeted and ready."""
        return AgentProcess(self)

    # -- what is left --------------------------------------------------------------------------------------------

    def execution(self, execution_id: str) -> Path:
        """The directory of an execution."""
        return self.state / "executions" / execution_id

    def executions(self) -> list[str]:
        """Everything in executions/, temporary names included."""
        folder = self.state / "executions"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def recorded(self, execution_id: str) -> dict[str, Any] | None:
        """The recorded result, or None."""
        try:
            value: dict[str, Any] = json.loads((self.execution(execution_id) / "result.json").read_bytes())
        except FileNotFoundError:
            return None
        return value

    def history(self, execution_id: str) -> list[dict[str, Any]]:
        """The lines of state.jsonl."""
        return [json.loads(line) for line in (self.execution(execution_id) / "state.jsonl").read_bytes().splitlines()]

    def wait_running(self, execution_id: str, stdout: bytes = b"") -> dict[str, Any]:
        """The claim record, once the script runs and has printed `stdout`."""

        def has_begun() -> bool:
            try:
                begun = any("script" in record for record in self.history(execution_id))
                return begun and (not stdout or stdout in (self.execution(execution_id) / "stdout").read_bytes())
            except FileNotFoundError:
                return False

        wait_until(has_begun, f"{execution_id} to run")
        return self.history(execution_id)[0]

    def wait_result(self, execution_id: str) -> dict[str, Any]:
        """The recorded result, once it is there."""
        found: dict[str, Any] = wait_until(lambda: self.recorded(execution_id), f"the result of {execution_id}")
        return found

    def processes(self) -> list[int]:
        """Every living process that belongs to this host."""
        return processes_with(str(self.state))

    def command_lines(self) -> bytes:
        """Those of its processes, one after the other."""
        return b"".join(map(command_line, self.processes()))

    def check_nothing_left(self) -> None:
        """No process, no helper socket, nothing half-prepared. Ends what is there and fails when there is something."""
        until = time.monotonic() + FAREWELL
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.005)  # a supervisor removes its work directory after its result
        seen = [command_line(pid) for pid in left if is_running(pid)]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"left running: {seen}"
        assert not [name for name in self.executions() if name.startswith(".")], self.executions()
        for name in self.executions():
            socket = self.history(name)[0].get("socket")  # a collected one has none
            assert socket is None or not os.path.lexists(socket), f"{socket} of {name} was left behind"


class Payload:
    """Payload bytes and what they hash to."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()

    def write(self, path: Path) -> Path:
        """The payload as a file."""
        path.write_bytes(self.content)
        return path


class AgentProcess:
    """A real agent over pipes. Frames are read as they are wanted; DATA is put together and checked on the way."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.process = host.start("agent", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to = self.process.stdin
        self._from = self.process.stdout.fileno()
        self._greeting: frames.GreetingReader | None = frames.GreetingReader()
        self._reader = frames.FrameReader()
        self._inbox: deque[Frame] = deque()
        self._next_channel = 1
        self.grants = True
        """Whether received DATA is granted again at once."""
        self.streams: dict[tuple[int, int], bytearray] = {}
        self.starts: dict[tuple[int, int], int] = {}
        try:
            self.hello = self.expect(0, Kind.HELLO).json()
        except BaseException:  # it did not come up: nobody else will wait for it
            self.process.kill()
            self.process.communicate()
            raise
        self.send(Kind.HELLO, 0, {"protocol": 1})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.close()
        self._to.close()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def send(self, kind: int, channel: int, body: Mapping[str, Any] | bytes = b"") -> None:
        """Sends one frame."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_raw(frames.encode(kind, channel, content))

    def send_raw(self, content: bytes) -> None:
        """Sends bytes as they are."""
        view = memoryview(content)
        while view:
            view = view[self._to.write(view) or 0 :]

    def wait_loaded(self) -> None:
        """Waits until it has imported what jobs need, which it does after its HELLO; it has files open meanwhile."""
        self.send(Kind.PING, 0)
        self.expect(0, Kind.PONG)

    def receive(self, patience: float = PATIENCE) -> Frame | None:
        """The next frame; None when the agent has closed its end."""
        until = time.monotonic() + patience
        while not self._inbox:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no frame within {patience:g} s"
            piece: bytes | None = os.read(self._from, 1024 * 1024)
            if not piece:
                return None
            if self._greeting is not None:
                piece = self._greeting.feed(piece)
                if piece is None:
                    continue
                self._greeting = None
            self._inbox.extend(self._reader.feed(piece))
        return self._inbox.popleft()

    def expect(self, channel: int, *kinds: Kind, patience: float = PATIENCE) -> Frame:
        """The next frame of one of these kinds on this channel. DATA on any channel is collected meanwhile."""
        put_back = []
        try:
            while True:
                frame = self.receive(patience)
                assert frame is not None, f"the agent closed the channel; wanted {kinds} on {channel}"
                if frame.kind == Kind.DATA:
                    self._collect(frame)
                if frame.channel == channel and (not kinds or frame.kind in kinds):
                    return frame
                if frame.kind != Kind.DATA:
                    put_back.append(frame)
                    assert frame.channel != channel, f"{Kind(frame.kind).name} instead of {kinds}: {frame.body[:500]!r}"
        finally:
            self._inbox.extendleft(reversed(put_back))

    def has_no_frame(self, seconds: float) -> bool:
        """Whether nothing arrives within the time."""
        return not self._inbox and not select.select([self._from], [], [], seconds)[0]

    def _collect(self, frame: Frame) -> None:
        stream, offset, piece = frames.decode_data(frame.body)
        assert stream in (STDOUT, STDERR)
        assert piece
        key = frame.channel, stream
        collected = self.streams.setdefault(key, bytearray())
        start = self.starts.setdefault(key, offset)
        assert offset == start + len(collected), f"DATA at {offset}, expected {start + len(collected)}"
        collected += piece
        if self.grants:
            self.send_raw(frames.encode_credit(frame.channel, stream, len(piece)))

    def new_channel(self) -> int:
        """A channel number that was never used."""
        self._next_channel += 1
        return self._next_channel

    def submit(self, payload: Payload, execution_id: str, channel: int | None = None, **keys: Any) -> int:
        """Sends SUBMIT and returns its channel."""
        channel = channel or self.new_channel()
        self.send(Kind.SUBMIT, channel, {"executionId": execution_id, "sha256": payload.sha256, **keys})
        return channel

    def start(self, payload: Payload, execution_id: str, **keys: Any) -> int:
        """Submits, hands the payload over when it is wanted, and returns the channel once the claim is known."""
        channel = self.submit(payload, execution_id, **keys)
        frame = self.expect(channel, Kind.WANT_PAYLOAD, Kind.ACCEPTED)
        if frame.kind == Kind.WANT_PAYLOAD:
            assert frame.json() == {"sha256": payload.sha256}
            self.send_payload(channel, payload.content)
            frame = self.expect(channel, Kind.ACCEPTED)
        assert frame.json() == {"executionId": execution_id, "started": True}
        return channel

    def send_payload(self, channel: int, content: bytes) -> None:
        """Sends payload bytes in two pieces and the end."""
        half = len(content) // 2
        for piece in (content[:half], content[half:], b""):
            self.send(Kind.PAYLOAD, channel, piece)

    def finished(self, channel: int) -> dict[str, Any]:
        """The result that ends the channel."""
        return self.expect(channel, Kind.FINISHED).json()

    def stdout(self, channel: int) -> bytes:
        """What has arrived of standard output."""
        return bytes(self.streams.get((channel, STDOUT), b""))

    def stderr(self, channel: int) -> bytes:
        """What has arrived of standard error."""
        return bytes(self.streams.get((channel, STDERR), b""))

    def status(self, execution_id: str) -> dict[str, Any]:
        """The agent's word on one execution."""
        channel = self.new_channel()
        self.send(Kind.STATUS, channel, {"executionId": execution_id})
        [found] = self.expect(channel, Kind.STATUS).json()["executions"]
        assert isinstance(found, dict)
        return found

    def close_input(self) -> None:
        """The channel goes away, as when the connection is lost."""
        self._to.close()

    def close(self) -> int:
        """Closes the channel and waits for the agent's end; its exit status."""
        self.close_input()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
