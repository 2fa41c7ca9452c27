"""A host behind a real OpenSSH server with the real binary, and a `cronium` of its own to reach it with.

No pytest in it. The account's HOME, state directory and install root are folders of the test's; so is what `cronium`
remembers. Nothing here decides what is right.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cronium_controller.access import Access
from cronium_controller.connections import prepare
from cronium_controller.dispatch import Controller
from cronium_controller.execution import Execution
from cronium_controller.hosts import Host, parse_host
from cronium_controller.runners import Runners
from cronium_controller.sessions import Connection
from cronium_controller.store import Store
from cronium_controller.transport import DIRECT, Route
from cronium_runner.wire.names import STREAM_NAMES
from openssh import OpenSSHServer
from preloaded import Preloaded, Started
from runner_process import FAREWELL, PATIENCE, command_line, is_running, processes_with, wait_until


class RemoteHost:
    """`root` is where the runner goes on the host; sharing it between hosts saves the upload.

    `connection` is the kind of connection that it is reached by; None: as hosts say themselves.
    """

    def __init__(
        self,
        folder: Path,
        binary: Path,
        root: Path,
        *,
        options: list[str] | None = None,
        mounts: dict[Path, str] | None = None,
        environment: dict[str, str] | None = None,
        connection: str | None = None,
    ) -> None:
        self.connection = connection
        self.folder = folder
        self.binary = binary
        self.root = root
        self.home = folder / "home"
        self.state = folder / "state"
        self.remembered = folder / "controller"
        self.home.mkdir(parents=True)
        self.server = OpenSSHServer(
            folder / "sshd",
            environment={
                "CRONIUM_STATE_DIR": str(self.state),
                "HOME": str(self.home),
                "CRONIUM_DUMPABLE": "0" if os.geteuid() == 0 else "1",  # else only root sees whose process one is
                **(environment or {}),
            },
            options=options,
            mounts=mounts,
        )
        self.known_hosts = self.server.known_hosts
        self.warnings: list[str] = []

    def __enter__(self) -> "RemoteHost":
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.check_nothing_left()

    # -- by the Python API ---------------------------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """The host, with the key that it lets in."""
        return parse_host(self.server.target, identity=str(self.server.identity))

    def access(self, **changes: Any) -> Access:
        """How it is reached: this host's own known_hosts, warnings kept in `warnings`."""
        settings = {"known_hosts": str(self.known_hosts), "warn": self.warnings.append, "connection": self.connection}
        return Access(**{**settings, **changes})

    def controller(self, **changes: Any) -> Controller:
        """A controller with a store of its own (the same as the command's)."""
        runners = changes.pop("runners", None) or Runners(str(self.binary), root=str(self.root), pauses=(0.05, 0.1))
        store = changes.pop("store", None) or self.store()
        return Controller(store=store, access=self.access(**changes), runners=runners)

    def store(self) -> Store:
        """What `cronium` remembers."""
        return Store(self.remembered / "controller.db")

    # -- by the command ------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """The environment of `cronium`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CRONIUM_", "SSH_"))}
        return kept | {
            "CRONIUM_CONTROLLER_STATE": str(self.remembered),
            "CRONIUM_RUNNER_BINARY": str(self.binary),
            "CRONIUM_RUNNER_ROOT": str(self.root),
            "CRONIUM_KNOWN_HOSTS": str(self.known_hosts),
            "CRONIUM_TRACEBACK": "1",  # a defect must not look like a refusal
        }

    def start_cronium(self, *words: object, env: dict[str, str] | None = None, **options: Any) -> Started:
        """Starts `cronium WORDS`, with the key."""
        command, *rest = map(str, words)
        is_for_hosts = command not in ("version", "payload", "metrics", "hosts", "history")
        reaching = ["--identity", str(self.server.identity)] if is_for_hosts else []
        if is_for_hosts and self.connection is not None and "--connection" not in map(str, words):
            reaching += ["--connection", self.connection]
        options = {"stdin": subprocess.DEVNULL, **options}
        return Preloaded("cronium", [command, *reaching, *rest], env={**self.environment, **(env or {})}, **options)

    def cronium(
        self, *words: object, input: bytes | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[bytes]":
        """Runs `cronium WORDS` to its end. Whatever it says is never a traceback."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        if input is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start_cronium(*words, **options)
        with process:
            stdout, stderr = process.communicate(input, timeout=PATIENCE)
        assert b"Traceback" not in (stderr or b""), stderr.decode()
        assert b"never retrieved" not in (stderr or b""), stderr.decode()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run(self, *words: object, **options: Any) -> "subprocess.CompletedProcess[bytes]":
        """Runs `cronium run WORDS` on this host."""
        return self.cronium("run", "--host", self.server.target, *words, **options)

    def run_json(self, *words: object, **options: Any) -> dict[str, Any]:
        """Runs `cronium run --json WORDS`; its standard output must be exactly one JSON object."""
        done = self.run("--json", *words, **options)
        lines = done.stdout.splitlines()
        assert len(lines) == 1, (done.stdout, done.stderr)
        result: dict[str, Any] = json.loads(lines[0])
        result["exit status"] = done.returncode
        result["on stderr"] = done.stderr
        return result

    # -- what is there -------------------------------------------------------------------------------------------

    def script(self, text: str, name: str = "script.sh") -> Path:
        """A script file on the controller's side."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_whole = text.startswith("#!") or path.suffix not in ("", ".sh")  # the first line decides what runs it
        path.write_text(text if is_whole else f"#!/usr/bin/env bash\n{text}")
        return path

    def execution(self, execution_id: str) -> Path:
        """The directory of an execution on the host."""
        return self.state / "executions" / execution_id

    def executions(self) -> list[str]:
        """Everything in executions/, temporary names included."""
        folder = self.state / "executions"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def recorded(self, execution_id: str) -> dict[str, Any] | None:
        """The result recorded on the host, or None."""
        try:
            value: dict[str, Any] = json.loads((self.execution(execution_id) / "result.json").read_bytes())
        except FileNotFoundError:
            return None
        return value

    def history(self, execution_id: str) -> list[dict[str, Any]]:
        """The lines of state.jsonl."""
        return [json.loads(line) for line in (self.execution(execution_id) / "state.jsonl").read_bytes().splitlines()]

    def wait_output(self, execution_id: str, text: bytes) -> None:
        """Waits until the script has printed `text`."""

        def has_printed() -> bool:
            try:
                return text in (self.execution(execution_id) / "stdout").read_bytes()
            except FileNotFoundError:
                return False

        wait_until(has_printed, f"{text!r} from {execution_id}")

    def wait_result(self, execution_id: str) -> dict[str, Any]:
        """The result recorded on the host, once it is there."""
        found: dict[str, Any] = wait_until(lambda: self.recorded(execution_id), f"the result of {execution_id}")
        return found

    def script_group(self, execution_id: str) -> int:
        """The process id of the script, which leads its group."""

        def started() -> int | None:
            with contextlib.suppress(FileNotFoundError):
                return next(
                    (record["script"]["pid"] for record in self.history(execution_id) if "script" in record), None
                )
            return None

        pid: int = wait_until(started, f"{execution_id} to start")
        return pid

    def agents(self) -> list[int]:
        """The agent processes on this host."""
        return [pid for pid in self.processes() if b"agent" in command_line(pid).split(b"\0")]

    def processes(self) -> list[int]:
        """Every living process of this host's account, sshd's own excepted."""
        return [pid for pid in processes_with(str(self.state)) if not command_line(pid).startswith(b"sshd")]

    def count_sessions(self, kind: str) -> int:
        """How many sessions of a kind (`exec`, `subsystem`) the server's log tells of."""
        return self.server.count_in_log("Starting session: " + {"exec": "command", "subsystem": "subsystem"}[kind])

    def check_nothing_left(self) -> None:
        """No process and nothing half-prepared. Ends what is there and fails when there is something."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.processes(), "the host's processes to end", FAREWELL)
        left = [(pid, command_line(pid)) for pid in self.processes() if is_running(pid)]
        for pid, _ in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"left running: {left}"
        assert not [name for name in self.executions() if name.startswith(".")], self.executions()
        if self.root.exists():
            assert not [name for name in os.listdir(self.root) if name.startswith(".")], os.listdir(self.root)


async def connected(host: Host, access: Access) -> Connection:
    """A connection by one attempt over the direct route, of the kind that the host or `access` names."""
    return await (await prepare(host, access)).make(Route(DIRECT, host.address))


async def collect(execution: Execution) -> dict[str, bytes]:
    """Both streams of an execution, to its end; each piece must follow the one before."""
    start = list(execution.offsets)
    found = {name: bytearray() for name in STREAM_NAMES.values()}
    async for piece in execution.pieces():
        name = STREAM_NAMES[piece.stream]
        assert piece.offset == start[piece.stream - 1] + len(found[name]), piece[:2]
        found[name] += piece.data
    return {name: bytes(content) for name, content in found.items()}


@contextlib.contextmanager
def resident_memory_growth(pid: int | str = "self") -> Iterator[list[int]]:
    """How many bytes the peak of a process's resident memory has grown, put into the list at the end."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins at what is resident now
    before = _status(pid, "VmRSS")
    grown: list[int] = []
    yield grown
    grown.append(_status(pid, "VmHWM") - before)


def _status(pid: int | str, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
